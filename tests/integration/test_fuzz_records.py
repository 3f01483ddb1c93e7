"""The short form of fuzz_records.py: a few hundred changed files of each kind, and numbers that cannot be."""

import json
import math

import pytest
from fuzz_records import FINISHED, cases, kinds

from spikeprune.core.errors import UserError


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_changed_files_are_read_or_refused_in_one_line(kind, tmp_path):
    found = cases(kind, 0, 60, tmp_path)
    assert set(found) <= {"refused", "accepted"}, found
    assert found["refused"] > 0


IMPOSSIBLE = [-1, 1.5, math.inf, -math.inf, math.nan, 10**400, "3", None, True, [1]]


@pytest.mark.parametrize("value", IMPOSSIBLE, ids=repr)
@pytest.mark.parametrize("key", ["alive", "parameters"])
def test_impossible_counts_in_a_record_are_refused(key, value, tmp_path):
    good, read = kinds()["record"]
    changed = json.loads(json.dumps(good))
    changed["pruned"][key] = value
    with pytest.raises(UserError) as caught:
        read(changed, tmp_path)
    assert 20 <= len(str(caught.value)) <= 400


@pytest.mark.parametrize("value", [-0.1, 1.1, math.inf, math.nan, 10**400, "x"], ids=repr)
@pytest.mark.parametrize("key", ["sparsity", "density"])
def test_impossible_shares_in_a_record_are_refused(key, value, tmp_path):
    good, read = kinds()["record"]
    with pytest.raises(UserError):
        read({**good, key: value}, tmp_path)


def test_the_good_files_are_accepted(tmp_path):
    assert FINISHED.is_dir()
    for tree, read in kinds().values():
        read(tree, tmp_path)
