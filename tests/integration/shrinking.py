"""What the tests of shrink share: networks as training leaves them, random channel masks, and the comparison."""

import copy

import snntorch as snn
import torch
from torch import Tensor, nn

from spikeprune.core.mask import Masks
from spikeprune.model.adapter import find_adapter
from spikeprune.model.channel_values import channel_masks
from spikeprune.model.groups import channel_groups
from spikeprune.model.trace import trace
from spikeprune.shrink.plan import ChannelPlan
from spikeprune.shrink.shrink import shrink


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Normalisations as training leaves them: with them at 1 and 0, deep layers of an untrained network are silent."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 2 + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.3 + 0.3)
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    return model.eval()


def half(model: nn.Module, x: Tensor, pattern: str = "channel", seed: int = 0) -> dict[str, Tensor]:
    """Masks that cut every other channel at random, one in each group left at least; the model obeys them."""
    generator = torch.Generator().manual_seed(seed)
    groups = channel_groups(trace(model, x, adapter=find_adapter(model)), model, pattern)
    keep = {g.name: torch.rand(g.channels, generator=generator) < 0.5 for g in groups}
    for alive in keep.values():
        alive[0] = True
    masks = channel_masks(groups, keep, model)
    Masks(masks).apply_(model)
    return masks


def masked_copy(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    adapter = find_adapter(model)
    assert adapter is not None
    states = adapter.states(model)
    adapter.reset(model)
    masked = copy.deepcopy(model)
    adapter.restore(model, states)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            if name in masks:
                parameter *= masks[name]
    return masked


def run(model: nn.Module, x: Tensor) -> Tensor:
    """In float64: in float32 a sum in another order can move a potential across the threshold (see `shrink`)."""
    model = masked_copy(model, {})
    if not any(isinstance(m, snn.SpikingNeuron) for m in model.modules()):  # whose spikes are always float32
        model, x = model.double(), x.double()
    with torch.no_grad():
        return model(x)


def assert_shrinks(model: nn.Module, x: Tensor, pattern: str = "channel") -> tuple[nn.Module, ChannelPlan]:
    masks = half(model, x, pattern)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, plan = shrink(model, masks, x)
    wanted, found = run(masked_copy(model, masks), x), run(small, x)
    assert wanted.std() > 0
    assert (wanted - found).abs().max() <= 1e-5
    assert sum(p.numel() for p in small.parameters()) == plan.parameters[1] < 0.6 * plan.parameters[0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    rebuilt = plan.rebuild(model, small.state_dict())
    assert torch.equal(run(rebuilt, x), found)
    return small, plan
