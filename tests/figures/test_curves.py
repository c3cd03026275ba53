"""The training curves: every column that is there is drawn, runs lie over each other, what is no history is refused."""

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from multiattn.figures.curves import curves_figure, mean_over_folds, read_epochs, read_runs
from multiattn.figures.options import Curves
from multiattn.model.diagnostics import COLLAPSED_COSINE, COLLAPSED_SHARE, DEAD_SHARE


def history(phases: list[str], *, maps: bool = True) -> pd.DataFrame:
    epochs = len(phases)
    table = pd.DataFrame({"epoch": range(epochs), "phase": phases, "epochs_done": np.arange(1.0, epochs + 1)})
    table["loss"] = table["cross_entropy"] = np.linspace(0.7, 0.1, epochs)
    table["learning_rate"] = 1e-3
    table["validation_log_loss"] = np.linspace(0.8, 0.3, epochs)
    table["validation_balanced_log_loss"] = table["validation_log_loss"] + 0.1
    table["validation_auc"] = np.linspace(0.5, 0.9, epochs)
    if maps:
        table["auxiliary"] = 0.5
        for name in ("map_cosine", "map_strongest_share", "map_entropy", "map_dead_share", "center_distance"):
            table[name] = np.where(table["phase"] == "backbone", np.nan, 0.4)
    return table


def curves(folds: dict[str, pd.DataFrame]) -> Figure:
    return curves_figure({"demo": folds})


def panel(figure: Figure, title: str):
    return next(axes for axes in figure.axes if title in axes.get_title(loc="left"))


def labels(axes) -> set[str]:
    return {text.get_text() for text in axes.get_legend().get_texts()}


def test_one_fold_with_attention_has_six_panels_and_the_thresholds():
    figure = curves({"fold0": history(["train"] * 3)})
    assert len(figure.axes) == 6
    maps = panel(figure, "attention maps")
    dashed = {float(line.get_ydata()[0]) for line in maps.lines if line.get_linestyle() == "--"}
    assert dashed == {COLLAPSED_COSINE, COLLAPSED_SHARE, DEAD_SHARE}
    assert labels(panel(figure, "training loss")) == {"sum", "cross entropy", "auxiliary, unweighted"}
    assert panel(figure, "validation log loss").lines[0].get_ydata() == pytest.approx([0.8, 0.55, 0.3])


def test_a_baseline_has_no_attention_panels():
    figure = curves({"fold0": history(["train"] * 3, maps=False)})
    assert len(figure.axes) == 4


def test_one_map_has_no_cosine():
    table = history(["train"] * 2).drop(columns=["map_cosine", "map_strongest_share", "center_distance"])
    assert labels(panel(curves({"fold0": table}), "attention maps")) == {"entropy", "share of dead maps"}


def test_a_single_epoch_is_seen():
    figure = curves({"fold0": history(["train"])})
    line = panel(figure, "validation log loss").lines[0]
    assert line.get_marker() == "o"
    low, high = panel(figure, "validation log loss").get_ylim()
    assert low < 0.8 < high


def test_folds_of_different_length_are_drawn_with_their_mean():
    first, second = history(["train"] * 3), history(["train"] * 2)
    second["validation_log_loss"] = [0.6, 0.5]
    lines = panel(curves({"fold0": first, "fold1": second}), "validation log loss").lines
    assert lines[0].get_ydata() == pytest.approx([0.8, 0.55, 0.3])
    assert lines[1].get_ydata() == pytest.approx([0.6, 0.5])
    assert lines[2].get_ydata() == pytest.approx([0.7, 0.525, 0.3])


def test_phases_are_named_and_every_other_one_is_shaded():
    figure = curves({"fold0": history(["backbone", "backbone", "frozen", "full", "full"])})
    axes = panel(figure, "training loss")
    assert [text.get_text() for text in axes.texts] == ["backbone", "frozen", "full"]
    assert [(patch.get_x(), patch.get_width()) for patch in axes.patches] == [(2.0, 1.0)]
    assert len(panel(curves({"fold0": history(["train"] * 3)}), "training loss").texts) == 0


