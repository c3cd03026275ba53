"""Robustness: what each distortion does to a crop, and what the table says of runs under it."""

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from multiattn.evaluation.distortions import DISTORTIONS, crop_cells, distort
from multiattn.evaluation.robustness import detect_again
from multiattn.evaluation.robustness_table import COLUMNS, cell_row, read_robustness, robustness_tables, summary_words
from multiattn.scoring.metrics import auc_interval, compare_auc
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.detectors.registry import Faces

SIDE, PAD = 192, 48


@pytest.fixture(scope="module")
def crop():
    """Smooth colours, an edge and some texture."""
    noise = np.random.default_rng(0).integers(0, 60, (SIDE, SIDE, 3))
    ramp = np.linspace(40, 160, SIDE)[:, None, None] + np.zeros((SIDE, SIDE, 3)) + (30, 0, -20)
    ramp[:, SIDE // 2 :] += 30
    return (ramp + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_every_level_changes_the_crop_alike_in_every_run_and_more_than_the_one_before(name, crop):
    before, away = crop.copy(), []
    for _, level, same in crop_cells([name], SIDE):
        if same:
            continue
        changed = distort(name, level, crop, "a/0.jpg")
        assert changed.shape == crop.shape and changed.dtype == np.uint8 and changed.flags.c_contiguous
        assert np.array_equal(changed, distort(name, level, crop, "a/0.jpg"))
        away.append(np.abs(changed.astype(float) - crop).mean())
    assert np.array_equal(crop, before), "the crop itself stays"
    assert away[0] > 0
    if name not in (
        "gamma",
        "downscaled",
    ):  # brighter, then darker; every third of noisy pixels is as near as every second
        assert away == sorted(away)


@pytest.mark.parametrize(
    ("name", "level"),
    [(name, level) for name, level, same in crop_cells(DISTORTIONS, SIDE) if same]
    + [("larger box", 1), ("smaller box", 1), ("rotation", 0), ("contrast", 1), ("blocks", 0), ("downscaled", 1)],
)
def test_a_level_that_means_nothing_leaves_every_pixel(name, level, crop):
    assert np.array_equal(distort(name, level, crop, ""), crop)


def test_a_sweep_has_sixty_cells_three_identities_and_no_resolution_that_changes_nothing():
    for side, resolutions in ((224, [112, 64, 32]), (380, [224, 112, 64, 32]), (64, [32])):
        cells = list(crop_cells(DISTORTIONS, side))
        assert [(name, level) for name, level, same in cells if same] == [
            ("shift", 0), ("resolution", side), ("gamma", 1)
        ]  # fmt: skip
        assert [level for name, level, same in cells if name == "resolution" and not same] == resolutions
        assert sum(not same for *_, same in cells) >= 60
    assert list(crop_cells((), 224)) == []


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("saturation", (0.4, 0.3, 0.2, 0.1, 0)),
        ("contrast", (0.85, 0.725, 0.6, 0.475, 0.35)),
        ("blocks", (16, 32, 48, 64, 80)),
        ("noise", (0.001, 0.002, 0.005, 0.01, 0.05)),
        ("blur", (7, 9, 13, 17, 21)),
        ("downscaled", (2, 3, 4, 5, 6)),
        ("h264", (30, 32, 35, 38, 40)),
    ],
)
def test_all_seven_distortions_of_deeperforensics_have_its_five_levels(name, levels):
    assert DISTORTIONS[name].source.startswith("DeeperForensics-1.0")
    assert set(levels) <= set(DISTORTIONS[name].levels)


