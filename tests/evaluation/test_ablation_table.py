"""From runs to the table: metrics against scikit-learn and hand arithmetic, columns only where data match."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from multiattn.evaluation.ablation_table import DEMO_NOTE, AblationTable, measure_out_of_fold, read_cross_data
from multiattn.evaluation.ablations import CELEB, HQ, LQ, get_ablation, name_data
from multiattn.scoring.metrics import balanced_log_loss
from multiattn.tables import FOLDS, FRAME_PREDICTIONS, VIDEOS
from multiattn.video.crops.recipe import read_recipe
from pipeline import Pipeline


def videos(*rows: tuple[str, str]) -> pd.DataFrame:
    texts = dict.fromkeys(VIDEOS.columns, "") | {"label": 0, "path": "p"}
    return pd.DataFrame(
        [texts | {"video_id": f"v{n}", "dataset": d, "compression": c} for n, (d, c) in enumerate(rows)],
        columns=list(VIDEOS.columns),
    )


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        pytest.param([("ffpp", "c23")], HQ, id="one video of FF++ c23"),
        pytest.param([("ffpp", "c40")] * 2, LQ, id="FF++ c40"),
        pytest.param([("ffpp", "raw")], "FF++ raw", id="FF++ raw is neither"),
        pytest.param([("ffpp", "c23"), ("ffpp", "c40")], "ffpp", id="both compressions are neither"),
        pytest.param([("celeb_df_v2", "")], CELEB, id="Celeb-DF"),
        pytest.param([("dfdc", "c23")], "dfdc", id="another data set"),
        pytest.param([("dfdc", ""), ("ffpp", "c23")], "dfdc and ffpp", id="two data sets"),
        pytest.param([], "", id="none"),
    ],
)
def test_data_are_called_what_the_paper_calls_them_only_where_they_are(rows, name):
    assert name_data(videos(*rows)) == name


def write_fold(runs: Path, number: int, folds: pd.DataFrame, frames: list[tuple[str, int, float]]) -> None:
    folder = runs / f"fold{number}"
    FOLDS.write(folds, folder / "folds.csv")
    table = pd.DataFrame(frames, columns=["video_id", "frame_index", "probability"])
    table = table.assign(model=f"x/fold{number}", fold=number, track=0)
    FRAME_PREDICTIONS.write(
        table.assign(logit=np.log(table["probability"] / (1 - table["probability"]))), folder / "oof.parquet"
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two folds of 3 videos; video f has no face, and videos differ in their number of frames."""
    folds = pd.DataFrame(
        {"video_id": list("abcdef"), "label": [0, 1, 1, 0, 1, 0], "group": list("abcdef"), "fold": [0, 0, 0, 1, 1, 1]}
    )
    write_fold(tmp_path, 0, folds, [("a", 0, 0.2), ("a", 1, 0.7), ("b", 0, 0.9), ("b", 1, 0.6), ("c", 0, 0.4)])
    write_fold(tmp_path, 1, folds, [("d", 0, 0.1), ("e", 0, 0.55), ("e", 1, 0.65), ("e", 2, 0.3)])
    return tmp_path


@pytest.mark.parametrize(
    ("folds", "frame_labels", "frames", "video_labels", "video_probabilities"),
    [
        pytest.param([0], [0, 0, 1, 1, 1], [0.2, 0.7, 0.9, 0.6, 0.4], [0, 1, 1], [0.45, 0.75, 0.4], id="one fold"),
        pytest.param(
            [0, 1],
            [0, 0, 1, 1, 1, 0, 1, 1, 1],
            [0.2, 0.7, 0.9, 0.6, 0.4, 0.1, 0.55, 0.65, 0.3],
            [0, 1, 1, 0, 1, 0],
            [0.45, 0.75, 0.4, 0.1, 0.5, 0.5],
            id="two folds together, a faceless video with the prior",
        ),
    ],
)
def test_out_of_fold_figures_are_scikit_learns(runs, folds, frame_labels, frames, video_labels, video_probabilities):
    figures = measure_out_of_fold(runs, folds)
    assert figures == pytest.approx(
        {
            ("held-out", "accuracy"): 100 * accuracy_score(frame_labels, np.array(frames) > 0.5),
            ("held-out", "auc"): 100 * roc_auc_score(frame_labels, frames),
            ("held-out", "video_log_loss"): log_loss(video_labels, video_probabilities),
            ("held-out", "video_balanced_log_loss"): balanced_log_loss(
                np.array(video_labels), np.array(video_probabilities)
            ),
            ("held-out", "video_auc"): roc_auc_score(video_labels, video_probabilities),
        },
        rel=1e-12,
    )


def test_a_fold_without_predictions_is_an_error(runs):
    with pytest.raises(FileNotFoundError, match="fold2"):
        measure_out_of_fold(runs, [0, 2])


def table_of(name: str, held_out: str, cross: str | None = None, *, tiny: bool = False) -> AblationTable:
    return AblationTable(get_ablation(name, tiny=tiny), held_out, cross, facts=("`multiattn ablation`",))


def figures(accuracy: float, auc: float = 99.0, cross: float | None = None) -> dict:
    found = {("held-out", "accuracy"): accuracy, ("held-out", "auc"): auc}
    found |= {("held-out", "video_log_loss"): 0.1, ("held-out", "video_auc"): 0.98}
    found[("held-out", "video_balanced_log_loss")] = 0.2
    return found | ({("cross", "accuracy"): 60.0, ("cross", "auc"): cross} if cross is not None else {})


