"""The plan: everything when there is time, less when there is not, never past the budget; shown by simulation."""

import heapq
from collections.abc import Callable

import numpy as np
import pytest

from multiattn.inference.submit.plan import Costs, Level, Plan, Rates, levels_of, reserve_seconds

WORKERS, THREADS, WAITING = 2, 2, 4
FRAMES, MODELS = 32, 5
UNLIMITED = float("inf")


class Machine:
    """A simulated machine: workers fill a bounded queue, threads empty it, each video costs what `costs` says.

    Args:
        costs: (video, now) -> seconds to decode it, to search a frame, to put a crop through one model.
    """

    def __init__(self, costs: Callable[[int, float], tuple[float, float, float]], *, crops: int = 1) -> None:
        self.costs, self.crops = costs, crops
        self.now = 0.0

    def run(self, videos: int, budget: float) -> tuple[Plan, dict[int, Level]]:
        machine = {"workers": WORKERS, "classifiers": THREADS, "elapsed": lambda: self.now}
        plan = Plan(videos, levels_of(FRAMES, MODELS), **machine, budget=budget)
        predicted: dict[int, Level] = {}
        events: list = []  # (time, count, what, number, level, seconds)
        waiting: list = []
        state = {"workers": WORKERS, "threads": THREADS, "next": 0, "count": 0}

        def push(seconds: float, what: str, *values) -> None:
            state["count"] += 1
            heapq.heappush(events, (self.now + seconds, state["count"], what, *values))

        def settle() -> None:
            while state["threads"] and waiting:
                number, level, decode, search = waiting.pop(0)
                state["threads"] -= 1
                seconds = self.costs(number, self.now)[2] * level.frames * self.crops * level.models
                push(seconds, "predicted", number, level, (decode, search, seconds))
            while state["workers"] and len(waiting) < WAITING and state["next"] < videos:
                level = plan.start()
                if level is None:
                    return
                number, state["next"] = state["next"], state["next"] + 1
                decode, search, _ = self.costs(number, self.now)
                state["workers"] -= 1
                push(decode + search * level.frames, "extracted", number, level, (decode, search * level.frames))

        settle()
        while events:
            at, _, what, number, level, seconds = heapq.heappop(events)
            if at >= budget - reserve_seconds(budget):
                self.now = budget - reserve_seconds(budget)
                assert plan.out_of_time
                break
            self.now = at
            if what == "extracted":
                state["workers"] += 1
                waiting.append((number, level, *seconds))
            else:
                state["threads"] += 1
                predicted[number] = level
                crops = level.frames * self.crops
                taken = dict(zip(("decode", "search", "classify"), seconds, strict=True))
                plan.finish(video(level.frames, crops=crops, crop_models=crops * level.models, **taken))
            settle()
        return plan, predicted


def steady(scale: float = 1.0) -> Callable[[int, float], tuple[float, float, float]]:
    """A video takes 1 s to decode, 3.2 s to search, 8 s to put through all models, times `scale`."""
    return lambda video, now: (scale, 0.1 * scale, 0.05 * scale)


FULL_SECONDS = 8 / THREADS
"""Of a steady machine, between two videos that get everything: its threads are the bottleneck."""


@pytest.mark.parametrize(
    ("frames", "models", "expected"),
    [
        pytest.param(32, 2, [*((n, 2) for n in (32, 24, 16, 12, 8, 4)), (4, 1)], id="frames first, then models"),
        pytest.param(1, 1, [(1, 1)], id="nothing to give up"),
        pytest.param(3, 2, [(3, 2), (3, 1)], id="few frames are all kept"),
        pytest.param(8, 1, [(8, 1), (6, 1), (4, 1)], id="at least four frames"),
    ],
)
def test_levels_go_down_from_all_frames_and_models(frames, models, expected):
    assert [(level.frames, level.models) for level in levels_of(frames, models)] == expected


@pytest.mark.parametrize(("budget", "expected"), [(9 * 3600, 300), (3600, 72), (600, 20), (100, 10), (1, 0.1)], ids=str)
def test_a_delivery_keeps_two_percent_of_the_budget_within_bounds(budget, expected):
    assert reserve_seconds(budget) == pytest.approx(expected)


def test_without_a_budget_nothing_is_given_up_however_slow_the_machine():
    plan, predicted = Machine(steady(1000)).run(40, UNLIMITED)
    assert set(predicted.values()) == {Level(FRAMES, MODELS)} and len(predicted) == 40
    assert plan.changes == [] and plan.seconds_left == UNLIMITED


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 3.0, 30.0])
def test_where_there_is_time_every_video_gets_everything(scale):
    machine = Machine(steady(scale))
    budget = 1.3 * 300 * FULL_SECONDS * scale + 400
    plan, predicted = machine.run(300, budget)
    assert set(predicted.values()) == {Level(FRAMES, MODELS)} and len(predicted) == 300
    assert plan.changes == []


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3, 0.2])
def test_a_machine_that_is_too_slow_still_answers_every_video_with_less(share):
    budget = share * 600 * FULL_SECONDS
    machine = Machine(steady())
    plan, predicted = machine.run(600, budget)
    assert machine.now <= budget
    assert len(predicted) == 600, "every video is predicted, if by fewer frames"
    assert plan.changes and all(change.what and change.why for change in plan.changes)
    used = sum(level.frames * level.models for level in predicted.values()) / (600 * FRAMES * MODELS)
    assert used > 0.6 * share, "and what time there is is used"


def test_models_are_given_up_only_when_the_fewest_frames_are_too_slow():
    plan, predicted = Machine(steady()).run(600, 0.13 * 600 * FULL_SECONDS)
    assert all(level.models == MODELS or level.frames == 4 for level in predicted.values())
    levels = [str(change) for change in plan.changes]
    assert any("models instead" in line or "model instead" in line for line in levels)


