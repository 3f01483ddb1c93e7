"""The checks of tests/gpu_check.py that must hold, each as a test; they skip where torch sees no GPU."""

import pytest
import torch

import gpu_check

MUST_HOLD = [name for name in gpu_check.CHECKS if name not in ("overhead of the Pruner", "training speed", "memory")]


@pytest.mark.gpu
@pytest.mark.parametrize("name", MUST_HOLD)
def test_on_a_gpu(name):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    gpu_check.CHECKS[name](torch.device("cuda"))
