"""The leaderboard as a picture and a page: intervals as bars, published log losses as lines on their own scale."""

from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multiattn.evaluation.leaderboard import Leaderboard
from multiattn.figures.page import drawing, figures_table, new_figure, png_tag, whole_page
from multiattn.scoring.metrics import CONSTANT_LOG_LOSS

OURS, PUBLISHED, CONSTANT = "#2f6db5", "#8a8a8a", "#b5482f"
MOST_SHOWN = 30
"""The best ones; more would be a picture nobody reads."""
LINE = 32
"""Letters; a longer name is written smaller, on two lines."""


def draw_leaderboard(board: Leaderboard) -> Figure:
    """A row a submission that was scored, the best on top: its log loss, and the interval as a bar."""
    shown = board.ours.dropna(subset=["log_loss"]).head(MOST_SHOWN)
    anchors = board.scale.anchors if board.scale is not None else {}
    num_rows = max(len(shown), 1) + len(anchors)
    figure = new_figure(9, 1.4 + 0.36 * num_rows, dpi=120, layout="constrained")
    axes = figure.subplots()
    ends = shown["high"].fillna(shown["log_loss"])  # a single video has no interval
    for place, (row, end) in enumerate(zip(shown.itertuples(), ends, strict=True)):
        axes.plot([row.low, row.high], [place, place], color=OURS, linewidth=7, alpha=0.35, solid_capstyle="butt")
        axes.plot(row.log_loss, place, "o", color=OURS, markersize=5, zorder=3)
        _write(axes, f"{row.log_loss:.4f}", end, place)
    if shown.empty:
        axes.text(0.5, 0, "no submission was scored", transform=axes.get_yaxis_transform(), ha="center", va="center")
    first_anchor = max(len(shown), 1)
    for place, value in enumerate(anchors.values(), start=first_anchor):
        # Up through our rows: the published figures differ by less than a label is wide, so each has a row of its own.
        axes.plot([value, value], [-0.6, place], color=PUBLISHED, linewidth=0.8, zorder=1)
        axes.plot(value, place, "D", color=PUBLISHED, markersize=4, zorder=3)
        _write(axes, f"{value:.4f}", value, place, colour=PUBLISHED)
    ticks = [*range(len(shown)), *range(first_anchor, num_rows)]
    axes.set_yticks(ticks, [_short(name) for name in [*shown["name"], *anchors]])
    for label in axes.get_yticklabels():
        label.set_fontsize(7.5 if "\n" in label.get_text() else 10)
    for label in axes.get_yticklabels()[len(shown) :]:
        label.set_color(PUBLISHED)
    axes.set_ylim(num_rows - 0.4, -0.6)
    axes.axvline(CONSTANT_LOG_LOSS, color=CONSTANT, linewidth=1.2, linestyle="--", zorder=1)
    words = f"constant 0.5: {CONSTANT_LOG_LOSS:.4f}"
    _write(axes, words, CONSTANT_LOG_LOSS, num_rows - 0.6, colour=CONSTANT, to_the_left=True)
    axes.set_xlim(0, 1.12 * max([CONSTANT_LOG_LOSS, *ends, *anchors.values()]))
    grey = "; grey is published" if anchors else ""
    axes.set_xlabel(f"log loss, lower is better{grey}\nbars are 95 % intervals of a bootstrap that draws {board.drawn}")
    axes.set_title(f"Log loss on {board.scored_on}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure


def _write(
    axes: Axes, text: str, value: float, place: float, *, colour: str = "black", to_the_left: bool = False
) -> None:
    """A word beside a place of the picture."""
    axes.annotate(
        text,
        (value, place),
        xytext=(-5 if to_the_left else 5, 0),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        va="center",
        fontsize=9,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # a published line may run behind
    )


def _short(name: str) -> str:
    """On two lines at most; a name too long for that by its two ends."""
    if len(name) > 2 * LINE:
        name = f"{name[:LINE]}…{name[1 - LINE :]}"
    return name if len(name) <= LINE else f"{name[:LINE]}\n{name[LINE:]}"


def leaderboard_page(board: Leaderboard, figure: Figure) -> str:
    """The leaderboard as a page that stands alone.

    Args:
        figure: of `draw_leaderboard`.
    """
    notes = "".join(f"<p><strong>Warning:</strong> {escape(warning)}</p>\n" for warning in board.warnings)
    return whole_page(
        "Leaderboard",
        f"<p>Scored on {escape(board.scored_on)}.</p>\n{notes}"
        f"{drawing(png_tag(figure, 'log loss of every submission with its interval'))}\n"
        f"{figures_table(*board.rows())}\n<p>{escape(board.legend)}</p>\n",
    )
