"""Which neuron a weight feeds, in the ways that people build spiking networks; and that looking disturbs nothing."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

import spikeprune as sp
from nets import SIZE, T, assert_same, batch, conv_net, lif, sgd, train
from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import adapter_for
from spikeprune.model.pairing import pair
from spikeprune.model.trace import trace

pytestmark = pytest.mark.compat


def neurons(model, *example):
    """Weight -> neuron of one forward."""
    graph = trace(model, *example, adapter=adapter_for(model))
    return {name: pairing.neuron for name, pairing in pair(graph).items()}


def conv(inputs, outputs, **keywords):
    return layer.Conv2d(inputs, outputs, 3, padding=1, bias=False, step_mode="m", **keywords)


def lif_m():
    return lif(step_mode="m")


IMAGES = torch.rand(T, 2, 3, SIZE, SIZE)


class Block(nn.Module):
    """conv -> LIF -> conv, and the input added before or after the last neuron."""

    def __init__(self, channels, after):
        super().__init__()
        self.conv1, self.lif1, self.conv2, self.lif2 = (
            conv(channels, channels),
            lif_m(),
            conv(channels, channels),
            lif_m(),
        )
        self.after = after

    def forward(self, x):
        y = self.conv2(self.lif1(self.conv1(x)))
        return self.lif2(y) + x if self.after else self.lif2(y + x)


@pytest.mark.parametrize("after", [False, True], ids=["spiking resnet", "SEW"])
def test_residual_blocks(after):
    net = nn.Sequential(conv(3, 4), lif_m(), Block(4, after), Block(4, after), layer.Flatten(step_mode="m"))
    net.append(layer.Linear(4 * SIZE * SIZE, 5, step_mode="m"))
    assert neurons(net, IMAGES) == {
        "0.weight": "1",
        "2.conv1.weight": "2.lif1",
        "2.conv2.weight": "2.lif2",
        "3.conv1.weight": "3.lif1",
        "3.conv2.weight": "3.lif2",
        "5.weight": None,  # the classifier feeds none
    }


class PreActivation(nn.Module):
    """LIF -> conv -> LIF -> conv, and a 1x1 convolution of the raw input beside it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.lif1, self.conv1 = lif_m(), conv(inputs, outputs)
        self.lif2, self.conv2 = lif_m(), conv(outputs, outputs)
        self.shortcut = layer.Conv2d(inputs, outputs, 1, bias=False, step_mode="m")

    def forward(self, x):
        return self.conv2(self.lif2(self.conv1(self.lif1(x)))) + self.shortcut(x)


def test_pre_activation_takes_the_neuron_after_the_add_and_the_stem_the_first_block():
    net = nn.Sequential(conv(3, 4), PreActivation(4, 4), PreActivation(4, 6), lif_m())
    assert neurons(net, IMAGES) == {
        "0.weight": "1.lif1",
        "1.conv1.weight": "1.lif2",
        "1.conv2.weight": "2.lif1",
        "1.shortcut.weight": "2.lif1",
        "2.conv1.weight": "2.lif2",
        "2.conv2.weight": "3",
        "2.shortcut.weight": "3",
    }


def test_identity_shortcuts_pass_the_stem_on_to_its_first_neuron_only():
    class Identity(PreActivation):
        def forward(self, x):
            return self.conv2(self.lif2(self.conv1(self.lif1(x)))) + x

    net = nn.Sequential(conv(3, 4), Identity(4, 4), Identity(4, 4), lif_m())
    assert neurons(net, IMAGES)["0.weight"] == "1.lif1"


def test_containers_around_ordinary_layers():
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        lif_m(),
        layer.MultiStepContainer(nn.Conv2d(4, 4, 3, padding=1)),
        lif_m(),
        layer.SeqToANNContainer(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 7)),
        lif_m(),
    )
    assert neurons(net, IMAGES) == {"0.0.weight": "1", "2.0.weight": "3", "4.2.weight": "5"}


def test_single_step_loop_inside_the_model():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif, self.fc = nn.Conv2d(3, 4, 3), lif(), nn.Linear(4 * 36, 5)

        def forward(self, x):
            return torch.stack([self.fc(self.lif(self.conv(frame)).flatten(1)) for frame in x])

    assert neurons(Loop(), IMAGES) == {"conv.weight": "lif", "fc.weight": None}


def test_pooling_after_and_functions_between():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif = nn.Conv2d(3, 4, 3), lif()
            self.scale = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x):
            y = torch.nn.functional.avg_pool2d(self.conv(x) * self.scale, 2)
            return self.lif(torch.relu(y).contiguous())

    assert neurons(Net(), IMAGES[0]) == {"conv.weight": "lif"}


