"""Whatever the geometry, the native engines give what PyTorch gives on the lowered network."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spikeprune.runtime import native
from spikeprune.runtime.compile import CompiledSNN
from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork, interpret
from spikeprune.runtime.compile.ops import operation
from spikeprune.runtime.compile.program import Sparse, lookup_pairs, sparse
from spikeprune.runtime.compile.weighted import quantize


def neuron(name, source, output, shape, threshold=1.0, soft=False):
    c = shape[0]
    values = {"decay": 0.5, "gain": 1.0, "shift": 0.0, "start": 0.0, "threshold": threshold, "reset": 0.0}
    tensors = {key: torch.full((c,), value) for key, value in values.items()}
    return LoweredLayer(operation("neuron"), name, (source,), output, shape, {"soft": soft, "strict": False}, tensors)


@st.composite
def networks(draw):
    """Spikes from the input, perhaps pooled, then one convolution and a neuron; whole weights, so sums are exact."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    c, o = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    h, w = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    layers = [neuron("first", 0, 1, (c, h, w), 0.5)]
    mode = draw(st.sampled_from(["none", "max", "avg"]))
    source = 1
    if mode != "none" and min(h, w) >= 2:
        kernel, stride = draw(st.sampled_from([(2, 2), (2, 1), (1, 2)])), draw(st.integers(1, 2))
        options = {
            "mode": mode, "kernel": kernel, "stride": (stride, stride), "padding": (0, 0), "ceil": False,
            "divisor": None, "count_pad": True,
        }  # fmt: skip
        h, w = (h - kernel[0]) // stride + 1, (w - kernel[1]) // stride + 1
        layers.append(LoweredLayer(operation("pool"), "pool", (1,), 2, (c, h, w), options))
        source = 2
    kernel = (draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 3])))
    padding = (kernel[0] // 2 + draw(st.integers(0, 1)), kernel[1] // 2)
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    sizes = [(i + 2 * p - k) // s + 1 for i, p, k, s in zip((h, w), padding, kernel, stride, strict=True)]
    if min(sizes) < 1 or min(h + 2 * padding[0] - kernel[0], w + 2 * padding[1] - kernel[1]) < 0:
        stride, padding = (1, 1), (kernel[0], kernel[1])
        sizes = [i + 2 * p - k + 1 for i, p, k in zip((h, w), padding, kernel, strict=True)]
    weight = torch.randint(-4, 5, (o, c, *kernel), generator=generator).float()
    weight *= torch.rand(weight.shape, generator=generator) < draw(st.sampled_from([0.0, 0.2, 1.0]))
    tensors = {"weight": weight, "bias": torch.randint(-1, 3, (o,), generator=generator).float()}
    options = {"stride": stride, "padding": padding, "dilation": (1, 1), "groups": 1}
    shape = (o, *sizes)
    layers.append(LoweredLayer(operation("conv"), "conv", (source,), 3, shape, options, tensors))
    layers.append(neuron("last", 3, 4, shape, soft=draw(st.booleans())))
    T, N = draw(st.integers(1, 9)), draw(st.integers(1, 10))
    x = torch.rand((T, N, *layers[0].shape), generator=generator)
    return LoweredNetwork(layers, 4, layers[0].shape, T, still=False), x


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.sampled_from(["lookup", "event", "real"]))
def test_engines_agree_with_pytorch(case, engine):
    network, x = case
    expected = interpret(network, x, still=False)
    spikes = CompiledSNN(network, engine=engine if native.compiler() else None).trace(x)
    assert torch.equal(spikes["first"], expected[1])
    assert torch.equal(spikes["last"], expected[4])


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_pairs_hold_every_kept_weight_once(seed, density):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < density
    kept: Sparse = sparse(weight, 1)
    starts, pairs = lookup_pairs(kept, [(1.0, 1)])
    again = torch.zeros(4, 28)  # the last column is the partner of an odd weight
    for row in range(4):
        for pair in pairs[starts[row] : starts[row + 1]]:
            again[row, int(pair["first"])] += float(pair["a"])
            again[row, int(pair["second"])] += float(pair["b"])
    assert torch.equal(again[:, :27].view_as(weight), weight)
    assert not again[:, 27].any()


@given(st.integers(0, 1000), st.integers(1, 4), st.floats(1e-6, 1e6))
def test_rounded_weights_leave_room_for_every_input(seed, units, scale):
    weight = torch.randn(5, 200, generator=torch.Generator().manual_seed(seed)) * scale
    weight[0] = 0
    layer = quantize(
        LoweredLayer(operation("linear"), "x", (0,), 1, (5,), {}, {"weight": weight, "bias": torch.zeros(5)}), units
    )
    whole = layer.tensors["weight"]
    assert torch.equal(whole, whole.round())
    assert whole.abs().sum(1).max() * units <= 32767
    step = layer.tensors["scale"][:, None]
    assert ((whole * step - weight).abs() <= step * 0.51).all()
