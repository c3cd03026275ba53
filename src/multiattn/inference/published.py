"""The published log losses, each on the one of three DFDC scales it was measured on, and which scale a label file is.

The scales share a name and nothing else: a model that reaches 0.20 on the released test set is at 0.43 on the private
one, half of whose videos came from the web. So a figure is compared on its own scale or not at all.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from multiattn.video.crop_images import names_digest


@dataclass(frozen=True)
class Scale:
    """One set of videos that figures were published for."""

    name: str
    """`released`, `public` or `private`."""
    title: str
    num_videos: int
    source: str
    """Of the figures."""
    anchors: dict[str, float]
    """Who -> log loss, the lowest first."""
    digest: str = ""
    """`names_digest` of its file names, sorted; empty where they were never released."""


SCALES = {
    "released": Scale(
        "released",
        "the DFDC test set, 5,000 released videos",
        5000,
        "Table 3 of arXiv:2103.02406",
        {
            "Multi-attentional (paper)": 0.1679,
            "NTechLab": 0.1703,
            "WM": 0.1787,
            "Eighteen Years Old": 0.1882,
            "Selim Seferbekov": 0.1983,
            "The Medics": 0.2157,
        },
        "e794590c9b13138d16ff1041cccd7b068105b00271d69d9c4b7ed8c5c392b2c6",
    ),
    "public": Scale(
        "public",
        "Kaggle's public leaderboard, 4,000 videos, since released as DFDC's validation set",
        4000,
        "the teams' own accounts",
        {"The Medics": 0.25322, "WM": 0.28680},
        "55e534f191baf0b36835a6869ed9a6bfb3eca96940a8211ef48fa4635e0080c6",
    ),
    "private": Scale(
        "private",
        "Kaggle's private leaderboard, 10,000 videos, half of them from the web and never released",
        10000,
        "the final leaderboard",
        {
            "Selim Seferbekov": 0.42798,
            "WM": 0.42842,
            "NTechLab": 0.43452,
            "Eighteen Years Old": 0.43476,
            "The Medics": 0.43711,
        },
    ),
}
KAGGLE_400_DIGEST = "089e8455551daa0f64d9d5bb7c13af9cd79d0f60378099ff16969d0623178751"
"""Likewise of the competition's 400 sample videos, which lie inside dfdc_train_part_0 to 2."""


def scale_of(names: Iterable[str]) -> Scale | None:
    """The scale whose videos these are, all of them and no others; None for any other videos."""
    digest = names_digest(sorted(names))
    return next((scale for scale in SCALES.values() if scale.digest == digest), None)