def test_distortions_do_what_their_source_says(crop):
    grey = distort("saturation", 0, crop, "").astype(int)
    assert np.ptp(grey, axis=2).max() <= 1
    assert np.array_equal(distort("contrast", 0.6, crop, ""), (crop * np.float32(0.6)).astype(np.uint8))
    assert np.array_equal(distort("flip", 1, distort("flip", 1, crop, ""), ""), crop)
    covered = (distort("blocks", 16, np.zeros((SIDE, SIDE, 3), np.uint8), "") == 128).all(axis=2)
    assert 8 * 64 <= covered.sum() <= 16 * 64
    flat = np.full((256, 256, 3), 128, np.uint8)
    luma = cv2.cvtColor(distort("noise", 0.005, flat, ""), cv2.COLOR_RGB2YCrCb)[..., 0] / 255
    # The source adds it to 219 steps of luma between black and white, not to 255: 21 grey levels, not 18.
    assert luma.var() == pytest.approx(0.005 * (255 / 219) ** 2, rel=0.05)
    thirds = cv2.resize(cv2.resize(crop, (SIDE // 3, SIDE // 3)), (SIDE, SIDE))
    assert np.array_equal(distort("downscaled", 3, crop, ""), thirds), "bilinear, both ways"
    assert distort("screenshot", 0.8, flat, "")[..., 2].mean() < 128 * 0.97, "the display is warmer"
    line = np.zeros((SIDE, SIDE, 3), np.uint8)
    line[:, SIDE // 2] = 255
    blurred = distort("blur", 21, line, "")[..., 0].astype(float)
    offsets = np.arange(SIDE) - SIDE // 2
    assert np.sqrt((blurred.sum(0) * offsets**2).sum() / blurred.sum()) == pytest.approx(21 / 6, rel=0.15)
    corners = np.zeros((SIDE, SIDE, 3), np.uint8)
    corners[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = 255
    assert (distort("smaller box", 0.5, corners, "") == 255).mean() > 0.95, "half the box is the inner square"


def test_a_face_is_found_again_and_cut_as_the_recipe_does(crop):
    class Fixed:
        def __call__(self, images, *, thorough=False):
            side = len(images[0])
            boxes = np.array([[0.0, 0, 4, 4], [PAD, PAD, PAD + SIDE, PAD + SIDE]])
            assert side == SIDE + 2 * PAD
            return [Faces(boxes, np.ones(2), np.zeros((2, 5, 2)))]

    plain = CropRecipe(size=SIDE, alignment="box", margin=1.0)
    assert np.array_equal(detect_again(Fixed(), plain, crop), crop), "the largest box is the crop itself"
    nothing = Faces(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))
    assert detect_again(lambda images, thorough=False: [nothing], plain, crop) is crop


def test_the_paired_interval_of_an_auc_is_that_of_delong():
    """Against the covariance of DeLong et al. (1988) by its definition over all pairs."""
    generator = np.random.default_rng(3)
    labels = np.repeat([0, 1], (40, 60))
    a, b = (generator.normal(labels * 1.2, 1) for _ in range(2))
    a, b = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-(0.5 * a + b)))
    placed = []
    for answers in (a, b):
        wins = (answers[labels == 1][:, None] > answers[labels == 0][None]).astype(float)
        placed.append((wins.mean(axis=1), wins.mean(axis=0)))
    variance = sum(np.var(placed[0][k] - placed[1][k], ddof=1) / len(placed[0][k]) for k in (0, 1))
    difference, interval = compare_auc(labels, a, b)
    assert difference == pytest.approx(roc_auc_score(labels, a) - roc_auc_score(labels, b))
    assert interval.standard_error == pytest.approx(np.sqrt(variance), rel=0.01)
    assert interval.low < difference < interval.high
    same, nothing = compare_auc(labels, a, a)
    assert (same, nothing.low, nothing.high) == (0, 0, 0)
    assert np.isnan(compare_auc(np.ones(9, int), a[:9], a[:9])[0]) and auc_interval(labels, a).is_known


def cell(labels, probabilities, groups=None) -> dict[str, pd.DataFrame]:
    """Videos with one frame each."""
    labels, probabilities = np.array(labels), np.array(probabilities, dtype=float)
    ids = [f"v{number}" for number in range(len(labels))]
    losses = np.array(
        [log_loss([label], [one], labels=[0, 1]) for label, one in zip(labels, probabilities, strict=True)]
    )
    columns = {
        "label": labels,
        "probability": probabilities,
        "group": groups if groups is not None else ids,
        "loss": losses,
    }
    videos = pd.DataFrame(columns, index=pd.Index(ids, name="video_id"))
    frames = videos.set_axis(pd.MultiIndex.from_product([ids, [0], [0]], names=["video_id", "frame_index", "track"]))
    return {"": videos, "frame_": frames}


PLACE = {"kind": "crops", "distortion": "jpeg", "level": "20", "part": ""}


def test_a_row_has_the_figures_of_its_cell_and_their_paired_changes():
    draws = np.random.default_rng(5)
    labels = np.tile([0, 1], 30)
    clean, mine, beside = (cell(labels, draws.uniform(0.05, 0.95, 60)) for _ in range(3))
    row = cell_row(PLACE, [[mine], [beside]], [clean, clean])
    answers = {name: one[""]["probability"] for name, one in (("", mine), ("beside_", beside), ("clean", clean))}
    for scale in ("", "frame_"):
        for prefix in ("", "beside_"):
            assert row[f"{prefix}{scale}log_loss"] == pytest.approx(log_loss(labels, answers[prefix]))
            assert row[f"{prefix}{scale}auc"] == pytest.approx(roc_auc_score(labels, answers[prefix]))
            change = log_loss(labels, answers[prefix]) - log_loss(labels, answers["clean"])
            assert row[f"{prefix}{scale}log_loss_change"] == pytest.approx(change)
        difference = roc_auc_score(labels, answers[""]) - roc_auc_score(labels, answers["beside_"])
        assert row[f"{scale}auc_difference"] == pytest.approx(difference)
        assert row[f"{scale}auc_difference_low"] < difference < row[f"{scale}auc_difference_high"]
    # Paired: answers that differ by nothing have no uncertainty, whatever that of each is.
    same = cell_row(PLACE, [[mine]], [mine])
    assert [same[f"log_loss_change{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert same["log_loss_low"] < same["log_loss"] < same["log_loss_high"]


def test_a_mean_over_cells_is_that_of_their_figures_with_an_interval_over_sources():
    draws, labels, groups = np.random.default_rng(1), np.tile([0, 1], 20), np.repeat(np.arange(20), 2)
    cells = [{"": cell(labels, draws.uniform(0.1, 0.9, 40), groups)[""]} for _ in range(3)]
    clean = cell(labels, draws.uniform(0.1, 0.9, 40), groups)
    mean, single = cell_row(PLACE, [cells], [clean]), [cell_row(PLACE, [[one]], [clean]) for one in cells]
    for figure in ("log_loss", "auc", "log_loss_change", "auc_change"):
        assert mean[figure] == pytest.approx(np.mean([row[figure] for row in single]))
    assert mean["log_loss_low"] < mean["log_loss"] < mean["log_loss_high"] and np.isnan(mean["auc_low"])
    # What one cell alone leaves open is known better of three together.
    assert mean["log_loss_high"] - mean["log_loss_low"] < single[0]["log_loss_high"] - single[0]["log_loss_low"]
    part = cell_row(PLACE, [cells], [clean], videos=pd.Index(["v0", "v1", "v2"]))
    assert (part["num_real"], part["num_fake"]) == (2, 1) and np.isnan(part["log_loss_low"]), "two sources: no interval"
    assert part["log_loss"] == pytest.approx(np.mean([one[""]["loss"].head(3).mean() for one in cells]))


@pytest.mark.parametrize(("labels", "auc"), [([1, 1, 1], np.nan), ([0, 1, 1], 1.0), ([1, 0, 0], 0.0)])
def test_one_class_has_no_auc_and_the_worst_is_zero(labels, auc):
    row = cell_row(PLACE, [[cell(labels, [0.1, 0.5, 0.6])]])
    assert row["auc"] == pytest.approx(auc, nan_ok=True)


def test_frames_that_are_others_have_no_change(crop):
    clean, anew = cell([0, 1], [0.2, 0.7]), cell([0, 1], [0.3, 0.6])
    anew["frame_"] = anew["frame_"].head(1)
    row = cell_row(PLACE, [[anew]], [clean])
    assert "log_loss_change" in row and "frame_log_loss_change" not in row and row["frame_log_loss"] > 0
    anew["frame_"] = anew["frame_"].head(0)
    assert "frame_log_loss" not in cell_row(PLACE, [[anew]], [clean]), "no face in any video"


def test_words_of_a_report_without_any_distortion_and_of_an_old_one(tmp_path):
    cells = pd.DataFrame([cell_row({**PLACE, "kind": "clean"}, [[cell([0, 1], [0.2, 0.7])]])]).reindex(columns=COLUMNS)
    assert summary_words(cells) == ""
    assert [len(table.rows) for table in robustness_tables(cells)] == [1, 0]
    with pytest.raises(FileNotFoundError, match=r"no robustness\.csv here"):
        read_robustness(tmp_path)
    (tmp_path / "robustness.csv").write_text("distortion,level,log_loss\njpeg,20,0.5\n")
    with pytest.raises(ValueError, match="of an earlier version"):
        read_robustness(tmp_path)
