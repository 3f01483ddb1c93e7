"""Import paths of version 0.1 still work, and say where the module is now."""

import importlib
import sys
import warnings

import pytest

from spikeprune._moved import MOVED, new_path


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_path_gives_the_very_module_and_warns_of_the_new_path(old):
    new = new_path(f"spikeprune.{old}")
    assert new is not None
    for name in {old, old.partition(".")[0]} & set(MOVED):  # never a room that is there
        sys.modules.pop(f"spikeprune.{name}", None)
    with warnings.catch_warnings(record=True) as caught:  # importing the folder around it warns as well
        warnings.simplefilter("always")
        module = importlib.import_module(f"spikeprune.{old}")
    assert any(w.category is DeprecationWarning and f"moved to {new};" in str(w.message) for w in caught)
    assert module is importlib.import_module(new)
    assert module.__spec__.name == new


def test_a_submodule_of_a_moved_folder_is_found_too():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from spikeprune.train.data.augment import Augment
    from spikeprune.data.augment import Augment as now

    assert Augment is now


def test_a_name_that_never_existed_is_still_no_module():
    with pytest.raises(ModuleNotFoundError, match=r"spikeprune\.nowhere"):
        importlib.import_module("spikeprune.nowhere")
    assert new_path("other.pruner") is None


def test_an_adapter_of_version_0_1_still_tells_its_potentials():
    from spikeprune.integrations.norse import Norse
    from spikeprune.model.adapter import Adapter

    methods = {name: getattr(Norse, name) for name in Adapter.__abstractmethods__ if name != "potentials"}
    with pytest.warns(DeprecationWarning, match="drive is now called potentials"):
        old = type("Old", (Adapter,), {**methods, "name": "old", "drive": lambda self, neuron, args: iter(args)})
    assert list(old().potentials(None, (1, 2))) == [1, 2]
