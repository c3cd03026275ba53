"""Calibration of a blend: temperature, Platt, beta or isotonic; the shift to another share of fakes; the clip.

Every calibration keeps the order of the videos. Those with parameters are pulled towards "no change" as by a normal
prior of standard deviation 1 on each, which 100 videos outweigh and without which videos that are separated perfectly
would drive the slope to infinity (Platt answers that with smoothed targets instead).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from multiattn.config.settings import require, require_fields
from multiattn.scoring.frame_rules import sigmoid, to_logits

RIDGE = 1.0
SMALLEST_SLOPE = 1e-3
"""A temperature is at most 1,000."""
NEWTON_STEPS, CONVERGED = 200, 1e-12
DAMPING = 1e-8
"""Share of the largest possible curvature that is added: where all p are 0 or 1 there is none."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A non-decreasing map of P(fake), z its logit."""

    method: str = "none"
    parameters: tuple[float, ...] = ()
    """temperature: (T,), sigmoid(z / T). platt: (a, b), sigmoid(a z + b). beta: (a, b, c), sigmoid(a ln p -
    b ln(1 - p) + c). isotonic: (x_1 .. x_k, y_1 .. y_k), y interpolated between the x and constant beyond them."""

    def __post_init__(self) -> None:
        require_fields(self, method=CALIBRATORS)
        accepted = CALIBRATORS[self.method].accepts(np.array(self.parameters, dtype=np.float64))
        require(accepted, self, "parameters", f"those of {self.method}")

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """(N,) P(fake) in [0, 1] -> (N,) in [0, 1], float64; NaN stays."""
        p = np.asarray(probabilities, dtype=np.float64)
        with np.errstate(invalid="ignore"):  # NaN stays, without a warning
            return CALIBRATORS[self.method].apply(p, np.array(self.parameters, dtype=np.float64))


def fit_calibration(method: str, labels: np.ndarray, probabilities: np.ndarray, *, ridge: float = RIDGE) -> Calibration:
    """The calibration of the least log loss on held-out videos.

    Args:
        labels: (N,) of 0 and 1, N >= 1; one class alone is allowed.
        probabilities: (N,) P(fake) of videos that the blend was not fitted on.
        ridge: half of it times the squared distance from "no change" is added to the summed log loss; of `isotonic`
            without effect.

    Sources: temperature: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017). platt: Platt,
    "Probabilistic Outputs for Support Vector Machines" (1999). beta: Kull, Silva Filho and Flach, "Beta calibration"
    (AISTATS 2017), with its rule that a slope below 0 is left out and the rest fitted again. isotonic: Zadrozny and
    Elkan (KDD 2002), pool adjacent violators by scikit-learn.
    Departures: the ridge in place of Platt's smoothed targets; the temperature is fitted as a slope; isotonic values
    lie in [1 / (n + 2), 1 - 1 / (n + 2)], as no n videos show that a thing never happens.
    """
    labels, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    return Calibration(method=method, parameters=tuple(CALIBRATORS[method].fit(labels, p, ridge)))


def fit_logistic(features: np.ndarray, targets: np.ndarray, start: np.ndarray, ridge: float) -> np.ndarray:
    """The theta (D,) that minimises sum of log loss of sigmoid(features (N, D) @ theta), against targets (N,) in
    [0, 1], + ridge / 2 |theta - start|^2, by Newton's method with halved steps; convex, so it is the one minimum where
    ridge > 0."""

    def cost(theta: np.ndarray) -> float:
        margins = features @ theta
        away = theta - start
        return float(np.sum(np.logaddexp(0.0, margins) - targets * margins) + ridge / 2 * away @ away)

    damping = DAMPING / 4 * features.T @ features
    damping += np.finfo(np.float64).tiny * np.eye(len(start))
    theta, now = start.astype(np.float64), cost(start)
    for _ in range(NEWTON_STEPS):
        p = sigmoid(features @ theta)
        gradient = features.T @ (p - targets) + ridge * (theta - start)
        curvature = (features * (p * (1 - p))[:, None]).T @ features + ridge * np.eye(len(theta)) + damping
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        if gradient @ step <= CONVERGED * (1 + abs(now)):
            return theta - step
        size = 1.0
        while (then := cost(theta - size * step)) > now - 1e-4 * size * gradient @ step and size > 1e-15:
            size /= 2
        theta, now = theta - size * step, then
    return theta


