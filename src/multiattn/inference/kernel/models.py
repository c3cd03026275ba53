"""The networks of all runs, loaded once, in the order in which they are given up last to first."""

import logging
import threading

import numpy as np
import torch
from torch import nn

from multiattn.inference.runs import TrainedModel
from multiattn.model.network import fake_logit
from multiattn.model.predict import normalize_crops
from multiattn.model.rewrites import fold_batch_norms
from multiattn.runtime.devices import autocast
from multiattn.scoring.ensembling import experiment_of
from multiattn.scoring.rule import ScoringRule

logger = logging.getLogger(__name__)


def by_importance(models: list[TrainedModel], rule: ScoringRule) -> list[TrainedModel]:
    """Models in the order in which they are kept: the first fold of each experiment, heaviest experiment first, then
    the second folds, and so on. So an experiment loses folds before another is lost.

    Experiments whose weight is 0 come last, all their folds.
    """
    weights = {name: abs(weight) for name, weight in rule.ensemble.weights.items()}
    turn: dict[str, int] = {}
    keys = []
    for place, model in enumerate(models):
        experiment = experiment_of(model.name)
        turn[experiment] = turn.get(experiment, 0) + 1
        weight = weights.get(experiment, 1.0)
        keys.append((weight == 0, turn[experiment], -weight, place))
    return [models[place] for *_, place in sorted(keys)]


class LoadedModels:
    """Networks on a device, each with the size of crops it takes.

    Batch normalisations are folded into convolutions (the same logits to rounding, in about 0.6 of the time on a CPU);
    on a GPU, where autocast would round the folded weights instead, they are left alone.

    Args:
        models: in the order of `by_importance`.
        precision: `bf16`, `fp16` or `fp32`.
    """

    def __init__(self, models: list[TrainedModel], device: torch.device, precision: str) -> None:
        self.models, self.device, self.precision = models, device, precision
        self.sizes = [model.experiment.data.image_size for model in models]
        self._networks = [self._load(model, device) for model in models]
        self._on_cpu: dict[int, nn.Module] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """`<experiment>/fold<k>` of each."""
        return [model.name for model in self.models]

    @torch.inference_mode()
    def logits(self, number: int, crops: torch.Tensor, *, on_cpu: bool = False, exact: bool = False) -> np.ndarray:
        """The logit of P(fake) of each crop, float64, not checked.

        Args:
            number: of the model.
            crops: (B, H, W, 3) uint8 RGB on the CPU, of the model's size.
            on_cpu: not on the GPU, whose memory ran out.
            exact: in float32.
        """
        device = torch.device("cpu") if on_cpu else self.device
        network = self._cpu_network(number) if on_cpu and self.device.type != "cpu" else self._networks[number]
        precision = "fp32" if exact or (on_cpu and self.device.type != "cpu") else self.precision
        with autocast(precision, device):
            output = network(normalize_crops(crops.to(device)))
        return fake_logit(output.logits.float()).cpu().double().numpy()

    def _load(self, model: TrainedModel, device: torch.device) -> nn.Module:
        network = model.load(device).requires_grad_(False)
        return fold_batch_norms(network) if device.type == "cpu" else network

    def _cpu_network(self, number: int) -> nn.Module:
        with self._lock:
            if number not in self._on_cpu:
                logger.warning("%s also runs on the CPU now", self.models[number].name)
                self._on_cpu[number] = self._load(self.models[number], torch.device("cpu"))
            return self._on_cpu[number]
