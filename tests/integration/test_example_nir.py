"""The examples of snnTorch and Norse: 95 % of the weights gone, digits read, and the file's spikes are the model's."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("nir")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["snntorch", "norse"])
def test_pruned_squeezed_resumed_exported_and_read_back(name, tmp_path, capsys):
    pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location(f"{name}_to_nir", EXAMPLES / f"{name}_to_nir.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    accuracy, sparsity, differ, fired = module.main(tmp_path)
    assert abs(sparsity - 0.95) < 2e-4
    assert fired > 500
    assert differ <= fired * 1e-3  # a potential within rounding of its threshold
    assert accuracy > 0.6  # chance is 0.1
