"""`frame_predictions` tables made by hand and by chance, for the tests of what reads them."""

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from multiattn.tables import FRAME_PREDICTIONS


def predictions(*rows: tuple, logits: list[float] | None = None) -> pd.DataFrame:
    """Rows of (model, video, track, probability); frames are numbered as they come."""
    if not rows:
        return FRAME_PREDICTIONS.empty()
    frame = pd.DataFrame(rows, columns=["model", "video_id", "track", "probability"])
    frame["frame_index"] = range(len(frame))
    frame["logit"] = logit(frame["probability"]) if logits is None else logits
    return FRAME_PREDICTIONS.validate(frame.assign(fold=0), "made here")


def random_predictions(seed: int, videos: int = 12, spread: float = 3.0) -> pd.DataFrame:
    """Up to 3 models, 3 tracks and 6 frames a track, in no order that sorting would keep."""
    rng = np.random.default_rng(seed)
    rows, logits = [], []
    for video in range(videos):
        for model in rng.permutation(3)[: rng.integers(1, 4)]:
            for track in range(rng.integers(1, 4)):
                for _ in range(rng.integers(1, 7)):
                    logits.append(float(rng.normal(0, spread)))
                    rows.append((f"m/fold{model}", f"v/{video:02d}", track, float(expit(logits[-1]))))
    return predictions(*rows, logits=logits)
