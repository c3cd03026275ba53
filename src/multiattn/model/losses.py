"""Terms of the objective: cross entropy, the regional independence loss (RIL), its alternatives, match loss."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from multiattn.config import LossConfig
from multiattn.config.settings import registry


class ClassificationLoss(nn.Module):
    """Cross entropy of the two classes (natural log), averaged over the batch, in float32 under autocast too.

    With weights of a real and a fake sample the sum is divided by the number of samples, not of weights (as torch
    would): a sample's gradient then does not depend on which others are in its batch.
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


class RegionalIndependenceLoss(nn.Module):
    """Parts near their centre, centres apart: Eqs. (3) and (4) of arXiv:2103.02406, section 3.3.

    The centres start at zero, a choice (the paper is silent). Zeros need no random numbers, so all ranks agree without
    a broadcast, and they start gently: the intra-class gradient of a unit vector towards 0 is nothing along the
    sphere, whereas random unit centres begin at a squared distance near 2, drown the cross entropy and lie beyond
    m_out of each other. Zero centres do not tie the parts together: Eq. (3) uses c^t, which holds this batch's
    distinct part means already.

    Where a step accumulates n batches (`begin_batch`), the centres that a batch is measured against are those at the
    step's beginning, moved by alpha by this batch alone: an estimate of what the whole step makes of them, so that a
    mean of the batches' gradients is that of the whole. The buffer itself moves to exactly where the whole batch takes
    it.

    Departures: with `reduction="mean"` the first sum of Eq. (3) is a mean over the batch (a sum would tie the loss's
    weight to the batch size); `reduction="sum"` is the equation to the letter.
    """

    centers: Tensor
    """c of Eq. (4), (M, N) float32."""
    center_rate: Tensor
    """alpha of Eq. (4), scalar float32."""

    def __init__(self, num_maps: int, num_features: int, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("centers", torch.zeros(num_maps, num_features))
        self.register_buffer("center_rate", torch.tensor(config.center_rate))
        self._share = 1.0
        self._start: Tensor | None = None  # the centres at the beginning of a step of several batches
        self._measured: Tensor | None = None  # those that the latest batch was measured against

    def begin_batch(self, share: float, *, is_first: bool) -> None:
        """Count the next batch as this share of a step, 1 / n where n batches make one; `is_first` of them."""
        self._share = share
        if is_first:
            self._start = None

    def forward(self, parts: Tensor, labels: Tensor) -> Tensor:
        """L_RIL (scalar) of V (B, M, N) and labels (B,); in training mode each call moves the centres once.

        In a distributed run the batch is that of all ranks, whose mean is the batch's loss: the centres are the same
        everywhere, and the gradients that DistributedDataParallel averages equal those of one process with the whole
        batch. Every rank must make the call then. Evaluation mode measures against the centres as they stand: no batch
        mean, no communication. Computed in float32 under autocast too; float64 stays float64.

        Raises:
            ValueError: an empty batch, or shapes that do not fit the centres or the labels.
        """
        self._check(parts, labels)
        with torch.autocast(device_type=parts.device.type, enabled=False):
            parts = parts.to(torch.promote_types(parts.dtype, torch.float32))
            centers = self.centers.to(parts.dtype)
            total, ranks = parts.new_full((), float(len(parts))), 1
            if self.training:
                if self._share < 1:
                    self._start = self.centers.clone() if self._start is None else self._start
                    centers = self._start.to(parts.dtype)
                shares = self.counted_samples(labels).to(parts.dtype)
                step, total, ranks = mean_step(parts, centers, shares)
                move = self.center_rate.to(parts.dtype) * step
                centers = centers + move  # Eq. (4)
                self._measured = centers.detach()
                self.centers.add_((self._share * move.detach()).to(self.centers.dtype))
            intra = self.intra_terms(parts, centers, labels).sum() * ranks
            intra = intra / (total if self.config.reduction == "mean" else self._share)  # a sum is of the whole step
            return intra + self.inter_term(centers)  # Eq. (3)

    @torch.no_grad()
    def follow(self, parts: Tensor, labels: Tensor) -> None:
        """Move the centres by a second view of the batch that `forward` took last, without computing a loss."""
        parts = parts.detach().to(torch.promote_types(parts.dtype, torch.float32))
        centers = self.centers if self._measured is None else self._measured
        step, _, _ = mean_step(parts, centers.to(parts.dtype), self.counted_samples(labels).to(parts.dtype))
        self.centers.add_(self._share * self.center_rate * step.to(self.centers.dtype))

    def counted_samples(self, labels: Tensor) -> Tensor:
        """(B,) 1 where a sample moves the centres: everywhere, Eq. (4)."""
        return torch.ones_like(labels)

    def intra_terms(self, parts: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
        """max(||V^i_j - c_j||^2 - m_in(y_i), 0), (B, M), of Eq. (3); negative margins are the release's idea."""
        distance = (parts - centers).square().sum(dim=-1)  # (B, M), squared
        return margin_excess(distance, labels[:, None], self.config)

    def inter_term(self, centers: Tensor) -> Tensor:
        """Sum over ordered pairs i != j of max(m_out - ||c_i - c_j||^2, 0), the second sum of Eq. (3)."""
        distance = (centers[:, None] - centers[None]).square().sum(dim=-1)  # (M, M), squared
        others = 1 - torch.eye(len(centers), dtype=centers.dtype, device=centers.device)
        # Picking by a mask would wait for the GPU to count it.
        return (F.relu(self.config.inter_margin - distance) * others).sum()

    def set_epoch(self, epoch: int) -> None:
        """Let alpha be that of an epoch, counted from the first that uses this loss ("we decay alpha after each
        training epoch", section 3.3)."""
        self.center_rate.fill_(self.config.center_rate)
        for _ in range(epoch):  # not a power: each epoch's product rounded, as they come one after the other
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


class JointIndependenceLoss(RegionalIndependenceLoss):
    """The released form: all parts of a face measured together, centres of real faces only.

    c^t = c^(t-1) + alpha / B sum_i [y_i = 0] (V^i - c^(t-1)), with B the whole batch;
    L = mean_i relu(d_i sign(m_i) - m_i) + sum_{j<k} relu(m_out - ||c_j - c_k||) / (M alpha), where
    d_i = ||V^i - c^t|| is one un-squared norm over parts and features (Frobenius), in [0, 2 sqrt(M)].

    Departures from Eqs. (3) and (4): all of the above; it is the loss the released checkpoints were trained with.
    """

    def counted_samples(self, labels: Tensor) -> Tensor:
        """(B,) 1 where a sample moves the centres: real faces."""
        return (labels != 1).to(torch.int64)

    def intra_terms(self, parts: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
        """relu(d_i sign(m_i) - m_i), (B,), one term a face."""
        distance = root((parts - centers).square().sum(dim=(-2, -1)))  # d_i; 0 for a face exactly on its centres
        return margin_excess(distance, labels, self.config)

    def inter_term(self, centers: Tensor) -> Tensor:
        """Sum over unordered pairs, divided by M alpha: the gradient through alpha / B is of order 1 then."""
        first, second = torch.triu_indices(len(centers), len(centers), offset=1, device=centers.device)
        distance = root((centers[first] - centers[second]).square().sum(dim=-1))
        total = F.relu(self.config.inter_margin - distance).sum()
        return total / (len(centers) * self.center_rate.to(centers.dtype))


def margin_excess(distance: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """relu(d - m) for m = m_in(y_i) >= 0; relu(|m| - d) for m < 0, which pushes that far away instead of pulling near.

    Label 1 takes the margin of fake faces, all else that of real ones. Distances and labels of shapes that broadcast.
    """
    margin = torch.where(labels == 1, config.intra_margin_fake, config.intra_margin_real).to(distance.dtype)
    return F.relu(torch.where(margin < 0, -distance, distance) - margin)


def root(squared: Tensor) -> Tensor:
    """Square roots of sums of squares, with gradient 0 where they are 0: that of the root itself is 0 / 0 there."""
    return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


def mean_step(parts: Tensor, centers: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, int]:
    """mean_i s_i (V^i - c) (M, N) over the batch of all ranks, Eq. (4) without alpha; samples and number of all ranks.

    "We optimize c by calculating the gradient for V in each batch": without a gradient to every rank's share the second
    sum of Eq. (3) would train nothing. The shares s (B,) are 1 for the samples that count and else 0.
    """
    total, count = (shares[:, None, None] * (parts - centers)).sum(dim=0), parts.new_full((), float(len(parts)))
    if not _is_distributed():
        return total / count, count, 1
    sums = _SumOverRanks.apply(torch.cat([total.flatten(), count[None]]))  # the count travels along
    total, count = sums[:-1].view_as(total), sums[-1].detach()
    return total / count, count, dist.get_world_size()


_IS_APART = ContextVar("is_apart", default=False)


@contextlib.contextmanager
def apart_from_other_ranks() -> Iterator[None]:
    """Have the losses inside be of this process's batch alone, for steps that not every rank makes: the others' would
    wait for it."""
    token = _IS_APART.set(True)
    try:
        yield
    finally:
        _IS_APART.reset(token)


def _is_distributed() -> bool:
    return not _IS_APART.get() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is an all-reduce too: every rank's loss depends on every rank's share of the sum."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
        return tensor

    backward = forward  # the gradients are summed likewise


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


UNIFORMITY_SHARPNESS = 2.0
"""t of the uniformity."""


class AlignmentUniformityLoss(nn.Module):
    """Features of a class near each other, all features spread over the unit sphere: Wang and Isola, arXiv:2005.10242.

    With x the features divided by their L2 norm,

        alignment = mean over pairs of one class of ||x_i - x_j||^2
        uniformity = log mean over all pairs of exp(-t ||x_i - x_j||^2)

    with alpha = 2 and t = 2, the values there and in GenD (arXiv:2508.06248). The term is `alignment_weight` times the
    former plus `uniformity_weight` times the latter.

    Departures: two samples of a class make a pair, as in GenD, where the paper has two views of one image. Pairs are
    those of one batch: where gradients of several batches are accumulated, none spans two of them.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of features (B, C), of any length, and labels (B,) int64, in float32 under autocast too.

        A term without a pair is 0: of a single sample, or without two of one class. In a distributed run the pairs are
        those of the batch of all ranks, as if one process had it whole; every rank must make the call then. Evaluation
        mode takes this rank's alone.
        """
        with torch.autocast(device_type=features.device.type, enabled=False):
            points = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
            if self.training and _is_distributed():
                points, labels = _rows_of_all_ranks(points, labels)
            first, second = torch.triu_indices(len(points), len(points), offset=1, device=points.device)
            lengths = points.square().sum(dim=-1)
            squared = (lengths[:, None] + lengths - 2 * points @ points.T)[first, second].clamp_min(0)  # (pairs,)
            if not len(squared):
                return 0 * features.sum()  # with a gradient, for DistributedDataParallel
            is_pair = (labels[first] == labels[second]).to(squared.dtype)
            alignment = (squared * is_pair).sum() / is_pair.sum().clamp_min(1)
            uniformity = (-UNIFORMITY_SHARPNESS * squared).exp().mean().log()  # at least -8: squares end at 4
            return self.config.alignment_weight * alignment + self.config.uniformity_weight * uniformity


def _rows_of_all_ranks(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C) and (B,) of every rank, in the order of the ranks, with gradient: all ranks' losses depend on each row."""
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64)  # on the CPU: no rank waits for its GPU
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    begin, total = int(counts[: dist.get_rank()].sum()), int(counts.sum())
    room = (0, 0, begin, total - begin - len(rows))  # zeros in the place of the other ranks'
    labels = F.pad(labels, room[2:])
    dist.all_reduce(labels)
    return _SumOverRanks.apply(F.pad(rows, room)), labels


RIL_FORMS = registry(LossConfig, "ril", {"per-part": RegionalIndependenceLoss, "joint": JointIndependenceLoss})
AUXILIARY_LOSSES = registry(
    LossConfig,
    "auxiliary",
    {
        "ril": lambda num_maps, num_features, config: RIL_FORMS[config.ril](num_maps, num_features, config),
        "ams": AdditiveMarginLoss,
        "align-uniform": lambda _, __, config: AlignmentUniformityLoss(config),
        "none": lambda *_: None,
    },
)


def make_auxiliary(num_maps: int, num_features: int, config: LossConfig) -> nn.Module | None:
    """The auxiliary loss the settings name, a module of (parts, labels), or of (features, labels) for `align-uniform`;
    None for none."""
    if config.auxiliary_weight == 0:
        return None
    return AUXILIARY_LOSSES[config.auxiliary](num_maps, num_features, config)


def match_loss(parts: Tensor, degraded_parts: Tensor, dropped: Tensor) -> Tensor:
    """Mean over samples and parts of ||V(I') - V(I)||, the part AGDA `dropped` (B,) counting 0: the release's term.

    V (B, M, N) of the images and of their degraded copies; the gradient is 0, not undefined, where they are equal.
    """
    kept = 1.0 - F.one_hot(dropped, parts.shape[1]).to(parts.dtype)  # (B, M)
    return (root((degraded_parts - parts).square().sum(dim=-1)) * kept).mean()
