"""A compiled file whose checksum fits but whose contents do not: refused in one line when it is loaded."""

import dataclasses
import hashlib
import json
import math

import pytest
import torch
from compiled_nets import _Loop, _Residual, good_file, good_files
from fuzz_compiled import MAGIC, Corpus, batch, parts
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spikeprune as sp
from spikeprune.core.errors import UserError
from spikeprune.runtime import native
from spikeprune.runtime.compile import CompiledSNN
from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork
from spikeprune.runtime.compile.ops import cell as cells
from spikeprune.runtime.compile.ops import operation
from spikeprune.runtime.steps.cell import written as written_cell


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    path, x = good_file(folder)
    return path, x, *parts(path)


def written(path, header, data, edit):
    head = json.loads(json.dumps(header))
    network = json.loads(head["__metadata__"]["network"])
    edit(network)
    head["__metadata__"]["network"] = json.dumps(network)
    text = json.dumps(head).encode()
    body = len(text).to_bytes(8, "little") + text + data
    path.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
    return path


def test_an_unchanged_network_loads(good, tmp_path):
    path, x, header, data = good
    again = written(tmp_path / "same.snn", header, data, lambda network: None)
    assert torch.equal(sp.load(again)(x), sp.load(path)(x))


def put(value, *path):
    def edit(network):
        place = network
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


