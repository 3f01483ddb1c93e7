"""SpikingJelly's neurons: v_pre - v_threshold as the surrogate sees it, equal to the step of core/neuron.py."""

import pytest
import torch
from spikingjelly.activation_based import base, functional, neuron, surrogate
from torch import nn
from torch.testing import assert_close

import spikeprune as sp
from nets import lif
from spikeprune.core.errors import InvalidValue
from spikeprune.core.neuron import lif_step
from spikeprune.integrations import adapter_for, find_adapter
from spikeprune.integrations.spikingjelly import SpikingJelly

pytestmark = pytest.mark.compat  # here, and against SpikingJelly 0.0.0.0.14 by `make test-compat`
ADAPTER = SpikingJelly()
ATAN = surrogate.ATan()
T, N, C = 6, 3, 4
FUNCTIONAL = pytest.mark.skipif(
    not hasattr(neuron.LIFNode, "single_step_functional_forward"), reason="SpikingJelly before 2.0"
)

PLAIN = {
    "IF": lambda **k: neuron.IFNode(**k),
    "IF soft": lambda **k: neuron.IFNode(v_reset=None, **k),
    "LIF": lambda **k: neuron.LIFNode(tau=2.0, **k),
    "LIF no input decay": lambda **k: neuron.LIFNode(tau=4 / 3, decay_input=False, v_threshold=0.5, **k),
    "LIF soft": lambda **k: neuron.LIFNode(tau=3.0, v_reset=None, **k),
    "LIF v_reset": lambda **k: neuron.LIFNode(tau=3.0, v_reset=-0.25, **k),
    "LIF v_reset no input decay": lambda **k: neuron.LIFNode(tau=3.0, v_reset=-0.25, decay_input=False, **k),
    "PLIF": lambda **k: neuron.ParametricLIFNode(init_tau=1.7, **k),
    "PLIF soft": lambda **k: neuron.ParametricLIFNode(init_tau=2.5, v_reset=None, decay_input=False, **k),
}


def sequence(seed=0):
    return 2 * torch.rand(T, N, C, 2, 2, generator=torch.Generator().manual_seed(seed))


def reference(node, x):
    """u and spikes by core/neuron.py, from the neuron's own description."""
    p = ADAPTER.describe(node)
    v = 0.0 if node.v_reset is None else node.v_reset
    us, spikes = [], []
    for frame in x:
        spike, v_pre, v = lif_step(
            frame, v, decay=p.decay, gain=p.gain, v_threshold=p.v_threshold, v_reset=p.v_reset, v_rest=p.v_rest,
            spike_function=node.surrogate_function,
        )  # fmt: skip
        us.append(v_pre - p.v_threshold)
        spikes.append(spike)
    return torch.stack(us), torch.stack(spikes)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", sorted(PLAIN))
@pytest.mark.parametrize("training", [True, False])
def test_potentials_equal_the_reference_step(name, mode, training):
    node = PLAIN[name](surrogate_function=ATAN, step_mode=mode).train(training)
    x = sequence()
    expected, spikes = reference(node, x)
    if mode == "m":
        us, fired = torch.stack(list(ADAPTER.potentials(node, (x,)))), node(x)
    else:
        us, fired = [], []
        for frame in x:
            us += list(ADAPTER.potentials(node, (frame,)))
            fired.append(node(frame))
        us, fired = torch.stack(us), torch.stack(fired)
    assert_close(us, expected)
    assert torch.equal(fired, spikes)
    assert 0 < fired.mean() < 1
    assert not us.requires_grad


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_looking_leaves_the_neuron_alone(name):
    x = sequence()
    node, twin = (PLAIN[name](surrogate_function=ATAN, step_mode="m") for _ in range(2))
    node(x), twin(x)
    v = node.v
    for _ in ADAPTER.potentials(node, (x,)):
        pass
    assert node.v is v
    assert node.surrogate_function is ATAN
    assert torch.equal(node(x), twin(x))
    generator = ADAPTER.potentials(node, (x,))
    next(generator)  # given up half way
    generator.close()
    assert node.surrogate_function is ATAN
    assert torch.equal(node(x), twin(x))


