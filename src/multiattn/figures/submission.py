"""A submission at a glance: how many videos were predicted, how surely, and the least certain faces."""

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from multiattn.figures.page import new_figure
from multiattn.runtime.text_tables import counted

NUM_BINS = 20
THUMBNAIL_COLUMNS = 4
ANSWERS = {
    "ok": "by its faces",
    "no_face": "prior: no usable face",
    "unreadable": "prior: not a readable video",
    "missing": "prior: not in the folder",
    "failed": "prior: an error while it was predicted",
    "late": "prior: no time was left",
}


def status_table(videos: pd.DataFrame) -> pd.DataFrame:
    """Rows of a `video_predictions` table by status: the answer it gets, videos, share, and for each but `ok`, which
    comes first, a video with its message; a status that none has is left out."""
    rows = [
        {
            "status": status,
            "answered": ANSWERS.get(status, "prior"),
            "videos": len(alike),
            "share": f"{len(alike) / len(videos):.1%}",
            "for example": "" if status == "ok" else _example(alike),
        }
        for status, alike in videos.groupby("status", sort=True)
    ]
    places = {status: place for place, status in enumerate(ANSWERS)}
    rows.sort(key=lambda row: places.get(row["status"], len(places)))
    return pd.DataFrame(rows, columns=["status", "answered", "videos", "share", "for example"]).set_index("status")


def _example(alike: pd.DataFrame) -> str:
    first = alike.sort_values("video_id").iloc[0]
    return f"{first['video_id']}: {first['message']}" if first["message"] else str(first["video_id"])


def draw_probabilities(videos: pd.DataFrame) -> Figure:
    """Histogram of P(fake) over a `video_predictions` table, those with the prior in a colour of their own."""
    figure = new_figure(7, 3, dpi=100, layout="constrained")
    axes = figure.subplots()
    predicted = videos["status"] == "ok"
    series = [videos.loc[predicted, "probability"], videos.loc[~predicted, "probability"]]
    names = [f"predicted ({predicted.sum()})", f"prior ({(~predicted).sum()})"]
    axes.hist(series, bins=np.linspace(0, 1, NUM_BINS + 1), stacked=True, color=["#2f6db5", "#b5482f"], label=names)
    axes.set(xlabel="P(fake)", ylabel="videos", xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def draw_least_certain(chosen: pd.DataFrame) -> Figure:
    """A grid of faces, each with its video's filename, probability and num_crops; `thumbnail` holds the bytes of a
    JPEG, which may be empty."""
    rows = max(1, -(-len(chosen) // THUMBNAIL_COLUMNS))
    figure = new_figure(2.2 * THUMBNAIL_COLUMNS, 2.1 * rows, dpi=100, layout="constrained")
    panels = figure.subplots(rows, THUMBNAIL_COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, video in zip(panels, chosen.itertuples(), strict=False):
        crops = counted(video.num_crops, "crop")
        axes.set_title(f"{video.filename}\nP(fake) {video.probability:.3f}, {crops}", fontsize=9)
        if video.thumbnail:
            axes.imshow(cv2.imdecode(np.frombuffer(video.thumbnail, np.uint8), cv2.IMREAD_COLOR_RGB))
        else:
            axes.text(0.5, 0.5, "no picture", ha="center", va="center", transform=axes.transAxes)
    if chosen.empty:
        panels[0].text(0, 0.5, "no video was predicted", va="center", transform=panels[0].transAxes)
    return figure
