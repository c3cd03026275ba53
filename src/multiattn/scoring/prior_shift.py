"""Probabilities for a test set whose share of fakes is another than that of the videos a rule was tuned on."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class PriorShift:
    """From one stated share of fakes to another."""

    training: float
    """Share of fakes among the videos the rule was tuned on, in (0, 1)."""
    test: float
    """Share of fakes expected at test time, in (0, 1)."""

    def __post_init__(self) -> None:
        for name in ("training", "test"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"prior shift: expected a {name} prior in (0, 1), found {getattr(self, name)}.")

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """P(fake) at the test prior, (N,) float64; 0, 1 and NaN stay.

        The odds are multiplied by those of the test prior over those of the training prior: Eq. (2.4) of Saerens,
        Latinne and Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities", Neural
        Computation 14 (2002). Right for probabilities that are calibrated at the training prior, and where fakes and
        reals look alike in both sets. Departures: the test prior is stated, not estimated from the test set.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        fake, real = p * self.test / self.training, (1 - p) * (1 - self.test) / (1 - self.training)
        return fake / (fake + real)
