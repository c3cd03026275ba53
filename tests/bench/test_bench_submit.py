"""`bench submit`: its table of both sides, and that both answer alike."""

import pytest

from multiattn.bench.submit import Side, SubmitBench, measure, table, untrained_run
from multiattn.inference.runs import find_models
from sums import machine_was_measured


def side(seconds: float, **answers: float) -> Side:
    stages = {"decode": 0.2 * seconds, "search": seconds, "classify": 0.5 * seconds, "wall": seconds}
    return Side(seconds, answers, answers, peak_bytes=2_000_000_000, stages=stages, workers=2, threads=2)


def test_the_table_shows_rates_shares_ratio_and_the_largest_difference():
    text = "\n".join(table([side(10, a=0.5, b=0.25)], [side(30, a=0.51, b=0.25, c=0.1)], 40))
    assert "4.000" in text and "1.333" in text and "2.00 GB" in text
    assert "0.28" in text, "4,000 videos at 4 a second are 0.28 hours"
    assert "2 workers: decode 10%, detect 50%, waiting 40%" in text
    assert "2 threads: classify 25%, waiting 75%" in text
    assert "3.00 times the loop's videos/s" in text
    assert "2 videos differ by at most 1.0e-02; 1 that only one side answered" in text


def test_turns_are_summed_up_by_their_median_and_spread():
    text = "\n".join(table([side(10), side(10), side(10)], [side(20), side(25), side(40)], 1))
    assert "2.50 times the loop's videos/s (2.00 to 4.00)" in text


@pytest.mark.slow
@pytest.mark.usefixtures("forked_sides")
def test_both_sides_answer_alike(pipeline):
    clips = pipeline.dataset / "dfdc_train_part_0"
    bench = SubmitBench(videos_dir=clips, videos=2, runs=(pipeline.experiment,), jobs=1, turns=2)
    text = "\n".join(measure(bench))
    assert "2 videos, 4 frames each, mtcnn, 2 models" in text
    different, same = (float(line.rpartition(" ")[2]) for line in text.splitlines()[-2:])
    assert different < (1e-3 if machine_was_measured() else 3e-2) and same < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({}, "one of --runs and --untrained", id="no models"),
        pytest.param({"runs": ("a",), "untrained": "demo"}, "one of --runs and --untrained", id="both kinds"),
        pytest.param({"untrained": "demo", "turns": 1}, "--turns: expected at least 2, found 1: .* not", id="cold"),
        pytest.param({"untrained": "demo", "videos": 0}, "--videos: expected at least 1", id="no videos"),
    ],
)
def test_options_that_compare_nothing_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SubmitBench(videos_dir=tmp_path, **options)


def test_an_untrained_run_can_be_loaded(tmp_path):
    models = find_models(untrained_run(tmp_path, "demo", folds=2))
    assert [model.name for model in models] == ["demo/fold0", "demo/fold1"] and all(m.imported for m in models)