def test_mean_spread_and_difference_are_those_of_hand_arithmetic():
    table = table_of("5", HQ, CELEB)
    first, second = table.ablation.cells[:2]
    for accuracy, auc in ((97.0, 66.0), (97.3, 67.0), (97.9, 71.0)):
        table.add(first, figures(accuracy, cross=auc))
    table.add(second, figures(97.51, cross=60.0))
    rows = table.rows().set_index(["cell", "column"])
    row = rows.loc[("M = 1", "FF++ HQ ACC %")]
    assert row["mean"] == pytest.approx(97.4) and row["num_seeds"] == 3
    assert row["spread"] == pytest.approx(((0.16 + 0.01 + 0.25) / 2) ** 0.5)
    assert row["difference"] == pytest.approx(97.4 - 97.26)
    assert rows.loc[("M = 1", "Celeb-DF AUC %"), "mean"] == pytest.approx(68.0)
    single = rows.loc[("M = 2", "FF++ HQ ACC %")]
    assert np.isnan(single["spread"]) and single["difference"] == pytest.approx(0.0, abs=1e-9)
    assert rows.loc[("M = 3", "FF++ HQ ACC %"), "status"] == "pending"
    page = table.markdown()
    assert "| M = 1 | 97.40 ± 0.46 (3) | 97.26 | +0.14 | 68.00 ± 2.65 (3) | 67.30 | +0.70 |" in page
    assert "| M = 2 | 97.51 (1) | 97.51 | " in page and "| M = 3 | pending | 97.35 |  |" in page
    wide = table.wide().set_index("cell")
    assert wide.loc["M = 1", "Celeb-DF AUC % difference"] == pytest.approx(0.70)
    assert list(wide.index) == [f"M = {number}" for number in range(1, 6)]


@pytest.mark.parametrize(
    ("held_out", "measured"),
    [
        pytest.param(HQ, {"FF++ HQ ACC %", "FF++ HQ AUC %"}, id="c23 fills HQ"),
        pytest.param(LQ, {"FF++ LQ ACC %", "FF++ LQ AUC %"}, id="c40 fills LQ"),
        pytest.param("dfdc", set(), id="other data fill neither"),
    ],
)
def test_only_the_matching_columns_are_measured(held_out, measured):
    table = table_of("2", held_out)
    for cell in table.ablation.cells[:-1]:
        table.add(cell, figures(90.0))
    rows = table.rows().dropna(subset=["paper"])
    trained, quoted = rows[rows["status"] == "measured"], rows[rows["status"] == "quoted"]
    assert set(trained.dropna(subset=["mean"])["column"]) == measured
    assert set(trained.dropna(subset=["difference"])["column"]) == measured
    assert set(quoted["cell"]) == {"F3-Net (quoted)"} and quoted["mean"].isna().all() and len(quoted) == 4
    page = table.markdown()
    assert "not measured" in page and "Not measured: " in page
    assert DEMO_NOTE not in page
    assert table.file_name == ("table_2_lq" if held_out == LQ else "table_2")


def test_other_test_data_do_not_pass_for_celeb_df():
    table = table_of("5", HQ, "dfdc")
    table.add(table.ablation.cells[0], figures(97.0, cross=80.0))
    rows = table.rows().set_index(["cell", "column"])
    assert np.isnan(rows.loc[("M = 1", "Celeb-DF AUC %"), "mean"])
    assert rows.loc[("M = 1", "dfdc frame AUC %"), "mean"] == 80.0


@pytest.mark.parametrize(("name", "tiny"), [("5", True), ("demo", False), ("demo", True)])
def test_figures_of_the_demo_say_that_they_say_nothing(name, tiny):
    table = table_of(name, "dfdc", "dfdc", tiny=tiny)
    table.add(table.ablation.cells[0], figures(50.0, cross=51.0))
    page = table.markdown()
    assert DEMO_NOTE in page
    assert ("filled from other data (dfdc in place of FF++, dfdc in place of Celeb-DF)" in page) == (name == "5")
    assert table.ablation.name == f"table_{name}{'_tiny' if tiny else ''}"


def test_a_failed_cell_is_named_with_its_message_beside_the_seeds_that_did_not_fail():
    table = table_of("1", HQ)
    first, second = table.ablation.cells[:2]
    table.add(first, figures(96.0))
    table.fail(first, "seed 1: the loss is nan")
    table.fail(second, "seed 0: no weights")
    rows = table.rows().set_index(["cell", "column"])
    assert rows.loc[(first.label, "FF++ HQ ACC %"), ["status", "mean"]].tolist() == ["failed", 96.0]
    page = table.markdown()
    assert f"| {first.label} | 96.00 (1) |" in page and f"| {second.label} | failed |" in page
    assert f"**{first.label}** failed: seed 1: the loss is nan" in page
    assert f"**{second.label}** failed: seed 0: no weights" in page


@pytest.mark.parametrize("name", ["demo", "demo-training"])
def test_a_table_without_runs_is_all_pending_and_one_of_ours_has_no_number(name):
    table = table_of(name, "dfdc")
    assert table.title == get_ablation(name).title and table_of("5", HQ).title.startswith("Table 5: ")
    assert set(table.rows()["status"]) == {"pending"}
    assert table.rows()["mean"].isna().all()


def test_videos_that_were_trained_on_are_refused_as_test_data(pipeline: Pipeline):
    folds = FOLDS.read(pipeline.folds)
    with pytest.raises(ValueError, match=r"leak: \d+ of its videos are in the folds"):
        read_cross_data(pipeline.faces, read_recipe(pipeline.faces), folds["video_id"])


def test_test_crops_made_in_another_way_are_refused(pipeline: Pipeline):
    recipe = dataclasses.replace(read_recipe(pipeline.faces), size=380)
    with pytest.raises(ValueError, match="size: expected 380, found 64"):
        read_cross_data(pipeline.faces, recipe, pd.Series(dtype=str))
