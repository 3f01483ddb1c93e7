"""The C++ kernels where they end: tails of every length, buffers at any address, padding full of nan, sizes too large.

Every test compares with PyTorch, or with plain loops. `make sanitize` runs this file under AddressSanitizer and UBSan.
"""

import ctypes

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from spikeprune.core.errors import RunFailed
from spikeprune.runtime import native, structs
from spikeprune.runtime.compile import CompiledSNN
from spikeprune.runtime.compile import program as P
from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork, interpret
from spikeprune.runtime.compile.ops import operation
from spikeprune.runtime.fuse.bits import _from_bits, _Packed, _to_bits
from spikeprune.runtime.fuse.kernel import Call, Neuron, fire, reference, statistics
from spikeprune.runtime.sparse_train import _AlivePlan, _SparseConvolution

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")


def off(tensor, elements):
    """The same values at an address that is `elements` elements past an aligned one, with nan on both sides."""
    memory = torch.full((tensor.numel() + elements + 32,), torch.nan, dtype=tensor.dtype)
    view = memory[elements : elements + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    return view


def values(*shape, seed=0):
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def spiking(*shape, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


def neuron(source, output, shape, threshold=0.5):
    numbers = {"decay": 0.5, "gain": 1.0, "shift": 0.0, "start": 0.0, "threshold": threshold, "reset": 0.0}
    tensors = {name: torch.full((shape[0],), value) for name, value in numbers.items()}
    return LoweredLayer(
        operation("neuron"), f"n{output}", (source,), output, shape, {"soft": False, "strict": False}, tensors
    )


def one_layer(c, o, h, w, kernel=3):
    """Spikes, a convolution of whole weights, a neuron: sums are exact in any order."""
    weight = values(o, c, kernel, kernel) * spiking(o, c, kernel, kernel, seed=1)
    pad = kernel // 2
    options = {"stride": (1, 1), "padding": (pad, pad), "dilation": (1, 1), "groups": 1}
    conv = LoweredLayer(
        operation("conv"), "conv", (1,), 2, (o, h, w), options, {"weight": weight, "bias": torch.ones(o)}
    )
    layers = [neuron(0, 1, (c, h, w)), conv, neuron(2, 3, (o, h, w), 1.0)]
    return LoweredNetwork(layers, 3, (c, h, w), 4, still=False)


@pytest.mark.parametrize("engine", ["lookup", "event", "real"])
@pytest.mark.parametrize("width", [*range(1, 20), 31, 32, 33, 47, 63, 64, 65])
def test_engine_tails(width, engine):
    """Tiles hold 8 to 32 positions: one row of every length around them, over one block of time and two."""
    network = one_layer(3, 4, 1 + width % 3, width)
    for T in (3, 7):
        x = torch.rand(T, 2, 3, 1 + width % 3, width, generator=torch.Generator().manual_seed(width))
        assert torch.equal(CompiledSNN(network, engine=engine)(x), interpret(network, x, False)[3])


@pytest.mark.parametrize("engine", ["lookup", "real"])
@pytest.mark.parametrize("elements", range(1, 9))
def test_engine_reads_from_any_address(elements, engine):
    network = one_layer(2, 3, 5, 7)
    x = torch.rand(4, 3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = interpret(network, x, False)[3]
    assert torch.equal(CompiledSNN(network, engine=engine)(off(x, elements)), expected)
    last = off(x.movedim(2, -1).contiguous(), elements).movedim(-1, 2)  # channels last
    assert torch.equal(CompiledSNN(network, engine=engine)(last), expected)


def test_memory_of_an_earlier_call_does_not_show():
    """Workspaces are used again: what an earlier, larger or nan input left in them must not reach the result."""
    network = one_layer(3, 4, 6, 5)
    compiled = CompiledSNN(network, engine="real")
    x = torch.rand(4, 3, 3, 6, 5)
    expected = compiled(x)
    compiled(torch.full_like(x, torch.nan))
    assert torch.equal(compiled(x), expected)
    assert torch.equal(compiled(x[:, :2]), expected[:, :2])


def pooled(kind, x, kernel):
    """The pooling kernel on real values [C, H, W], between buffers whose slack is nan."""
    c, h, w = x.shape
    library = native.library("engine")
    out = torch.full((1, 1, c, h // kernel, w // kernel), torch.nan)
    op = P.OpSpec(kind, 1, tuple(out.shape[2:]), ("pool",), real=2, kernel=(kernel, kernel), stride=(kernel, kernel))
    op.arrays = {"scale": np.full(c, 1 / kernel**2, np.float32)}
    enter = P.OpSpec("pointwise", 0, (c, h, w), ("in",), real=1)
    enter.arrays = {"scale": np.ones(c, np.float32), "bias": np.zeros(c, np.float32)}
    buffers = [
        P.BufferSpec(0, structs.EXTERNAL, (c, h, w)), P.BufferSpec(1, structs.REAL, (c, h, w)),
        P.BufferSpec(2, structs.EXTERNAL, tuple(out.shape[2:]), output=True),
    ]  # fmt: skip
    found = {0: off(x[None, None], 3)}
    P.Program(library, [enter, op], buffers).run(found, 1, 1, 1)
    return found[2][0, 0]


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_pooling_of_negative_values(size):
    x = -values(3, 2 * size, 2 * size, seed=size).abs() - 1  # padding or slack of 0 would win every maximum
    assert torch.equal(pooled("pool_max", x, 2), F.max_pool2d(x[None], 2)[0])
    assert torch.equal(pooled("pool_average", x, 2), F.avg_pool2d(x[None], 2)[0])


NUMBERS = Neuron(0.5, 1.0, 0.0, 0.75, 0.0, 0.0, "sigmoid", 4.0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 63, 64, 65, 127, 130])
def test_fused_tails_at_odd_addresses(size, channels_last):
    """Runs hold 64 lanes: as many channels, or positions, around that; every tensor one element off alignment."""
    shape = (6, size, 3, 2) if channels_last else (6, 3, 1, size)
    form = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.randn(shape, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    memory = torch.full((y.numel() + 8,), torch.nan, dtype=torch.float64)
    strides = y.contiguous(memory_format=form).stride()
    y = memory.as_strided(shape, strides, 1).copy_(y).detach().requires_grad_()
    call = Call(3, NUMBERS)
    spikes, v = fire(y, call)
    expected, expected_v = reference(y, call)
    assert torch.equal(spikes, expected)
    assert_close(v, expected_v)
    weights = torch.linspace(-1, 1, spikes.numel(), dtype=torch.float64).view(spikes.shape)
    (g,) = torch.autograd.grad((spikes * weights).sum() + v.sum(), y)
    (g_expected,) = torch.autograd.grad((expected * weights).sum() + expected_v.sum(), y)
    assert_close(g, g_expected)
    mean, var = statistics(y, 3, False)
    assert_close(mean, y.detach().mean((0, 2, 3)))
    assert_close(var, y.detach().var((0, 2, 3), correction=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bits_of_every_length(dtype):
    for n in (*range(1, 40), 255, 256, 257):
        spikes = off(spiking(n, seed=n).to(dtype), n % 5)
        bits = _to_bits(spikes)
        assert not bits[-8:].any()
        again = _from_bits(_Packed(bits, torch.Size([n]), (1,), dtype))
        assert torch.equal(again, spikes)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_sparse_training_tails(samples, size, kernel):
    """Blocks of 16 samples, tiles of 4 columns: sizes around both, whole numbers, so that sums are exact."""
    x = off(values(samples, 3, size, size), 1).requires_grad_()
    weight = (values(5, 3, kernel, kernel, seed=1) * spiking(5, 3, kernel, kernel, seed=2)).requires_grad_()
    plan = _AlivePlan.of(weight != 0, (kernel // 2, kernel // 2))
    y = _SparseConvolution.apply(x, weight, plan)
    expected = F.conv2d(x, weight, padding=kernel // 2)
    assert torch.equal(y, expected)
    g = values(*y.shape, seed=3)
    found = torch.autograd.grad(y, (x, weight), g)
    right = torch.autograd.grad(expected, (x, weight), g)
    assert torch.equal(found[0], right[0])
    assert torch.equal(found[1], right[1] * (weight != 0))


def test_sizes_that_do_not_fit_are_refused():
    library = native.library("engine")
    buffer = structs.BufferStruct(kind=structs.REAL, channels=2**30, height=2**30, width=2**30)
    assert library.sp_bytes(ctypes.byref(buffer), 2**20, 2**20) == -1
    buffer = structs.BufferStruct(kind=structs.REAL, channels=-1, height=1, width=1)
    assert library.sp_bytes(ctypes.byref(buffer), 1, 1) == -1
    spec = structs.SparseStruct(
        M=1, inputs=2**20, H=2**10, W=2**10, outputs=1, out_H=1, out_W=1, kernel_h=1, kernel_w=1
    )
    zero = torch.zeros(64)
    begins = torch.zeros(2, dtype=torch.int32)
    status = native.library("sparse_train").sparse_train_forward(
        ctypes.byref(spec), *(structs.pointer(t) for t in (zero, begins, begins, zero, zero))
    )
    assert status in (1, 2)  # no memory for the block, or its offsets do not fit
    with pytest.raises(RunFailed, match="memory" if status == 1 else "32-bit"):
        structs.run("a layer", status)


@pytest.mark.parametrize(
    "change",
    [{"code": 99}, {"code": -1}, {"input": 7}, {"input": -1}, {"real": 9}, {"residual": 5}, {"spikes": -2}],
    ids=str,
)
def test_a_program_that_names_nothing_is_refused(change):
    library = native.library("engine")
    shape = (2, 3, 3)
    op = P.OpSpec("pointwise", 0, shape, ("x",), real=1)
    op.arrays = {"scale": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)}
    buffers = [P.BufferSpec(0, structs.EXTERNAL, shape), P.BufferSpec(1, structs.EXTERNAL, shape, output=True)]
    program = P.Program(library, [op], buffers)
    for name, value in change.items():
        setattr(program.structs[0], name, value)
    with pytest.raises(RunFailed, match="refused its arguments"):
        program.run({0: torch.zeros(1, 1, *shape)}, 1, 1, 1)


def test_unknown_element_types_are_refused():
    library = native.library("fuse")
    spec = structs.FuseStruct(T=1, N=1, C=1, P=1, W=1, threads=1)
    x = torch.zeros(8, dtype=torch.float64)
    assert library.fuse_statistics(ctypes.byref(spec), 7, *[structs.pointer(x)] * 3) == 3
    assert library.fuse_pack(7, 1, structs.pointer(x), structs.pointer(x)) == 3


def test_an_unknown_kernel_is_refused():
    op = P.OpSpec("no_such_kernel", 0, (1, 1, 1), ("x",))
    with pytest.raises(RunFailed, match="no kernel 'no_such_kernel'"):
        P.Program(native.library("engine"), [op], [])


def test_what_a_thread_throws_comes_back_as_a_status():
    """Too many samples for memory: each thread fails, all join, one status comes back."""
    spec = structs.SparseStruct(
        M=64, inputs=2**15, H=2**10, W=2**10, outputs=1, out_H=1, out_W=1, kernel_h=1, kernel_w=1, threads=4
    )
    zero = torch.zeros(64)
    begins = torch.zeros(2, dtype=torch.int32)
    arguments = [structs.pointer(t) for t in (zero, begins, begins, zero, zero)]
    spec.inputs = 2**40  # no address space holds such a block
    assert native.library("sparse_train").sparse_train_forward(ctypes.byref(spec), *arguments) in (1, 2)
