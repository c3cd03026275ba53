"""The staged schedule: which phase an epoch belongs to, and what a phase trains."""

from dataclasses import dataclass

from torch import nn

from multiattn.config import Experiment, Phase
from multiattn.training.step import TrainingStep


@dataclass(frozen=True)
class PhaseSpan:
    """A phase and the epochs of the run it covers."""

    phase: Phase
    first: int
    """Its first epoch, counted from the run's beginning."""

    @property
    def end(self) -> int:
        """The epoch after its last."""
        return self.first + self.phase.epochs


def phase_spans(experiment: Experiment) -> list[PhaseSpan]:
    """The phases one after the other."""
    spans, first = [], 0
    for phase in experiment.schedule:
        spans.append(PhaseSpan(phase, first))
        first += phase.epochs
    return spans


def span_at(experiment: Experiment, epoch: int) -> PhaseSpan:
    """The phase an epoch of the run belongs to.

    Raises:
        ValueError: the run has no such epoch.
    """
    for span in phase_spans(experiment):
        if span.first <= epoch < span.end:
            return span
    raise ValueError(f"epoch {epoch}: expected 0 to {experiment.num_epochs - 1}.")


def set_trainable(step: TrainingStep, phase: Phase) -> None:
    """Freeze the backbone, or thaw it."""
    step.network.backbone.requires_grad_(not phase.freeze_backbone)


def set_train_mode(module: nn.Module, step: TrainingStep, phase: Phase) -> None:
    """Training mode for all but a frozen backbone, whose running statistics must not move either."""
    module.train()
    if phase.freeze_backbone:
        step.network.backbone.eval()