class TwoUses(nn.Module):
    """One convolution in front of two neurons."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = conv(3, 3), lif_m(), lif_m()

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x)))).mean((3, 4))


class Joined(nn.Module):
    """Two convolutions side by side in front of one neuron."""

    def __init__(self):
        super().__init__()
        self.stem, self.lif1 = conv(2, 4), lif_m()
        self.left, self.right, self.lif2 = conv(4, 4), conv(4, 4), lif_m()
        self.fc = layer.Linear(8, 5, step_mode="m")

    def forward(self, x):
        x = self.lif1(self.stem(x))
        return self.fc(self.lif2(torch.cat([self.left(x), self.right(x)], dim=2)).mean((3, 4)))


def attached(model, **keywords):
    optimizer = sgd(model)
    return optimizer, sp.Pruner(model, "criticality", sp.Cubic(to=0.5, end=4, every=2), **keywords).attach(optimizer)


def test_a_weight_that_feeds_two_neurons_is_named_with_both_and_may_be_excluded():
    model = nn.Sequential(conv(2, 3), lif_m(), TwoUses(), layer.Linear(3, 5, step_mode="m"))
    optimizer, _ = attached(model)
    with pytest.raises(InvalidValue, match=r"'2\.conv\.weight' .*'2\.first' and '2\.second'") as caught:
        train(model, optimizer, 1)
    assert "exclude=['2.conv.weight']" in str(caught.value)
    model = nn.Sequential(conv(2, 3), lif_m(), TwoUses(), layer.Linear(3, 5, step_mode="m"))
    optimizer, pruner = attached(model, exclude=["2.conv.weight"])
    train(model, optimizer, 4)
    assert pruner.alive == pruner.preview()[-1].kept
    # Magnitude does not ask.
    sp.prune(TwoUses(), "magnitude", sparsity=0.5)


def test_convolutions_joined_before_a_neuron_are_refused_by_name():
    model = Joined()
    optimizer, _ = attached(model)
    with pytest.raises(InvalidValue, match=r"'left\.weight' reaches 'lif2' through a cat") as caught:
        train(model, optimizer, 1)
    assert 20 <= len(str(caught.value)) <= 300
    model = Joined()
    optimizer, pruner = attached(model, exclude=["left", "right"])
    train(model, optimizer, 4)
    assert pruner.alive == pruner.preview()[-1].kept


def test_a_cat_of_time_steps_joins_no_channels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif = nn.Conv2d(3, 4, 3), lif_m()

        def forward(self, x):
            frames = [self.conv(frame).unsqueeze(0) for frame in x]
            return self.lif(torch.cat(frames))

    graph = trace(Net(), IMAGES, adapter=adapter_for(Net()))
    assert not pair(graph)["conv.weight"].joined


def test_nothing_that_feeds_a_neuron_is_refused():
    model = conv_net()
    optimizer, _ = attached(model, include=["8"])
    with pytest.raises(InvalidValue, match="no prunable layer feeds a spiking neuron"):
        train(model, optimizer, 1)


def test_a_forward_that_raises_leaves_nothing_behind():
    model = conv_net()
    with pytest.raises(RuntimeError):
        trace(model, torch.rand(T, 2, 7, SIZE, SIZE), adapter=adapter_for(model))
    optimizer, _ = attached(model)
    with pytest.raises(RuntimeError):
        model(torch.rand(T, 2, 7, SIZE, SIZE))
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.overrides._len_torch_function_stack() == 0
    functional.reset_net(model)
    train(model, optimizer, 3)


def test_tracing_disturbs_neither_averages_nor_membranes_nor_random_numbers():
    model = conv_net()
    model.insert(1, layer.Dropout(0.5, step_mode="m"))
    model(batch(1)[0])  # mid-sequence: membranes hold potentials with a graph
    membranes = [m.v for m in model.modules() if hasattr(m, "v")]
    state = {n: b.clone() for n, b in model.state_dict().items()}
    random = torch.get_rng_state()
    trace(model, batch(2)[0], adapter=adapter_for(model))
    assert_same(dict(model.state_dict()), state)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(a is b for a, b in zip(membranes, [m.v for m in model.modules() if hasattr(m, "v")], strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_does_not_depend_on_the_input_cannot_be_traced():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(3)

    with pytest.raises(InvalidValue, match="nothing to trace"):
        trace(Constant(), IMAGES)
