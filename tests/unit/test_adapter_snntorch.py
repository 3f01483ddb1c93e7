"""The snnTorch adapter: potentials before firing against formulas worked by hand, and state left as it was."""

import copy

import pytest
import snntorch as snn
import torch
from torch import nn

import spikeprune as sp
from spikeprune.core.errors import InvalidValue
from spikeprune.core.neuron import lif_step
from spikeprune.integrations.snntorch import SnnTorch
from spikeprune.model.adapter import adapter_for

ADAPTER = SnnTorch()
STEPS = [0.75, 0.75, 0.75, 0.75, 0.0, 1.5]


def potentials(neuron: nn.Module, explicit: bool, steps: list[float] = STEPS) -> tuple[list[float], list[float]]:
    """v_pre as the adapter reads it before each step, and the spikes of the step itself."""
    seen, spikes, state = [], [], ()
    for value in steps:
        args = (torch.tensor([[value]]), *state)
        (u,) = ADAPTER.potentials(neuron, args)
        seen.append(round(float(u) + 1, 6))  # the threshold is 1
        result = neuron(*args)
        spike, *rest = result if isinstance(result, tuple) else (result,)
        state = tuple(rest) if explicit else ()
        spikes.append(float(spike))
    return seen, spikes


# beta = 1/2, threshold 1. zero: v_pre .75, 1.125 (fires, v = 0), .75, 1.125 (fires), 0, 1.5 (fires)
ZERO = ([0.75, 1.125, 0.75, 1.125, 0.0, 1.5], [0, 1, 0, 1, 0, 1])
# subtract with delay: v_pre(t) = v_pre(t-1) / 2 + x - spike(t-1):
#   .75, 1.125*, .5625 + .75 - 1 = .3125, .15625 + .75 = .90625, .453125, .2265625 + 1.5 = 1.726563*
DELAYED = ([0.75, 1.125, 0.3125, 0.90625, 0.453125, 1.726562], [0, 1, 0, 0, 0, 1])
# subtract at once: v = v_pre - spike: .75, 1.125* -> .125, .0625 + .75 = .8125, .40625 + .75 = 1.15625* -> .15625,
#   .078125, .0390625 + 1.5 = 1.539063*
AT_ONCE = ([0.75, 1.125, 0.8125, 1.15625, 0.078125, 1.539062], [0, 1, 0, 1, 0, 1])
# none: .75, 1.125*, 1.3125*, 1.40625*, .703125, .3515625 + 1.5 = 1.851562*
NONE = ([0.75, 1.125, 1.3125, 1.40625, 0.703125, 1.851562], [0, 1, 1, 1, 0, 1])


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize(
    ("mechanism", "delay", "expected"),
    [
        ("zero", True, ZERO),
        ("zero", False, ZERO),
        ("subtract", True, DELAYED),
        ("subtract", False, AT_ONCE),
        ("none", True, NONE),
    ],
)
def test_leaky_worked_by_hand(hidden, mechanism, delay, expected):
    neuron = snn.Leaky(beta=0.5, init_hidden=hidden, reset_mechanism=mechanism, reset_delay=delay)
    seen, spikes = potentials(neuron, explicit=not hidden)
    assert seen == pytest.approx(expected[0], abs=2e-6)
    assert spikes == expected[1]


def test_synaptic_worked_by_hand():
    # alpha = beta = 1/2, reset zero: syn = .75, 1.125, ...; mem = .75 / 2 + 1.125 = 1.5 (fires, v = 0)
    # third step: syn = .5625 + .75 = 1.3125; mem = 0.5 * (1.5 - 1.5)... the delayed reset clears the whole sum: 0
    neuron = snn.Synaptic(alpha=0.5, beta=0.5, reset_mechanism="zero", init_hidden=True)
    seen, spikes = potentials(neuron, explicit=False, steps=[0.75, 0.75, 0.75])
    assert seen == pytest.approx([0.75, 1.5, 0.0], abs=1e-6)
    assert spikes == [0, 1, 0]


