"""`bench faces`: when two boxes show the same face, and one run of both sides."""

import re

import numpy as np
import pytest

from drawn_faces import draw, write_clip
from multiattn.bench.faces import Comparison, shared_faces
from multiattn.bench.harness import Measured
from multiattn.stages.bench import main

NONE = np.zeros((0, 4))


def boxes(*corners: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(corners, dtype=np.float64).reshape(-1, 4)


@pytest.mark.parametrize(
    ("reference", "found", "share"),
    [
        pytest.param({}, {}, 1.0, id="nothing to find"),
        pytest.param({("a", 0): NONE}, {("a", 0): boxes((0, 0, 9, 9))}, 1.0, id="only false ones found"),
        pytest.param({("a", 0): boxes((0, 0, 9, 9))}, {}, 0.0, id="frame missing"),
        pytest.param({("a", 0): boxes((0, 0, 9, 9))}, {("a", 0): NONE}, 0.0, id="no face found"),
        pytest.param({("a", 0): boxes((0, 0, 9, 9))}, {("a", 1): boxes((0, 0, 9, 9))}, 0.0, id="another frame"),
        pytest.param({("a", 0): boxes((0, 0, 10, 10))}, {("a", 0): boxes((0, 0, 10, 5))}, 1.0, id="IoU 0.5"),
        pytest.param({("a", 0): boxes((0, 0, 10, 10))}, {("a", 0): boxes((0, 0, 10, 4.9))}, 0.0, id="IoU 0.49"),
        pytest.param(
            {("a", 0): boxes((0, 0, 9, 9), (50, 50, 59, 59)), ("b", 0): boxes((0, 0, 9, 9))},
            {("a", 0): boxes((50, 50, 59, 59)), ("b", 0): boxes((0, 0, 9, 9))},
            2 / 3,
            id="two of three",
        ),
    ],
)
def test_faces_are_shared_by_overlap_in_one_frame(reference, found, share):
    assert shared_faces(reference, found) == pytest.approx(share)


def test_small_faces_can_be_left_out_and_ratios_are_of_the_right_sides():
    bench = Comparison(
        num_videos=2,
        ours=Measured({("a", 0): boxes((0, 0, 60, 50))}, seconds=2.0, cpu_seconds=4.0, peak_bytes=1),
        loop=Measured({("a", 0): boxes((0, 0, 60, 50), (500, 0, 549, 30))}, seconds=8.0, cpu_seconds=8.0, peak_bytes=1),
        stages={"decode": 1.0, "rest": 3.0},
        cpu_seconds=3.0,
        parts_cpu_seconds=2.0,
        longest_sides={"a": 1000},
    )
    assert {"4.00 times the loop's videos/s", "1.50 times the CPU time of decoding and detection alone (2.0 s)"} <= set(
        bench.table()
    )
    assert bench.recall() == 0.5
    assert bench.recall(min_share=0.05) == 1.0
    assert bench.recall(min_share=0.049) == 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("forked_sides")
def test_the_benchmark_runs_both_sides_and_counts_all_stages(tmp_path, capsys):
    frames = [draw([])] * 150  # decoding them takes longer than what rounds to 0.00 s
    write_clip(tmp_path / "clips" / "below" / "a.mp4", frames)
    main(["faces", "--videos-dir", str(tmp_path / "clips"), "--num-frames", "2", "--size", "64", "--jobs", "1"])
    out = capsys.readouterr().out
    assert re.search(r"^1 videos, 2 frames each, mtcnn$", out, re.MULTILINE)
    seconds = {name: float(value) for name, value in re.findall(r"^(\w+) +([\d.]+) +-?\d+%$", out, re.MULTILINE)}
    assert set(seconds) == {"decode", "convert", "detect", "align", "encode", "write", "rest"}
    assert seconds["detect"] > 0
    assert seconds["decode"] > 0
    assert re.search(r"^ours( +[\d.]+){5} +0 +[\d,]+$", out, re.MULTILINE)
    assert re.search(r"^loop( +[\d.]+){5} +0 +[\d,]+$", out, re.MULTILINE)


def test_a_clip_that_cannot_be_read_is_named_before_any_work(tmp_path):
    (tmp_path / "torn.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"torn\.mp4: expected a video that can be read, found: "):
        main(["faces", "--videos-dir", str(tmp_path)])
