"""Shares of crops outside the faces of the training, and their words."""

import numpy as np
import pandas as pd
import pytest

from multiattn.scoring.distances import NOT_MEASURED, Outside, crop_distances


def test_a_crop_has_the_mean_over_the_models_and_the_reason_of_the_farthest():
    rows = [
        ("a/fold0", "v", 1, 0, 0.5, ""),
        ("a/fold0", "v", 0, 0, 1.5, "dark"),
        ("a/fold1", "v", 0, 0, 3.5, "blurred, dark"),
        ("a/fold1", "v", 1, 0, np.nan, ""),
        ("a/fold0", "w", 0, 0, np.nan, ""),
    ]
    columns = ["model", "video_id", "frame_index", "track", "distance", "distance_reason"]
    found = crop_distances(pd.DataFrame(rows, columns=columns))
    assert found["distance"].tolist()[:2] == [2.5, 0.5] and np.isnan(found["distance"].iloc[2])
    assert found["distance_reason"].tolist() == ["blurred, dark", "", ""]
    assert crop_distances(pd.DataFrame(rows[:0], columns=columns)).empty


@pytest.mark.parametrize(
    ("distances", "reasons", "words", "unusual"),
    [
        pytest.param([], [], NOT_MEASURED, False, id="empty"),
        pytest.param([np.nan] * 2, [""] * 2, NOT_MEASURED, False, id="not measured"),
        pytest.param([0.5] * 4, [""] * 4, "0 of 4 crops (0%) lie outside", False, id="inside"),
        pytest.param([1.0] * 4, [""] * 4, "0 of 4 crops (0%) lie outside", False, id="on the boundary"),
        pytest.param([2, 2, 0.5], ["dark, small", "dark", ""], "(dark 2, small 1): P(fake) says", True, id="dark"),
        pytest.param(
            [2, np.nan], [""] * 2, "tells why): P(fake) says little there; 1 more were not measured", True, id="in part"
        ),
    ],
)
def test_outside_crops_are_counted_and_said_in_words(distances, reasons, words, unusual):
    crops = pd.DataFrame({"distance": pd.Series(distances, dtype=float), "distance_reason": reasons})
    found = Outside.count(crops)
    assert found.is_unusual == unusual
    assert words in found.describe()
    assert found.as_card()["share"] == (
        pytest.approx(found.outside / found.measured, abs=1e-4) if found.measured else None
    )