def test_sequences_begin_where_no_potential_is_carried_over():
    node = lif(step_mode="s")
    x = sequence()[0]
    assert ADAPTER.begins(node, (x,))
    node(x)
    assert not ADAPTER.begins(node, (x,))
    functional.reset_net(node)
    assert ADAPTER.begins(node, (x,))


class Adaptive(neuron.SimpleBaseNode if hasattr(neuron, "SimpleBaseNode") else neuron.BaseNode):
    """A user's own charge step, written in place."""

    def neuronal_charge(self, x):
        self.v *= 0.5
        self.v += x


class Drifting(neuron.LIFNode):
    """A user's subclass with a charge of its own, in the words of SpikingJelly 2.0."""

    def single_step_functional_forward(self, inputs, states):
        (x,) = inputs
        v = states[0] * 0.5 + x + 0.1
        spike = self.surrogate_function(v - self.v_threshold)
        return (spike,), (v * (1 - spike), *states[1:])


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_user_charge_step_written_in_place_is_read_and_left_alone(mode):
    node, twin = Adaptive(surrogate_function=ATAN, step_mode=mode), Adaptive(surrogate_function=ATAN, step_mode=mode)
    x = sequence()
    us, spikes, v = [], [], torch.zeros_like(x[0])
    for frame in x:
        v = v * 0.5 + frame
        us.append(v - 1)
        spikes.append((v >= 1).float())
        v = v * (1 - spikes[-1])
    with torch.no_grad():
        if mode == "m":
            assert_close(torch.stack(list(ADAPTER.potentials(node, (x,)))), torch.stack(us))
            assert torch.equal(node(x), twin(x))
        for t, frame in enumerate(x) if mode == "s" else ():
            assert_close(torch.stack(list(ADAPTER.potentials(node, (frame,))))[0], us[t])
            assert torch.equal(node(frame), twin(frame))
    assert ADAPTER.describe(node) is None


@FUNCTIONAL
def test_a_user_subclass_of_a_known_neuron_is_read_by_its_own_dynamics():
    node = Drifting(surrogate_function=ATAN)
    x = sequence()
    v = torch.zeros_like(x[0])
    for frame in x:
        v = v * 0.5 + frame + 0.1
        (u,) = ADAPTER.potentials(node, (frame,))
        assert_close(u, v - 1)
        assert torch.equal(node(frame), (u >= 0).float())
        v = v * (v < 1)
    assert ADAPTER.describe(node) is None


@FUNCTIONAL
def test_the_potential_of_a_subclass_is_that_of_the_forward_which_runs():
    node = Drifting(surrogate_function=ATAN, step_mode="m")  # LIFNode's steps over time do not call the subclass's step
    x = sequence()
    u = torch.stack(list(ADAPTER.potentials(node, (x,))))
    spikes = node(x)
    assert spikes.any()
    assert torch.equal((u >= 0).float(), spikes)


def test_derivative_and_smooth_curve_are_those_of_the_neurons_own_surrogate():
    node = lif()
    u = torch.linspace(-1, 1, 9)
    assert_close(ADAPTER.derivative(node, u), 1 / (1 + (torch.pi * u) ** 2))  # ATan, alpha 2
    assert_close(ADAPTER.smooth(node, u), torch.atan(torch.pi * u) / torch.pi + 0.5)
    sigmoid = neuron.IFNode(surrogate_function=surrogate.Sigmoid(alpha=4.0))
    assert_close(ADAPTER.smooth(sigmoid, u), torch.sigmoid(4 * u))


def test_a_surrogate_without_a_smooth_curve_is_named():
    class Bare(nn.Module):
        def forward(self, u):
            return ATAN(u)

    with pytest.raises(InvalidValue, match="Bare has no smooth forward curve") as caught:
        ADAPTER.smooth(neuron.IFNode(surrogate_function=Bare()), torch.zeros(2))
    assert "surrogate='atan'" in str(caught.value)


