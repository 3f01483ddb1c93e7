"""The history of mask updates: the rounds of the record, and which weights came back and are still alive."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from spikeprune.core.mask import Outcome, count, overlap
from spikeprune.core.schedule import MaskUpdate
from spikeprune.record.round import LayerRound, Round

_log = logging.getLogger("spikeprune")


@final
class History:
    """The history of mask updates.

    Attributes:
        rounds: one entry a mask update.
        regrown: name -> units that the last mask update brought back; None before the first.
        ever_regrown: name -> units that some mask update brought back and no later one cut.
    """

    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self.regrown: dict[str, Tensor] | None = None
        self.ever_regrown: dict[str, Tensor] = {}
        self._warned = False

    def add(
        self, update: MaskUpdate, before: Mapping[str, Tensor], outcome: Outcome, *, cut: bool, asked: int | None = None
    ) -> None:
        """Adds the entry of a mask update.

        How many of the last one's regrown units survived is known only now. At a constant sparsity nothing is cut to
        the target: there the cut that makes room for growth judges them.

        Args:
            before: the masks before it.
            cut: whether the masks were computed anew.
            asked: how many were to be kept, if the rule may miss that number.
        """
        newly_cut = {n: m & ~outcome.reference[n] for n, m in before.items()}
        if self.rounds and self.regrown is not None:
            judge = outcome.reference if count(newly_cut) else outcome.survivors
            self.rounds[-1] = dataclasses.replace(self.rounds[-1], survived=overlap(self.regrown, judge))
            self._warn(self.rounds[-1])
        self.rounds.append(
            Round(
                step=update.step,
                target=update.target,
                cut=cut,
                kept=count(outcome.alive),
                regrown=count(outcome.regrown),
                rescued=overlap(newly_cut, outcome.alive),
                survived=None,
                beyond=None if asked is None else count(outcome.alive) - asked,
                layers={
                    n: LayerRound(kept=count({n: m}), regrown=count({n: outcome.regrown[n]}))
                    for n, m in outcome.alive.items()
                },
            )
        )
        stayed = {n: m & outcome.survivors[n] for n, m in self.ever_regrown.items()}
        self.ever_regrown = {n: m | stayed[n] if n in stayed else m for n, m in outcome.regrown.items()}
        self.regrown = outcome.regrown

    def _warn(self, last: Round) -> None:
        if not self._warned and last.survived is not None and last.survived < 0.02 * last.regrown:
            self._warned = True
            _log.warning(
                "spikeprune: %s of %s weights regrown at step %d outlived the next cut, so the score hardly matters; "
                "space mask updates further apart, raise the learning rate, or set grace (grace=True, --grace true): "
                "docs/guide/training.md, 'When regrown weights die'",
                f"{last.survived:,}", f"{last.regrown:,}", last.step,
            )  # fmt: skip

    def alive(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name -> units of `masks` that some mask update brought back and no later one cut."""
        none = {n: torch.zeros_like(m) for n, m in masks.items()}
        return {n: self.ever_regrown.get(n, none[n]) & m for n, m in masks.items()}

    def load(self, rounds: Sequence[Round], regrown: dict[str, Tensor] | None, ever_regrown: dict[str, Tensor]) -> None:
        """Goes on from a saved history."""
        self.rounds, self.regrown, self.ever_regrown = list(rounds), regrown, ever_regrown
