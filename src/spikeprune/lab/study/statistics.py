"""The few statistics that a comparison of runs needs: means with t intervals, paired tests, Holm's correction.

Plain functions of lists of numbers. What cannot be told from the numbers given is None, never nan.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from spikeprune.core.errors import InvalidValue

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
    return Summary(n, mean, sd, t_quantile(0.5 + LEVEL / 2, n - 1) * sd / math.sqrt(n))


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
    return 2 * (1 - t_cdf(abs(t), summary.n - 1))


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Two-sided p of the signed-rank test, exact: over all 2^n signs of the ranks of |difference|.

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


def t_cdf(t: float, df: int) -> float:
    """P(T <= t) of Student's t with `df` degrees of freedom."""
    if t * t < df:  # near the centre the tail is a difference of nearly equal numbers
        return 0.5 + math.copysign(0.5 * incomplete_beta(0.5, df / 2, t * t / (df + t * t)), t)
    tail = 0.5 * incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return 1 - tail if t >= 0 else tail


def t_quantile(p: float, df: int) -> float:
    """The t with P(T <= t) = p, by bisection.

    Raises: InvalidValue for p outside (0, 1) or df below 1.
    """
    if not 0 < p < 1 or df < 1:
        raise InvalidValue(f"the t quantile needs 0 < p < 1 and df >= 1, got p = {p}, df = {df}; 0.975 gives 95 %")
    low, high = -1.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    while t_cdf(low, df) > p:
        low *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction.

    Source: Abramowitz and Stegun 26.5.8, evaluated as Lentz (1976) does.
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # there the fraction of the mirrored function converges faster
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / ((1 + step * d) or tiny)
            c = (1 + step / c) or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction
