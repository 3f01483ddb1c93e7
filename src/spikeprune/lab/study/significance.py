"""The few statistics that a comparison of runs needs: means with t intervals, paired tests, Holm's correction.

Plain functions of lists of numbers. A result that cannot be told from the given numbers is None, never nan.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from spikeprune.core.errors import InvalidValue, MissingDependency

LEVEL = 0.95
MARGIN = 0.003  # of accuracy: differences within 0.3 points count as none; fixed before any run was compared
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
    def within_p(self) -> float | None:
        """The p value of two one-sided tests that the mean difference is less than `MARGIN` away from 0."""
        return equivalence(self.difference, MARGIN)

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
    """Differences mine - reference over the keys (seeds) that both have; None if there is no such key.

    They are rounded to 12 decimals of the values' size: two differences of one test image are equal, although the
    accuracies that they come from are not exact in binary.
    """
    both = sorted(set(mine) & set(reference))
    size = max((abs(value) for key in both for value in (mine[key], reference[key])), default=0.0)
    places = 12 - (math.frexp(size)[1] * 3 // 10 if size else 0)
    differences = [round(mine[key] - reference[key], places) for key in both]
    if not differences:
        return None
    return Paired(summarize(differences), t_test(differences), wilcoxon(differences))


def t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of t = mean / (sd / sqrt(n)) with n - 1 degrees of freedom.

    None for a single difference, and where all are alike, 0 included: without spread t is no number.
    """
    summary = summarize(differences)
    if summary.sd is None:
        return None
    # Differences that are alike up to rounding have a spread of rounding errors, which is no spread.
    if summary.sd <= 1e-12 * max(abs(value) for value in differences) or summary.sd == 0:
        return None
    t = summary.mean / (summary.sd / math.sqrt(summary.n))
    return 2 * float(_students_t()[0](summary.n - 1, -abs(t)))  # the lower tail keeps its digits where p is tiny


def equivalence(summary: Summary, margin: float) -> float | None:
    """p of two one-sided t-tests (TOST) that the mean lies within +-margin; below 0.05 it counts as no difference.

        p = max(P(T >= (margin + mean) / se), P(T >= (margin - mean) / se)),   se = sd / sqrt(n), n - 1 degrees

    None for one value, and for values without spread.
    Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15(6).
    """
    if summary.sd is None or summary.sd <= 1e-12 * max(abs(summary.mean), 1e-300):
        return None
    se = summary.sd / math.sqrt(summary.n)
    below = _students_t()[0]
    return max(float(below(summary.n - 1, -(margin + side * summary.mean) / se)) for side in (1, -1))


def seeds_for_equivalence(sd: float, margin: float = MARGIN, power: float = 0.8) -> int:
    """The number of pairs at which `equivalence` shows, at the 5 % level, that two equal arms do not differ.

        power = 2 P(T < margin / se - t(0.95, n - 1)) - 1,   se = sd / sqrt(n)

    Args:
        sd: standard deviation of the paired differences.
    Raises: InvalidValue for a power outside (0, 1), or sd or margin of 0 or less.
    """
    _check_power(sd, margin, power)
    below, quantile = _students_t()

    def reached(n: int) -> float:
        beyond = margin * math.sqrt(n) / sd - float(quantile(n - 1, 0.95))
        return 2 * float(below(n - 1, beyond)) - 1

    return _first(reached, power)


def seeds_for_difference(sd: float, difference: float, power: float = 0.8) -> int:
    """The number of pairs that a two-sided paired t-test at the 5 % level needs to see a difference.

        power = P(T > t(0.975, n - 1) - difference / se)     the tail on the other side is left out

    Args:
        sd: standard deviation of the paired differences.
    Raises: InvalidValue for a power outside (0, 1), or sd or difference of 0 or less.
    """
    _check_power(sd, difference, power)
    below, quantile = _students_t()

    def reached(n: int) -> float:
        return float(below(n - 1, difference * math.sqrt(n) / sd - float(quantile(n - 1, 0.5 + LEVEL / 2))))

    return _first(reached, power)


def _first(reached: Callable[[int], float], power: float) -> int:
    return next((n for n in range(2, 10_000) if reached(n) >= power), 10_000)


def _check_power(sd: float, effect: float, power: float) -> None:
    if not (sd > 0 and effect > 0 and 0 < power < 1):
        raise InvalidValue(
            f"a power calculation takes a spread and a difference above 0 and a power in (0, 1); got {sd}, {effect}, "
            f"{power}"
        )


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Two-sided p of the signed-rank test, exact: over all 2^n signs of the ranks of |difference|.

    Counted here, since scipy's exact test takes no ties.

    Zeros are dropped, ties (alike to one part in 10^9) share the mean of their ranks; the p-value is
    min(1, 2 min(P(W <= w), P(W >= w))). None if fewer than six differences are left.
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
        while last + 1 < len(ordered) and math.isclose(ordered[last + 1], ordered[first], rel_tol=1e-9):
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