def test_an_auc_that_does_not_exist_leaves_a_gap():
    table = history(["train"] * 3)
    table["validation_auc"] = [0.5, np.nan, 0.7]
    values = panel(curves({"fold0": table}), "AUC").lines[0].get_ydata()
    assert np.isnan(values).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "something else", id="empty file"),
        pytest.param("epoch,phase,loss\n0,train,1\n", "found no learning_rate, validation_log_loss", id="columns"),
        pytest.param(
            "epoch,phase,loss,learning_rate,validation_log_loss,validation_auc\n", "found no rows", id="no rows"
        ),
        pytest.param(
            "epoch,phase,loss,learning_rate,validation_log_loss,validation_auc\n0,train,a,0.1,b,0.5\n",
            "found text in loss, validation_log_loss. Put back what `multiattn train` wrote",
            id="text",
        ),
    ],
)
def test_what_is_no_history_is_refused(tmp_path, content, message):
    (tmp_path / "epochs.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"epochs\.csv.*{message}"):
        read_epochs(tmp_path)


def test_a_fold_without_an_epoch_and_no_fold_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="multiattn train"):
        read_epochs(tmp_path)
    for runs in ({}, {"demo": {}}):
        with pytest.raises(ValueError, match="at least one run with a validated fold"):
            curves_figure(runs)


def test_validations_stand_where_they_were_made():
    table = history(["train"] * 4)
    table["epochs_done"] = [0.5, 1.0, 1.5, 2.0]
    line = panel(curves({"fold0": table}), "validation log loss").lines[0]
    assert line.get_xdata() == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert panel(curves({"fold0": table}), "learning rate").get_xlabel() == "epochs done"


def test_a_table_without_that_column_counts_its_epochs(tmp_path):
    history(["train"] * 3).drop(columns="epochs_done").to_csv(tmp_path / "epochs.csv", index=False)
    assert read_epochs(tmp_path)["epochs_done"].tolist() == [1, 2, 3]


def test_of_two_validations_at_one_place_the_later_counts(tmp_path):
    table = history(["train"] * 3)
    table["epochs_done"] = [1.0, 1.0, 2.0]
    table.to_csv(tmp_path / "epochs.csv", index=False)
    assert read_epochs(tmp_path)["validation_log_loss"].tolist() == pytest.approx([0.55, 0.3])


@pytest.mark.parametrize(
    ("folds", "places", "mean"),
    [
        pytest.param([{1: 4.0, 2: 6.0}], [1, 2], [4, 6], id="one fold"),
        pytest.param([{1: 4.0}], [1], [4], id="one validation"),
        pytest.param([{0.5: 4.0, 1: 6.0}, {0.49: 2.0, 1: 4.0}], [0.5, 1], [3.0196, 5], id="slightly different places"),
        pytest.param([{1: 4.0, 2: 6.0, 3: 8.0}, {1: 2.0, 3: 4.0}], [1, 2, 3], [3, 4.5, 6], id="half as often"),
        pytest.param([{1: 4.0, 2: 6.0, 3: 8.0}, {1: 2.0}], [1, 2, 3], [3, 6, 8], id="stopped after one"),
        pytest.param([{1: 4.0, 2: np.nan, 3: 8.0}], [1, 2, 3], [4, np.nan, 8], id="a gap"),
        pytest.param([{1: 4.0, 2: np.nan, 3: 8.0}, {1: 2.0, 2: 3.0, 3: 4.0}], [1, 2, 3], [3, 3, 6], id="a fold's gap"),
    ],
)
def test_folds_are_averaged_where_they_were_validated(folds, places, mean):
    found = mean_over_folds([pd.Series(values) for values in folds])
    assert found.index.tolist() == places
    assert found.tolist() == pytest.approx(mean, nan_ok=True, abs=1e-4)


def with_averages(epochs: int) -> pd.DataFrame:
    table = history(["train"] * epochs)
    table["ema_log_loss"] = table["validation_log_loss"] - 0.05
    table["average_log_loss"] = np.where(np.arange(epochs) < 2, np.nan, 0.2)
    return table


