"""One training step: the network on the crops and on their AGDA copies, and the losses of both passes."""

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from multiattn.config import Experiment, Phase
from multiattn.model.agda import AttentionGuidedAugmentation
from multiattn.model.losses import (
    AlignmentUniformityLoss,
    ClassificationLoss,
    RegionalIndependenceLoss,
    make_auxiliary,
    match_loss,
)
from multiattn.model.network import BaselineHead, NetworkOutput, average_pool, make_network
from multiattn.model.predict import normalize_crops
from multiattn.model.rewrites import frozen_statistics
from multiattn.model.tuning import prepare_tuning, set_gradients, set_modes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CleanPass:
    """Results of the clean pass, for the AGDA pass."""

    terms: dict[str, Tensor]  # `loss` and its unweighted terms, scalars in float32
    attention: Tensor | None = None  # A, detached; None where there is no AGDA pass to come
    parts: Tensor | None = None  # V with its graph; None unless the match loss needs it


class TrainingStep(nn.Module):
    """Network and losses of a step.

    L = lambda_1 CE(I) + lambda_2 auxiliary(I) + agda_weight CE(I') + match_weight match(I, I'), with I' the
    attention-guided degraded copy of I (Eq. (5) and section 3.4 of arXiv:2103.02406; the match loss is the release's).

    `forward` is one pass: the clean one without `before`, the AGDA one with the results of the clean one. Where no loss
    spans both (`separable`), the first is back-propagated before the second begins, so that only one pass's activations
    are ever kept. The gradients are the same sum.

    Departures: batch normalisation's running statistics follow the clean crops only. Evaluation uses them and sees no
    degraded crop; the paper does not say.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        load_weights: bool = True,
        network: nn.Module | None = None,
        class_weights: tuple[float, float] | None = None,
    ) -> None:
        """Take the network given, as `make_network` makes it, or make one."""
        super().__init__()
        self.config, self.tune = experiment.loss, experiment.model.tune
        self.network = make_network(experiment.model, load_weights=load_weights) if network is None else network
        prepare_tuning(self.network.backbone.net, experiment.model)
        self.classification = ClassificationLoss(
            label_smoothing=experiment.loss.label_smoothing, class_weights=class_weights
        )
        self.auxiliary = self.augmentation = self.backbone_head = None
        if experiment.model.network == "multi-attention" and experiment.model.num_maps > 1:
            self.auxiliary = make_auxiliary(self.network.num_maps, self.network.num_part_features, experiment.loss)
            if experiment.agda.mode != "none":
                self.augmentation = AttentionGuidedAugmentation(experiment.agda)
        else:
            reason = "the baseline has no attention" if experiment.model.network == "baseline" else "M = 1 (Table 5)"
            if experiment.loss.auxiliary == "align-uniform":  # of features, which these have too
                self.auxiliary = make_auxiliary(0, 0, experiment.loss)
                logger.info("%s: AGDA is off", reason)
            else:
                logger.info("%s: auxiliary loss and AGDA are off", reason)
        if any(phase.objective == "backbone" for phase in experiment.schedule):
            self.backbone_head = BaselineHead(self.network.backbone.num_features)

    @property
    def separable(self) -> bool:
        """True where the clean pass can be back-propagated on its own."""
        # DistributedDataParallel wants the parameters of the margin loss in its last backward.
        return self.config.match_weight == 0 and self.config.auxiliary != "ams"

    def forward(
        self, crops: Tensor, labels: Tensor, *, before: CleanPass | None = None, objective: str = "network"
    ) -> CleanPass:
        """One pass: terms `loss` and, where used, `cross_entropy`, `auxiliary`, `cross_entropy_agda`, `match`.

        Crops (B, H, W, 3) uint8 RGB and labels (B,) int64; `before` is the clean pass on the same crops, and makes this
        the AGDA pass.
        """
        images = normalize_crops(crops)
        if objective == "backbone":
            value = self.classification(self.backbone_logits(images).logits, labels)
            return CleanPass({"loss": value, "cross_entropy": value})
        return self._clean(images, labels) if before is None else self._degraded(images, labels, before)

    def _clean(self, images: Tensor, labels: Tensor) -> CleanPass:
        output: NetworkOutput = self.network(images)
        terms = {"cross_entropy": self.classification(output.logits, labels)}
        loss = self.config.cross_entropy_weight * terms["cross_entropy"]
        if self.auxiliary is not None:
            of_features = isinstance(self.auxiliary, AlignmentUniformityLoss)
            terms["auxiliary"] = self.auxiliary(output.features if of_features else output.parts, labels)
            loss = loss + self.config.auxiliary_weight * terms["auxiliary"]
        attention = output.attention.detach() if self.augmentation is not None else None
        return CleanPass({"loss": loss, **terms}, attention, None if self.separable else output.parts)

    def _degraded(self, images: Tensor, labels: Tensor, before: CleanPass) -> CleanPass:
        copies = self.augmentation(images, before.attention)
        with frozen_statistics(self.network):
            output: NetworkOutput = self.network(copies.images)
        terms = {"cross_entropy_agda": self.classification(output.logits, labels)}
        loss = self.config.agda_weight * terms["cross_entropy_agda"]
        if self.config.match_weight > 0:
            terms["match"] = match_loss(before.parts, output.parts, copies.dropped)
            loss = loss + self.config.match_weight * terms["match"]
        if self.config.centers_follow_agda and isinstance(self.auxiliary, RegionalIndependenceLoss):
            self.auxiliary.follow(output.parts, labels)
        return CleanPass({"loss": loss, **terms})

    def backbone_logits(self, images: Tensor) -> NetworkOutput:
        """The outputs that are validated while the backbone is trained alone."""
        return NetworkOutput(self.backbone_head(average_pool(self.network.backbone(images)[1])), None, None)

    def set_epoch(self, epoch: int) -> None:
        """Let the rate of the moving centres be that of an epoch of the phase, counted from 0."""
        if isinstance(self.auxiliary, RegionalIndependenceLoss):
            self.auxiliary.set_epoch(epoch)


def backward_passes(
    module: nn.Module,
    step: TrainingStep,
    crops: Tensor,
    labels: Tensor,
    *,
    scaler: torch.amp.GradScaler,
    context: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    objective: str = "network",
    degrade: bool = True,
    share: float = 1.0,
    is_first: bool = True,
    is_update: bool = True,
) -> dict[str, Tensor]:
    """The terms of both passes of one batch, detached and not multiplied by `share`; `loss` is their sum.

    Gradients are added to what the parameters hold.

    Args:
        module: the step itself, or DistributedDataParallel around it.
        context: the autocast context of each forward pass.
        degrade: False leaves the AGDA pass out.
        share: weight of this batch in the update: 1 / n where the gradients of n batches are accumulated.
        is_first, is_update: True for the first of these, and for the last, at which ranks exchange gradients.
    """
    twice = degrade and objective == "network" and step.augmentation is not None
    if isinstance(step.auxiliary, RegionalIndependenceLoss):
        step.auxiliary.begin_batch(share, is_first=is_first)
    # The gradients of the first of two backward passes stay on their rank; the second one's reduction brings the sum.
    with _gradients_stay(module, not is_update or (twice and step.separable)):
        with context():
            clean = module(crops, labels, objective=objective)
        if not twice or step.separable:
            scaler.scale(share * clean.terms["loss"]).backward()
    if not twice:
        return {name: value.detach() for name, value in clean.terms.items()}
    total = clean.terms["loss"]
    with _gradients_stay(module, not is_update):
        with context():
            degraded = module(crops, labels, before=clean)
        total = total + degraded.terms["loss"]
        scaler.scale(share * (degraded.terms["loss"] if step.separable else total)).backward()
    terms = {**clean.terms, **degraded.terms, "loss": total}
    return {name: value.detach() for name, value in terms.items()}


def _gradients_stay(module: nn.Module, stay: bool) -> AbstractContextManager:
    """A context in which forward and backward leave the gradients on their rank, where there are several."""
    return module.no_sync() if stay and isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def set_trainable(step: TrainingStep, phase: Phase) -> None:
    """Let gradients reach the backbone as `model.tune` and the phase say, and the head that the phase's objective uses.

    All that is left to train then gets a gradient in every step, which DistributedDataParallel counts on.
    """
    trains_network = phase.objective == "network"
    step.requires_grad_(trains_network)
    if step.backbone_head is not None:
        step.backbone_head.requires_grad_(not trains_network)
    step.network.backbone.requires_grad_(not phase.freeze_backbone)
    if not phase.freeze_backbone:
        set_gradients(step.network.backbone.net, step.tune)


def set_train_mode(module: nn.Module, step: TrainingStep, phase: Phase) -> None:
    """Training mode for all but a backbone, or parts of it, that stay as they are: neither running statistics may move
    nor layers be dropped there."""
    module.train()
    if phase.freeze_backbone:
        step.network.backbone.eval()
    else:
        set_modes(step.network.backbone.net, step.tune)
