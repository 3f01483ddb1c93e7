"""The scripts for snnTorch and Norse: 95 % of the weights are gone, and the file fires as the model does."""

import importlib.util
import warnings
from pathlib import Path

import pytest

pytest.importorskip("nir")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["snntorch", "norse"])
def test_pruned_continued_squeezed_exported_and_read_back(name, tmp_path):
    pytest.importorskip(name)
    path = EXAMPLES / f"{name}_to_nir.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nirtorch.load", DeprecationWarning)  # Norse's own reader calls it
        accuracy, zeros, differ, fired = module.main(tmp_path, steps=100)
    assert zeros == 9472 - int(9472 * 0.05)
    assert fired > 300
    assert differ <= fired * 1e-3  # a potential within rounding of its threshold
    assert accuracy > 0.4  # chance is 0.1
