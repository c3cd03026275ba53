"""The contact sheet of a faces folder: one HTML page of thumbnails by video, status and track, doubtful ones first.

The doubt of a track, 0 (none) to 1, is the largest of four parts; the page names each of them:

    score    how far its median score lies from 1 towards the recipe's threshold
    jump     0 while boxes of neighbouring rows overlap with IoU 0.6 or more, 1 at 0.3, where tracks no longer link
    tiny     0 from a median side of 96 pixels (square root of the box area), 1 at 32, the smallest face searched for
    seldom   0 with rows in half of the video's frames or more, rising to 0.5 for a single row; half the weight, since
             a person may well leave the picture. Left out below 5 frames.

A video is as doubtful as its most doubtful track. Only crops on the page are read, so the page of a folder of 119,154
videos costs a pass over its tables and some hundred thumbnails.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from multiattn.config.settings import did_you_mean
from multiattn.figures.page import LABEL_WORDS, crop_figure, escape, figures_table, whole_page
from multiattn.runtime.crop_files import crops_root
from multiattn.runtime.text_tables import counted
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder
from multiattn.video.extraction.scan import MIN_IOU, box_areas, paired_iou

PER_TRACK, TRACKS_PER_VIDEO = 8, 6
STEADY_IOU = 0.6
LARGE_SIDE, SMALL_SIDE = 96.0, 32.0
OFTEN_SHARE, SELDOM_WEIGHT, FEWEST_FRAMES = 0.5, 0.5, 5
SHOWN_DOUBT = 0.1
"""From this doubt on its largest part is bold on the page."""
PARTS = ("score", "jump", "tiny", "seldom")
BOX = ["x1", "y1", "x2", "y2"]
SHEET_STYLE = """
h2 { font-size: 1.05rem; margin: 1.6rem 0 0.5rem; }
h3 { font-size: 0.95rem; margin: 0; }
.track { display: flex; gap: 1rem; margin-top: 0.5rem; align-items: flex-start; }
.facts { flex: 0 0 12.5rem; font-size: 12px; font-variant-numeric: tabular-nums; }
.facts b { display: block; font-size: 13px; }
.doubted { font-weight: 600; }
.figures th, .figures td { text-align: left; white-space: normal; }
.figures td:last-child { min-width: 14rem; }
@media (max-width: 600px) { .track { display: block; } }
"""


def track_doubts(faces: pd.DataFrame, statuses: pd.DataFrame, *, threshold: float) -> pd.DataFrame:
    """Doubt of every track, as the head of this file defines it, from the tables of a faces folder and the detector's
    threshold.

    Returns:
        A row a track: video_id, track, num_rows, median_score, least_iou (1 with a single row), side (median, in
        pixels), score, jump, tiny, seldom and doubt; most doubtful first, ties by sum of parts, then by name. Boxes
        without an area (tables of other programs may have none) do not count for jump and tiny.
    """
    ordered = faces[["video_id", "track", "frame_index", "score", *BOX]]  # without the bulk: landmarks and paths
    ordered = ordered.sort_values(["video_id", "track", "frame_index"], ignore_index=True)
    boxes = ordered[BOX].to_numpy(dtype=np.float64)
    areas = box_areas(boxes)
    iou = np.ones(len(ordered))
    iou[1:] = paired_iou(boxes[:-1], boxes[1:])
    known = areas > 0
    iou[1:][~(known[1:] & known[:-1])] = 1
    iou[~ordered.duplicated(["video_id", "track"]).to_numpy()] = 1  # a track's first row has none before it
    tracks = (
        ordered.assign(side=np.sqrt(areas), iou=iou)
        .groupby(["video_id", "track"], as_index=False)
        .agg(
            num_rows=("score", "size"),
            median_score=("score", "median"),
            least_iou=("iou", "min"),
            side=("side", "median"),
        )
    )
    frames = tracks["video_id"].map(statuses.set_index("video_id")["num_frames"]).fillna(0).to_numpy(dtype=np.float64)
    often = np.maximum(OFTEN_SHARE * frames, 1)
    side = tracks["side"].to_numpy()
    tracks["score"] = np.clip((1 - tracks["median_score"]) / (1 - threshold), 0, 1)
    tracks["jump"] = np.clip((STEADY_IOU - tracks["least_iou"]) / (STEADY_IOU - MIN_IOU), 0, 1)
    tracks["tiny"] = np.where(side > 0, np.clip((LARGE_SIDE - side) / (LARGE_SIDE - SMALL_SIDE), 0, 1), 0.0)
    rarity = np.clip((often - tracks["num_rows"]) / np.maximum(often - 1, 1), 0, 1)
    tracks["seldom"] = np.where(frames >= FEWEST_FRAMES, SELDOM_WEIGHT * rarity, 0.0)
    tracks["doubt"] = tracks[list(PARTS)].max(axis=1)
    tracks["all_parts"] = tracks[list(PARTS)].sum(axis=1)
    by = ["doubt", "all_parts", "video_id", "track"]
    return tracks.sort_values(by, ascending=[False, False, True, True], ignore_index=True).drop(columns="all_parts")


def shown_rows(track: pd.DataFrame, count: int = PER_TRACK) -> pd.DataFrame:
    """At most `count` rows of a track in time order: the lowest score, both sides of the largest jump, and others
    that fill the widest gaps between them."""
    track = track.sort_values("frame_index", ignore_index=True)
    if len(track) <= count:
        return track
    boxes = track[BOX].to_numpy(dtype=np.float64)
    jump = int(paired_iou(boxes[:-1], boxes[1:]).argmin())
    chosen = {int(track["score"].to_numpy().argmin()), jump, jump + 1, 0, len(track) - 1}
    while len(chosen) < count:
        places = sorted(chosen)
        widest = int(np.diff(places).argmax())
        chosen.add((places[widest] + places[widest + 1]) // 2)
    return track.iloc[sorted(chosen)]


def contact_sheet(folder: Path, *, videos: tuple[str, ...] = (), limit: int = 200) -> str:
    """The page's HTML, of arguments as `ContactSheet` names them; nothing in it is loaded from elsewhere."""
    faces, statuses, table = read_faces_folder(folder)
    recipe = read_recipe(folder)
    total = statuses["status"].value_counts()
    if videos:
        known = set(statuses["video_id"])
        if unknown := [video for video in videos if video not in known]:
            raise ValueError(f"--videos: {unknown[0]!r} is not in {folder}.{did_you_mean(unknown[0], known)}")
        faces, statuses = (frame[frame["video_id"].isin(videos)] for frame in (faces, statuses))
    tracks = track_doubts(faces, statuses, threshold=recipe.threshold)
    ranked = tracks["video_id"].drop_duplicates()
    shown = ranked.head(limit).tolist()
    empty = statuses[statuses["status"] != "ok"].sort_values(["status", "video_id"])
    words = table.set_index("video_id")
    facts = statuses.set_index("video_id")
    rows = dict(list(faces[faces["video_id"].isin(shown)].groupby("video_id")))
    of_video = dict(list(tracks[tracks["video_id"].isin(shown)].groupby("video_id", sort=False)))
    root = crops_root(folder)
    articles = [_article(root, video, rows[video], of_video[video], facts.loc[video], words) for video in shown]
    counts = ", ".join(f"{total.get(status, 0)} {status}" for status in ("ok", "no_face", "unreadable"))
    return whole_page(
        f"Faces of {folder.resolve().name}",
        f"""<p>Videos: {counts}. Crops {recipe.size}x{recipe.size}, detector {escape(recipe.detector)}, threshold
{recipe.threshold}, policy {recipe.policy}.</p>
{_empty_videos(empty.head(limit), len(empty))}
<h2>Videos with crops: {len(shown)} of {len(ranked)}, the most doubtful first</h2>
<p class="faint">Doubt, 0 to 1, is the largest of: score (median, towards the threshold), jump (least overlap of
neighbouring boxes), tiny (median side), seldom (few rows). Under each thumbnail: frame and score.</p>
{chr(10).join(articles) or "<p>None.</p>"}
""",
        style=SHEET_STYLE,
    )


