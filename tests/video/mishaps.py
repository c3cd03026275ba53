"""What goes wrong in the worker processes of the tests beside this file; they import it, so it imports little."""

import os
import re
import signal
import sys
import time
from pathlib import Path


def obey(order: bytes) -> bytes:
    """Do what the first word says with the rest of the order."""
    word, _, value = order.decode().partition(" ")
    if word == "echo":
        return value.encode() * 1000
    if word == "pid":
        return str(os.getpid()).encode()
    if word == "print":
        sys.stdout.write("this must not get between the answers\n")
        sys.stdout.flush()
        os.write(1, b"nor this of a library in C\n")
        return b"printed"
    if word == "raise":
        raise FileNotFoundError(value)
    if word == "signal":
        os.kill(os.getpid(), int(value))
    if word == "exit":
        os._exit(int(value))
    if word == "sleep":
        time.sleep(float(value))
    return b""


def extract(arguments: bytes) -> bytes:
    """A stand-in for extraction that gives its arguments back, unless the video's name wants something else."""
    if b"full-disk" in arguments:
        raise OSError(28, "No space left on device")
    if b"hangs" in arguments:
        time.sleep(300)
    if b"kills-always" in arguments:
        os.kill(os.getpid(), signal.SIGSEGV)
    if once := re.search(rb"kills-once@(.+?)@", arguments):
        mark = Path(once[1].decode())
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return arguments
