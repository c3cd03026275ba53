"""Crops that the benchmarks read."""

from pathlib import Path

import pandas as pd
import pytest

from multiattn.bench import data as bench_data
from multiattn.tables import VIDEO_STATUS, VIDEOS


@pytest.fixture
def faces(tmp_path, monkeypatch) -> Path:
    """A finished faces folder of four real and four fake videos, three crops each."""
    monkeypatch.setattr(bench_data, "DRAWN_FRAMES", 3)
    (tmp_path / "faces").mkdir()
    made = bench_data._drawn_faces(tmp_path / "faces")
    rows = made.training.drop_duplicates("video_id")
    videos = pd.DataFrame(dict.fromkeys(VIDEOS.columns, ""), index=rows.index)
    videos = videos.assign(video_id=rows["video_id"], path=rows["crop"], dataset="drawn", label=rows["label"])
    VIDEOS.write(videos, made.folder / "videos.csv")
    statuses = pd.DataFrame({"video_id": rows["video_id"], "status": "ok", "num_frames": 3, "num_crops": 3})
    VIDEO_STATUS.write(statuses.assign(message=""), made.folder / "video_status.csv")
    return made.folder