def test_whether_a_neuron_fires_at_its_threshold_is_seen_anew_when_its_surrogate_changes():
    class Late(surrogate.ATan):
        strict = 0

        def forward(self, x):
            return (x > 0).to(x) if self.strict else (x >= 0).to(x)

    node = neuron.LIFNode(surrogate_function=Late())
    adapter = adapter_for(node)
    assert not adapter.describe(node).strict
    node.surrogate_function.strict = 1
    assert adapter.describe(node).strict


def test_models_and_their_neurons():
    model = nn.Sequential(nn.Linear(4, 4), lif(step_mode="m"), nn.Linear(4, 4), neuron.IFNode())
    assert list(ADAPTER.neurons(model)) == ["1", "3"]
    assert ADAPTER.multi_step(model[1])
    assert not ADAPTER.multi_step(model[3])
    assert isinstance(adapter_for(model), SpikingJelly)
    model[1](torch.rand(T, N, 4))
    states = ADAPTER.states(model)
    v = model[1].v
    ADAPTER.reset(model)
    assert ADAPTER.begins(model[1], ())
    ADAPTER.restore(model, states)
    assert model[1].v is v


def test_a_model_without_spiking_neurons():
    assert find_adapter(nn.Linear(2, 2)) is None
    with pytest.raises(InvalidValue, match="has no spiking neuron") as caught:
        adapter_for(nn.Linear(2, 2))
    assert 20 <= len(str(caught.value)) <= 300


class Stepless(nn.Module, base.StepModule):
    """A neuron that is no BaseNode and has no step of SpikingJelly's."""

    def __init__(self, step_mode="s"):
        super().__init__()
        self.surrogate_function, self.step_mode = ATAN, step_mode

    def forward(self, x):
        return self.surrogate_function(x - 1)


class Doubled(Stepless):
    def forward(self, x):
        return torch.maximum(self.surrogate_function(x - 1), self.surrogate_function(-x - 1))


class Fixed(Stepless):
    def forward(self, x):
        assert len(x) == T, f"takes {T} steps"
        return self.surrogate_function(x - 1)


class Unspied(neuron.BaseNode):
    """Neither the neuron's forward nor its step shows what the surrogate is called with."""

    def forward(self, x):
        return (x >= 1).to(x)


class Speechless(Unspied):
    def single_step_functional_forward(self, inputs, states):
        raise ValueError


class Unseen(Unspied):
    def single_step_functional_forward(self, inputs, states):
        return (inputs[0] >= 1).to(inputs[0]), states


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (Stepless(), "potential of Stepless before firing cannot be read; derive it from BaseNode or register"),
        (Doubled("m"), "Doubled calls its surrogate_function 2 times for 6 time steps.*exclude the layers before it"),
        pytest.param(Unspied(), r"Unspied has no single.*Unspied must implement.*exclude the layers", marks=FUNCTIONAL),
        pytest.param(Speechless(), r"potential could be read \(ValueError\); register an adapter", marks=FUNCTIONAL),
        pytest.param(Unseen(), "Unseen fires without its surrogate_function.*register an adapter", marks=FUNCTIONAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_neuron_whose_potential_cannot_be_read_is_refused_by_its_name(node, words):
    x = torch.rand(T, N, 6) if node.step_mode == "m" else torch.rand(N, 6)
    with pytest.raises(InvalidValue, match=words):
        sp.prune(nn.Sequential(nn.Linear(6, 4), node, nn.Linear(4, 2)), "criticality", 0.5, data=[x])


def test_a_neuron_that_takes_other_time_steps_than_a_later_batch_has_says_so():
    net = nn.Sequential(nn.Linear(6, 4), Fixed("m"), nn.Linear(4, 2))
    with pytest.raises(InvalidValue, match=r"Fixed cannot take an input of shape \[5, 3, 4\]: takes 6 steps; see"):
        sp.prune(net, "criticality", 0.5, data=[torch.rand(T, N, 6), torch.rand(T - 1, N, 6)])
    assert net[1].surrogate_function is ATAN
