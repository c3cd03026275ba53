"""Loss terms of an epoch, kept on the device: their means, and the step at which one of them stopped being a number."""

import torch
from torch import Tensor

from multiattn.training.distributed import Ranks, gather_rows

NEVER = 2**53
"""A step no epoch reaches, exact as float64."""


class LossMeter:
    """Sums of the terms over the steps of an epoch. Adding never waits for the device; looking does.

    Attributes:
        names: the terms, in order; empty before the first step.
        count: steps added, the ones of a run that was continued included.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self.names: tuple[str, ...] = ()
        self.count = 0
        self._sums = self._first_bad = torch.zeros(0, dtype=torch.float64, device=self.device)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take in the scalars of one step; every step of an epoch has the same terms."""
        if not self.names:
            self.names = tuple(terms)
            self._sums = torch.zeros(len(terms), dtype=torch.float64, device=self.device)
            self._first_bad = torch.full_like(self._sums, NEVER)
        values = torch.stack([terms[name].double() for name in self.names])
        self._sums += values
        finite = torch.isfinite(values)
        self._first_bad = torch.where(finite, self._first_bad, self._first_bad.clamp(max=self.count))
        self.count += 1

    def look(self, ranks: Ranks) -> tuple[dict[str, float], dict[str, int]]:
        """Mean of each term over steps and ranks, and the first step (from 0) at which a term was not finite.

        Every rank gets the same answer, so when one diverges all stop and none waits for the others.
        """
        rows = gather_rows(torch.cat([self._sums, self._first_bad]).cpu(), ranks)
        sums, first_bad = rows[:, : len(self.names)], rows[:, len(self.names) :]
        means = (sums.mean(dim=0) / max(self.count, 1)).tolist()
        bad = {name: int(step) for name, step in zip(self.names, first_bad.amin(dim=0), strict=True) if step < NEVER}
        return dict(zip(self.names, means, strict=True)), bad

    def state(self, ranks: Ranks) -> dict[str, object]:
        """What a continued epoch needs: every rank's sums."""
        return {"names": list(self.names), "count": self.count, "sums": gather_rows(self._sums.cpu(), ranks)}

    def restore(self, state: dict, ranks: Ranks) -> None:
        """Go on from `state`; from the mean of its ranks where their number has changed."""
        self.names, self.count = tuple(state["names"]), state["count"]
        sums = state["sums"]
        own = sums[ranks.rank] if len(sums) == ranks.world_size else sums.mean(dim=0)
        self._sums = own.to(self.device, copy=True)
        self._first_bad = torch.full_like(self._sums, NEVER)
