"""Coupled channel groups: what belongs together, the authors' counts, and torch-pruning as an independent judge."""

import pytest
import torch
import torch_pruning
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import find_adapter
from spikeprune.model.groups import channel_groups
from spikeprune.model.operations import is_gate
from spikeprune.model.trace import trace
from spikeprune.zoo.paper import Gate
from spikeprune.zoo.registry import build


def groups_of(model, x, pattern="channel"):
    return channel_groups(trace(model, x, adapter=find_adapter(model)), model, pattern)


def members(group):
    return {(s.tensor, s.dim) for s in group.slices}


@pytest.mark.parametrize(
    ("name", "pattern", "groups", "channels"),
    [
        # 2*64 + 2*128 + 3*256 + 6*512 = 4,224: every BatchNorm channel of VGG-16
        ("vgg16-channels", "channel", 13, 4224),
        ("vgg16-channels", "gate", 13, 4224),
        # gates 64 + 3*128 + 3*256 + 512 + 512 (last) = 2,240; inside blocks 3*128 + 3*256 + 2*512 = 2,176
        ("resnet19-channels", "gate", 17, 4416),
        # streams 64 + 128 + 256 + 512 = 960, and the same 2,176
        ("resnet19-channels", "channel", 12, 3136),
    ],
)
def test_counts_of_the_paper(name, pattern, groups, channels):
    model = build(name, T=1)
    found = groups_of(model, torch.rand(1, 3, 32, 32), pattern)
    assert len(found) == groups
    assert sum(g.channels for g in found) == channels


def test_a_chain_and_its_flatten():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), neuron.LIFNode(), nn.Flatten(), nn.Linear(12, 5), neuron.IFNode(),
        nn.Linear(5, 2),
    )  # fmt: skip
    conv, linear = groups_of(model, torch.rand(2, 1, 4, 4))
    assert (conv.name, conv.channels, conv.neurons) == ("0", 3, ("2",))
    assert members(conv) == {
        ("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0), ("1.running_var", 0),
        ("4.weight", 1),
    }  # fmt: skip
    (columns,) = [s.channels for s in conv.slices if s.tensor == "4.weight"]
    assert columns.tolist() == [0] * 4 + [1] * 4 + [2] * 4  # flatten puts 2 x 2 positions of a channel side by side
    assert (linear.name, linear.channels, linear.neurons) == ("4", 5, ("5",))
    assert members(linear) == {("4.weight", 0), ("4.bias", 0), ("6.weight", 1)}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (layer.Conv2d(i, o, 1) for i, o in ((1, 4), (4, 6), (6, 4)))
        self.s1, self.s2, self.s3 = (neuron.LIFNode() for _ in range(3))
        self.head = layer.Linear(8, 2)

    def forward(self, x):
        x = self.s1(self.stem(x))
        y = self.s3(x + self.b(self.s2(self.a(x))))
        return self.head(torch.cat([x, y], dim=-3).flatten(-3))


def test_adds_couple_and_cat_does_not():
    model = Residual()
    stream, inner = groups_of(model, torch.rand(2, 1, 1, 1))
    assert (stream.name, stream.channels) == ("stem", 4)
    assert {("stem.weight", 0), ("b.weight", 0), ("a.weight", 1)} <= members(stream)
    (columns,) = [s.channels for s in stream.slices if s.tensor == "head.weight"]
    assert columns.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert members(inner) == {("a.weight", 0), ("a.bias", 0), ("b.weight", 1)}
    functional.set_step_mode(model, "m")
    assert [members(g) for g in groups_of(model, torch.rand(3, 2, 1, 1, 1))] == [members(stream), members(inner)]


class Loop(nn.Module):
    """The same layers in every turn of a time loop."""

    def __init__(self):
        super().__init__()
        self.conv, self.lif, self.head = nn.Conv2d(2, 3, 3), neuron.LIFNode(), nn.Linear(3, 2)

    def forward(self, x):
        return torch.stack([self.head(self.lif(self.conv(step)).mean((-1, -2))) for step in x])


def test_time_loops_and_means_over_space():
    (group,) = groups_of(Loop(), torch.rand(3, 2, 2, 5, 5))
    assert (group.name, group.channels) == ("conv", 3)
    assert members(group) == {("conv.weight", 0), ("conv.bias", 0), ("head.weight", 1)}


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lif, self.head = nn.Conv2d(2, 3, 1), neuron.LIFNode(), nn.Linear(3, 2)

    def forward(self, x):
        out = torch.zeros(len(x), 3)
        out[:] = self.lif(self.conv(x)).mean((-1, -2))
        return self.head(out + x.mean())


@pytest.mark.parametrize(
    ("model", "shape", "named"),
    [
        (
            nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)),
            (1, 2, 3, 3),
            "groups=2",
        ),
        (Written(), (1, 2, 3, 3), "joins channels with the model's input"),
        (nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (1, 2), "(LayerNorm)"),
        (nn.Sequential(nn.Linear(3, 4), nn.AvgPool1d(2), nn.Linear(2, 2)), (2, 3), "pools over channels"),
    ],
)
def test_refusals_name_the_module(model, shape, named):
    with pytest.raises(InvalidValue, match="cannot be cut") as error:
        groups_of(model, torch.rand(shape))
    assert named in str(error.value)
    assert len(str(error.value)) <= 300


def test_what_stands_behind_the_last_layer_is_output():
    class Voting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lif, self.b = nn.Linear(3, 4), neuron.LIFNode(), nn.Linear(4, 6)

        def forward(self, x):
            return self.b(self.lif(self.a(x))).view(-1, 2, 3).mean(-1).softmax(-1)

    (group,) = groups_of(Voting(), torch.rand(2, 3))
    assert group.name == "a"


