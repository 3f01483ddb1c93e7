"""Curves by name, and derivatives read from a spike function's own backward."""

import pytest
import torch
from spikingjelly.activation_based import surrogate

from spikeprune.core.errors import InvalidValue, UnknownName
from spikeprune.core.surrogate import CURVES, curve_named
from spikeprune.model.adapter import surrogate_derivative


@pytest.mark.parametrize("name", sorted(CURVES))
def test_curves_rise_through_one_half_and_peak_at_the_threshold(name):
    curve, u = curve_named(name), torch.linspace(-2, 2, 401)
    value, slope = curve.value(u), curve.derivative(u)
    assert (value.diff() >= 0).all()
    assert curve.value(torch.zeros(())).item() == pytest.approx(0.5)
    assert slope.argmax() == 200
    assert (slope >= 0).all()


def test_unknown_curve_offers_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'dspike'"):
        curve_named("dspik")


def test_every_surrogate_of_the_framework_is_differentiated():
    u = torch.tensor([-0.5, 0.0, 0.5])
    for function in (surrogate.Sigmoid(), surrogate.ATan(), surrogate.Erf(), surrogate.PiecewiseQuadratic()):
        slope = surrogate_derivative(function, u)
        assert slope.shape == u.shape
        assert slope[1] == slope.max() > 0
    assert not u.requires_grad


def test_works_inside_no_grad_and_leaves_no_graph():
    with torch.no_grad():
        slope = surrogate_derivative(surrogate.ATan(), torch.zeros(2))
    assert not slope.requires_grad


def test_a_function_without_gradient_is_refused():
    with pytest.raises(InvalidValue, match="surrogate='atan'"):
        surrogate_derivative(lambda u: (u >= 0).float(), torch.zeros(2))