def test_averaged_weights_are_dashed_lines_and_the_star_is_the_lowest_of_all():
    axes = panel(curves({"fold0": with_averages(4)}), "validation log loss")
    assert {"last weights", "moving average", "average of the best"} <= labels(axes)
    last, moving, average, balanced = axes.lines[:4]
    assert balanced.get_ydata() == pytest.approx(last.get_ydata() + 0.1) and axes.get_ylim()[1] > 0.9
    assert last.get_linestyle() == "-" and moving.get_linestyle() == "--" and average.get_linestyle() == "--"
    assert moving.get_ydata() == pytest.approx(last.get_ydata() - 0.05)
    assert np.isnan(average.get_ydata()).tolist() == [True, True, False, False]
    assert axes.collections[0].get_offsets().tolist() == [[3.0, 0.2]]


def test_without_averages_the_line_is_the_log_loss():
    assert labels(panel(curves({"fold0": history(["train"] * 3)}), "validation log loss")) >= {"log loss", "balanced"}
    table = with_averages(3).assign(ema_log_loss=np.nan, average_log_loss=np.nan)
    assert "moving average" not in labels(panel(curves({"fold0": table}), "validation log loss"))


def colors(axes) -> set:
    return {line.get_color() for line in axes.lines if len(line.get_xdata()) and line.get_color() not in ("0.3", "0.4")}


def test_every_run_has_a_colour_and_a_name():
    runs = {
        "one": {"fold0": with_averages(4), "fold1": with_averages(3)},
        "two": {"fold0": history(["train"] * 6)},
        "twin": {"fold0": history(["train"] * 2, maps=False)},
    }
    figure = curves_figure(runs)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two", "twin"]
    assert len(figure.axes) == 6
    for title, expected in (("training loss", 3), ("validation AUC", 3), ("learning rate", 3), ("mean cosine", 2)):
        assert len(colors(panel(figure, title))) == expected
    assert panel(figure, "training loss").get_xlim()[1] > 6
    assert "last weights" in labels(panel(figure, "validation log loss"))


@pytest.mark.parametrize(
    ("other", "marked"),
    [
        pytest.param(["backbone", "full", "full"], True, id="the same"),
        pytest.param(["backbone"], True, id="the same, not so far"),
        pytest.param(["train"] * 3, False, id="one phase"),
        pytest.param(["train"], False, id="one phase, shorter"),
        pytest.param(["backbone", "backbone", "full"], False, id="longer phases"),
    ],
)
def test_phases_are_marked_where_all_runs_went_through_the_same(other, marked):
    runs = {"one": {"fold0": history(["backbone", "full", "full"])}, "two": {"fold0": history(other)}}
    assert bool(panel(curves_figure(runs), "training loss").patches) == marked


def test_the_curves_of_run_folders_are_written(tmp_path):
    for name in ("a/fold0", "a/fold10", "a/fold2", "b/fold0", "elsewhere/a/fold0"):
        (tmp_path / name).mkdir(parents=True)
        history(["train"] * 2).to_csv(tmp_path / name / "epochs.csv", index=False)
    (tmp_path / "a/fold3").mkdir()
    runs = read_runs((tmp_path / "a", tmp_path / "b/fold0", tmp_path / "elsewhere/a"))
    assert list(runs) == ["a", "b", str(tmp_path / "elsewhere/a")]
    assert list(runs["a"]) == ["fold0", "fold2", "fold10"], "folds in the order of their numbers, those begun only"
    paths = Curves(runs=(tmp_path / "a", tmp_path / "b"), out=tmp_path / "out").draw()
    assert paths == [tmp_path / "out/curves.png"] and cv2.imread(str(paths[0])).std() > 10


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("nothing", "Train with `multiattn train`"),
        ("a", "the same `multiattn train` command goes on"),
        ("a/fold0", "the same `multiattn train` command goes on"),
        ("imported", "leave it out of --runs"),
    ],
)
def test_a_run_that_was_not_validated_is_refused(tmp_path, name, advice):
    for run in ("a/fold0", "imported/fold0"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "experiment.json").write_text("{}")
    (tmp_path / "imported/fold0/import.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=rf"{name}.*epochs\.csv: no finished epoch there.*{advice}"):
        read_runs((tmp_path / name,))
