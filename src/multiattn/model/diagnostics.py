"""What the attention maps do, in four numbers: whether they differ, take turns, spread, or have died."""

import math

import torch
from torch import Tensor

COLLAPSED_COSINE = 0.95
"""Mean cosine between two maps of a face above which they are one map. Maps from random weights lie well below: 0.3 to
0.8 after ReLU; identical ones at 1."""
COLLAPSED_SHARE = 0.98
"""Share of faces on which one and the same map is the strongest, above which the others hardly count."""
DEAD_SHARE = 0.5
"""Share of maps that are zero everywhere, above which the network no longer sees through attention."""


class AttentionStatistics:
    """Running figures over batches of attention maps, in float64 on the CPU."""

    def __init__(self) -> None:
        self.faces = 0
        self.cosine = self.entropy = self.dead = 0.0
        self.alive = self.pairs = 0
        self.strongest: Tensor | None = None

    @torch.no_grad()
    def update(self, attention: Tensor) -> None:
        """Take in A (B, M, h, w), non-negative."""
        maps = attention.detach().double().cpu().flatten(2)  # (B, M, h*w)
        num_maps, cells = maps.shape[1:]
        mass = maps.sum(dim=-1)  # (B, M)
        norms = maps.norm(dim=-1)
        living = norms > 0
        units = maps / norms.clamp_min(torch.finfo(torch.float64).tiny)[..., None]
        both = living[:, :, None] & living[:, None]  # (B, M, M)
        upper = torch.triu(torch.ones(num_maps, num_maps, dtype=torch.bool), diagonal=1)
        self.cosine += float((units @ units.transpose(1, 2))[both & upper].sum())
        self.pairs += int((both & upper).sum())
        share = maps / mass.clamp_min(torch.finfo(torch.float64).tiny)[..., None]
        entropy = torch.special.entr(share).sum(dim=-1) / math.log(cells) if cells > 1 else torch.zeros_like(mass)
        self.entropy += float(entropy[living].sum())
        self.alive += int(living.sum())
        self.dead += float((~living).sum())
        counts = torch.bincount(mass.argmax(dim=1)[living.any(dim=1)], minlength=num_maps)
        self.strongest = counts if self.strongest is None else self.strongest + counts
        self.faces += len(maps)

    def compute(self) -> dict[str, float]:
        """The figures so far; empty before the first face.

        Returns:
            `map_cosine`: mean over faces and pairs of living maps of their cosine, in [0, 1]; 0 where there is no
            pair. `map_strongest_share`: the largest share of faces on which one and the same map has the greatest
            sum, in [1 / M, 1]. `map_entropy`: mean entropy of a map over its cells, over log(cells): 0 is one cell,
            1 is everywhere alike. `map_dead_share`: share of maps that are zero everywhere.
        """
        if self.faces == 0:
            return {}
        return {
            "map_cosine": self.cosine / self.pairs if self.pairs else 0.0,
            "map_strongest_share": float(self.strongest.max()) / self.faces,
            "map_entropy": self.entropy / self.alive if self.alive else 0.0,
            "map_dead_share": self.dead / (self.dead + self.alive),
        }


def center_distance(centers: Tensor) -> float:
    """Mean Euclidean distance between two of the centres (M, N); 0 for one."""
    distances = torch.pdist(centers.detach().double().cpu())
    return float(distances.mean()) if len(distances) else 0.0


def collapse_warning(figures: dict[str, float]) -> str | None:
    """Why the maps of these figures have collapsed; None when they have not (or there is only one map, or none)."""
    if not figures:
        return None
    if figures["map_dead_share"] > DEAD_SHARE:
        return (
            f"{figures['map_dead_share']:.0%} of the attention maps are zero everywhere (more than {DEAD_SHARE:.0%}). "
            "Try a lower --optim.lr, --optim.warmup-epochs 1 or --optim.clip-grad-norm 5."
        )
    if figures["map_cosine"] > COLLAPSED_COSINE:
        return (
            f"the attention maps are nearly the same map: mean cosine {figures['map_cosine']:.3f} (more than "
            f"{COLLAPSED_COSINE}). Try a larger --loss.auxiliary-weight or --loss.inter-margin."
        )
    if figures["map_cosine"] > 0 and figures["map_strongest_share"] > COLLAPSED_SHARE:
        return (
            f"one attention map is the strongest on {figures['map_strongest_share']:.0%} of the faces (more than "
            f"{COLLAPSED_SHARE:.0%})."
        )
    return None