def _empty_videos(shown: pd.DataFrame, total: int) -> str:
    if not total:
        return ""
    rows = shown[["video_id", "status", "num_frames", "message"]].astype(str).to_numpy()
    table = figures_table(("video", "status", "frames", "message"), rows)
    return f"<h2>Videos without crops: {len(shown)} of {total}</h2>\n{table}"


def _article(
    root: Path, video: str, rows: pd.DataFrame, tracks: pd.DataFrame, facts: pd.Series, words: pd.DataFrame
) -> str:
    kind = ""
    if video in words.index:
        entry = words.loc[video]
        kind = " ".join(filter(None, (LABEL_WORDS[int(entry["label"])], entry["method"], entry["compression"])))
    message = f", {facts['message']}" if facts["message"] else ""
    about = f"{kind + ', ' if kind else ''}{facts['status']}, {counted(facts['num_frames'], 'frame')}{message}"
    strips = [
        _strip(root, rows[rows["track"] == track.track], track, facts["num_frames"]) for track in tracks.itertuples()
    ]
    more = len(strips) - TRACKS_PER_VIDEO
    rest = f'<p class="faint">and {counted(more, "less doubtful track")}</p>' if more > 0 else ""
    return (
        f"<article>\n<h3>{escape(video)}</h3><small>{escape(about)}</small>\n"
        f"{''.join(strips[:TRACKS_PER_VIDEO])}{rest}</article>"
    )


def _strip(root: Path, rows: pd.DataFrame, track, num_frames: int) -> str:
    facts = {
        "score": f"score {track.median_score:.3f}",
        "jump": f"least overlap {track.least_iou:.2f}",
        "tiny": f"side {track.side:.0f} px",
        "seldom": f"in {track.num_rows} of {num_frames} frames",
    }
    worst = max(PARTS, key=lambda part: getattr(track, part))
    lines = "<br>".join(
        f'<span class="doubted">{text}</span>' if part == worst and track.doubt >= SHOWN_DOUBT else text
        for part, text in facts.items()
    )
    thumbnails = "".join(
        crop_figure(
            root / row.crop,
            f"{row.frame_index} · {row.score:.3f}",
            f"{row.video_id}, track {row.track}, frame {row.frame_index}",
        )
        for row in shown_rows(rows).itertuples()
    )
    return (
        f'<div class="track"><div class="facts"><b>track {track.track}, doubt {track.doubt:.2f}</b>{lines}</div>'
        f'<div class="strip">{thumbnails}</div></div>\n'
    )
