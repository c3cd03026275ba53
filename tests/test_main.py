"""The command line as a user meets it: usage, mistyped names, errors without a traceback."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from multiattn import __version__
from multiattn.__main__ import READER_GONE, STAGES, main
from multiattn.experiments import EXPERIMENTS
from multiattn.runtime.processor import WAIT_POLICY, WAIT_SETTINGS
from multiattn.stages import folds


def python(*words: str, environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env={**environment})


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]], ids=["nothing", "-h", "--help", "help"])
def test_usage_lists_every_stage_with_its_first_line_in_order(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    assert [words[0] for words in lines] == [stage.replace("_", "-") for stage in STAGES]
    assert all(len(words) == 2 and len(words[1]) > 10 for words in lines)


def test_the_version_is_that_of_the_package_and_of_the_citation(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"multiattn {__version__}\n"
    citation = Path(__file__).resolve().parents[1] / "CITATION.cff"
    assert f"\nversion: {__version__}\n" in citation.read_text()


@pytest.mark.parametrize("stage", ["train", "describe", "bench"])
def test_help_lists_the_experiments_and_no_switch_that_says_the_opposite_of_its_default(stage, capsys):
    with pytest.raises(SystemExit):
        main([stage, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in text for name in EXPERIMENTS)
    assert "--model.pretrained, --model.no-pretrained" in text


def test_usage_imports_no_library_that_takes_seconds():
    script = (
        "import sys; from multiattn.__main__ import main; code = main([]);"
        "print([m for m in ('torch', 'pandas', 'numpy', 'cv2', 'timm', 'tyro') if m in sys.modules]); sys.exit(code)"
    )
    result = python("-c", script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


HEAVY = {"torch", "torchvision", "timm", "sklearn", "matplotlib", "numba", "albumentations"}
HEAVY |= {"pandas", "pandera", "pyarrow", "scipy", "cv2", "av", "fastapi", "uvicorn"}


def test_no_stage_imports_a_heavy_library_before_its_options_are_read():
    """One process for all, so each stage answers for what those before it have left out."""
    script = f"""
