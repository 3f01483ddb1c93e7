"""One image, one time step: the ends of what a network may be given."""

import pytest
import torch
from spikingjelly.activation_based import functional

import spikeprune as sp


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("T", [1, 2])
@pytest.mark.parametrize("name", ["mlp", "digits-conv"])
def test_a_batch_of_one_image_trains(name, T, step_mode):
    model = sp.model(name, classes=10, T=T, size=8).train()
    functional.set_step_mode(model, step_mode)
    before = {n: b.clone() for n, b in model.named_buffers()}
    out = model(torch.rand(1, *model.image_shape))
    assert out.shape[-2:] == (1, 10)
    out.sum().backward()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert all(m.training for m in norms)
    if name == "mlp":  # the running statistics know nothing new where there was one value of each feature
        first = next(n for n, _ in model.named_buffers() if n.startswith("stem") and n.endswith("running_var"))
        assert torch.equal(dict(model.named_buffers())[first], before[first])
    functional.reset_net(model)
    model(torch.rand(2, *model.image_shape))
    assert any(not torch.equal(b, before[n]) for n, b in model.named_buffers())
