"""The paper's factors of cost, with what was divided by what.

Iterative magnitude pruning (IMP) as in the code of Kim et al. 2022, arXiv:2207.01382: one dense training of 300
epochs, then rounds that each prune 25 % of the alive weights, rewind and train 280 epochs. With k prunings,

    search(k) = 300 + 280 (k - 1)     epochs until the mask is found
    total(k)  = 300 + 280 k           epochs with the training of the ticket
    sparsity(k) = 1 - 0.75^k

The criticality paper (arXiv:2311.16141) prunes for 200 of 500 epochs.
"""

from dataclasses import dataclass
from typing import final

_FIRST, _ROUND, _KEEPS = 300, 280, 0.75
SEARCH, TOTAL = 200, 500


@final
@dataclass(frozen=True)
class Factor:
    """numerator / denominator, and what each of them counts."""

    target: float
    numerator: int
    numerator_name: str
    denominator: int
    denominator_name: str

    @property
    def value(self) -> float:
        return self.numerator / self.denominator

    def __str__(self) -> str:
        return (
            f"{self.value:.1f} = {self.numerator}/{self.denominator}: {self.numerator_name}, over "
            f"{self.denominator_name} ({self.target:.0%} sparsity)"
        )


def imp_sparsity(prunings: int) -> float:
    """The sparsity after a number of rounds, each of which cuts a quarter of the alive weights."""
    return 1 - _KEEPS**prunings


def imp_search_epochs(prunings: int) -> int:
    """Epochs until the mask is known: the dense training and all rounds but the last training."""
    return _FIRST + _ROUND * (prunings - 1)


def imp_total_epochs(prunings: int) -> int:
    """Epochs with the training of the final ticket."""
    return _FIRST + _ROUND * prunings


def imp_prunings(sparsity: float) -> int:
    """The smallest number of pruning rounds that reaches the sparsity, less 0.05 percentage points.

    Eight rounds reach 0.8999, which counts as 0.9.
    """
    return next(k for k in range(1, 100) if imp_sparsity(k) >= sparsity - 0.0005)


def factors() -> list[Factor]:
    """Epochs of IMP over those of the criticality paper at 90, 95 and 98 % sparsity.

    Each sparsity has two factors: search epochs over search epochs, which give the paper's 11.3 and 15.5, and total
    epochs over total epochs.
    """
    rows: list[Factor] = []
    for target in (0.90, 0.95, 0.98):
        k = imp_prunings(target)
        search, total = imp_search_epochs(k), imp_total_epochs(k)
        whose = f"of IMP with {k} prunings"
        rows += [
            Factor(target, search, f"search epochs {whose}", SEARCH, "search epochs of the criticality paper"),
            Factor(target, total, f"total epochs {whose}", TOTAL, "total epochs of the criticality paper"),
        ]
    return rows


def explanation() -> list[str]:
    """The factors, one line each, the mixed 95.26 % of later versions, and the questions that the paper leaves open."""
    last = imp_total_epochs(imp_prunings(0.98))
    return [
        *map(str, factors()),
        f"{1 - SEARCH / last:.2%} = 1 - {SEARCH}/{last}: search epochs of the criticality paper, over total epochs of "
        "IMP at 98% (unlike quantities; like with like see above)",
        "The paper does not state which rival its factors are against: IMP as above gives them exactly, and so does "
        "RCMO-SNN's printed 3100 epochs (15.5 = 3100/200). The unit is epochs of a dense network, neither time nor "
        "energy.",
    ]
