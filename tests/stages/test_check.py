"""`multiattn check` as it stands on the terminal: exit code, wording, what to do next."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from multiattn.__main__ import main
from multiattn.tables import FOLDS, VIDEOS
from pipeline import run

ROW = dict.fromkeys(VIDEOS.columns, "") | {"dataset": "d", "split": "train"}


def write_videos(path: Path, *rows: dict) -> Path:
    """A videos.csv; each row says only what matters."""
    VIDEOS.write(pd.DataFrame([ROW | {"path": f"{row['video_id']}.mp4", "label": 0} | row for row in rows]), path)
    return path


@pytest.fixture
def leaking(tmp_path) -> Path:
    """A test fake whose original is trained on."""
    return write_videos(
        tmp_path / "videos.csv",
        {"video_id": "d/a"},
        {"video_id": "d/b", "label": 1, "method": "swap", "original": "d/a", "split": "test"},
    )


def exit_code(*words: object) -> int:
    """Exit code of the command, returned or raised."""
    try:
        return main([str(word) for word in words])
    except SystemExit as error:
        return error.code


def test_a_leak_is_printed_with_its_case_and_what_to_do_and_exits_with_1(leaking, capsys):
    assert exit_code("check", "--videos", leaking) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == f"2 videos in {leaking}"
    assert [line.split() for line in lines[2:5]] == [
        ["dataset", "split", "method", "real", "fake", "unknown"],
        ["d", "test", "swap", "0", "1", "0"],
        ["d", "train", "-", "1", "0", "0"],
    ]
    start = lines.index("LEAK    originals across splits: In more than one split: 1 original with 1 fake.")
    assert lines[start + 1].strip() == "d/a (train), d/b (test)"
    assert lines[start + 2].strip().startswith("-> Leave the training side out")
    assert lines[-1].startswith("1 leak, 0 warnings, 1 note.")
    assert err == ""
    assert max(map(len, lines[5:])) <= 120


def test_a_table_without_a_leak_exits_with_0(tmp_path, capsys):
    assert exit_code("check", "--videos", write_videos(tmp_path / "videos.csv", {"video_id": "d/a"})) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 leaks, 0 warnings, 1 note.")


@pytest.mark.parametrize(("examples", "shown"), [(0, 0), (3, 3), (50, 20)])
def test_so_many_cases_are_shown(examples, shown, tmp_path, capsys):
    rows = (
        {"video_id": f"d/{split}{n}", "split": split, "target_id": f"{n}"}
        for n in range(20)
        for split in ("train", "test")
    )
    path = write_videos(tmp_path / "videos.csv", *rows)
    assert exit_code("check", "--videos", path, "--examples", examples) == 1
    out = capsys.readouterr().out
    assert len(re.findall(r"^ +d \d+: d/train\d+ \(train\), d/test\d+ \(test\)$", out, re.MULTILINE)) == shown
    assert ("and 17 more (--examples 20 shows all)" in out) == (examples == 3)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["--examples", "-1"], "--examples: expected at least 0", id="examples below 0"),
        pytest.param(["--root", "e=x"], "--root: expected NAME=DIR with NAME of d", id="root of another data set"),
        pytest.param(["--root", "nothing"], "nothing: no such folder", id="root that is not there"),
        pytest.param(["--folds", "none.csv"], "none.csv: no folds table here", id="no folds"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_a_message_with_exit_code_2(words, expected, leaking, capsys):
    assert exit_code("check", "--videos", leaking, *words) == 2
    out, err = capsys.readouterr()
    assert expected in err and out == ""


def test_parts_count_across_folds_only_if_the_folds_were_grouped_by_part(tmp_path):
    rows = [{"video_id": f"d/{n}", "label": n % 2, "part": f"p{n // 4}"} for n in range(8)]
    videos, folds = write_videos(tmp_path / "videos.csv", *rows), tmp_path / "folds.csv"
    words = ["check", "--videos", videos, "--folds", folds]
    run("folds", "--videos", videos, "--out", folds, "--num-folds", 2, "--group", "part")
    assert exit_code(*words) == 0
    cut = FOLDS.read(folds).assign(group=lambda table: table["video_id"], fold=[0, 0, 1, 1, 0, 0, 1, 1])
    FOLDS.write(cut, folds)
    assert exit_code(*words) == 1
    run("folds", "--videos", videos, "--out", folds, "--num-folds", 2, "--group", "original")
    assert exit_code(*words) == 0


def test_the_demo_is_sound_from_index_to_folds_and_its_files_are_checked(pipeline, capsys):
    assert exit_code("check", "--videos", pipeline.videos, "--folds", pipeline.folds) == 0
    out = capsys.readouterr().out
    assert "vanished" not in out and "not checked" not in out


def test_data_that_moved_is_found_through_root(small_dataset, tmp_path, capsys):
    data, moved, videos = tmp_path / "data", tmp_path / "moved", tmp_path / "videos.csv"
    shutil.copytree(small_dataset, data)
    run("index", "dfdc", "--root", data, "--out", videos)
    data.rename(moved)
    assert exit_code("check", "--videos", videos) == 0
    assert "Files were not checked: dfdc" in capsys.readouterr().out
    next(moved.glob("*/*.mp4")).unlink()
    assert exit_code("check", "--videos", videos, "--root", moved) == 0
    assert "WARNING vanished: dfdc: 1 of" in capsys.readouterr().out


def cost(words: list, *, limit_seconds: float) -> tuple[float, float]:
    """CPU seconds and peak bytes of a whole process, its start included; of a second one if the first is over."""
    script = (
        "import resource, sys; from multiattn.__main__ import main; code = main(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        # Not ru_maxrss, which hands a child its parent's peak.
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(used.ru_utime + used.ru_stime, int(peak) * 1024); sys.exit(code)"
    )
    for _ in range(2):
        command = [sys.executable, "-c", script, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        seconds, peak = map(float, done.stdout.splitlines()[-1].split())
        if seconds < limit_seconds:
            break
    return seconds, peak


@pytest.mark.slow
@pytest.mark.shared
def test_all_of_dfdc_is_folded_and_checked_in_seconds_and_little_memory(shared, tmp_path):
    """119,154 rows in 50 parts, each fake with an original of its part.

    Measured on two cores: 3.0 to 3.5 s and 3.5 to 4.0 s of CPU time, imports included. The limits are twice that, and
    of CPU time, not of the clock on the wall: slower machines and other work must not fail the test."""
    videos, folds = full_size(shared, tmp_path / "videos.csv"), tmp_path / "folds.csv"
    for stage, limit, words in (("folds", 7, ["--out", folds]), ("check", 8, ["--folds", folds])):
        seconds, peak = cost([stage, "--videos", videos, *words], limit_seconds=limit)
        assert seconds < limit, stage
        assert peak < 1.5e9, stage
    made = FOLDS.read(folds)
    assert (len(made), made["group"].nunique()) == (119_154, 50)
    assert (made.groupby(made["video_id"].str.split("/").str[1])["fold"].nunique() == 1).all()
    share = made.groupby("fold")["label"].agg(["size", "mean"])
    assert share["size"].between(0.8 * len(made) / 5, 1.2 * len(made) / 5).all()
    assert share["mean"].between(0.8, 0.88).all()


def full_size(shared: Path, path: Path) -> Path:
    """The videos.csv of all of DFDC's training videos; the list lacks 8 of them, so 8 made-up names stand for those."""
    names = pd.read_csv(shared / "lists" / "dfdc_train_videos.csv", keep_default_na=False)
    missing = pd.DataFrame({"name": [f"missing{n}" for n in range(119_154 - len(names))], "is_fake": 1})
    names = pd.concat([names, missing], ignore_index=True)
    part = names["name"].map(lambda name: f"dfdc_train_part_{hashlib.md5(name.encode()).digest()[0] % 50}")
    table = pd.DataFrame(dict.fromkeys(VIDEOS.columns, ""), index=names.index)
    table["path"] = part + "/" + names["name"] + ".mp4"
    table["video_id"] = "dfdc/" + part + "/" + names["name"]
    table["dataset"], table["label"], table["split"], table["part"] = "dfdc", names["is_fake"], "train", part
    reals = table[table["label"] == 0].groupby("part")["video_id"].apply(list)
    fakes = table.index[table["label"] == 1]
    table.loc[fakes, "original"] = [reals[part[n]][n % len(reals[part[n]])] for n in fakes]
    VIDEOS.write(table.sort_values("video_id"), path)
    return path
