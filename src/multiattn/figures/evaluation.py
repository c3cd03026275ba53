"""A test as one HTML page: tables, reliability, ROC and histogram of each data set, and its worst videos with crops."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multiattn.evaluation.measures import Answers
from multiattn.evaluation.run import Evaluation
from multiattn.evaluation.selection import Extracted
from multiattn.figures.page import (
    BLUE,
    LABEL_WORDS,
    ORANGE,
    SECTION_STYLE,
    bullets,
    crop_figure,
    drawing,
    escape,
    new_figure,
    png_tag,
    section_table,
    whole_page,
)
from multiattn.inference.attention_maps import spread_crops
from multiattn.runtime.crop_files import crops_root
from multiattn.runtime.text_tables import counted
from multiattn.scoring.metrics import log_losses, reliability, roc_points

WORST_VIDEOS, CROPS_EACH = 20, 10
HISTOGRAM_BINS, RELIABILITY_BINS = 20, 10


def evaluation_page(evaluation: Evaluation) -> str:
    """The page's HTML; nothing in it is loaded from elsewhere."""
    parts = [
        bullets(evaluation.warnings, "warnings") if evaluation.warnings else "",
        bullets(evaluation.notes, "notes"),
        section_table(evaluation.summary),
        *(_section(evaluation, answers) for answers in evaluation.answers),
    ]
    return whole_page(evaluation.title, "\n".join(part for part in parts if part) + "\n", style=SECTION_STYLE)


def _section(evaluation: Evaluation, answers: Answers) -> str:
    tables = "\n".join(map(section_table, evaluation.tables[answers.name]))
    alt = f"{answers.name}: reliability diagram, ROC curves, and histogram of P(fake) by class"
    worst = worst_videos(answers)
    crops = predicted_crops(worst, answers, evaluation.extracted)
    articles = "\n".join(_article(video, crops.get(video.video_id)) for video in worst.itertuples())
    return (
        f"<h2>{escape(answers.name)}</h2>\n{tables}\n"
        f"{drawing(png_tag(panels(answers), alt))}\n"
        f"<h3>The {counted(len(worst), 'video')} of the highest loss</h3>\n"
        f'<p class="faint">Under each crop: frame, track where there are several, and P(fake).</p>\n{articles}'
    )