import contextlib, io, sys
from multiattn.__main__ import READER_GONE, STAGES, main
for words in [*([stage] for stage in STAGES), *(["bench", work] for work in ("data", "faces", "submit"))]:
    for more in ("--help", "--no-such-option"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                code = main([*words, more])
            except SystemExit as ended:
                code = ended.code
        assert code == (0 if more == "--help" else 2), (words, more, said.getvalue())
        assert not {HEAVY!r} & set(sys.modules), (words, more, {HEAVY!r} & set(sys.modules))
"""
    assert python("-c", script).stderr == ""


@pytest.mark.parametrize(
    ("own", "inside"),
    [
        pytest.param({}, WAIT_POLICY, id="none set"),
        pytest.param({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}, id="standard"),
        pytest.param({"GOMP_SPINCOUNT": "77"}, {"GOMP_SPINCOUNT": "77"}, id="of libgomp"),
        pytest.param({"KMP_BLOCKTIME": "5"}, {"KMP_BLOCKTIME": "5"}, id="of Intel's"),
    ],
)
def test_idle_threads_sleep_in_a_command_and_its_children_unless_the_user_says_otherwise(own, inside):
    """The policy stands before any library that reads it is loaded."""
    show = f"import os; print({{name: os.environ[name] for name in {WAIT_SETTINGS!r} if name in os.environ}})"
    script = (
        "import subprocess, sys; from multiattn import __main__\n"
        "def main():\n"
        "    assert not {'torch', 'numba', 'sklearn', 'numpy'} & set(sys.modules)\n"
        f"    return subprocess.run([sys.executable, '-c', {show!r}]).returncode\n"
        "__main__.main = main; __main__.command()"
    )
    outside = {name: value for name, value in os.environ.items() if name not in WAIT_SETTINGS}
    result = python("-c", script, environment={**outside, **own})
    assert result.returncode == 0, result.stderr
    assert ast.literal_eval(result.stdout) == inside


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        pytest.param("fold", "Did you mean 'folds'?", id="letter missing"),
        pytest.param("leader-board", "Did you mean 'leaderboard'?", id="dash too many"),
        pytest.param("xyzzy", "no stage 'xyzzy'.", id="near nothing"),
        pytest.param("", "no stage ''.", id="empty"),
        pytest.param("__init__", "no stage '__init__'.", id="a module that is no stage"),
    ],
)
def test_an_unknown_stage_suggests_the_nearest_and_exits_with_2(word, hint, capsys):
    assert main([word]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert hint in err
    assert "usage: multiattn" in err


@pytest.mark.parametrize(("stage", "words"), [*((stage, []) for stage in STAGES), ("train", ["dfdc_b4"])], ids=str)
def test_every_stage_shows_its_help(stage, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main([stage, *words, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: multiattn {stage.replace(chr(95), chr(45))}" in out
    assert "Options of `multiattn" not in out, "the help shows the stage's docstring, not its options class's"
    doc = importlib.import_module(f"multiattn.stages.{stage}").__doc__ or ""
    commands = [line for line in doc.splitlines() if line.startswith((" ", "multiattn "))]
    shown = {line.strip() for line in out.splitlines()}
    assert commands and {line.strip() for line in commands} <= shown, "every example stands on a line of its own"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        pytest.param(["folds", "--vidoes", "x", "--out", "y"], "--videos", id="letters swapped"),
        pytest.param(["folds"], "--videos", id="required option missing"),
        pytest.param(["folds", "--videos", "x", "--out", "y", "--num-folds", "five"], "--num-folds", id="not a number"),
        pytest.param(["folds", "--videos", "x", "--out", "y", "--group", "actor"], "--group", id="unknown choice"),
        pytest.param(["index", "imagenet", "--root", "x"], "dfdc", id="unknown data set"),
        pytest.param(["train", "demo", "--faces", "x", "--folds", "y", "--optim.lrr", "1"], "--optim.lr", id="nested"),
    ],
)
def test_a_mistyped_option_is_named_with_exit_code_2(argv, expected, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert expected in out + err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(None, "no videos table here. Make it with `multiattn index`", id="missing file"),
        pytest.param("", "not a readable videos table", id="empty file"),
        pytest.param("a,b\n1,2\n", "not a videos table: expected column 'video_id'", id="another table"),
    ],
)
def test_an_error_of_the_user_is_a_message_without_a_traceback(content, expected, tmp_path, capsys):
    videos = tmp_path / "videos.csv"
    if content is not None:
        videos.write_text(content)
    assert main(["folds", "--videos", str(videos), "--out", str(tmp_path / "folds.csv")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {videos}: {expected}" in err.splitlines()[0]
    assert "Traceback" not in err
    assert not (tmp_path / "folds.csv").exists()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        pytest.param("folds --videos a.csv --out a.csv", "--out a.csv: .* a file that is read", id="the table itself"),
        pytest.param(
            "index folder --root . --labels a.csv --out ./a.csv", "a file that is read", id="another spelling"
        ),
        pytest.param(
            "index deepfakebench --root . --json a.json --faces f --out a.csv", "a file that is read", id="beside it"
        ),
        pytest.param("predict --runs r --faces . --out faces.parquet", "a file that is read", id="a table of a folder"),
        pytest.param("score a.mp4 --runs r --json a.mp4", "--json a.mp4: .* a file that is read", id="a clip"),
        pytest.param("score . --runs r --csv a.mp4", "a file that is read", id="a clip of a folder"),
        pytest.param("score a.mp4 --runs r --json b --csv b", "--csv b: .* that of --json", id="one file twice"),
        pytest.param("score a.mp4 --runs r --report .", "--report .: .* a folder", id="a folder"),
    ],
)
def test_no_output_replaces_what_is_read_or_another_output(words, found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "a.json", "a.mp4"):
        Path(name).write_text("mine")
    assert main(words.split()) == 2
    assert re.search(f"error: {found}" if found.startswith("--") else found, capsys.readouterr().err)
    assert [Path(name).read_text() for name in ("a.csv", "a.json", "a.mp4")] == ["mine"] * 3
    assert len(list(tmp_path.iterdir())) == 3
    assert main(["tune", "--runs", "gone", "--out", "a.json"]) == 2
    assert "gone: expected runs" in capsys.readouterr().err, "a JSON file may be written"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        pytest.param("score a --fps inf", "--fps: expected a finite number, found inf", id="score --fps"),
        pytest.param("faces --videos a --out b --fps inf", "--fps: expected a finite number, found inf", id="fps"),
        pytest.param("faces --videos a --out b --time-limit nan", "--time-limit: .* found nan", id="not a number"),
        pytest.param("tune --runs a --test-prior nan", "--test-prior: .* found nan", id="tune"),
        pytest.param("bundle --runs a --out b --max-gb=-inf", "--max-gb: .* found -inf", id="bundle"),
        pytest.param("bench data --seconds inf", "--seconds: .* found inf", id="bench"),
    ],
)
def test_an_option_takes_finite_numbers_only(words, found, capsys):
    assert main(words.split()) == 2
    assert re.search(f"error: {found}", capsys.readouterr().err)


def test_an_experiment_that_does_not_exist_is_a_message(capsys):
    assert main(["train", "dfdc_b5", "--faces", "x", "--folds", "y"]) == 2
    assert "Did you mean 'dfdc_b4'?" in capsys.readouterr().err


def test_a_value_out_of_range_is_a_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "demo", "--faces", str(tmp_path), "--folds", str(tmp_path), "--data.batch-size", "1"])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert "expected 2 to" in " ".join(re.findall(r"[\w.]+", out + err))
    assert "Traceback" not in out + err


def test_the_last_line_counts_rows_that_were_left_out(tmp_path, capsys):
    rows = ["a/r,r.mp4,a,0,,,,,,,", "a/f,f.mp4,a,1,,,,,a/r,,", "a/s,s.mp4,a,0,,,,,,,", "a/g,g.mp4,a,1,,,,,a/s,,"]
    rows += [f"a/{letter * 300},x.mp4,a,1,,,,,,," for letter in "xy"]
    header = "video_id,path,dataset,label,method,compression,split,part,original,target_id,source_id"
    videos = tmp_path / "videos.csv"
    videos.write_text("\n".join([header, *rows]) + "\n")
    assert main(["folds", "--videos", str(videos), "--num-folds", "2", "--out", str(tmp_path / "folds.csv")]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"{videos}: 2 rows are left out: the log names them."
    assert f"{videos}: row 4 is left out: video_id 'a/xxx" in err


def test_an_error_of_the_operating_system_names_the_file(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    out = tmp_path / "file" / "folds.csv"
    rows = ["a/r,r.mp4,a,0,,,,,,,", "a/f,f.mp4,a,1,,,,,a/r,,", "a/s,s.mp4,a,0,,,,,,,", "a/g,g.mp4,a,1,,,,,a/s,,"]
    header = "video_id,path,dataset,label,method,compression,split,part,original,target_id,source_id"
    (tmp_path / "videos.csv").write_text("\n".join([header, *rows]) + "\n")
    argv = ["folds", "--videos", str(tmp_path / "videos.csv"), "--num-folds", "2"]
    assert main([*argv, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "file") in err
    assert "Traceback" not in err
    assert main([*argv, "--out", str(tmp_path / "folds.csv")]) == 0


def test_python_dash_m_shows_an_error_without_a_traceback(tmp_path):
    words = ("folds", "--videos", str(tmp_path / "none.csv"), "--out", str(tmp_path / "f.csv"))
    result = python("-m", "multiattn", *words)
    assert (result.returncode, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path / 'none.csv'}: no videos table here.")
    assert "MULTIATTN_DEBUG=1" in second


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["--version"], ["folds", "--help"]], ids=" ".join)
def test_output_whose_reader_has_ended_ends_without_a_word(words, unbuffered):
    read, write = os.pipe()
    os.close(read)
    command, environment = [sys.executable, "-m", "multiattn", *words], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (READER_GONE, "")


@pytest.mark.parametrize(
    ("words", "code"), [pytest.param(["--version"], 0, id="output"), pytest.param(["no_such_stage"], 2, id="a mistake")]
)
def test_a_command_whose_output_is_closed_ends_as_with_one(words, code):
    command = ["sh", "-c", 'exec "$0" -m multiattn "$@" >&-', sys.executable, *words]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == code and "Traceback" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", [["--version"], ["folds", "--help"], ["verify", "{0}"]], ids=" ".join)
def test_output_without_room_is_an_error_in_one_line(words, tmp_path):
    (tmp_path / "submission.csv").write_text("filename,label\na.mp4,0.5\n")
    command = [sys.executable, "-m", "multiattn", *(word.format(tmp_path / "submission.csv") for word in words)]
    command += ["--sample-submission", str(tmp_path / "submission.csv")] if words[0] == "verify" else []
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.count("error: No space left on device") == 1


def test_the_traceback_is_there_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIATTN_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match="no videos table here"):
        main(["folds", "--videos", str(tmp_path / "none.csv"), "--out", str(tmp_path / "f.csv")])


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        pytest.param(KeyboardInterrupt(), 130, "interrupted; the same command continues", id="an interrupt"),
        pytest.param(OutOfMemoryError("full"), 2, "error: full\nThe GPU's memory is full;", id="a known failure"),
        pytest.param(AssertionError("a bug"), None, "", id="a defect of the program keeps its traceback"),
        pytest.param(RuntimeError("a bug"), None, "", id="and one of a library"),
    ],
)
def test_what_ends_a_stage_is_told(error, code, shown, monkeypatch, capsys):
    def ended(argv):
        raise error

    monkeypatch.setattr(folds, "main", ended)
    if code is None:
        with pytest.raises(type(error), match="a bug"):
            main(["folds"])
    else:
        assert main(["folds"]) == code
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "shown", "absent"),
    [
        ("OSError(28, 'No space left on device', 'events')", "events: No space left on device.", "Traceback"),
        ("KeyError('a bug')", "Traceback", "free space"),
    ],
)
def test_a_thread_that_ends_on_a_full_disk_is_a_line_and_one_with_a_defect_a_traceback(error, shown, absent):
    script = f"""
import sys, threading, types
from multiattn import __main__ as program

def stage(argv):
    def work():
        raise {error}
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

sys.modules["multiattn.stages.submit"] = types.SimpleNamespace(main=stage)
sys.argv = ["multiattn", "submit"]
program.command()
"""
    said = python("-c", script).stderr
    assert shown in said and absent not in said


@pytest.mark.parametrize(
    ("ending", "expected"), [("pass", 0), ("raise ValueError('x')", 2), ("raise SystemExit(143)", 143)]
)
def test_threads_that_are_still_in_torch_do_not_hold_the_process_or_change_its_exit_code(ending, expected):
    """Python's own end waits for a thread, or aborts under one that computes."""
    code = f"""
import sys, threading, time, types
from multiattn import __main__ as program
from multiattn.runtime.processor import TORCH_THREAD

def stage(argv):
    threading.Thread(target=time.sleep, args=(600,), name=TORCH_THREAD).start()
    print("delivered", end="")
    {ending}

sys.modules["multiattn.stages.submit"] = types.SimpleNamespace(main=stage)
sys.argv = ["multiattn", "submit"]
program.command()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == expected and result.stdout == "delivered"
