"""The engine: one task and the others, deaths in a row, errors, who stops early. Real processes, really killed."""

import functools
import threading
import time
from collections.abc import Iterable, Iterator

import pytest

from multiattn.video.extraction import engine
from multiattn.video.extraction.engine import Engine, in_threads


def make_engine(*, jobs: int = 2, target: str = "misbehaving:extract", **limits) -> Engine:
    return Engine(functools.partial(in_threads, jobs=jobs), target, **limits)


def calls(names: Iterable[str]) -> Iterator[tuple[str, tuple]]:
    return ((name, (name,)) for name in names)


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(
    ("name", "ends"),
    [
        pytest.param(
            "kills-always",
            [("again", "SIGSEGV"), ("lost", "its worker process died in each of 3 attempts, the last by SIGSEGV")],
            id="crash",
        ),
        pytest.param("hangs", [("late", "took longer than the time limit of 1 s")], id="hang"),
        pytest.param("kills-once@{}/mark@", [("again", "SIGKILL"), ("done", "{}")], id="killed from outside"),
    ],
)
def test_what_one_task_does_is_its_own_affair(name, ends, jobs, tmp_path):
    name = name.format(tmp_path)
    others = [f"video{number}" for number in range(8)]
    runner = make_engine(jobs=jobs, time_limit=1 if name == "hangs" else 30)
    found = [(end.task, end.kind, end.value) for end in runner.outcomes(calls([*others[:4], name, *others[4:]]))]
    assert [end[1:] for end in found if end[0] == name] == [(kind, value.format(name)) for kind, value in ends]
    assert sorted(end for end in found if end[0] != name) == [(other, "done", other) for other in others]
    assert ends[0][0] != "again" or found[-1][0] == name, "tried again when all others are through"


def test_no_tasks_have_no_outcomes():
    assert list(make_engine().outcomes([])) == []


def test_when_every_process_dies_it_is_not_the_tasks():
    with pytest.raises(RuntimeError, match="3 worker processes died one after the other, the last by SIGSEGV"):
        list(make_engine(most_deaths=3).outcomes(calls(f"kills-always{number}" for number in range(9))))


def test_when_memory_runs_out_for_one_task_after_the_other_it_is_that_error():
    with pytest.raises(MemoryError):
        list(make_engine(most_deaths=3).outcomes(calls(["short-of-memory"] * 9)))


def test_arguments_that_cannot_travel_are_the_affair_of_their_task():
    ends = make_engine(jobs=1).outcomes([("lambda", (lambda: None,)), ("video", ("video",))])
    assert [(end.task, end.kind) for end in ends] == [("lambda", "raised"), ("video", "done")]


def test_an_error_is_an_outcome_and_a_shortage_of_memory_is_tried_again_alone():
    found = list(make_engine().outcomes(calls(["short-of-memory", "full-disk", "video"])))
    ends = {(end.task, end.kind, type(end.value)) for end in found}
    assert ends == {
        ("short-of-memory", "again", str), ("short-of-memory", "raised", MemoryError),
        ("full-disk", "raised", OSError), ("video", "done", str),
    }  # fmt: skip
    assert found[-1].task == "short-of-memory"


def test_a_process_that_cannot_start_is_an_outcome_too():
    (end,) = make_engine(target="no_such_module:function").outcomes(calls(["video"]))
    assert end.kind == "raised" and "could not start: exit code 1" in str(end.value)


def test_an_error_of_who_gives_the_tasks_ends_the_run():
    def broken() -> Iterator[tuple[str, tuple]]:
        yield "video", ("video",)
        raise ValueError("no more rows")

    with pytest.raises(ValueError, match="no more rows"):
        list(make_engine().outcomes(broken()))


def test_tasks_are_taken_as_they_are_needed(monkeypatch):
    """Nothing starts a process here: the calls answer at once."""
    monkeypatch.setattr(engine, "call_isolated", lambda key, *_: (key, "done", ""))
    taken: list[int] = []
    outcomes = make_engine(jobs=2).outcomes((taken.append(number) or number, ()) for number in range(100))
    next(outcomes)
    time.sleep(0.2)
    assert len(taken) <= 6, "two at work, two in the queue, two that wait for a place in it"
    outcomes.close()


def test_who_stops_is_not_kept_waiting(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(engine, "call_isolated", lambda key, *_: gate.wait(60) and (key, "lost", "SIGKILL"))
    runner, ends = make_engine(), []
    thread = threading.Thread(target=lambda: ends.extend(runner.outcomes(calls(map(str, range(9))))))
    thread.start()
    runner.stop()
    gate.set()  # as `end_processes` does
    thread.join(10)
    assert not thread.is_alive() and {end.kind for end in ends} <= {"again"}
