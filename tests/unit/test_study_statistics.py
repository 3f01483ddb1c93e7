"""The laboratory's statistics against scipy and against cases worked by hand; the paper's factors of cost."""

import math
import random
import sys

import pytest
from scipy import stats

from spikeprune.core.errors import InvalidValue, MissingDependency
from spikeprune.lab.study import claims
from spikeprune.lab.study.significance import (
    MARGIN,
    equivalence,
    holm,
    paired,
    seeds_for_difference,
    seeds_for_equivalence,
    summarize,
    t_test,
    wilcoxon,
)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_an_interval_is_scipys(n):
    draw = random.Random(n)
    values = [draw.gauss(0.9, 0.02) for _ in range(n)]
    low, high = stats.t.interval(0.95, n - 1, loc=sum(values) / n, scale=stats.sem(values))
    assert 2 * summarize(values).half == pytest.approx(high - low, rel=1e-9)


def test_a_tiny_p_keeps_its_digits():
    differences = [1.0, 1.0001, 0.9999, 1.0002]
    assert t_test(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-9)
    assert 0 < t_test(differences) < 1e-10


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    assert summarize([0.5]).mean == 0.5
    with pytest.raises(MissingDependency, match=r"spikeprune\[lab\]"):
        summarize([0.5, 0.6])


def test_an_interval_worked_by_hand():
    # 1, 2, 3: mean 2, sd = sqrt((1 + 0 + 1) / 2) = 1, half = 4.302653 * 1 / sqrt(3)
    summary = summarize([1.0, 2.0, 3.0])
    assert (summary.n, summary.mean, summary.sd) == (3, 2.0, 1.0)
    assert summary.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    alone = summarize([0.7])
    assert (alone.mean, alone.sd, alone.half) == (0.7, None, None)
    with pytest.raises(InvalidValue, match="at least 1 value"):
        summarize([])


def test_the_paired_t_test_is_scipys():
    draw = random.Random(0)
    for n in (2, 3, 5, 8, 20):
        mine = [draw.gauss(0.2, 1) for _ in range(n)]
        other = [draw.gauss(0, 1) for _ in range(n)]
        expected = stats.ttest_rel(mine, other).pvalue
        assert t_test([a - b for a, b in zip(mine, other, strict=True)]) == pytest.approx(expected, rel=1e-8)


def test_differences_without_spread_have_no_t_test():
    assert t_test([0.0, 0.0, 0.0]) is None
    assert t_test([0.1 + 0.2 - 0.3 + 0.5, 0.5, 0.5]) is None
    assert t_test([0.5]) is None


def test_the_signed_rank_test_is_scipys_without_ties():
    draw = random.Random(1)
    for n in (6, 7, 10, 15):
        values = [draw.gauss(0.3, 1) for _ in range(n)]
        assert wilcoxon(values) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue, rel=1e-12)


def test_the_signed_rank_test_counts_signs_by_hand():
    # Six ranks, all positive: one of 2^6 sign patterns is as large, so p = 2 / 64.
    assert wilcoxon([1, 2, 3, 4, 5, 6]) == 2 / 64
    # |d| all tied: each rank 3.5. W+ = 5 * 3.5; patterns with at least five positives: 6 + 1 of 64.
    assert wilcoxon([1, 1, 1, 1, 1, -1]) == 2 * 7 / 64
    assert wilcoxon([1, -2, 3, -4, 5, -5.5]) <= 1
    assert wilcoxon([1, 2, 3, 4, 5]) is None
    assert wilcoxon([0, 1, 2, 3, 4, 5]) is None  # a zero is no evidence, which leaves five


def test_holm_worked_by_hand():
    # Sorted .01 .02 .04 -> 3 * .01 = .03, 2 * .02 = .04, max(.04, 1 * .04) = .04
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    # The step-down maximum: .01 -> .02, then 1 * .015 stays at .02.
    assert holm([0.015, 0.01]) == pytest.approx([0.02, 0.02])
    assert holm([None, 0.6, 0.9]) == [None, 1.0, 1.0]
    assert holm([]) == []


