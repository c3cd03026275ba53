"""Signals that ask for an end are noted, and the handlers before them come back."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from multiattn.runtime.signals import EXIT_CODE, listening


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_is_noted_and_ends_the_process_only_where_the_state_is_whole(number):
    before = signal.getsignal(number)
    with listening() as interruption:
        interruption.exit_if_asked()
        os.kill(os.getpid(), number)
        assert interruption.asked
        with pytest.raises(SystemExit) as ended:
            interruption.exit_if_asked()
    assert ended.value.code == EXIT_CODE == 143
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal, time; from multiattn.runtime.signals import listening\n"
        "with listening():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=25)
    assert finished.stdout == "still here\n"
    assert finished.returncode == -signal.SIGTERM


def test_another_thread_trains_without_listening():
    found = []

    def work():
        with listening() as interruption:
            found.append(interruption.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