def test_a_hopeless_machine_stops_beginning_videos_and_says_how_many_get_the_prior():
    machine = Machine(steady(10))
    plan, predicted = machine.run(600, 600)
    assert machine.now <= 600 and 0 < len(predicted) < 600
    assert "no more videos are begun" in plan.changes[-1].what
    assert "or the prior" in plan.changes[-1].what


@pytest.mark.parametrize(("scale", "videos"), [(1000, 10), (1, 0)], ids=["too slow for any", "no videos"])
def test_not_one_video_in_time_ends_at_the_stop(scale, videos):
    machine = Machine(steady(scale))
    plan, predicted = machine.run(videos, 100)
    assert predicted == {} and machine.now <= 100 and plan.changes == []


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_machine_that_changes_midway_is_noticed(factor):
    seconds = 400 * FULL_SECONDS
    machine = Machine(lambda video, now: steady(factor if now > seconds / 2 else 1)(video, now))
    budget = 1.1 * seconds
    plan, predicted = machine.run(400, budget)
    assert machine.now <= budget and len(predicted) == 400
    late = [predicted[video] for video in range(330, 380)]
    if factor > 1:
        assert plan.changes and all(level.frames < FRAMES for level in late)
    else:
        assert set(late) == {Level(FRAMES, MODELS)}


def test_a_plan_that_gave_up_too_much_goes_back_up():
    machine = Machine(lambda video, now: steady(8 if video < 20 else 0.5)(video, now))
    budget = 400 * FULL_SECONDS
    plan, predicted = machine.run(400, budget)
    assert len(predicted) == 400 and machine.now <= budget
    assert min(level.frames for level in predicted.values()) < FRAMES
    assert predicted[399] == Level(FRAMES, MODELS), [str(change) for change in plan.changes]


@pytest.mark.parametrize("seed", range(3))
def test_a_few_huge_videos_do_not_break_the_budget(seed):
    huge = set(np.random.default_rng(seed).choice(300, 6, replace=False).tolist())
    costs = lambda video, now: (60.0, 1.0, 0.05) if video in huge else steady()(video, now)  # noqa: E731
    budget = 0.8 * 300 * FULL_SECONDS
    machine = Machine(costs)
    _, predicted = machine.run(300, budget)
    assert machine.now <= budget and len(predicted) >= 297


@pytest.mark.parametrize("seed", range(6))
def test_no_machine_runs_past_its_budget(seed):
    rng = np.random.default_rng(seed)
    scale, budget, videos = 10 ** rng.uniform(-2, 2), 10 ** rng.uniform(1.5, 4), int(rng.integers(1, 500))
    jitter = rng.lognormal(0, 1, size=1000)
    machine = Machine(lambda video, now: steady(scale * jitter[video])(video, now), crops=int(rng.integers(0, 4)))
    machine.run(videos, budget)
    assert machine.now <= budget


def test_more_time_never_means_fewer_frames():
    used = []
    for share in (0.15, 0.3, 0.5, 0.7, 0.9, 1.2):
        _, predicted = Machine(steady()).run(300, share * 300 * FULL_SECONDS)
        used.append(sum(level.frames * level.models for level in predicted.values()))
    assert used == sorted(used)


def video(frames: int, *, crops: int, decode: float, search: float, crop_models: int, classify: float) -> Costs:
    seconds = {"decode_seconds": decode, "search_seconds": search, "classify_seconds": classify}
    return Costs(frames=frames, crops=crops, crop_models=crop_models, **seconds)


def test_rates_tell_the_costs_of_a_video_a_frame_and_a_crop_apart():
    rates = Rates()
    for frames in (32, 32, 8):
        rates.add(
            video(frames, crops=2 * frames, decode=3, search=0.5 * frames, crop_models=10 * frames, classify=frames)
        )
    assert rates.extract_seconds(Level(16, 5)) == pytest.approx(3 + 8)
    assert rates.classify_seconds(Level(16, 5)) == pytest.approx(0.1 * 2 * 16 * 5)
    assert Rates().extract_seconds(Level(16, 5)) == 0
    faceless = Rates()
    faceless.add(video(8, crops=0, decode=1, search=4, crop_models=0, classify=0))
    assert faceless.classify_seconds(Level(8, 1)) == 0 and faceless.extract_seconds(Level(8, 1)) == 5


def second_pass(elapsed: float, rates: Rates | None = None, budget: float = 1000) -> Plan:
    machine = {"workers": 1, "classifiers": 1, "elapsed": lambda: elapsed}
    return Plan(3, [Level(FRAMES, MODELS)], **machine, budget=budget, rates=rates or Rates())


@pytest.mark.parametrize(
    ("elapsed", "budget", "expected"),
    [
        pytest.param(0, UNLIMITED, True, id="no budget"),
        pytest.param(0, 1000, True, id="time for all"),
        pytest.param(960, 1000, True, id="time for one"),
        pytest.param(975, 1000, False, id="not for one"),
        pytest.param(1001, 1000, False, id="over"),
    ],
)
def test_a_second_pass_is_as_thorough_as_can_be_or_not_begun(elapsed, budget, expected):
    """A video takes 10 s, and the last 20 s are the delivery's."""
    rates = Rates()
    for _ in range(5):
        rates.add(video(32, crops=32, decode=1, search=4, crop_models=160, classify=5))
    plan = second_pass(elapsed, rates, budget)
    assert plan.has_time == expected
    assert plan.start() == (Level(FRAMES, MODELS) if expected else None)
    assert expected or "3 keep the answer they have" in str(plan.changes[-1])
    assert second_pass(0).projected_seconds() is None and second_pass(0).has_time, "without the rates of the first"
