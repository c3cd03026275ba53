"""Pictures of a submission in the notebook: the table of statuses and the least certain videos."""

import cv2
import numpy as np
import pandas as pd
import pytest

from multiattn.figures.submission import draw_least_certain, status_table


def videos(*statuses: str) -> pd.DataFrame:
    rows = [
        {"video_id": f"folder/{i}", "status": status, "message": "" if status == "ok" else f"why {i}"}
        for i, status in enumerate(statuses)
    ]
    return pd.DataFrame(rows, columns=["video_id", "status", "message"])


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        pytest.param([], [], id="empty"),
        pytest.param(["ok"], [("ok", 1, "100.0%")], id="one"),
        pytest.param(
            ["missing", "no_face", "ok", "ok", "unreadable", "ok", "ok", "ok"],
            [("ok", 5, "62.5%"), ("no_face", 1, "12.5%"), ("unreadable", 1, "12.5%"), ("missing", 1, "12.5%")],
            id="all that there are",
        ),
        pytest.param(["new", "ok"], [("ok", 1, "50.0%"), ("new", 1, "50.0%")], id="a status without words of its own"),
    ],
)
def test_statuses_are_counted_predicted_ones_first(statuses, expected):
    table = status_table(videos(*statuses))
    assert [(row.Index, row.videos, row.share) for row in table.itertuples()] == expected
    assert table["videos"].sum() == len(statuses)
    assert "for example" in table and (table.loc[table.index == "ok", "for example"] == "").all()
    assert all(("prior" in row.answered) == (row.Index != "ok") for row in table.itertuples())


def test_each_status_shows_its_first_video_and_why_where_that_is_known():
    rows = videos("ok", "no_face", "unreadable", "unreadable")
    rows.loc[1, "message"] = ""
    for order in (rows, rows.iloc[::-1]):
        table = status_table(order)
        assert table.loc["no_face", "for example"] == "folder/1"
        assert table.loc["unreadable", "for example"] == "folder/2: why 2"


def jpeg(color: tuple[int, int, int]) -> bytes:
    return cv2.imencode(".jpg", np.full((96, 96, 3), color, np.uint8)[:, :, ::-1])[1].tobytes()


def chosen(*thumbnails: bytes) -> pd.DataFrame:
    rows = [
        {"filename": f"{i}.mp4", "probability": 0.5 + i / 100, "num_crops": i, "thumbnail": thumbnail}
        for i, thumbnail in enumerate(thumbnails, start=1)
    ]
    return pd.DataFrame(rows, columns=["filename", "probability", "num_crops", "thumbnail"])


def test_every_video_is_drawn_with_its_name_and_its_own_face():
    colors = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (90, 90, 90), (200, 200, 40)]
    figure = draw_least_certain(chosen(*(jpeg(color) for color in colors)))
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in titled] == [
        "1.mp4\nP(fake) 0.510, 1 crop",
        *(f"{i}.mp4\nP(fake) {0.5 + i / 100:.3f}, {i} crops" for i in range(2, 6)),
    ]
    shown = [np.asarray(axes.images[0].get_array()).reshape(-1, 3).mean(0) for axes in titled]
    np.testing.assert_allclose(shown, colors, atol=3)  # JPEG rounds


def test_a_video_without_a_picture_and_no_video_at_all_are_said_so():
    words = [text.get_text() for axes in draw_least_certain(chosen(b"")).axes for text in axes.texts]
    assert words == ["no picture"]
    words = [text.get_text() for axes in draw_least_certain(chosen()).axes for text in axes.texts]
    assert words == ["no video was predicted"]