def test_lapicque_worked_by_hand():
    # beta = exp(-1): R C = 1, so v_pre = x + 0 * v
    neuron = snn.Lapicque(beta=torch.exp(torch.tensor(-1.0)), reset_mechanism="none", init_hidden=True)
    seen, _ = potentials(neuron, explicit=False, steps=[0.75, 0.25])
    assert seen == pytest.approx([0.75, 0.25], abs=1e-6)


@pytest.mark.parametrize("delay", [True, False])
def test_described_neuron_is_core_lif(delay):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(12, 2, 3, generator=generator) * 1.4
    neuron = snn.Leaky(beta=torch.tensor([0.3, 0.6, 0.9]), threshold=0.8, reset_mechanism="zero", reset_delay=delay)
    form = ADAPTER.describe(neuron)
    assert form is not None
    assert form.strict
    state, v = (), 0.0
    for value in x:
        (u,) = ADAPTER.potentials(neuron, (value, *state))
        spike, v_pre, v = lif_step(
            value,
            v,
            decay=form.decay,
            gain=form.gain,
            v_threshold=form.v_threshold,
            v_reset=form.v_reset,
            spike_function=lambda z: (z > 0).float(),
        )
        torch.testing.assert_close(u, v_pre - form.v_threshold)
        fired, *state = neuron(value, *state)
        assert torch.equal(fired, spike)


@pytest.mark.parametrize("neuron", [snn.Leaky(beta=0.5), snn.Lapicque(beta=0.5), snn.Synaptic(alpha=0.5, beta=0.4)])
def test_what_is_no_normal_form_is_not_described(neuron):
    assert ADAPTER.describe(neuron) is None


def test_reading_changes_nothing():
    neuron = snn.Leaky(beta=0.5, init_hidden=True)
    neuron(torch.rand(2, 3, requires_grad=True) + 1)
    buffers, attributes = dict(neuron._buffers), dict(neuron.__dict__)
    list(ADAPTER.potentials(neuron, (torch.rand(2, 3),)))
    assert all(neuron._buffers[name] is value for name, value in buffers.items())
    assert all(neuron.__dict__[name] is value for name, value in attributes.items())


def test_begins_when_no_potential_is_carried():
    neuron = snn.Leaky(beta=0.5)
    x = torch.ones(2, 3)
    assert ADAPTER.begins(neuron, (x,))
    _, mem = neuron(x)
    assert not ADAPTER.begins(neuron, (x, mem))
    assert ADAPTER.begins(neuron, (x, neuron.reset_mem()))
    assert ADAPTER.begins(neuron, (torch.ones(1, 3),))


def test_reset_lets_the_model_be_copied_and_restore_puts_state_back():
    model = nn.Sequential(nn.Linear(3, 4), snn.Leaky(beta=0.5, init_hidden=True))
    assert isinstance(adapter_for(model), SnnTorch)
    model(torch.rand(2, 3))
    mem = model[1].mem
    states = ADAPTER.states(model)
    ADAPTER.reset(model)
    copy.deepcopy(model)
    assert model[1].mem.numel() == 0
    ADAPTER.restore(model, states)
    assert model[1].mem is mem


def test_surrogate_derivative_is_the_neurons_own():
    # ATan, alpha = 2: 1 / (1 + (pi x)^2) / pi * ... at 0 snnTorch gives alpha / 2 / (1 + 0) = 1
    neuron = snn.Leaky(beta=0.5)
    derivative = ADAPTER.derivative(neuron, torch.tensor([0.0, 1.0]))
    assert derivative.tolist() == pytest.approx([1.0, 1 / (1 + torch.pi**2)], abs=1e-6)


def test_smooth_curve_is_refused_with_a_way_out():
    with pytest.raises(InvalidValue, match="surrogate='atan'"):
        ADAPTER.smooth(snn.Leaky(beta=0.5), torch.zeros(1))


def test_a_neuron_that_fires_by_itself_is_refused_by_its_name():
    class Hard(snn.Leaky):
        def forward(self, x):
            return (x > self.threshold).float()

    net = nn.Sequential(nn.Linear(6, 4), Hard(beta=0.5), nn.Linear(4, 2))
    with pytest.raises(InvalidValue, match=r"Hard fires without its spike_grad.*; register an adapter of your own"):
        sp.prune(net, "criticality", 0.5, data=[torch.rand(2, 6)])
