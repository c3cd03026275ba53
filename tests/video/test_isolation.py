"""Calls in processes of their own: answers, exceptions, deaths, hangs, orphans. Real processes, really killed."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from multiattn.video.extraction.isolation import ProcessPool, call_isolated

TARGET = "misbehaving:obey"


def call(order: str, seconds: float | None = 60) -> tuple[str, Any]:
    key, outcome, value = call_isolated("key", TARGET, pickle.dumps((order,)), seconds)
    assert key == "key"
    return outcome, pickle.loads(value) if isinstance(value, bytes) else value


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("value", ["", "a", "é" * 50_000], ids=["empty", "short", "longer than a pipe holds"])
def test_an_answer_comes_back(value):
    assert call(f"echo {value}") == ("done", value * 1000)


def test_what_it_prints_does_not_disturb_the_answers():
    assert call("print") == ("done", "printed")
    assert call("echo next") == ("done", "next" * 1000)


def test_one_process_serves_many_calls():
    assert len({call("pid") for _ in range(5)}) == 1


def test_an_exception_comes_back_with_its_type_and_place():
    outcome, error = call("raise nothing here")
    assert outcome == "raised"
    assert isinstance(error, FileNotFoundError)
    assert str(error) == "nothing here"
    assert "in obey" in error.__notes__[0]
    assert call("echo next")[0] == "done"


@pytest.mark.parametrize(
    ("order", "how"),
    [
        pytest.param(f"signal {int(signal.SIGSEGV)}", "SIGSEGV", id="a decoder that crashes"),
        pytest.param(f"signal {int(signal.SIGKILL)}", "SIGKILL", id="the system out of memory"),
        pytest.param("exit 3", "exit code 3", id="a library that gives up"),
    ],
)
def test_a_death_is_reported_and_the_next_call_goes_on(order, how):
    assert call(order) == ("lost", how)
    assert call("echo next") == ("done", "next" * 1000)


def test_a_hang_ends_at_its_time_limit():
    call("echo start")
    started = time.monotonic()
    assert call("sleep 60", seconds=0.3) == ("late", "took longer than the time limit of 0.3 s")
    assert time.monotonic() - started < 5
    assert call("echo next") == ("done", "next" * 1000)


def test_a_process_killed_between_two_calls_is_replaced():
    _, pid = call("pid")
    os.kill(int(pid), signal.SIGKILL)
    os.waitid(os.P_PID, int(pid), os.WEXITED | os.WNOWAIT)  # with all its threads; its end stays to be noticed
    outcome, other = call("pid")
    assert outcome == "done"
    assert other != pid


def test_each_process_at_work_has_a_number_which_its_follower_takes():
    pool, answers = ProcessPool(TARGET), []

    def ask(order: str) -> None:
        answers.append(pool.call(pickle.dumps((order,)), None))

    threads = [threading.Thread(target=ask, args=("number 0.5",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pickle.loads(answer) for _, answer in answers) == ["0", "1"]
    ask("exit 3")
    threads = [threading.Thread(target=ask, args=("number 0.5",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert sorted(pickle.loads(answer) for _, answer in answers[3:]) == ["0", "1"]


def test_closing_ends_processes_at_work():
    pool = ProcessPool(TARGET)
    pid = int(pickle.loads(pool.call(pickle.dumps(("pid",)), None)[1]))
    ends: list[tuple] = []
    thread = threading.Thread(target=lambda: ends.append(pool.call(pickle.dumps(("sleep 60",)), None)))
    thread.start()
    time.sleep(0.2)
    pool.close()
    thread.join(10)
    assert ends == [("lost", "SIGKILL")]
    assert not is_alive(pid)


def test_a_process_that_cannot_start_is_not_the_calls_fault():
    with pytest.raises(RuntimeError, match="could not start: exit code 1"):
        call_isolated("key", "no_such_module:function", b"", 10)


def test_a_process_whose_caller_is_killed_ends_at_once():
    code = (
        "import pickle\n"
        "from multiattn.video.extraction.isolation import ProcessPool\n"
        f"pool = ProcessPool({TARGET!r})\n"
        "print(pickle.loads(pool.call(pickle.dumps(('pid',)), None)[1]), flush=True)\n"
        "pool.call(pickle.dumps(('sleep 300',)), None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    pid = int(caller.stdout.readline())
    time.sleep(0.2)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    caller.stdout.close()
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, "an orphan works on"
        time.sleep(0.02)
