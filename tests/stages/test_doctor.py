"""`multiattn doctor`: a line for each check of its table, and exit code 1 where something is wrong."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable

import pytest

from multiattn.bench import machine
from multiattn.stages.doctor import main
from multiattn.training.data.augment.reencode import CODECS
from multiattn.video.crops.images import PREFETCH


def findings(capsys) -> dict[str, list[dict]]:
    """Check -> what it found."""
    found = {}
    for one in json.loads(capsys.readouterr().out):
        found.setdefault(one["check"], []).append(one)
    return found


def test_every_check_has_a_line_and_nothing_heavy_is_imported():
    code = (
        "import sys; from multiattn.stages.doctor import main; main([]); "
        "assert not {'torch', 'pandas', 'timm', 'albumentations'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert all(f"\n{name} " in f"\n{run.stdout}" for name in machine.CHECKS) and run.stderr == ""
    assert run.stdout.count("5 of 5 frames encoded") == len(machine.CODECS)


def test_its_numbers_are_those_of_the_training():
    ours = {name: (codec.encoder, codec.decoder) for name, codec in CODECS.items()}
    assert set(ours.values()) <= set(machine.CODECS.values()) and machine.BATCHES_AHEAD == PREFETCH


def no_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(9, 9, 10**6))


def all_old(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine.importlib.metadata, "version", lambda _: "0.0.1")


def no_place(*_: object) -> str:
    raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")


def smi(output: str) -> Callable[[pytest.MonkeyPatch], None]:
    """An nvidia-smi that says this."""
    ran = subprocess.CompletedProcess([], 0, output, "")
    return lambda patch: patch.setattr(machine.subprocess, "run", lambda *_, **__: ran)


def odd_gpu(patch: pytest.MonkeyPatch) -> None:
    import torch

    patch.setattr(torch.cuda, "is_available", lambda: False)
    smi("GRID, A, 8 GiB, 550, [N/A]")(patch)


@pytest.mark.parametrize(
    ("change", "check", "state", "words"),
    [
        pytest.param(lambda m: m.setitem(machine.CODECS, "x", ("none", "h264")), "codecs", "wrong", "none", id="codec"),
        pytest.param(no_room, "disk", "wrong", "0.0 GB", id="disk"),
        pytest.param(no_room, "shared memory", "wrong", "--shm-size", id="shm"),
        pytest.param(lambda m: m.setattr(machine, "LEAST_FILES", 10**9), "open files", "wrong", "ulimit", id="files"),
        pytest.param(lambda m: m.setattr(machine, "_granted_cores", lambda: 0.5), "cores", "note", "0.5", id="few"),
        pytest.param(lambda m: m.setattr(machine, "free_memory", lambda: 10**9), "memory", "note", "--jobs", id="ram"),
        pytest.param(lambda m: m.setattr(machine.tempfile, "gettempdir", no_place), "disk", "wrong", "set T", id="t"),
        pytest.param(smi("NVIDIA-SMI has failed"), "devices", "note", "has failed", id="driver"),
        pytest.param(odd_gpu, "devices", "wrong", "GRID, A, 8 GiB", id="odd GPU"),
        pytest.param(all_old, "versions", "wrong", "pip install", id="old"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_what_to_do_and_by_the_exit_code(change, check, state, words, monkeypatch, capsys):
    monkeypatch.setattr(machine, "CHECKS", {check: machine.CHECKS[check]})
    monkeypatch.setattr("multiattn.stages.doctor.CHECKS", machine.CHECKS)
    change(monkeypatch)
    if state == "wrong":
        with pytest.raises(SystemExit) as ended:
            main(["--json"])
        assert ended.value.code == 1
    else:
        main(["--json"])
    (rows,) = findings(capsys).values()
    assert any(one["state"] == state and words in one["what"] + one["advice"] for one in rows)
