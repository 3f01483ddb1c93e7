"""Surrogate curves and the criticality score of membrane traces that can be worked by hand."""

import math

import pytest
import torch
from spikingjelly.activation_based import surrogate
from torch.testing import assert_close

from spikeprune.core.neuron import if_step, lif_step
from spikeprune.core.statistic import ChannelMean, SynapseMean
from spikeprune.core.surrogate import atan, curve_named, dspike, sigmoid
from spikeprune.model.adapter import surrogate_derivative


def heaviside(u):
    return (u >= 0).to(u)


def lif_trace(x, steps, v_reset=0.0):
    """v_pre of a LIF neuron with tau 2 whose input decays: v_pre = v + (x - v) / 2 = v / 2 + x / 2."""
    v, trace = torch.zeros(1), []
    for _ in range(steps):
        _, v_pre, v = lif_step(
            torch.tensor([x]), v, decay=0.5, gain=0.5, v_threshold=1.0, v_reset=v_reset, spike_function=heaviside
        )
        trace.append(v_pre)
    return torch.cat(trace)


def test_trace_worked_by_hand():
    # x = 1.5, tau = 2: v_pre = .75, no spike; .75/2 + .75 = 1.125, spike, v = 0; and again.
    assert_close(lif_trace(1.5, 4), torch.tensor([0.75, 1.125, 0.75, 1.125]))


def test_trace_with_soft_reset_worked_by_hand():
    # .75; 1.125 -> v = .125; .0625 + .75 = .8125; .40625 + .75 = 1.15625
    assert_close(lif_trace(1.5, 4, v_reset=None), torch.tensor([0.75, 1.125, 0.8125, 1.15625]))


def test_if_trace_worked_by_hand():
    # IF adds up: .6, 1.2 -> spike, v = 0, .6
    v, trace = torch.zeros(1), []
    for _ in range(3):
        _, v_pre, v = if_step(torch.tensor([0.6]), v, v_threshold=1.0, v_reset=0.0, spike_function=heaviside)
        trace.append(v_pre.item())
    assert trace == pytest.approx([0.6, 1.2, 0.6])


def test_score_of_the_hand_made_trace():
    # u = v_pre - 1 = -.25, .125, -.25, .125. ATan with alpha 2: 1 / (1 + (pi u)^2):
    #   pi * .25 = .7854, squared .6169: 1 / 1.6169 = .6185;  pi * .125 = .3927, squared .1542: 1 / 1.1542 = .8664
    # mean over T: (.6185 + .8664) / 2 = .7424
    far, near = 1 / (1 + (math.pi * 0.25) ** 2), 1 / (1 + (math.pi * 0.125) ** 2)
    assert far == pytest.approx(0.6185, abs=5e-5)
    assert near == pytest.approx(0.8664, abs=5e-5)
    statistic = ChannelMean(atan(2.0).derivative)
    for u in lif_trace(1.5, 4) - 1:
        statistic.step(u.view(1, 1))
    assert_close(statistic.result(), torch.tensor([(far + near) / 2]))


def test_order_of_reductions():
    # One channel, two images, two positions, two steps; `curve` is the identity.
    #   image 0: position 0 sees 0, 4 -> mean 2; position 1 sees 3, 3 -> mean 3; max 3
    #   image 1: position 0 sees 1, 1 -> mean 1; position 1 sees 0, 0 -> mean 0; max 1;  mean over images: 2
    # Any other order differs: max before the mean over T gives (3 + 4) / 2 = 3.5 and 1, mean 2.25.
    steps = torch.tensor([[[[0.0, 3.0]], [[1.0, 0.0]]], [[[4.0, 3.0]], [[1.0, 0.0]]]])  # [T, N, C, L]
    for space, expected in (("max", 2.0), ("mean", (2.5 + 0.5) / 2)):
        statistic = ChannelMean(lambda u: u.clone(), space)
        for step in steps:
            statistic.step(step)
        assert statistic.result().tolist() == [expected]


def test_atan_curve():
    u = torch.tensor([-1.0, -0.25, 0.0, 0.25, 1.0])
    assert_close(atan(2.0).derivative(u), 1 / (1 + (math.pi * u) ** 2))  # alpha / 2 = 1, pi alpha / 2 = pi
    assert atan(2.0).derivative(torch.tensor(1.0)).item() == pytest.approx(0.0920, abs=5e-5)  # 1 / (1 + 9.8696)
    assert_close(atan(2.0).value(u), torch.atan(math.pi * u) / math.pi + 0.5)
    assert_close(atan(2.0).derivative(u), surrogate_derivative(surrogate.ATan(alpha=2.0), u))


def test_dspike_curve():
    # k sech^2(k u) / (2 tanh(k/2)), k = 3: tanh 1.5 = .90515; at u = 0: 3 / 1.8103 = 1.657
    # at u = +-.5: sech^2 1.5 = 1 - .81930 = .18070; 3 * .18070 / 1.8103 = .299
    derivative = dspike(3.0).derivative(torch.tensor([0.0, 0.5, -0.5]))
    assert derivative.tolist() == pytest.approx([1.657, 0.299, 0.299], abs=5e-4)
    # The unclamped value runs beyond [0, 1]: (+-1 + .90515) / 1.8103 = 1.0524 and -.0524
    value = dspike(3.0).value(torch.tensor([0.0, 0.5, -0.5, 50.0, -50.0]))
    assert value.tolist() == pytest.approx([0.5, 1.0, 0.0, 1.0524, -0.0524], abs=5e-5)
    clamped = dspike(3.0, clamped=True)
    assert clamped.value(torch.tensor([50.0, -50.0])).tolist() == pytest.approx([1.0, 0.0])
    assert clamped.derivative(torch.tensor([0.51, -0.51, 0.5])).tolist() == pytest.approx([0, 0, 0.299], abs=5e-4)


def test_sigmoid_curve():
    # alpha s (1 - s): at 0, s = 1/2: 4 / 4 = 1; the framework's own backward agrees
    assert sigmoid(4.0).derivative(torch.tensor(0.0)).item() == 1.0
    u = torch.linspace(-1, 1, 9)
    assert_close(sigmoid(4.0).derivative(u), surrogate_derivative(surrogate.Sigmoid(alpha=4.0), u))


@pytest.mark.parametrize("name", ["atan", "sigmoid", "dspike", "dspike-clamped"])
def test_derivative_is_the_slope_of_value(name):
    curve, u = curve_named(name), torch.linspace(-0.45, 0.45, 19, dtype=torch.float64)
    slope = (curve.value(u + 1e-6) - curve.value(u - 1e-6)) / 2e-6
    assert_close(curve.derivative(u), slope, rtol=1e-6, atol=1e-6)


def test_synapse_score_by_hand():
    # Two inputs, one neuron, two images at one step, curve = identity: S[i] = mean_n u[n] x[n, i].
    #   u = 2, 4;  x = (1, 0), (1, 1):  input 0: (2 + 4) / 2 = 3;  input 1: (0 + 4) / 2 = 2
    statistic = SynapseMean(lambda u: u, lambda d, x: d.T @ x, lambda x: (x.shape[0], 1))
    statistic.step(torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert statistic.result().tolist() == [[3.0, 2.0]]
