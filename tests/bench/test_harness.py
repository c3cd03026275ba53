"""The harness of the benchmarks: objects in processes of their own, their errors, seconds and memory."""

import os
import time

import pytest

from multiattn.bench.harness import SideProcess, find_videos, run_alone, take_turns


class Worker:
    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, number: int) -> tuple[int, int]:
        return self.base + number, os.getpid()

    def refuse(self, error: Exception) -> None:
        raise error

    def die(self) -> None:
        os._exit(3)


def test_an_object_answers_from_a_process_of_its_own_and_its_errors_are_raised_here():
    with SideProcess("ours", Worker, 40) as side:
        total, pid = side.ask("add", 2)
        assert total == 42 and pid == side.process.pid != os.getpid()
        for error in (ValueError("wrong"), FileNotFoundError("gone")):
            with pytest.raises(type(error), match=str(error)):
                side.ask("refuse", error)
        assert side.ask("add", 3)[0] == 43, "it goes on after an error"
    assert not side.process.is_alive()


@pytest.mark.parametrize(("method", "arguments"), [("die", ()), ("refuse", (KeyError("a bug"),))])
def test_a_side_that_dies_is_an_error_that_names_it(method, arguments):
    with SideProcess("plain", Worker, 0) as side, pytest.raises(ValueError, match="the side `plain` ended early"):
        side.ask(method, *arguments)


def hold_and_burn(size: int, seconds: float) -> int:
    held = bytearray(os.urandom(1)) * size
    started = time.process_time()
    while time.process_time() - started < seconds:
        pass
    return len(held)


def test_a_call_alone_has_its_result_seconds_and_memory():
    measured = run_alone("one", hold_and_burn, 300_000_000, 0.8)
    assert measured.result == 300_000_000
    assert 0.8 < measured.cpu_seconds <= measured.seconds + 0.2
    assert 300_000_000 < measured.peak_bytes < 1_500_000_000


def test_sides_take_turns():
    order = []
    results = take_turns([lambda: order.append("a") or 1, lambda: order.append("b") or 2], 3)
    assert order == ["a", "b"] * 3
    assert results == [(1, 1, 1), (2, 2, 2)]


def test_videos_are_found_below_a_folder_and_none_is_an_error(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.mp4", "below/a.AVI", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_videos(tmp_path)] == ["b.mp4", "a.AVI"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected videos, found none"):
        find_videos(tmp_path / "empty")