def _fit_temperature(labels: np.ndarray, p: np.ndarray, ridge: float) -> list[float]:
    (slope,) = fit_logistic(_platt_features(p), labels, np.ones(1), ridge)
    return [1 / max(float(slope), SMALLEST_SLOPE)]


def _fit_slopes(slopes: np.ndarray, labels: np.ndarray, ridge: float) -> list[float]:
    """Slopes of at least 0 for (N, D) features, and an intercept; the start is "no change"."""
    start = np.append(np.ones(slopes.shape[1]), 0.0)
    features = np.column_stack([slopes, np.ones(len(slopes))])
    free = np.ones(len(start), dtype=bool)
    while True:
        parameters = np.zeros(len(start))
        parameters[free] = fit_logistic(features[:, free], labels, start[free], ridge)
        if (parameters[:-1] >= 0).all():
            return parameters.tolist()
        free[np.argmin(parameters[:-1])] = False


def _fit_isotonic(labels: np.ndarray, p: np.ndarray, ridge: float) -> list[float]:
    from sklearn.isotonic import IsotonicRegression

    edge = 1 / (len(labels) + 2)
    fitted = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip").fit(p, labels)
    return np.concatenate([fitted.X_thresholds_, fitted.y_thresholds_]).tolist()


def _are_steps(parameters: np.ndarray) -> bool:
    x, y = np.split(parameters, [len(parameters) // 2])
    ascend = len(x) == len(y) > 0 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
    return bool(ascend and ((parameters >= 0) & (parameters <= 1)).all())


def _are_slopes(number: int) -> Callable[[np.ndarray], bool]:
    """A check: so many slopes of at least 0, and an intercept."""
    return lambda of: len(of) == number + 1 and np.isfinite(of).all() and (of[:number] >= 0).all()


def _platt_features(p: np.ndarray) -> np.ndarray:
    return to_logits(p)[:, None]


def _beta_features(p: np.ndarray) -> np.ndarray:
    """(N, 2) ln p and -ln(1 - p)."""
    z = to_logits(p)
    return np.column_stack([-np.logaddexp(0.0, -z), np.logaddexp(0.0, z)])


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    fit: Callable[[np.ndarray, np.ndarray, float], list[float]]
    """(N,) labels, (N,) P(fake) and the ridge -> parameters."""
    apply: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(N,) P(fake) and parameters -> (N,) P(fake)."""
    accepts: Callable[[np.ndarray], bool]
    """True for parameters of the right number and range."""
    has_intercept: bool = True
    """Fitted probabilities are right on average at the share of fakes they were fitted at."""
    min_videos: int = 0
    """With fewer videos, tuning does not try it."""


CALIBRATORS: dict[str, Calibrator] = {
    "none": Calibrator(
        fit=lambda labels, p, ridge: [],
        apply=lambda p, of: p,
        accepts=lambda of: len(of) == 0,
        has_intercept=False,
    ),
    "temperature": Calibrator(
        fit=_fit_temperature,
        apply=lambda p, of: sigmoid(to_logits(p) / of[0]),
        accepts=lambda of: len(of) == 1 and 0 < of[0] < np.inf,
        has_intercept=False,
    ),
    "platt": Calibrator(
        fit=lambda labels, p, ridge: _fit_slopes(_platt_features(p), labels, ridge),
        apply=lambda p, of: sigmoid(_platt_features(p) @ of[:-1] + of[-1]),
        accepts=_are_slopes(1),
    ),
    "beta": Calibrator(
        fit=lambda labels, p, ridge: _fit_slopes(_beta_features(p), labels, ridge),
        apply=lambda p, of: sigmoid(_beta_features(p) @ of[:-1] + of[-1]),
        accepts=_are_slopes(2),
    ),
    "isotonic": Calibrator(
        fit=_fit_isotonic,
        apply=lambda p, of: np.interp(p, *np.split(of, 2)),
        accepts=_are_steps,
        min_videos=1_000,
    ),
}
"""Name -> calibrator. `isotonic` overfits with fewer than 1,000 videos (Niculescu-Mizil and Caruana, "Predicting good
probabilities with supervised learning", ICML 2005, §5)."""


@dataclass(frozen=True, kw_only=True)
class PriorShift:
    """From one stated share of fakes to another."""

    training: float
    """Share of fakes among the videos the rule was tuned on, in (0, 1)."""
    test: float
    """Share of fakes expected at test time, in (0, 1)."""

    def __post_init__(self) -> None:
        for name in ("training", "test"):
            require(0 < getattr(self, name) < 1, self, name, "a share in (0, 1)")

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """P(fake) at the test prior, (N,) float64; 0, 1 and NaN stay.

        The odds are multiplied by those of the test prior over those of the training prior: Eq. (2.4) of Saerens,
        Latinne and Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities", Neural
        Computation 14 (2002). Right for probabilities that are calibrated at the training prior, and where fakes and
        reals are alike in both sets. Departures: the test prior is stated, not estimated from the test set.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        fake, real = p * self.test / self.training, (1 - p) * (1 - self.test) / (1 - self.training)
        return fake / (fake + real)


CLIP_RANGE = 1e-4, 0.2
PSEUDO_VIDEOS, PSEUDO_WRONG = 100.0, 0.01
"""Prior of the clip: as if so many videos lay beyond any clip, and that share of them on the wrong side."""


def fit_clip(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The clip in CLIP_RANGE of the least log loss on held-out videos, drawn towards PSEUDO_WRONG where they are few;
    probabilities (N,) are not clipped, and no part of the rule was fitted on their videos.

    Minimised is L(c) + k (-w ln c - (1 - w) ln(1 - c)), L the summed log loss of probabilities moved into [c, 1 - c],
    k the PSEUDO_VIDEOS and w = PSEUDO_WRONG the share of them that is wrong. Where all n held-out videos are right and
    certain that is c = k w / (n + k): 0.005 for 100 videos, 1e-4 for 10,000. Without videos it is w.

    Exact: with the videos in the order of m = min(p, 1 - p), between two neighbours the same W wrong and R right
    ones are clipped, and there c = (W + k w) / (W + R + k) is the one minimum, or the nearer end of the interval.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    says_fake = probabilities > 0.5
    margin = np.minimum(probabilities, 1 - probabilities)
    # At exactly 0.5 no clip below 0.5 reaches a video, whichever side it counts on.
    order = np.argsort(margin, kind="stable")
    margin, right = margin[order], (says_fake == (np.asarray(labels) == 1))[order]
    edges = np.concatenate([[0.0], margin, [0.5]])
    wrong_clipped = np.concatenate([[0], np.cumsum(~right)]) + PSEUDO_VIDEOS * PSEUDO_WRONG
    right_clipped = np.concatenate([[0], np.cumsum(right)]) + PSEUDO_VIDEOS * (1 - PSEUDO_WRONG)
    floor = np.maximum(margin, np.finfo(np.float64).tiny)
    own = np.where(right, -np.log1p(-margin), -np.log(floor))
    own_beyond = np.concatenate([np.cumsum(own[::-1])[::-1], [0.0]])

    low, high = np.maximum(edges[:-1], CLIP_RANGE[0]), np.minimum(edges[1:], CLIP_RANGE[1])
    inside = low <= high
    low, high, wrong, right = low[inside], high[inside], wrong_clipped[inside], right_clipped[inside]
    clips = np.clip(wrong / (wrong + right), low, high)
    costs = own_beyond[inside] - wrong * np.log(clips) - right * np.log1p(-clips)
    return float(clips[np.argmin(costs)])
