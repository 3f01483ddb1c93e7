"""CH3-L3: regrow where the present topology predicts a link. It looks at no weight, gradient or potential."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.select import draw
from spikeprune.methods.base import MagnitudeRegrowth, check_choice
from spikeprune.methods.registry import register


@register("ch3-l3", source="Hua et al. 2025, arXiv:2511.05581 (CH-SNN); Zhang et al. 2025, arXiv:2501.19107 (CHTs)")
@final
@dataclass(frozen=True)
class Ch3L3(MagnitudeRegrowth):
    """Prune by magnitude; regrow within each layer the missing links that most paths of length 3 would close.

        score = |w|,  regrow_score = E(M) M + (E(M^T) M^T)^T
        E(M)[i, j] = 1 / max(deg(j) - common(i, j), 1) where rows i and j share a neighbour, else 0

    M is the mask that the cut of this mask update leaves, a row an output and a column an input, so that
    common = M M^T and deg are its row sums. A path from i over a shared neighbour and j counts less, the more links
    of j lead elsewhere. A convolution is one link per kernel entry: a row an output channel.

    Args:
        regrow, candidates, momentum, grace, start_value: as for `criticality`.
        pick: "top", the highest scores, or "sample", a draw in proportion to them (the authors' "soft" variant).
    Source: Hua et al. 2025, arXiv:2511.05581, the growth of its fourth stage; the node form L3n of the public code of
        CHTs (commit d1677b5), whose scores these equal (tests/authors/ch3_l3.py). Not taken over: their initial
        topology and weights, their removal score, the removal of links that lead nowhere, and the path form L3p.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Ch3L3(regrow=0.2), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    pick: str = "top"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "survivors"})
    within_layers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pick", self.pick, ("top", "sample"))

    def regrow_score(self, evidence: Evidence) -> Scores:
        masks = evidence.survivors or evidence.masks
        scores = {name: predicted(mask) for name, mask in masks.items()}
        return draw(scores, evidence.generator) if self.pick == "sample" else scores


def predicted(mask: Tensor) -> Tensor:
    """The CH3-L3 score of each entry of a layer's mask, in the mask's shape."""
    links = mask.flatten(1).to(torch.get_default_dtype())
    return (_over(links) @ links + (_over(links.T) @ links.T).T).reshape(mask.shape)


def _over(links: Tensor) -> Tensor:
    """Weight of row j in the score of row i, [rows, rows]: 1 / max(deg(j) - common(i, j), 1), or 0 if common is 0.

    deg(j) is the number of links of row j; common(i, j) is the number of columns that both rows have links to.
    """
    common = links @ links.T
    return (common > 0) / (links.sum(1) - common).clamp_min(1)
