"""Distances of faces from those of the training, as `frame_predictions` has them: shares and reasons, in words."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

CROP = ["video_id", "frame_index", "track"]
OUTSIDE = 1.0
"""The distance of the 99th percentile of held-out training crops; a crop beyond it lies outside."""
UNUSUAL_SHARE = 0.05
"""Share of crops outside: five times what faces like those of the training have."""
MOST_REASONS = 3
NOT_MEASURED = "how far these faces lie from those of the training was not measured"


def crop_distances(predictions: pd.DataFrame) -> pd.DataFrame:
    """One distance a crop: the mean over the models that measured it, NaN where none did, and the reason of the model
    from whose training it lies farthest; sorted by video_id, frame_index and track.

    The mean parted foreign from familiar faces at least as well as the median and, unlike the largest, kept familiar
    ones inside.
    """
    farthest_first = predictions.sort_values("distance", ascending=False, kind="stable")
    groups = farthest_first.groupby(CROP, sort=True, observed=True)
    return groups.agg(distance=("distance", "mean"), distance_reason=("distance_reason", "first")).reset_index()


@dataclass(frozen=True)
class Outside:
    """Crops that lie outside the faces of the training, among some."""

    crops: int
    measured: int
    outside: int
    reasons: dict[str, int] = field(default_factory=dict)
    """Word -> crops outside that bear it, the most frequent first."""

    @classmethod
    def count(cls, crops: pd.DataFrame) -> "Outside":
        """Count rows of `crop_distances`."""
        outside = crops[crops["distance"] > OUTSIDE]
        words = Counter(word for reason in outside["distance_reason"] if reason for word in reason.split(", "))
        return cls(len(crops), int(crops["distance"].notna().sum()), len(outside), dict(words.most_common()))

    def __add__(self, other: "Outside") -> "Outside":
        """Those of both, which have no crop in common."""
        reasons = Counter(self.reasons)
        reasons.update(other.reasons)
        together = (getattr(self, name) + getattr(other, name) for name in ("crops", "measured", "outside"))
        return Outside(*together, dict(reasons.most_common()))

    @property
    def share(self) -> float:
        """Share of the measured crops that lie outside; NaN where none was measured."""
        return self.outside / self.measured if self.measured else float("nan")

    @property
    def is_unusual(self) -> bool:
        """True where more crops lie outside than of faces like those of the training would."""
        return bool(self.measured) and self.share > UNUSUAL_SHARE

    def as_card(self) -> dict[str, Any]:
        """Its figures and their words, for a card of JSON."""
        return {**asdict(self), "share": None if not self.measured else round(self.share, 4), "words": self.describe()}

    def describe(self) -> str:
        """A clause, without a point at its end."""
        if not self.measured:
            return NOT_MEASURED
        of = f"{self.outside} of {self.measured} crops ({self.share:.0%}) lie outside the faces of the training"
        unknown = self.crops - self.measured
        words = f"; {unknown} more were not measured" if unknown else ""
        if not self.is_unusual:
            return of + words
        named = ", ".join(f"{word} {count}" for word, count in list(self.reasons.items())[:MOST_REASONS])
        return f"{of} ({named or 'no simple statistic tells why'}): P(fake) says little there{words}"
