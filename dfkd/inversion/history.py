"""Statistics of the batches that were dreamed before: what a small batch lacks, they may make up for."""

from __future__ import annotations

import torch

from dfkd.dreams.bank import DreamBank
from dfkd.inversion.objective import InversionObjective
from dfkd.inversion.statistics import Statistics, averaged, pooled

AT_ONCE = 64  # images through the teacher


class EarlierStatistics:
    """What the teacher's layers saw in the batches of a bank, each taken once.

    It is taken from the images as they lie in the bank, so that a bank that is continued ends as one that was not
    interrupted.

    Args:
        bank: where the batches are.
        most: how many of the last batches count.
    """

    def __init__(self, bank: DreamBank, most: int) -> None:
        self.bank, self.most = bank, most
        self.known: dict[int, dict[str, Statistics]] = {}

    def before(self, number: int, first: int, objective: InversionObjective) -> list[dict[str, Statistics]]:
        """Of each of the last batches before `number`, of those from `first` on, the statistics by layer."""
        wanted = range(max(first, number - self.most), number)
        self.known = {earlier: self.known.get(earlier) or self._taken(earlier, objective) for earlier in wanted}
        return list(self.known.values())

    @torch.no_grad()
    def _taken(self, number: int, objective: InversionObjective) -> dict[str, Statistics]:
        device = next(objective.teacher.parameters()).device
        images = self.bank.read(number)[0].images
        parts = []
        for part in images.split(AT_ONCE):
            with objective.recorded() as records:
                objective.teacher(part.to(device).float())
                parts.append({name: averaged(uses) for name, uses in records.items() if uses})
        shares = [len(part) / len(images) for part in images.split(AT_ONCE)]
        return {name: pooled([part[name] for part in parts], shares) for name in parts[0]}
