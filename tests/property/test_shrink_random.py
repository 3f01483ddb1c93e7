"""Random residual networks: whatever is built of known parts, the shrunk network computes what the masked one does."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from spikeprune.core.mask import Masks
from spikeprune.model.adapter import find_adapter
from spikeprune.model.channel_values import channel_masks
from spikeprune.model.groups import channel_groups
from spikeprune.model.trace import trace
from spikeprune.shrink.shrink import shrink
from spikeprune.zoo.paper import Gate


def norm(channels: int) -> nn.Module:
    bn = layer.BatchNorm2d(channels)
    nn.init.uniform_(bn.weight, 0.5, 2)
    nn.init.normal_(bn.bias, 0.3, 0.3)
    return bn


class Block(nn.Module):
    """A block of one of the kinds that papers use, about `inner` channels inside."""

    def __init__(self, kind: str, channels: int, inner: int, gate: bool):
        super().__init__()
        self.kind = kind
        self.conv1, self.bn1, self.sn1 = layer.Conv2d(channels, inner, 3, padding=1), norm(inner), neuron.LIFNode()
        self.conv2 = layer.Conv2d(inner, channels, 3, padding=1, bias=kind == "plain")
        self.bn2, self.sn2 = norm(channels), neuron.IFNode()
        self.gate = Gate(channels) if gate and kind == "preact" else nn.Identity()
        if kind == "dense":
            self.conv1 = layer.Conv2d(channels, inner, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "preact":
            return x + self.conv2(self.sn1(self.bn1(self.conv1(self.sn2(self.gate(self.bn2(x)))))))
        y = self.sn1(self.bn1(self.conv1(x)))
        if self.kind == "dense":
            return torch.cat([x, y], dim=-3)
        y = self.bn2(self.conv2(y))
        if self.kind == "add":  # spiking ResNet: before the neuron
            return self.sn2(y + x)
        if self.kind == "sew":
            return self.sn2(y) + x
        if self.kind == "iand":
            return x * (1.0 - self.sn2(y))
        return self.sn2(y)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(st.integers(0, 10_000)))
    channels = draw(st.integers(2, 6))
    gate = draw(st.booleans())
    parts: list[nn.Module] = [layer.Conv2d(2, channels, 3, padding=1), norm(channels), neuron.LIFNode()]
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["plain", "add", "sew", "iand", "preact", "dense"]))
        inner = draw(st.integers(2, 5))
        parts.append(Block(kind, channels, inner, gate))
        channels += inner if kind == "dense" else 0
        if draw(st.booleans()):
            width = draw(st.integers(2, 6))
            parts += [layer.Conv2d(channels, width, 1), norm(width), neuron.IFNode()]
            channels = width
    parts += [draw(st.sampled_from([layer.AvgPool2d(2), layer.MaxPool2d(2)])), layer.Flatten()]
    parts += [layer.Linear(channels * 4, 4), neuron.LIFNode(), layer.Linear(4, 3)]
    model = nn.Sequential(*parts)
    mode = draw(st.sampled_from("sm"))
    functional.set_step_mode(model, mode)
    x = torch.rand((3, 2, 4, 4) if mode == "s" else (3, 2, 2, 4, 4)) * 3
    return model.eval(), x


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.sampled_from(["channel", "gate"]), st.floats(0, 1), st.integers(0, 1000))
def test_masked_and_shrunk_agree(network, pattern, share, seed):
    model, x = network
    generator = torch.Generator().manual_seed(seed)
    groups = channel_groups(trace(model, x, adapter=find_adapter(model)), model, pattern)
    keep = {g.name: torch.rand(g.channels, generator=generator) < share for g in groups}
    for alive in keep.values():
        alive[0] = True
    masks = channel_masks(groups, keep, model)
    Masks(masks).apply_(model)
    small, plan = shrink(model, masks, x)
    if pattern == "channel":  # to the channel: nothing of a cut group is left, nothing of a kept one is gone
        cut = {layer: after for layer, (_, after) in plan.layers.items()}
        for group in groups:
            assert cut[group.name] <= int(keep[group.name].sum())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masks:
                parameter *= masks[name]
        wanted, found = model.double()(x.double()), small.double()(x.double())
    assert (wanted - found).abs().max() <= 1e-5
