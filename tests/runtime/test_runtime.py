"""Atomic files, locks, progress, devices: with real files, real processes and real signals."""

import errno
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import torch

from multiattn.runtime import files, progress
from multiattn.runtime.devices import default_jobs, forbid_tf32, pick_device, pick_devices
from multiattn.runtime.environment import device_name, git_commit
from multiattn.runtime.files import (
    atomic_path,
    content_fingerprint,
    exclusive_folder,
    read_json,
    require_plain_file,
    write_csv,
    write_json,
    write_text,
)
from multiattn.runtime.progress import WorkBar, progress_bar


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False], ids=["durable", "not durable"])
@pytest.mark.parametrize("before", [None, b"", b"old"], ids=["no file", "empty file", "old file"])
def test_a_block_that_ends_well_replaces_the_file_and_leaves_nothing_beside_it(before, durable, tmp_path):
    path = tmp_path / "result.csv"
    if before is not None:
        path.write_bytes(before)
    with atomic_path(path, durable=durable) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".csv")
        temporary.write_bytes(b"new")
        assert (path.read_bytes() if path.exists() else None) == before
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["result.csv"]


@pytest.mark.parametrize("before", [None, b"old"], ids=["no file", "old file"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError], ids=lambda error: error.__name__)
def test_a_block_that_raises_leaves_everything_as_it_was(error, before, tmp_path):
    path = tmp_path / "result.csv"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_bytes(b"half of it")
        raise error
    assert (path.read_bytes() if path.exists() else None) == before
    assert names(tmp_path) == ([] if before is None else ["result.csv"])


KILLED = """
    import os, signal, sys
    from multiattn.runtime.files import atomic_path
    with atomic_path(sys.argv[1]) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["result.txt", "x" * 250 + ".csv"], ids=["short", "as long as a name may be"])
def test_a_process_killed_inside_the_block_leaves_the_old_file_and_a_temporary_until_the_next_write(name, tmp_path):
    path = tmp_path / name
    path.write_text("old")
    for _ in range(2):
        result = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), path], check=False)
        assert result.returncode == -signal.SIGKILL
        assert path.read_text() == "old" and len(names(tmp_path)) == 2
    with atomic_path(tmp_path / "other.txt") as being_written:  # of this process, which lives
        write_text(path, "new")
        assert being_written.is_file() and names(tmp_path) == sorted([being_written.name, name])
    assert names(tmp_path) == sorted(["other.txt", name])


def test_a_folder_that_is_held_is_freed_of_what_killed_processes_left_and_of_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), tmp_path / "best.safetensors"], check=False)
    left, own = names(tmp_path), tmp_path / ".own.txt"
    own.touch()
    elsewhere = tmp_path.with_name("elsewhere")
    elsewhere.touch()
    link = tmp_path / f".link{files.TEMPORARY}"
    link.symlink_to(elsewhere)
    os.mkfifo(tmp_path / f".pipe{files.TEMPORARY}")
    with exclusive_folder(tmp_path):
        assert left and not {*left} & {*names(tmp_path)}
    assert own.exists() and link.is_symlink() and elsewhere.exists()


def full(word: str) -> Exception:
    """A library's error whose cause is a full disk."""
    error = RuntimeError(word)
    error.__context__ = OSError(errno.ENOSPC, "as the system says")
    return error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        pytest.param(OSError(errno.ENOSPC, "", "/a/temporary"), errno.ENOSPC, id="of the system"),
        pytest.param(OSError(errno.EDQUOT, ""), errno.EDQUOT, id="a quota"),
        pytest.param(full("unexpected pos 576 vs 470"), errno.ENOSPC, id="behind an error of torch"),
        pytest.param(RuntimeError("I/O error: No space left on device (os error 28)"), errno.ENOSPC, id="safetensors"),
        pytest.param(RuntimeError("a bug"), None, id="another error"),
        pytest.param(OSError(errno.EACCES, ""), None, id="another error of the system"),
    ],
)
def test_a_full_disk_is_one_error_that_names_the_file(error, number, tmp_path):
    with pytest.raises(type(error) if number is None else OSError) as caught, atomic_path(tmp_path / "a.pt"):
        raise error
    if number is None:
        assert caught.value is error
    else:
        assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "a.pt"))


def test_a_write_that_fails_where_no_room_is_left_is_a_full_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_path(tmp_path / "a.pt"):
        raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/5: file write failed")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o000], ids=oct)
def test_the_file_may_be_read_by_whom_the_umask_allows(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "x")
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask
        assert os.umask(mask) == mask, "the umask is left as it was"
    finally:
        os.umask(before)


def test_folders_above_the_file_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "ü\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "ü\n".encode()


@pytest.mark.parametrize(
    "values",
    [{}, [], None, {"a": [1, 2.5, None, True, "ü"]}, 0.1 + 0.2],
    ids=["empty object", "empty list", "null", "nested", "float"],
)
def test_json_comes_back_as_it_was(values, tmp_path):
    write_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json") == values


