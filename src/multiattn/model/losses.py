"""Cross entropy, and the smaller terms of the training objective: additive margin softmax, match loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiattn.config import LossConfig
from multiattn.model.independence import JointIndependenceLoss, RegionalIndependenceLoss


class ClassificationLoss(nn.Module):
    """Cross entropy of the two classes (natural log), averaged over the batch, in float32 under autocast too.

    Args:
        label_smoothing: share of the target spread over both classes: 0.1 asks for 0.95 and 0.05.
        class_weights: what a real and a fake sample count. The sum is divided by the number of samples, not of weights
            (as torch would): a sample's gradient then does not depend on which others are in its batch.
    """

    def __init__(self, *, label_smoothing: float = 0.0, class_weights: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        weights = torch.tensor(class_weights) if class_weights is not None else None
        self.register_buffer("weights", weights, persistent=False)  # the data's, not the network's

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits (B, 2) and labels (B,) int64 with 0 = real, 1 = fake."""
        with torch.autocast(device_type=logits.device.type, enabled=False):
            if self.weights is None:
                return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
            losses = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing, reduction="none")
            return (losses * self.weights[labels]).mean()


class AdditiveMarginLoss(nn.Module):
    """Additive margin softmax over the parts, the alternative auxiliary loss of Table 6 ("AMS").

    Each part vector is classified as the part it is: mean of -log softmax_k(s (cos(V_j, w_k) - m [k = j])) at k = j,
    Wang et al. 2018, arXiv:1801.05599, Eq. (5). It draws parts towards their own learned centre w_j and away from the
    others', "with the same motivation" as the regional independence loss (section 4.4.2 of arXiv:2103.02406).

    Departures: the paper says nothing of the classes, s and m; parts as classes is our reading.
    """

    def __init__(self, num_maps: int, num_features: int, config: LossConfig) -> None:
        super().__init__()
        self.scale, self.margin = config.ams_scale, config.ams_margin
        self.weight = nn.Parameter(torch.empty(num_maps, num_features))  # w (M, N)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, parts: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of V (B, M, N), in float32 under autocast too; the labels play no part."""
        with torch.autocast(device_type=parts.device.type, enabled=False):
            parts = parts.to(torch.promote_types(parts.dtype, torch.float32))
            cosine = F.normalize(parts, dim=-1) @ F.normalize(self.weight.to(parts.dtype), dim=-1).T  # (B, M, M)
            own = torch.eye(len(self.weight), dtype=cosine.dtype, device=cosine.device)
            logits = self.scale * (cosine - self.margin * own)
            target = torch.arange(len(self.weight), device=parts.device).expand(len(parts), -1)
            return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    def end_epoch(self) -> None:
        """Nothing decays here."""


def match_loss(parts: Tensor, degraded_parts: Tensor, dropped: Tensor) -> Tensor:
    """Mean over samples and parts of ||V(I') - V(I)||, the degraded part counting 0: a term of the release.

    Args:
        parts: V(I) (B, M, N).
        degraded_parts: V(I') (B, M, N).
        dropped: (B,) int64, the map that AGDA degraded.

    Returns:
        Scalar; its gradient is 0, not undefined, where the two are equal.
    """
    kept = 1.0 - F.one_hot(dropped, parts.shape[1]).to(parts.dtype)  # (B, M)
    squared = (degraded_parts - parts).square().sum(dim=-1)
    distance = torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)
    return (distance * kept).mean()


def make_auxiliary(num_maps: int, num_features: int, config: LossConfig) -> nn.Module | None:
    """The auxiliary loss the settings name: a module of (parts, labels), with `end_epoch`; None for none."""
    if config.auxiliary == "none" or config.auxiliary_weight == 0:
        return None
    if config.auxiliary == "ams":
        return AdditiveMarginLoss(num_maps, num_features, config)
    kind = {"per-part": RegionalIndependenceLoss, "joint": JointIndependenceLoss}[config.ril]
    return kind(num_maps, num_features, config)
