"""`bench score`: the command and the stages of one clip's answer."""

import re

import pytest

from multiattn.bench import score
from multiattn.bench.options import ScoreBench


@pytest.mark.slow
@pytest.mark.usefixtures("forked_sides")
def test_every_stage_has_seconds_and_the_parts_are_those_of_the_whole(pipeline):
    clip = next(path for path in sorted((pipeline.dataset / "dfdc_train_part_0").glob("*.mp4")))
    text = "\n".join(score.measure(ScoreBench(clip=clip, runs=(pipeline.experiment,), repeats=1)))
    seconds = {name.strip(): float(value) for name, value in re.findall(r"^(.+?) +(\d+\.\d\d) +\d", text, re.MULTILINE)}
    assert {*seconds} >= {"multiattn score, a process of its own", "imports", "reading the runs", "again: all"}
    parts = seconds["again: decoding, detection, crops"] + seconds["again: networks and scoring rule"]
    assert parts == pytest.approx(seconds["again: all"], abs=0.02)


def test_what_the_command_ends_with_is_told(tmp_path):
    options = ScoreBench(clip=tmp_path / "absent.mp4", runs=(tmp_path,))
    with pytest.raises(ValueError, match=r"absent.mp4: `multiattn score` ended with code 2: error: "):
        score._command(options, options.runs, "torch")


def test_no_repeats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--repeats: expected at least 1, found 0"):
        ScoreBench(clip=tmp_path, repeats=0)