def test_a_number_json_does_not_know_is_not_written(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": 1}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": 1,}', b"\xff\xfe{}", b"PK\x03\x04", b'{"a": 1} x', b"[" * 99_999, b"[NaN]", b'{"a":1,"a":2}'],
    ids=["empty", "cut off", "comma too many", "not utf-8", "zip", "something behind", "deep", "NaN", "a key twice"],
)
def test_a_file_that_is_not_json_is_named(content, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a JSON file") as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_json_file_that_is_not_there_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        read_json(tmp_path / "nothing.json")


HOLDER = """
    import sys, time
    from pathlib import Path
    from multiattn.runtime.files import exclusive_folder
    with exclusive_folder(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_folder_is_refused_to_a_second_process_and_free_again_when_the_holder_is_killed(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            refused = pytest.raises(ValueError, match="another process is writing here")
            with refused as caught, exclusive_folder(folder, patience_seconds=0.0):
                pytest.fail("the folder was held twice")
            assert str(caught.value).startswith(f"{folder}: ")
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
    with exclusive_folder(folder, patience_seconds=1.0):
        assert folder.is_dir()


def test_a_folder_is_free_again_after_the_block_and_after_an_exception(tmp_path):
    with exclusive_folder(tmp_path / "run", patience_seconds=0.0):
        pass
    with pytest.raises(KeyError), exclusive_folder(tmp_path / "run", patience_seconds=0.0):
        raise KeyError
    with exclusive_folder(tmp_path / "run", patience_seconds=0.0):
        pass


def test_waiting_for_a_folder_ends_when_the_holder_ends(tmp_path):
    script = HOLDER.replace("60", "0.5")
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with exclusive_folder(tmp_path, patience_seconds=10.0):
            pass
        assert holder.wait() == 0


@pytest.fixture
def without_terminal(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0.0)


def test_without_a_terminal_progress_is_log_lines_with_rate_and_time_left(without_terminal, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="multiattn"), progress_bar(4, "faces", "videos") as bar:
        for _ in range(4):
            bar.update()
    lines = [record.getMessage() for record in caplog.records]
    assert lines
    assert all(line.startswith("faces: ") and "/4 videos" in line and "left" in line for line in lines)
    assert capsys.readouterr() == ("", "")


def test_fast_work_without_a_terminal_logs_nothing(without_terminal, monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 60.0)
    with caplog.at_level(logging.INFO, logger="multiattn"), progress_bar(100, "faces", "videos") as bar:
        for _ in range(100):
            bar.update()
    assert caplog.records == []


def test_slow_work_without_a_terminal_is_told_in_the_same_unit_as_fast_work(without_terminal, caplog):
    with caplog.at_level(logging.INFO, logger="multiattn"), progress_bar(4, "faces", "videos") as bar:
        bar.start_t, bar._ema_dt = bar.start_t - 100, lambda *_: 0  # begun a hundred seconds ago
        bar.update()
    assert "0.01 videos/s" in caplog.text


def test_a_notebook_is_drawn_in_at_most_every_fifteen_seconds(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with progress_bar(10**6, "faces", "videos") as bar:
        for _ in range(1000):
            bar.update(1000)
        assert bar.mininterval == bar.maxinterval == 15
        assert capsys.readouterr().err.count("faces") == 1, "the first picture only"
    assert "100%" in capsys.readouterr().err


def test_folds_share_one_bar_of_the_whole_work_in_one_unit(without_terminal, caplog):
    """Where a fold stands -> done and whole of the line: folds to come count as much as the latest that began."""
    with caplog.at_level(logging.INFO, logger="multiattn"), WorkBar("demo", 4) as bar:
        bar.report("demo/fold0", 0, 100)
        bar.report("demo/fold0", 30, 100, "loss 0.5")
        bar.end("demo/fold0")  # it failed, or its patience was worn out
        bar.report("demo/fold1", 60, 110)  # continued: 60 by an earlier command
        bar.report("demo/fold1", 70, 110, "loss 0.4")
        bar.end("demo/fold2")  # found finished
        bar.report("demo/fold3", 1, 120)
        bar.report("demo/fold1", 110, 110)  # beside it, as in processes
        bar.report("demo/fold3", 120, 120)
    lines = [re.search(r"(\d+)/(\d+) samples, .*left(.*)", record.getMessage()).groups() for record in caplog.records]
    assert [f"{done}/{whole}" for done, whole, _ in lines] == ["0/400", "30/400", "100/360", "141/260", "260/260"]
    assert all(record.getMessage().startswith("demo, 4 folds: ") for record in caplog.records)
    assert ("30", "400", ", demo/fold0, loss 0.5") in lines and ("100", "360", ", demo/fold1, loss 0.4") in lines


def test_one_fold_has_the_bar_to_itself_and_work_that_is_done_none(without_terminal, caplog):
    with caplog.at_level(logging.INFO, logger="multiattn"), WorkBar("demo", 1) as bar:
        bar.report("demo/fold0", 5, 10)
        bar.report("demo/fold0", 6, 10, "loss 0.5")
    assert caplog.messages[-1].startswith("demo/fold0: 6/10 samples, ") and caplog.messages[-1].endswith(", loss 0.5")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="multiattn"), WorkBar("demo", 2) as bar:
        bar.end("demo/fold0")
        bar.end("demo/fold1")
    assert caplog.messages == []


def test_progress_over_nothing_is_no_error(without_terminal):
    with progress_bar(0, "faces", "videos"):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, None) for name in ("auto", "cpu")),
        *((name, f"--device {name}: no CUDA device found.*--device cpu") for name in ("cuda", "cuda:0", "cuda:1")),
        *(
            (name, "--device: expected cpu, cuda, cuda:N or auto")
            for name in ("gpu", "", "cpu:x", "cuda:", "mps", "xpu", "meta")
        ),
    ],
)
def test_a_machine_without_cuda_computes_on_its_cpu_or_says_what_there_is(name, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if message is None:
        assert pick_device(name) == torch.device("cpu")
    else:
        with pytest.raises(ValueError, match=message):
            pick_device(name)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_float32_on_a_device_is_no_tf32(device):
    """TF32 keeps 11 significant bits: its products of this size are 1e-4 off and more, float32's 1e-6."""
    forbid_tf32()
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    generator = torch.Generator().manual_seed(0)
    rows, weights = torch.randn(64, 256, generator=generator), torch.randn(256, 256, generator=generator)
    exact = (rows.double() @ weights.double().T).to(device)
    as_image, kernel = rows[..., None, None].to(device), weights[..., None, None].to(device)
    for found in (rows.to(device) @ weights.to(device).T, torch.nn.functional.conv2d(as_image, kernel).flatten(1)):
        assert (found.double() - exact).abs().max() < 2e-5 * exact.abs().max()


@pytest.mark.parametrize(
    ("name", "gpus", "found"),
    [
        ("auto", 0, ["cpu"]),
        ("cpu", 2, ["cpu"]),
        ("auto", 1, ["cuda:0"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("cuda", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:1", 3, ["cuda:1"]),
        ("cuda:2,cuda:0", 3, ["cuda:2", "cuda:0"]),
    ],
)
def test_predictions_take_all_gpus_or_those_named(name, gpus, found, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert list(map(str, pick_devices(name))) == found
    assert list(map(str, current[-1:])) == ([] if found == ["cpu"] else found[:1])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    if name in ("auto", "cuda") and gpus > 1:
        assert list(map(str, pick_devices(name))) == ["cuda:0"], "the others are other processes'"


@pytest.mark.parametrize("name", ["cuda:0,cuda:0", "cuda,cuda:1", "cpu,cuda:0", "cuda:0,", ",", "cuda:0,cuda:7"])
def test_devices_that_are_not_gpus_or_come_twice_are_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    with pytest.raises(ValueError, match=r"--device cuda:7: this machine has 2|as cuda:0,cuda:1\."):
        pick_devices(name)


def test_each_gpu_has_processes_that_decode(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert [default_jobs(names) for names in ("cpu", "cuda:0", "cuda:0,cuda:1")] == [16, 4, 8]


def test_a_device_is_called_by_its_gpus_name_or_its_processors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, the one of {device}")
    assert device_name(torch.device("cuda", 1)) == "a GPU, the one of cuda:1"
    assert device_name(torch.device("cpu")).endswith(f", {os.cpu_count()} cores")


def test_the_commit_is_one_word():
    assert len(git_commit().split()) == 1


def test_a_fingerprint_is_of_the_content_and_not_of_its_time(tmp_path):
    """The digest of "abc": FIPS 180-2, example B.1."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"abc")
    expected = "3-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_fingerprint(path) == expected
    os.utime(path, (1, 1))
    assert content_fingerprint(path) == expected
    path.write_bytes(b"abd")
    assert content_fingerprint(path) != expected


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device"])
def test_what_only_looks_like_a_file_is_refused_before_it_is_opened(kind, tmp_path):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "clip.mp4"
    if kind != "device":
        {"FIFO": os.mkfifo, "folder": os.mkdir}[kind](path)
    for refuse in (require_plain_file, content_fingerprint):
        with pytest.raises(OSError, match=f"expected a file, found a {kind}"):
            refuse(path)
    with pytest.raises(FileNotFoundError):
        require_plain_file(tmp_path / "nothing")


def test_no_text_of_a_table_is_a_formula(tmp_path):
    names = pd.Series(['=HYPERLINK("x")', "@a", "-b", "+c", "a=b", "\ta", "", None])
    table = pd.DataFrame({"name": names, "+n": pd.array([-1, None] * 4, "Int64"), "x": -0.5})
    write_csv(tmp_path / "a.csv", table)
    read = pd.read_csv(tmp_path / "a.csv")
    assert read["name"].fillna("").tolist() == ['\'=HYPERLINK("x")', "'@a", "'-b", "'+c", "a=b", r"\ta", "", ""]
    assert (tmp_path / "a.csv").read_text().splitlines()[3] == "'-b,-1,-0.5"
    assert list(read) == ["name", "'+n", "x"]
