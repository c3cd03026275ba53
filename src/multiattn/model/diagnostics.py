"""Statistics of attention maps: how alike they are, which is the strongest, their spread, how many are zero."""

import math

import torch
from torch import Tensor

from multiattn.config import Experiment, LossConfig, Phase

COLLAPSED_COSINE = 0.95
"""Mean cosine between two maps of a face above which they are one map; identical ones are at 1. Maps of untrained
networks lie well below (`tests/model/test_diagnostics.py`): independent values pass ReLU with 0.32, ELU + 1 with 0.68.
"""
COLLAPSED_SHARE = 0.98
"""Share of faces on which one and the same map is the strongest, above which the others hardly count."""
DEAD_SHARE = 0.5
"""Share of maps that are zero everywhere, above which attention no longer carries the network."""


class AttentionStatistics:
    """Running figures over batches of attention maps, in float64, on their device: `update` does not wait for it."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # cosines, pairs, entropy, living and dead maps; faces by their strongest map

    @torch.no_grad()
    def update(self, attention: Tensor) -> None:
        """Take in A (B, M, h, w), any float dtype, non-negative."""
        maps = attention.detach().double().flatten(2)  # (B, M, h*w)
        num_maps, cells = maps.shape[1:]
        tiny = torch.finfo(torch.float64).tiny
        mass, norms = maps.sum(dim=-1), maps.norm(dim=-1)  # (B, M)
        living = norms > 0
        units = maps / norms.clamp_min(tiny)[..., None]
        both = (living[:, :, None] & living[:, None]).triu(diagonal=1)  # (B, M, M), each pair once
        cosine = torch.where(both, units @ units.transpose(1, 2), 0).sum()
        share = maps / mass.clamp_min(tiny)[..., None]
        entropies = torch.special.entr(share).sum(dim=-1) / math.log(max(cells, 2))  # one cell alone has entropy 0
        entropy = torch.where(living, entropies, 0).sum()
        is_strongest = mass.argmax(dim=1)[:, None] == torch.arange(num_maps, device=maps.device)  # (B, M)
        strongest = (is_strongest & living.any(dim=1)[:, None]).sum(dim=0)
        figures = (cosine, both.sum(), entropy, living.sum(), (~living).sum(), *strongest.unbind())
        sums = torch.stack([figure.double() for figure in figures])
        self.sums = sums if self.sums is None else self.sums + sums

    def compute(self) -> dict[str, float]:
        """The figures so far; empty before the first face.

        Returns:
            `map_cosine`: mean over faces and pairs of living maps of their cosine, in [0, 1]; 0 where no face has two
            living maps. `map_strongest_share`: the largest share of the faces with a living map on which one and the
            same map has the greatest sum (the first of equal ones), in [1 / M, 1]; 0 where all maps are dead. One map
            (M = 1) has neither. `map_entropy`: mean entropy of a living map over its cells, over log(cells): 0 is one
            cell, 1 is everywhere alike. `map_dead_share`: share of maps that are zero everywhere (ELU + 1, the released
            form, never is).
        """
        cosine, pairs, entropy, alive, dead, *strongest = [0.0] * 5 if self.sums is None else self.sums.tolist()
        if alive + dead == 0:
            return {}
        figures = {}
        if len(strongest) > 1:
            faces = sum(strongest)
            figures["map_cosine"] = cosine / pairs if pairs else 0.0
            figures["map_strongest_share"] = max(strongest) / faces if faces else 0.0
        figures["map_entropy"] = entropy / alive if alive else 0.0
        figures["map_dead_share"] = dead / (dead + alive)
        return figures


def center_distance(centers: Tensor) -> float:
    """Mean Euclidean distance between two of the centres (M, N); 0 for one."""
    distances = torch.pdist(centers.detach().double().cpu())
    return float(distances.mean()) if len(distances) else 0.0


def collapse_warning(figures: dict[str, float], experiment: Experiment, phase: Phase) -> str | None:
    """The reason why maps with these figures count as collapsed, and settings that may help; None for sound ones.

    Names no setting that the experiment has already, nor one of a loss that it does not use.
    """
    if figures.get("map_dead_share", 0.0) > DEAD_SHARE:
        return (
            f"{figures['map_dead_share']:.0%} of the attention maps are zero everywhere (more than {DEAD_SHARE:.0%}). "
            f"Try {gentler_steps(experiment, phase)}."
        )
    if figures.get("map_cosine", 0.0) > COLLAPSED_COSINE:
        return (
            f"the attention maps are nearly the same map: mean cosine {figures['map_cosine']:.3f} (more than "
            f"{COLLAPSED_COSINE}). {_stronger_loss(experiment.loss)}."
        )
    if figures.get("map_strongest_share", 0.0) > COLLAPSED_SHARE:
        return (
            f"one attention map is the strongest on {figures['map_strongest_share']:.0%} of the faces (more than "
            f"{COLLAPSED_SHARE:.0%})."
        )
    return None


def gentler_steps(experiment: Experiment, phase: Phase) -> str:
    """Settings of a phase's optimiser that make smaller steps, but for those that it has already, in words."""
    options = ["a lower {}lr"]
    if phase.optim.warmup_epochs < 1 and phase.optim.schedule != "one-cycle":
        options.append("{}warmup-epochs 1")
    if phase.optim.clip_grad_norm is None or phase.optim.clip_grad_norm > 5:
        options.append("{}clip-grad-norm 5")
    # `--optim` is the optimiser of an experiment without phases.
    start, where = ("", f"in phase {phase.name!r}") if experiment.phases else ("--optim.", "in `multiattn train`")
    return f"{' or '.join(options).format(*[start] * len(options))} {where}"


def _stronger_loss(loss: LossConfig) -> str:
    if loss.auxiliary in ("align-uniform", "none"):
        return "No loss keeps them apart: try --loss.auxiliary ril in `multiattn train`"
    if loss.auxiliary_weight == 0:
        return "No loss keeps them apart: try --loss.auxiliary-weight 1 in `multiattn train`"
    margin = " or --loss.inter-margin" if loss.auxiliary == "ril" else ""
    return f"Try a larger --loss.auxiliary-weight{margin} in `multiattn train`"
