"""The few statistics that a comparison of runs needs: means with t intervals, paired tests, Holm's correction.

Plain functions of lists of numbers. What cannot be told from the numbers given is None, never nan.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from spikeprune.core.errors import InvalidValue, MissingDependency

LEVEL = 0.95
_WILCOXON_FROM = 6  # with five pairs the exact test cannot come below p = 2 / 2**5 = 0.0625


@final
@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and half the width of the 95 % t interval; the last two None for n = 1."""

    n: int
    mean: float
    sd: float | None
    half: float | None


@final
@dataclass(frozen=True)
class Paired:
    """Differences of pairs: their summary, and the p-values of two tests that their mean (centre) is 0.

    Attributes:
        t_p: of the paired t-test, two-sided; None for one pair, or where all differences are alike.
        wilcoxon_p: of the exact signed-rank test, two-sided; None below six pairs.
        holm_p: `t_p` corrected for all tests of the table, set by `correct`.
    """

    difference: Summary
    t_p: float | None
    wilcoxon_p: float | None
    holm_p: float | None = None

    @property
    def alike(self) -> bool:
        """Two differences or more, all the same but for rounding: there is no spread to test against."""
        d = self.difference
        return d.sd is not None and d.sd <= 1e-12 * max(abs(d.mean), 1e-300)


def summarize(values: Sequence[float]) -> Summary:
    """Mean, sd and t interval: mean +- t(0.975, n - 1) * sd / sqrt(n).

    Raises: InvalidValue for no value at all.
    """
    n = len(values)
    if n == 0:
        raise InvalidValue("a mean needs at least 1 value, got none; give finished runs")
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Summary(n, mean, sd, float(_students_t()[1](n - 1, 0.5 + LEVEL / 2)) * sd / math.sqrt(n))


def paired(mine: Mapping[Any, float], reference: Mapping[Any, float]) -> Paired | None:
    """Differences mine - reference over the keys (seeds) that both have; None if there is no such key."""
    differences = [mine[key] - reference[key] for key in sorted(set(mine) & set(reference))]
    if not differences:
        return None
    return Paired(summarize(differences), t_test(differences), wilcoxon(differences))


def t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of t = mean / (sd / sqrt(n)) with n - 1 degrees of freedom.

    None for a single difference. All alike: 1 if they are 0, else None, since no spread means no test.
    """
    summary = summarize(differences)
    if summary.sd is None:
        return None
    # Differences that are alike up to rounding have a spread of rounding errors, which is no spread.
    if summary.sd <= 1e-12 * max(abs(value) for value in differences) or summary.sd == 0:
        return 1.0 if not any(differences) else None
    t = summary.mean / (summary.sd / math.sqrt(summary.n))
    return 2 * float(_students_t()[0](summary.n - 1, -abs(t)))  # the lower tail keeps its digits where p is tiny


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Two-sided p of the signed-rank test, exact: over all 2^n signs of the ranks of |difference|.

    Counted here, since scipy's exact test takes no ties.

    Zeros are dropped, ties share the mean of their ranks; the p-value is min(1, 2 min(P(W <= w), P(W >= w))).
    None if fewer than six differences are left.
    Source: Wilcoxon 1945, Biometrics Bulletin 1(6); the exact distribution by counting, which ties leave valid.
    """
    left = sorted((value for value in differences if value != 0), key=abs)
    if len(left) < _WILCOXON_FROM:
        return None
    doubled = _doubled_ranks([abs(value) for value in left])
    positive = sum(rank for rank, value in zip(doubled, left, strict=True) if value > 0)
    ways = [1] + [0] * sum(doubled)
    for rank in doubled:
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    tail = min(sum(ways[: positive + 1]), sum(ways[positive:]))
    return min(1.0, 2 * tail / 2 ** len(left))


def _doubled_ranks(ordered: Sequence[float]) -> list[int]:
    """Twice the rank of each of the ascending values, so that the mean rank of ties is a whole number."""
    ranks: list[int] = []
    while len(ranks) < len(ordered):
        first = len(ranks)
        last = first
        while last + 1 < len(ordered) and ordered[last + 1] == ordered[first]:
            last += 1
        ranks += [first + last + 2] * (last - first + 1)
    return ranks


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the i-th smallest of m becomes max over j <= i of (m - j + 1) p_j, at most 1.

    Entries that are None stay so and do not count as tests.
    Source: Holm 1979, Scandinavian Journal of Statistics 6(2).
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for done, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - done) * p))
        corrected[i] = largest
    return corrected


def _students_t() -> tuple[Callable[[float, float], float], Callable[[float, float], float]]:
    """Student's t by scipy: (df, t) -> P(T <= t), and (df, p) -> the t with P(T <= t) = p.

    Raises: MissingDependency without scipy, which only the laboratory needs.
    """
    try:
        from scipy.special import stdtr, stdtrit
    except ImportError as error:
        raise MissingDependency(
            "intervals and tests over seeds need scipy; try: pip install 'spikeprune[lab]'"
        ) from error
    return stdtr, stdtrit