def test_pairs_are_those_of_common_seeds():
    result = paired({0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.7, 2: 0.65, 5: 0.1})
    assert result is not None
    assert result.difference.n == 2
    assert result.difference.mean == pytest.approx(0.075)
    assert result.wilcoxon_p is None
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_the_papers_factors_with_their_numerators_and_denominators():
    rows = {(f.target, f.numerator, f.denominator): f for f in claims.factors()}
    # F(k) = 300 + 280 (k - 1), T(k) = 300 + 280 k; k = 8 for 90 %, 11 for 95 %.
    assert rows[0.90, 2260, 200].value == pytest.approx(11.3)
    assert rows[0.95, 3100, 200].value == pytest.approx(15.5)
    assert round(rows[0.90, 2540, 500].value, 1) == 5.1
    assert round(rows[0.95, 3380, 500].value, 1) == 6.8
    assert [claims.imp_prunings(s) for s in (0.9, 0.95, 0.98)] == [8, 11, 14]
    assert claims.imp_sparsity(8) == pytest.approx(0.8999, abs=1e-4)
    text = "\n".join(claims.explanation())
    assert "11.3 = 2260/200: search epochs of IMP with 8 prunings, over search epochs of the criticality paper" in text
    assert "95.26% = 1 - 200/4220" in text


def test_equivalence_is_two_one_sided_t_tests():
    draw = random.Random(2)
    for n in (3, 5, 10):
        values = [draw.gauss(0.0005, 0.002) for _ in range(n)]
        below = stats.ttest_1samp(values, -0.003, alternative="greater").pvalue
        above = stats.ttest_1samp(values, 0.003, alternative="less").pvalue
        assert equivalence(summarize(values), 0.003) == pytest.approx(max(below, above), rel=1e-9)
    assert equivalence(summarize([0.1]), 0.003) is None
    assert equivalence(summarize([0.001, 0.001]), 0.003) is None
    # Far apart is not equivalent, however small the spread.
    assert equivalence(summarize([0.0099, 0.0101]), 0.003) > 0.9
    mine, other = {1: 0.8, 2: 0.81, 3: 0.79}, {1: 0.8, 2: 0.8105, 3: 0.7895}
    pair = paired(mine, other)
    assert pair.within_p == equivalence(pair.difference, MARGIN)


def test_how_many_seeds_a_comparison_needs():
    # The counts by simulation, 20,000 draws each, of both tests; noise between seeds of 0.3 points, margin 0.3.
    assert seeds_for_equivalence(0.003, 0.003) == 11
    assert seeds_for_equivalence(0.0015, 0.003) < 6 < seeds_for_equivalence(0.005, 0.003)
    draw = random.Random(3)

    def shown(n: int, mean: float, tested) -> float:
        return sum(tested([draw.gauss(mean, 0.003) for _ in range(n)]) for _ in range(1500)) / 1500

    n = seeds_for_equivalence(0.003)
    assert shown(n, 0.0, lambda values: equivalence(summarize(values), MARGIN) < 0.05) == pytest.approx(0.8, abs=0.06)
    m = seeds_for_difference(0.003, 0.004)
    assert shown(m, 0.004, lambda values: t_test(values) < 0.05) == pytest.approx(0.8, abs=0.06)
    with pytest.raises(InvalidValue, match="a power calculation takes a spread"):
        seeds_for_difference(0.0, 0.01)


def test_ties_and_tests_do_not_depend_on_rounding():
    # One test image of 10,000 each: accuracies are not exact in binary, their differences must tie all the same.
    mine = {seed: (8000 + 3 * seed + 1) / 10_000 for seed in range(8)}
    other = {seed: (8000 + 3 * seed) / 10_000 for seed in range(8)}
    raw = [mine[seed] - other[seed] for seed in range(8)]
    assert len(set(raw)) > 1  # so the case is really there
    pair = paired(mine, other)
    assert pair.alike
    assert pair.t_p is None  # and not 0.0, as a spread of rounding errors would give
    assert pair.wilcoxon_p == 2 / 2**8
    flipped = [value if seed else -value for seed, value in enumerate(raw)]
    assert wilcoxon(flipped) == 2 * 9 / 2**8  # |d| all tied: patterns with at least seven positives
