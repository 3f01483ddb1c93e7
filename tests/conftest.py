"""For every test: one thread, one seed, and the shapes in all signatures of the package checked while it runs.

Hypothesis draws the same examples every time, so that a suite that passed passes again; `--hypothesis-profile=default`
draws new ones.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook


def _with_shapes() -> list[str]:
    """The modules whose signatures name shapes, and all of core; the others have nothing that could be checked."""
    spec = find_spec("spikeprune")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    files = [path for path in root.rglob("*.py") if "from jaxtyping import" in path.read_text(encoding="utf-8")]
    modules = [".".join(path.relative_to(root.parent).with_suffix("").parts) for path in files]
    return ["spikeprune.core", *sorted(name for name in modules if not name.startswith("spikeprune.core."))]


# int for float is fine in Python's eyes and in ours.
install_import_hook(_with_shapes(), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _few_images_counted() -> None:
    """A run counts operations on 64 test images in place of 1,000, which took half of its time."""
    from spikeprune.lab.train import measure

    measure._COUNTED = 64
