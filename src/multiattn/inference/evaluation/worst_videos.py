"""The videos a test went wrong on, with the crops that were judged."""

import pandas as pd

from multiattn.inference.evaluation.answers import Answers, Extracted
from multiattn.scoring.metrics import log_losses

COUNT = 20
CROPS_EACH = 10


def worst_videos(answers: Answers, *, count: int = COUNT) -> pd.DataFrame:
    """The `count` videos of the highest log loss, the worst first, equals by name.

    Returns:
        Rows of `answers.videos` with the column `loss`.
    """
    videos = answers.videos
    losses = log_losses(videos["label"].to_numpy(), videos["probability"].to_numpy(), clip=answers.rule.clip)
    ordered = videos.assign(loss=losses).sort_values(["loss", "video_id"], ascending=[False, True])
    return ordered.head(count).reset_index(drop=True)


def judged_crops(videos: pd.DataFrame, answers: Answers, extracted: Extracted) -> dict[str, pd.DataFrame]:
    """Of each video its judged crops, in order of track and time.

    Returns:
        video_id -> folder, crop, frame_index, track, seconds and probability (mean over the models); a video without
        crops is not in it.
    """
    wanted = set(videos["video_id"])
    frames = answers.blended_frames()
    frames = frames[frames["video_id"].isin(wanted)].drop(columns="label")
    faces = extracted.faces[extracted.faces["video_id"].isin(wanted)]
    key = ["video_id", "frame_index", "track"]
    crops = faces[[*key, "folder", "crop", "seconds"]].merge(frames, on=key, validate="one_to_one")
    crops = crops.sort_values(["video_id", "track", "frame_index"])
    return {video: rows.reset_index(drop=True) for video, rows in crops.groupby("video_id")}
