"""What a kernel run gives back: the submission, how each row came about, and what was given up to be in time."""

from dataclasses import dataclass, field

import pandas as pd

from multiattn.inference.kernel.plan import PlanChange
from multiattn.inference.submission import Submission


@dataclass(frozen=True)
class KernelResult(Submission):
    """A submission and how it was made.

    `videos` says for each row of the sample its status, probability, number of crops and, in `message`, the reason of
    whatever went wrong or was left out.
    """

    plan_changes: tuple[PlanChange, ...] = ()
    """What this run gave up to be in time, in order; empty where nothing was."""
    reduced: int = 0
    """Videos whose answer comes from fewer frames or models than there are, in this run or one before it."""
    rate: float = 0.0
    """Videos a second of this run, from the first video's start to the last one's end; 0 where none was done in it."""
    seconds: float = 0.0
    """From the start of this process to the delivery."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Of this run: `decode` and `search` summed over its workers, `classify` over its threads, and `wall`, from the
    first video's start to the last one's end."""
    workers: int = 0
    threads: int = 0
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    """video_id -> JPEG, at most 96 pixels, of the crop that the models are surest of; judged videos only."""

    def least_certain(self, count: int) -> pd.DataFrame:
        """The `count` judged videos whose P(fake) is nearest to 0.5, the nearest first.

        Returns:
            Columns filename, probability, num_crops, message and thumbnail (JPEG bytes); equals in the order of the
            file names.
        """
        table = self.videos.assign(filename=self.submission["filename"].to_numpy())
        table = table[table["status"] == "ok"]
        table = table.assign(
            thumbnail=[self.thumbnails.get(video, b"") for video in table["video_id"]],
            distance=(table["probability"] - 0.5).abs(),
        )
        table = table.sort_values(["distance", "filename"], ignore_index=True).head(count)
        return table[["filename", "probability", "num_crops", "message", "thumbnail"]]
