"""The training curves: every column that is there is drawn, phases are marked, what is no history is refused."""

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from multiattn.figures.curves import curves_figure, draw_curves, read_epochs
from multiattn.model.diagnostics import COLLAPSED_COSINE, COLLAPSED_SHARE, DEAD_SHARE


def history(phases: list[str], *, maps: bool = True) -> pd.DataFrame:
    epochs = len(phases)
    table = pd.DataFrame({"epoch": range(epochs), "phase": phases})
    table["loss"] = table["cross_entropy"] = np.linspace(0.7, 0.1, epochs)
    table["learning_rate"] = 1e-3
    table["validation_log_loss"] = np.linspace(0.8, 0.3, epochs)
    table["validation_auc"] = np.linspace(0.5, 0.9, epochs)
    if maps:
        table["auxiliary"] = 0.5
        for name in ("map_cosine", "map_strongest_share", "map_entropy", "map_dead_share", "center_distance"):
            table[name] = np.where(table["phase"] == "backbone", np.nan, 0.4)
    return table


def curves(folds: dict[str, pd.DataFrame]) -> Figure:
    return curves_figure(folds, "demo")


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


def test_the_picture_is_written_in_its_size(tmp_path):
    folds = {"fold0": history(["backbone", "full"]), "fold1": history(["backbone"])}
    draw_curves(folds, "demo", tmp_path / "new" / "curves.png")
    picture = cv2.imread(str(tmp_path / "new" / "curves.png"))
    width, height = curves(folds).get_size_inches() * curves(folds).dpi
    assert picture.shape == (round(height), round(width), 3)
    assert picture.std() > 10


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
    assert [(patch.get_x(), patch.get_width()) for patch in axes.patches] == [(1.5, 1.0)]
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
    ],
)
def test_what_is_no_history_is_refused(tmp_path, content, message):
    (tmp_path / "epochs.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"epochs\.csv.*{message}"):
        read_epochs(tmp_path)


def test_a_fold_without_an_epoch_and_no_fold_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="multiattn train"):
        read_epochs(tmp_path)
    with pytest.raises(ValueError, match="at least one fold"):
        draw_curves({}, "demo", tmp_path / "curves.png")
