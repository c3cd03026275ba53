"""Where data sets come from and under which terms, for a model card; by the name they have in `videos.csv`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A published data set."""

    title: str
    """Its name, authors and paper."""
    terms: str
    """The terms of its use, and how it is obtained."""
    year: int
    """Year of its release: fakes made later are not in it; 0 where it shows no real fakes."""
    people: str = "no labels of skin tone or age"
    """Knowledge of the people shown, as far as a figure of fairness needs it."""


_FACEFORENSICS = "FaceForensics Terms of Use: non-commercial research and education, on request from TU Munich"

SOURCES: dict[str, DataSource] = {
    "dfdc": DataSource(
        title="Deepfake Detection Challenge data set (Dolhansky et al., arXiv:2006.07397)",
        terms="the competition's rules, accepted on Kaggle before the download; they are not repeated here",
        year=2019,
    ),
    "dfdc-preview": DataSource(
        title="DFDC preview (Dolhansky et al., arXiv:1910.08854)",
        terms="its own licence, accepted on download",
        year=2019,
    ),
    "ffpp": DataSource(title="FaceForensics++ (Rössler et al., arXiv:1901.08971)", terms=_FACEFORENSICS, year=2019),
    "dfd": DataSource(
        title="DeepFakeDetection (Google and Jigsaw), distributed with FaceForensics++", terms=_FACEFORENSICS, year=2019
    ),
    "celebdf": DataSource(
        title="Celeb-DF (Li et al., arXiv:1909.12962)",
        terms="non-commercial research, on request from its authors",
        year=2019,
    ),
    "celebdf-pp": DataSource(title="Celeb-DF++ (Li et al., 2025)", terms="CC BY-NC 4.0", year=2025),
    "deeperforensics": DataSource(
        title="DeeperForensics-1.0 (Jiang et al., arXiv:2001.03024)",
        terms="its Terms of Use: non-commercial research, on request from its authors",
        year=2020,
    ),
    "fakeavceleb": DataSource(
        title="FakeAVCeleb (Khalid et al., arXiv:2108.05080)",
        terms="its own agreement, on request from its authors",
        year=2021,
        people="labels of ethnic group and gender, not of skin tone or age",
    ),
}
"""Names that readers give; `celebdf-v1` is found by its beginning."""

EMBEDDED = DataSource(
    title="the demo's clips, drawn out of one public-domain portrait (NASA) in the DFDC's layout",
    terms="public domain; made by `multiattn demo`",
    year=0,
    people="one person",
)


def find_source(dataset: str, names: Iterable[str]) -> DataSource | None:
    """The source of a data set by its name in the table, or None where the name is not a reader's.

    The demo's clips, which lie in the DFDC's layout, are known by their video_ids.
    """
    if dataset == "dfdc":
        from multiattn.datasets.embedded.tree import plan_demo

        clips = [*plan_demo().clips, *plan_demo(small=True).clips]
        if {PurePosixPath(name).name for name in names} <= {PurePosixPath(clip.filename).stem for clip in clips}:
            return EMBEDDED
    known = [name for name in SOURCES if dataset == name or dataset.startswith(f"{name}-v")]
    return SOURCES[known[0]] if known else None
