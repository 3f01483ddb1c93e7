"""For every test: one thread, one seed, and the shapes in core's signatures checked while it runs."""

import pytest
import torch
from jaxtyping import install_import_hook

# int for float is fine in Python's eyes and in ours.
install_import_hook("spikeprune.core", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
