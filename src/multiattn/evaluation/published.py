"""The published log losses, each on the one of three DFDC scales it was measured on, and the scale of given file names.

The scales share a name and nothing else: a model that reaches 0.20 on the released test set is at 0.43 on the private
one, half of whose videos came from the web. So a figure is compared on its own scale or not at all.

The figures lie in `published.json`, and with them the first bytes of the SHA-256 of each file name (without its ending)
of the competition's 400 sample videos, which lie inside dfdc_train_part_0 to 2: apart from each other, so that any part
of the 400 is known.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath

from multiattn.video.crops.images import names_digest


@dataclass(frozen=True, kw_only=True)
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


_PUBLISHED = json.loads((files(__package__) / "published.json").read_text(encoding="utf-8"))
SCALES = {entry["name"]: Scale(**entry) for entry in _PUBLISHED["scales"]}
KAGGLE_400 = frozenset(map(bytes.fromhex, _PUBLISHED["kaggle_400"]))
HASH_BYTES = 5
"""Of `KAGGLE_400`. A name that is none of them is taken for one once in 2.7 billion; some 128 names of ten letters have
the same hash, so the hashes are no list of the names."""


def scale_of(names: Iterable[str]) -> Scale | None:
    """The scale whose videos these are, all of them and no others; None for any other videos."""
    digest = names_digest(sorted(names))
    return next((scale for scale in SCALES.values() if scale.digest == digest), None)


def among_kaggles_400(names: Iterable[str]) -> int:
    """Number of these that are among the competition's 400 sample videos, whatever their folder and file format."""
    return sum(hashlib.sha256(PurePath(name).stem.encode()).digest()[:HASH_BYTES] in KAGGLE_400 for name in names)