def panels(answers: Answers) -> Figure:
    figure = new_figure(12.6, 3.9, dpi=110, layout="constrained", facecolor="white")
    reliability, roc, histogram = figure.subplots(1, 3)
    labels, probabilities = (answers.videos[name].to_numpy() for name in ("label", "probability"))
    frames = answers.blended_frames()
    draw_reliability(reliability, labels, probabilities)
    of_frames = (frames["label"].to_numpy(), frames["probability"].to_numpy(dtype=np.float64))
    draw_roc(roc, {"videos": (labels, probabilities), "frames": of_frames})
    draw_class_histogram(histogram, labels, probabilities)
    for axes in (reliability, roc, histogram):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_reliability(axes: Axes, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Reliability diagram (Murphy and Winkler 1977): share of fakes over mean P(fake), a point a bin.

    With each its 95 % Wilson interval and number of videos; labels (N,) of 0 and 1, N >= 1, and P(fake) (N,).
    """
    from scipy.stats import binomtest  # a second of imports

    means, fakes, counts = reliability(labels, probabilities, bins=RELIABILITY_BINS)
    intervals = [
        binomtest(round(share * count), count).proportion_ci(method="wilson")
        for share, count in zip(fakes, counts, strict=True)
    ]
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    lows, highs = zip(*((one.low, one.high) for one in intervals), strict=True)
    axes.vlines(means, lows, highs, color=BLUE, linewidth=1.2, alpha=0.6)
    axes.plot(means, fakes, "o-", color=BLUE, markersize=4, linewidth=1)
    for x, y, count in zip(means, fakes, counts, strict=True):
        offset = (4, 6 if y < 0.5 else -11)
        axes.annotate(str(count), (x, y), xytext=offset, textcoords="offset points", fontsize=7, color="0.35")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05), xlabel="mean P(fake)", ylabel="share of fakes")
    axes.set_title("reliability (with numbers of videos)", fontsize=10, loc="left")


def draw_roc(axes: Axes, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """A step for each of at most two sets of predictions, name -> labels (N,) and P(fake) (N,), N may be 0; words
    instead where none has both classes."""
    drawn = False
    for (name, (labels, probabilities)), color in zip(curves.items(), (BLUE, ORANGE), strict=False):
        if len(np.unique(labels)) < 2:
            continue
        false_positives, true_positives = roc_points(labels, probabilities)
        area = np.trapezoid(true_positives, false_positives)
        axes.plot(false_positives, true_positives, color=color, linewidth=1.6, label=f"{name}, AUC {area:.4f}")
        drawn = True
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="reals called fake", ylabel="fakes called fake")
    axes.set_title("ROC", fontsize=10, loc="left")
    if drawn:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    else:
        axes.text(0.5, 0.62, "no ROC: one class only", ha="center", color="0.35", fontsize=9)


def draw_class_histogram(axes: Axes, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Numbers of real videos upwards and of fake ones downwards, so that neither hides the other; (N,) as above."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    heights = {label: np.histogram(probabilities[labels == label], edges)[0] for label in (0, 1)}
    for label, (sign, color) in enumerate(((1, BLUE), (-1, ORANGE))):
        words = f"{LABEL_WORDS[label]} ({sum(heights[label])})"
        axes.bar(edges[:-1], sign * heights[label], width=1 / HISTOGRAM_BINS, align="edge", color=color, label=words)
    axes.axhline(0, color="0.3", linewidth=0.8)
    most = max(1, *heights[0], *heights[1])
    axes.set(xlim=(0, 1), ylim=(-1.3 * most, 1.3 * most), xlabel="P(fake)", ylabel="videos")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title("real (up) and fake (down)", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)


def worst_videos(answers: Answers, *, count: int = WORST_VIDEOS) -> pd.DataFrame:
    """Rows of `answers.videos` of the highest log loss, the worst first, equals by name; with the column `loss`."""
    videos = answers.videos
    losses = log_losses(videos["label"].to_numpy(), videos["probability"].to_numpy(), clip=answers.rule.clip)
    ordered = videos.assign(loss=losses).sort_values(["loss", "video_id"], ascending=[False, True])
    return ordered.head(count).reset_index(drop=True)


def predicted_crops(videos: pd.DataFrame, answers: Answers, extracted: Extracted) -> dict[str, pd.DataFrame]:
    """At most `CROPS_EACH` crops of each video that has any, evenly spaced, in order of track and time.

    By video_id: folder, crop, frame_index, track, seconds and probability (mean over the models).
    """
    wanted = set(videos["video_id"])
    frames = answers.blended_frames()
    frames = frames[frames["video_id"].isin(wanted)].drop(columns="label")
    faces = extracted.faces[extracted.faces["video_id"].isin(wanted)]
    key = ["video_id", "frame_index", "track"]
    crops = faces[[*key, "folder", "crop", "seconds"]].merge(frames, on=key, validate="one_to_one")
    crops = crops.sort_values(["video_id", "track", "frame_index"])
    return {video: spread_crops(rows, CROPS_EACH) for video, rows in crops.groupby("video_id")}


def _article(video, crops: pd.DataFrame | None) -> str:
    kind = " ".join(filter(None, (LABEL_WORDS[video.label], video.method, video.compression)))
    about = f"{kind}, P(fake) {video.probability:.3f}, loss {video.loss:.3f}, {video.status}"
    about += f", {video.message}" if isinstance(video.message, str) and video.message else ""
    strip = '<p class="faint">No crop was found; the answer is the prior.</p>'
    if crops is not None and len(crops):
        several = crops["track"].nunique() > 1
        strip = f'<div class="strip">{"".join(_thumbnail(row, several) for row in crops.itertuples())}</div>'
    where = f"<h4>{escape(video.video_id)}</h4><small>{escape(video.path)}: {escape(about)}</small>"
    return f"<article>\n{where}\n{strip}</article>"


def _thumbnail(row, several: bool) -> str:
    track = f" t{row.track}" if several else ""
    return crop_figure(
        crops_root(row.folder) / row.crop,
        f"{row.frame_index}{track} · {row.probability:.2f}",
        f"Crop {row.crop}, P(fake) {row.probability:.2f}",
    )
