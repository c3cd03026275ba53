"""The training objective: cross entropy and the regional independence loss (RIL), Eqs. (3) to (5)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from multiattn.config import LossConfig


class ClassificationLoss(nn.Module):
    """Cross entropy of the two classes (natural log), averaged over the batch, in float32 under autocast too."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits (B, 2) and labels (B,) int64 with 0 = real, 1 = fake."""
        with torch.autocast(device_type=logits.device.type, enabled=False):
            return F.cross_entropy(logits.float(), labels)


class RegionalIndependenceLoss(nn.Module):
    """Parts near their centre, centres apart: Eqs. (3) and (4) of arXiv:2103.02406, section 3.3.

    The centres start at zero, a choice (the paper is silent). Zeros need no random numbers, so all ranks agree without
    a broadcast, and they start gently: the intra-class gradient of a unit vector towards 0 is nothing along the
    sphere, whereas random unit centres begin at a squared distance near 2, drown the cross entropy and lie beyond
    m_out of each other. Zero centres do not tie the parts together: Eq. (3) uses c^t, which holds this batch's
    distinct part means already.

    Attributes:
        centers: buffer (M, N) float32, c of Eq. (4).
        center_rate: buffer, scalar float32, alpha of Eq. (4).

    Departures: with `reduction="mean"` the first sum of Eq. (3) is a mean over the batch (a sum would tie the loss's
    weight to the batch size); `reduction="sum"` is the equation to the letter.
    """

    centers: Tensor
    center_rate: Tensor

    def __init__(self, num_maps: int, num_features: int, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("centers", torch.zeros(num_maps, num_features))
        self.register_buffer("center_rate", torch.tensor(config.center_rate))

    def forward(self, parts: Tensor, labels: Tensor) -> Tensor:
        """L_RIL of one batch; in training mode each call moves the centres once.

        In a distributed run the batch is that of all ranks: the centres are the same everywhere, and the gradients
        that DistributedDataParallel averages equal those of one process with the whole batch. Every rank must make the
        call then. Evaluation mode measures against the centres as they stand: no batch mean, no communication.

        Args:
            parts: V (B, M, N), unit rows, any float dtype; computed in float32 (float64 stays float64).
            labels: (B,), 0 = real, 1 = fake.

        Returns:
            Scalar. Without a process group it is the batch's loss; with one, its mean over ranks is.

        Raises:
            ValueError: an empty batch, or shapes that do not fit the centres or the labels.
        """
        self._check(parts, labels)
        with torch.autocast(device_type=parts.device.type, enabled=False):
            parts = parts.to(torch.promote_types(parts.dtype, torch.float32))
            centers = self.centers.to(parts.dtype)
            total, ranks = parts.new_tensor(float(len(parts))), 1
            if self.training:
                mean, total, ranks = global_mean(parts)
                centers = moved_centers(centers, mean, self.center_rate.to(parts.dtype))
                self.centers.copy_(centers.detach())
            intra = intra_class_terms(parts, centers, labels, self.config).sum() * ranks
            if self.config.reduction == "mean":
                intra = intra / total
            return intra + inter_class_term(centers, self.config.inter_margin)

    def end_epoch(self) -> None:
        """Decay alpha ("we decay alpha after each training epoch", section 3.3)."""
        self.center_rate.mul_(self.config.center_decay)

    def _check(self, parts: Tensor, labels: Tensor) -> None:
        if parts.ndim != 3 or parts.shape[1:] != self.centers.shape:
            num_maps, num_features = self.centers.shape
            raise ValueError(f"parts: expected (B, {num_maps}, {num_features}), found {tuple(parts.shape)}.")
        if labels.shape != parts.shape[:1]:
            raise ValueError(f"labels: expected ({len(parts)},), found {tuple(labels.shape)}.")
        # An empty share of a distributed batch is fine, and raising on one rank would leave the others waiting.
        if len(parts) == 0 and not _is_distributed():
            raise ValueError("parts: expected at least one sample, found an empty batch.")


def moved_centers(centers: Tensor, batch_mean: Tensor, rate: Tensor) -> Tensor:
    """c^t = c^(t-1) - alpha (c^(t-1) - mean V), Eq. (4) of arXiv:2103.02406.

    The result carries gradient through `batch_mean`, the only way for the second sum of Eq. (3) to train anything:
    "we optimize c by calculating the gradient for V in each batch".

    Args:
        centers: (M, N).
        batch_mean: (M, N), mean of V over the batch of all ranks.
        rate: scalar alpha.

    Departures: none.
    """
    return centers - rate * (centers - batch_mean)


def intra_class_terms(parts: Tensor, centers: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """max(||V^i_j - c_j||^2 - m_in(y_i), 0), the summands of the first sum of Eq. (3).

    Args:
        parts: (B, M, N).
        centers: (M, N).
        labels: (B,); 1 takes the margin of fake faces, all else that of real ones.

    Returns:
        (B, M), non-negative.

    Departures: none.
    """
    margin = torch.where(labels == 1, config.intra_margin_fake, config.intra_margin_real).to(parts.dtype)  # (B,)
    distance = (parts - centers).square().sum(dim=-1)  # (B, M), squared
    return F.relu(distance - margin[:, None])


def inter_class_term(centers: Tensor, margin: float) -> Tensor:
    """Sum over ordered pairs i != j of max(m_out - ||c_i - c_j||^2, 0), the second sum of Eq. (3).

    Args:
        centers: (M, N).
        margin: m_out, a squared distance.

    Returns:
        Scalar; 0 for one centre.

    Departures: none.
    """
    distance = (centers[:, None] - centers[None]).square().sum(dim=-1)  # (M, M), squared
    others = ~torch.eye(len(centers), dtype=torch.bool, device=centers.device)
    return F.relu(margin - distance)[others].sum()


def global_mean(parts: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean over the batch of all ranks, with gradient to every rank's share.

    Args:
        parts: (B, M, N), this rank's share.

    Returns:
        The mean (M, N), the number of samples of all ranks (scalar tensor), the number of ranks.
    """
    total, count = parts.sum(dim=0), parts.new_tensor(float(len(parts)))
    if not _is_distributed():
        return total / count, count, 1
    dist.all_reduce(count)
    return _SumOverRanks.apply(total) / count, count, dist.get_world_size()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is an all-reduce too: every rank's loss depends on every rank's share of the sum."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient
