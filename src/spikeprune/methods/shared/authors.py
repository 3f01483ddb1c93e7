"""The rule of a mask update in the authors' code of arXiv:2311.16141, ties and counts included.

Criticality follows it with `rule="authors"`: masks then equal theirs, where ours meet the target exactly.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from spikeprune.core.evidence import Scores
from spikeprune.core.mask import Outcome, count


def authors_update(
    weights: Mapping[str, Tensor], regrow_scores: Scores, keep: int, share: float
) -> Outcome:  # fmt: skip
    """The weight rule of the code of arXiv:2311.16141, with its ties: it keeps slightly more or less than `keep`.

        t0 = keep-th largest |w|;                 reference = |w| > t0        (final in layers that do not regrow)
        K1 = keep - (weights of `reference` in these layers);  G = int(share * K1)
        t1 = (K1 - G)-th largest |w| of all other layers;      survivors = |w| > t1
        regrown = score >= the G-th largest of score * (dead)

    Source: read in the public code of arXiv:2311.16141 (commit ee3170e, core.py).
    """
    absolute = {n: w.abs() for n, w in weights.items()}

    def above(names: list[str], k: int) -> dict[str, Tensor]:
        cut = torch.cat([absolute[n].reshape(-1) for n in names]).sort(descending=True).values[k - 1]
        return {n: absolute[n] > cut for n in names}

    reference = above(list(weights), keep)
    names = list(regrow_scores)
    base = keep - count({n: m for n, m in reference.items() if n not in regrow_scores})
    grown = int(share * base)
    survivors = {**reference, **(above(names, base - grown) if grown else {})}
    regrown = {n: torch.zeros_like(m) for n, m in reference.items()}
    if grown:
        dead = {n: regrow_scores[n] * ~survivors[n] for n in names}
        cut = torch.cat([d.reshape(-1) for d in dead.values()]).sort(descending=True).values[grown - 1]
        # Their mask grows by (score >= cut) wherever it was 0; a cut of 0 or less would also count kept weights twice.
        regrown.update({n: (dead[n] >= cut) & ~survivors[n] for n in names})
    return Outcome({n: survivors[n] | regrown[n] for n in weights}, survivors, regrown, reference)


def authors_channels(
    scales: Mapping[str, Tensor], regrow_scores: Mapping[str, Tensor], percent: float, growth: float
) -> Outcome:
    """The channel rule of the code of arXiv:2311.16141, with its ties and its off-by-one count.

        i = int(N * percent);  G = int((N - i) * growth);  t = sorted |gamma|[i + G]
        survivors = |gamma| > t;  regrown = the G highest scores among the others, and all that tie with the last

    N is the number of channels. The rule keeps N - i - 1 of them unless scores tie, and it may remove all channels of a
    layer.

    Args:
        scales: group name -> |gamma|, [C].
        regrow_scores: group name -> criticality, [C].
        percent: share of the channels to cut.
        growth: share of the channels kept to bring back; 0.05 in the paper's commands.
    Source: read in the public code of arXiv:2311.16141 (commit ee3170e, channel pruning).
    """
    ordered = torch.cat([score.reshape(-1) for score in scales.values()]).sort().values
    index = int(len(ordered) * percent)
    grown = int((len(ordered) - index) * growth)
    reference = {name: scale > ordered[index] for name, scale in scales.items()}
    survivors = {name: scale > ordered[index + grown] for name, scale in scales.items()}
    regrown = {name: torch.zeros_like(mask) for name, mask in survivors.items()}
    if grown:
        dead = {name: regrow_scores[name].masked_fill(mask, -torch.inf) for name, mask in survivors.items()}
        cut = torch.cat(list(dead.values())).sort(descending=True).values[grown - 1]
        regrown = {name: (score >= cut) & ~survivors[name] for name, score in dead.items()}
    return Outcome({n: survivors[n] | regrown[n] for n in survivors}, survivors, regrown, reference)