def test_gates_need_a_normalisation_before_them():
    from spikeprune.zoo.paper import Gate

    model = nn.Sequential(nn.Conv2d(1, 3, 1), Gate(3), neuron.LIFNode(), nn.Conv2d(3, 2, 1))
    with pytest.raises(InvalidValue, match="'1' does not stand behind a BatchNorm"):
        groups_of(model, torch.rand(1, 1, 2, 2), "gate")
    assert [g.channels for g in groups_of(model, torch.rand(1, 1, 2, 2), "channel")] == [3]


class Small(nn.Module):
    """Add before the neuron, SEW add behind it, a strided shortcut, pooling and flatten."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0, self.s0 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), neuron.LIFNode()
        self.c1, self.b1, self.s1 = nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), neuron.LIFNode()
        self.c2, self.b2, self.s2 = nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4), neuron.LIFNode()
        self.c3, self.b3, self.s3 = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), neuron.LIFNode()
        self.down, self.b4, self.s4 = nn.Conv2d(4, 6, 1, stride=2), nn.BatchNorm2d(6), neuron.LIFNode()
        self.fc1, self.s5, self.fc2 = nn.Linear(24, 7), neuron.LIFNode(), nn.Linear(7, 2)

    def forward(self, x):
        x = self.s0(self.bn0(self.stem(x)))
        x = self.s2(self.b2(self.c2(self.s1(self.b1(self.c1(x))))) + x)
        x = self.s3(self.b3(self.c3(x))) + self.s4(self.b4(self.down(x)))
        return self.fc2(self.s5(self.fc1(torch.flatten(x, 1))))


def test_torch_pruning_finds_the_same_groups():
    """Single-step, where torch-pruning can follow spiking networks; its groups are sets of (module, side)."""
    model = Small().train()
    x = torch.rand(2, 1, 4, 4)
    ours = groups_of(model, x)
    functional.reset_net(model)
    judge = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    functional.reset_net(model)
    for group in ours:
        conv = model.get_submodule(group.name)
        prune = (
            torch_pruning.prune_conv_out_channels
            if isinstance(conv, nn.Conv2d)
            else torch_pruning.prune_linear_out_channels
        )
        theirs = judge.get_pruning_group(conv, prune, idxs=[1])
        wanted = {
            (dep.target.name.split(" ")[0], "in" if "in_channels" in dep.handler.__name__ else "out", tuple(idxs))
            for dep, idxs in theirs
            if isinstance(dep.target.module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))
        }
        found = {
            (
                s.tensor.rpartition(".")[0],
                "in" if s.role == "in" else "out",
                tuple((s.channels == 1).nonzero()[:, 0].tolist()),
            )
            for s in group.slices
            if s.tensor.endswith("weight")
        }
        # A BatchNorm has one side only; torch-pruning calls it by either.
        norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert {(n, "out" if n in norms else side, i) for n, side, i in wanted} == found


def test_a_gate_is_known_by_what_it_has_on_any_python():
    # From Python 3.12 on `isinstance` with a Protocol does not see buffers, so that gates were taken for other modules.
    assert is_gate(Gate(4))
    assert not is_gate(nn.Conv2d(4, 4, 1))


def test_a_grouped_convolution_is_cut_by_group():
    model = nn.Sequential(
        nn.Conv2d(2, 8, 1), neuron.LIFNode(), nn.Conv2d(8, 4, 3, groups=4), neuron.LIFNode(), nn.Conv2d(4, 2, 1)
    )
    (group,) = groups_of(model, torch.rand(2, 2, 5, 5))
    assert group.channels == 4  # a channel of the group stands for two of the first layer and one of the second
    assert {(s.tensor, s.dim): s.channels.tolist() for s in group.slices} == {
        ("0.weight", 0): [0, 0, 1, 1, 2, 2, 3, 3],
        ("0.bias", 0): [0, 0, 1, 1, 2, 2, 3, 3],
        ("2.weight", 0): [0, 1, 2, 3],
        ("2.bias", 0): [0, 1, 2, 3],
        ("4.weight", 1): [0, 1, 2, 3],
    }


def test_a_depthwise_convolution_of_the_input_stays_whole():
    model = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 4, 1), neuron.LIFNode(), nn.Conv2d(4, 2, 1))
    assert [g.name for g in groups_of(model, torch.rand(1, 2, 3, 3))] == ["1"]


def test_what_cannot_be_followed_stays_whole_and_the_others_are_cut():
    model = nn.Sequential(
        nn.Linear(3, 6), neuron.LIFNode(), nn.Linear(6, 6), nn.LayerNorm(6), neuron.LIFNode(), nn.Linear(6, 4),
        neuron.LIFNode(), nn.Linear(4, 2),
    )  # fmt: skip
    assert [g.name for g in groups_of(model, torch.rand(2, 3))] == ["0", "5"]


class Einsums(nn.Module):
    """Weights used by functions; the second one has its inputs along the first dimension."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 2)
        self.n1, self.n2 = neuron.LIFNode(), neuron.LIFNode()

    def forward(self, x):
        x = self.n1(torch.einsum("ni,oi->no", x, self.a.weight) + 0)
        return self.c(self.n2(x @ self.b.weight))


def test_weights_used_by_functions_have_channels_too():
    one, two = groups_of(Einsums(), torch.rand(2, 3))
    assert members(one) == {("a.weight", 0), ("a.bias", 0), ("b.weight", 0)}
    assert members(two) == {("b.weight", 1), ("c.weight", 1)}
