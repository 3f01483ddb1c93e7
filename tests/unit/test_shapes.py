"""The import hook of tests/conftest.py reaches every module whose signatures name shapes."""

import pytest
import torch

from spikeprune.data import augment
from spikeprune.zoo import readout


@pytest.mark.parametrize("module", [augment, readout])
def test_modules_outside_of_core_are_checked(module):
    checked = [f for f in vars(module).values() if getattr(f, "__module__", "") == module.__name__]
    assert checked
    assert type(module.__loader__).__name__ == "_JaxtypingLoader"


def test_a_wrong_shape_is_seen_when_a_function_is_called():
    from spikeprune.lab.study.avalanches import branching

    with pytest.raises(Exception, match="Type-check error"):
        branching(torch.zeros(2, 3, 4, 5, 6))
