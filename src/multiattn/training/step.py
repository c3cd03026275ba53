"""One training step: the network on the crops and on their AGDA copies, and the losses of both."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from multiattn.config import Experiment
from multiattn.model.agda import AttentionGuidedAugmentation
from multiattn.model.losses import ClassificationLoss, RegionalIndependenceLoss
from multiattn.model.network import MultiAttentionNetwork
from multiattn.model.preprocess import normalize_crops


class TrainingStep(nn.Module):
    """Everything a step computes, as one module, so that DistributedDataParallel sees one forward pass.

    L = lambda_1 CE(I) + lambda_2 RIL(I) + CE(I'), with I' the attention-guided degraded copy of I (Eq. (5) and
    section 3.4 of arXiv:2103.02406). One attention map uses neither RIL nor AGDA (Table 5).

    Departures: batch normalisation's running statistics follow the clean crops only. Evaluation uses them and sees no
    degraded crop; the paper does not say.
    """

    def __init__(self, experiment: Experiment, *, load_weights: bool = True) -> None:
        super().__init__()
        self.config = experiment.loss
        self.network = MultiAttentionNetwork(experiment.model, load_weights=load_weights)
        self.classification = ClassificationLoss()
        several = experiment.model.num_maps > 1
        self.independence = None
        if several and experiment.loss.independence_weight > 0:
            self.independence = RegionalIndependenceLoss(
                self.network.num_maps, self.network.num_part_features, experiment.loss
            )
        self.augmentation = None
        if several and experiment.agda.mode != "none":
            self.augmentation = AttentionGuidedAugmentation(experiment.agda)

    def forward(self, crops: Tensor, labels: Tensor, *, degrade: bool = True) -> dict[str, Tensor]:
        """The loss and its unweighted terms.

        Args:
            degrade: False leaves the AGDA copies out.
            crops: (B, H, W, 3) uint8 RGB.
            labels: (B,) int64, 1 = fake.

        Returns:
            `loss`, `cross_entropy`, and where they are used `independence`, `cross_entropy_agda`; scalars, float32.
        """
        images = normalize_crops(crops)
        output = self.network(images)
        terms = {"cross_entropy": self.classification(output.logits, labels)}
        loss = self.config.cross_entropy_weight * terms["cross_entropy"]
        if self.independence is not None:
            terms["independence"] = self.independence(output.parts, labels)
            loss = loss + self.config.independence_weight * terms["independence"]
        if degrade and self.augmentation is not None:
            degraded = self.augmentation(images, output.attention.detach())
            with _frozen_statistics(self.network):
                logits = self.network(degraded).logits
            terms["cross_entropy_agda"] = self.classification(logits, labels)
            loss = loss + terms["cross_entropy_agda"]
        return {"loss": loss, **terms}

    def end_epoch(self) -> None:
        """What changes between epochs: the rate of the moving centres decays."""
        if self.independence is not None:
            self.independence.end_epoch()


@contextlib.contextmanager
def _frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch normalisation goes on normalising by the batch, but its running statistics stay as they are."""
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