CASES = {
    f"layers[{i}].{'.'.join(map(str, where))} = {value}": put(value, "layers", i, *where)
    for i in range(8)
    for where in (("output",), ("shape", 0), ("inputs", 0))
    for value in (50, 100, 65_535, 2**31, 2**63 - 1, -1, 1.0, None)
}
CASES |= {f"T = {value}": put(value, "T") for value in (0, -1, 10**9, 2**70, 1.5, True, "4")}
CASES |= {
    "padding": put([2**20, 2**20], "layers", 0, "options", "padding"),
    "stride": put([0, 1], "layers", 0, "options", "stride"),
    "groups": put(3, "layers", 0, "options", "groups"),
    "dilation": put([2**19, 1], "layers", 0, "options", "dilation"),
    "kind": put("no such layer", "layers", 0, "kind"),
    "another kind": put("linear", "layers", 0, "kind"),
    "pool kernel": put([0, 0], "layers", 2, "options", "kernel"),
    "pool divisor": put(0, "layers", 2, "options", "divisor"),
    "pool mode": put("median", "layers", 2, "options", "mode"),
    "pool flag": put(1, "layers", 2, "options", "ceil"),
    "two inputs": put([0, 0], "layers", 0, "inputs"),
    "tensors": put([], "layers", 0, "tensors"),
    "foreign tensor": put(["weight", "bias", "other"], "layers", 0, "tensors"),
    "busy": put([[1, float("nan"), 0.5]], "busy"),
    "busy value": put([[77, 0.5, 0.5]], "busy"),
    "precision": put("fp64", "precision"),
    "still": put(1, "still"),
    "no layers": put([], "layers"),
    "output": put(77, "output"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_changed_field_is_refused(name, good, tmp_path):
    _, _, header, data = good
    path = written(tmp_path / "bad.snn", header, data, CASES[name])
    with pytest.raises(UserError) as error:
        sp.load(path)
    assert "\n" not in str(error.value)
    assert 20 <= len(str(error.value)) < 400


WORDS = {
    "no layout": (put([0, 1], "layout"), "does not say where time and samples lie; compile the model again"),
    "one axis twice": (put([0, 0, 0, 1, False], "layout"), "names one axis twice, or one that there is not"),
    "no such axis": (put([0, 5, 0, 1, False], "layout"), "names one axis twice, or one that there is not"),
    "no such axis of the output": (
        put([0, 1, 0, 3, False], "layout"), "puts time or samples on an axis that its output does not have"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_axes_that_cannot_be_are_refused(name, good, tmp_path):
    _, _, header, data = good
    edit, words = WORDS[name]
    with pytest.raises(UserError, match=words):
        sp.load(written(tmp_path / "bad.snn", header, data, edit))


@pytest.fixture(scope="module")
def compiled_nets():
    """A residual network and one with a loop of its own."""
    torch.manual_seed(0)
    x = torch.rand(3, 2, 2, 8, 8) * 4
    return {"residual": sp.compile(_Residual().eval(), x), "loop": sp.compile(_Loop(), torch.rand(4, 2, 6) * 4)}


def with_program(edit):
    """The program of a cell with a change in it."""

    def changed(layer):
        program = json.loads(layer.options["program"])
        edit(program)
        return {"options": layer.options | {"program": json.dumps(program)}}

    return changed


def renamed(program):
    """Gives a product with a number the name of a function that takes the same, and that PyTorch would run."""
    next(step for step in program["steps"] if step["template"] == [["i", 0], 0.9])["name"] = "fmod.Scalar"


SETTINGS = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
LAYERS = {
    "sum": ("residual", "add", lambda layer: {"inputs": (0, layer.inputs[1])}, r"it adds \[2, 8, 8\] and \[4, 8, 8\]"),
    "features": (
        "residual", "linear", lambda layer: {"op": operation("conv"), "options": SETTINGS},
        r"it needs a map \[C, H, W\], its input is \[64\]",
    ),
    "groups": (
        "residual", "conv", lambda layer: {"tensors": {k: t[:3] for k, t in layer.tensors.items()}},
        "2 groups do not divide 3 output channels",
    ),
    "channels": (
        "residual", "neuron",
        lambda layer: {"op": operation("select"), "options": {}, "tensors": {"index": torch.tensor([0, 1, 2, 4])}},
        "its index names channels beyond the 4 there are",
    ),
    "nan": (
        "residual", "linear", lambda layer: {"tensors": {k: t * torch.nan for k, t in layer.tensors.items()}},
        r"layer \d of the compiled file holds nan; compile the model again",
    ),
    "no result": (
        "loop", "cell", with_program(lambda program: program.update(output=99)), "its program has no result"
    ),
    "function": ("loop", "cell", with_program(renamed), r"its program is damaged \(ValueError\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_cannot_be_run_is_refused_by_name(name, compiled_nets, tmp_path):
    net, kind, change, words = LAYERS[name]
    compiled = compiled_nets[net]
    layers = list(compiled.network.layers)
    place = max(i for i, each in enumerate(layers) if each.kind == kind)
    layers[place] = dataclasses.replace(layers[place], **change(layers[place]))
    CompiledSNN(dataclasses.replace(compiled.network, layers=layers)).save(tmp_path / "bad.snn")
    with pytest.raises(UserError, match=words) as caught:
        sp.load(tmp_path / "bad.snn")
    assert len(str(caught.value)) < 400


def test_a_network_that_is_too_large_is_refused(tmp_path):
    shape = (1 << 14, 1, 1)
    layers = [LoweredLayer(operation("repeat"), "again", (0,), 1, shape)]
    CompiledSNN(LoweredNetwork(layers, 1, shape, 60_000, still=True)).save(tmp_path / "large.snn")
    with pytest.raises(UserError, match=r"too large at layer 'again' \(repeat\), with 60000 steps; compile it again"):
        sp.load(tmp_path / "large.snn")
    CompiledSNN(LoweredNetwork(layers, 1, shape, 600, still=True)).save(tmp_path / "large.snn")
    assert sp.load(tmp_path / "large.snn").network.T == 600


def test_changed_files_run_or_are_refused(tmp_path):
    """The short form of `python tests/integration/fuzz_compiled.py`."""
    good_files(tmp_path)
    corpus = Corpus(tmp_path)
    assert len(corpus.ran) == 4
    found = batch(corpus, 0, 400, tmp_path)
    assert len(corpus.ran) + len(corpus.refused) > 20  # those that reached something new
    assert set(found) <= {"refused", "ran"}, found
    assert found["refused"] > 300
    assert found["ran"] > 10  # names, shares and weights may change


def test_a_layer_behind_the_readout_has_no_time_axis():
    """Its input is [N, features]: an engine that took it for [T, N, features] read past its end."""
    if native.compiler() is None:
        pytest.skip("no C++ compiler")
    from spikingjelly.activation_based import functional, layer, neuron

    class Readout(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(layer.Linear(6, 9), neuron.IFNode(v_threshold=0.3))
            self.last = nn.Linear(9, 4)
            functional.set_step_mode(self, "m")

        def forward(self, x):
            return self.last(self.body(x).mean(0))

    torch.manual_seed(0)
    model = Readout().eval()
    x = torch.rand(5, 3, 6)
    compiled = CompiledSNN(sp.compile(model, x).network, engine="real")
    functional.reset_net(model)
    torch.testing.assert_close(compiled(x), model(x).detach())


# ---- packed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int16"])
def test_a_file_becomes_smaller_with_sparsity(precision, tmp_path):
    """Within a fifth of a bit for each weight and the weights that are left.

    They take 4 bytes, or 2 in an int16 network, whose first layer reads numbers and stays in fp32.
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(512, 512), neuron.LIFNode(), layer.Linear(512, 512), neuron.LIFNode(), layer.Linear(512, 10)
    )
    functional.set_step_mode(net, "m")
    x = torch.rand(2, 2, 512) * 3
    sizes = {}
    for sparsity in (0.0, 0.8, 0.95, 0.99):
        if sparsity:
            sp.prune(net, "magnitude", sparsity)
        path = tmp_path / f"{sparsity}.snn"
        compiled = sp.compile(net.eval(), x, precision)
        compiled.save(path)
        weights = [p for p in net.parameters() if p.dim() == 2]
        widths = (4, 4, 4) if precision == "fp32" else (4, 2, 2)
        left = sum(int((p != 0).sum()) * width for p, width in zip(weights, widths, strict=True))
        sizes[sparsity] = path.stat().st_size, sum(p.numel() for p in weights) / 8 + left
        assert torch.equal(sp.load(path)(x), compiled(x))
    assert all(size < 1.2 * bound for sparsity, (size, bound) in sizes.items() if sparsity), sizes
    assert sizes[0.99][0] < sizes[0.95][0] < sizes[0.8][0] < sizes[0.0][0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda said, name: said.pop(name),
        lambda said, name: said.update({name: ["float32", [3]]}),
        lambda said, name: said.update({name: ["float32", [2**40, 2**40]]}),
        lambda said, name: said.update({name: ["float64", said[name][1]]}),
        lambda said, name: said.update({name: ["float32", -1]}),
        lambda said, name: said.update({name: 3}),
        lambda said, name: said.update({"other": said[name]}),
    ],
)
def test_packed_tensors_that_do_not_fit_are_refused(good, tmp_path, spoil):
    _, _, header, data = good
    name = next(iter(json.loads(header["__metadata__"]["network"])["packed"]))
    bad = written(tmp_path / "bad.snn", header, data, lambda network: spoil(network["packed"], name))
    with pytest.raises(UserError) as caught:
        sp.load(bad)
    assert len(str(caught.value)) < 400
    nothing = written(tmp_path / "none.snn", header, data, lambda network: network.update(packed=None))
    with pytest.raises(UserError):
        sp.load(nothing)


def test_a_cell_of_a_compiled_file_is_checked_in_every_part():
    """Recurrent weights compile to a cell, whose program stands in the file; a file may hold any other."""
    torch.manual_seed(0)
    compiled = sp.compile(_Loop(), torch.rand(4, 2, 6) * 4)
    layer = next(each for each in compiled.network.layers if each.op.name == "cell")
    shapes = {0: compiled.network.input_shape} | {each.output: each.shape for each in compiled.network.layers}
    inputs = [shapes[value] for value in layer.inputs]
    good = cells.cell_of(layer)
    assert cells._checked(layer, good, inputs) == layer.shape

    def refused(words, cell):
        with pytest.raises(UserError, match=words):
            cells._checked(layer, cell, inputs)

    def with_step(j, **changes):
        steps = list(good.steps)
        steps[j] = dataclasses.replace(steps[j], **changes)
        return dataclasses.replace(good, steps=steps)

    j = next(j for j, step in enumerate(good.steps) if step.inputs)
    places = torch.zeros(math.prod(good.steps[j].inputs[0].shape), dtype=torch.int64)

    def with_region(**changes):
        regions = list(good.steps[j].inputs)
        regions[0] = dataclasses.replace(regions[0], **changes)
        return with_step(j, inputs=regions)

    refused("its program has no result", dataclasses.replace(good, output=len(good.steps)))
    refused("its program has no result", dataclasses.replace(good, output=-1))
    refused("a block of its program is too large", with_step(0, shape=(cells.LARGEST_BLOCK + 1,)))
    refused("a block of its program is too large", with_step(0, shape=(0,)))
    refused("a source of its program is none", with_region(sources=[("s", 0.0, 0)]))
    refused("reads a value before it is made", with_region(sources=[("s", j, 0)]))
    refused("reads a value before it is made", with_region(sources=[("s", 0, -1)]))
    refused("a value of its program does not fit", with_region(index=None, sources=[("x", 0, 0)], shape=(99,)))
    refused("an index of its program is out of range", with_region(index=places + 10**6))
    refused("an index of its program is out of range", with_region(index=places - 1))
    refused("an index of its program is out of range", with_region(index=places.float()))
    # A step without inputs gives its constants, whose size is not that of the samples.
    linear = next(j for j, step in enumerate(good.steps) if step.name == "linear")
    refused("a step of its program gives another shape", with_step(linear, inputs=[], template=[]))
    # A number that is True or False: only the processor refuses it, not tensors that hold nothing.
    minus = next(j for j, step in enumerate(good.steps) if step.name == "rsub.Scalar")
    program, tensors = written_cell(with_step(minus, template=[["i", 0], False]))
    with pytest.raises(UserError, match="its program is damaged"):
        layer.op.check(
            dataclasses.replace(layer, options=layer.options | {"program": program}, tensors=tensors), inputs
        )
    assert layer.options["ranks"] == tuple(len(shape) for shape in inputs)
    with pytest.raises(UserError, match="its program is missing"):
        layer.op.check(layer, [*inputs, (3,)])
    with pytest.raises(UserError, match="its program is missing"):
        layer.op.check(dataclasses.replace(layer, options=layer.options | {"program": 3}), inputs)
