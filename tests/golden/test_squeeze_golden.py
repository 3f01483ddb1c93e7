"""The least squares of a squeeze against numbers worked out by hand and against brute force in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spikeprune.squeeze.layers import row_weights
from spikeprune.squeeze.rows import patches
from spikeprune.squeeze.select import Quantities, comparable, path, score
from spikeprune.squeeze.solve import LeastSquares, Solver, inverse_diagonal, solve

DOUBLE = torch.float64


def test_two_inputs_by_hand():
    """One neuron, dense weights (1, 2), rows x = (1, 0), (1, 1); y = 1, 3; c = 1, 3. The first weight is kept.

    A = 1*1 + 3*1 = 4;  b = 1*1*1 + 3*1*3 = 10;  without ridge w = 10 / 4 = 2.5.
    With ridge 0.5: lam = 0.5 * 4 = 2, w = (10 + 2 * 1) / (4 + 2) = 2.   All rows alike: A = 2, b = 4, w = 2.
    """
    x, y = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=DOUBLE), torch.tensor([[1.0, 3.0]], dtype=DOUBLE)
    c = torch.tensor([[1.0, 3.0]], dtype=DOUBLE)
    dense, mask = torch.tensor([[1.0, 2.0]], dtype=DOUBLE), torch.tensor([[True, False]])
    for how in ("direct", "iterative"):
        for weights, ridge, expected in ((c, 0.0, 2.5), (c, 0.5, 2.0), (None, 0.0, 2.0)):
            solver = Solver(ridge=ridge, how=how, tolerance=1e-12)
            w = solve(LeastSquares(x, y, weights), dense, mask, dense, solver)
            torch.testing.assert_close(w, torch.tensor([[expected, 0.0]], dtype=DOUBLE), atol=1e-9, rtol=0)


def test_scores_by_hand():
    """w = (3, -1), sum x^2 = (1, 4), sum c x^2 = (1, 16): energy (9, 4), critical (9, 16), wanda (3, 2).

    LAMP's form of (9, 4): the larger over itself, 9/9 = 1; the smaller over both, 4/13.
    """
    w = torch.tensor([[3.0, -1.0]])
    known = Quantities(torch.tensor([[1.0, 4.0]]), torch.tensor([[1.0, 16.0]]), 2.0, inverse=torch.tensor([[0.5, 0.1]]))
    expected = {"magnitude": [9, 1], "energy": [9, 4], "critical": [9, 16], "wanda": [3, 2], "obs": [18, 10]}
    for name, values in expected.items():
        torch.testing.assert_close(score(name, w, known), torch.tensor([values], dtype=DOUBLE), atol=1e-6, rtol=1e-6)
    energy, alive = {"a": score("energy", w, known)}, {"a": torch.ones(1, 2, dtype=torch.bool)}
    torch.testing.assert_close(comparable("lamp", energy, {"a": known}, alive)["a"][0, 1].item(), 4 / 13)
    assert comparable("energy", energy, {"a": known}, alive)["a"].tolist() == [[4.5, 2.0]]
    assert comparable("neuron", energy, {"a": known}, alive)["a"].tolist() == [[1.0, 0.5]]


def test_row_weights_by_hand():
    """c = (1, 3) has mean 2: (0.5, 1.5) + eps. Squared, (1, 9) has mean 5: (0.2, 1.8) + eps."""
    c = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    found = row_weights(c, 1.0, 0.25, per_output=True)
    assert found.tolist() == [[0.75, 1.75], [1.25, 1.25]]  # an output that is never near weighs its rows alike
    torch.testing.assert_close(row_weights(c[:1], 2.0, 0.0, per_output=True), torch.tensor([[0.2, 1.8]]))
    torch.testing.assert_close(row_weights(c, 1.0, 0.0, per_output=False), torch.tensor([[1.0, 3.0], [0.0, 0.0]]))


def test_path_falls_in_equal_ratios():
    assert path(80, 10, 3) == pytest.approx([40, 20, 10])
    assert path(100, 7, 1) == [7]


LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 5, 6)),
    "tokens": (nn.Linear(6, 4), (3, 2, 5, 6)),
    "conv": (nn.Conv2d(3, 4, 3), (2, 3, 6, 7)),
    "stride and padding": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2)), (2, 3, 7, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "dilation": (nn.Conv2d(2, 3, 3, dilation=2, padding="same"), (2, 2, 6, 5)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 6, 5)),
    "reflect": (nn.Conv1d(2, 3, 5, padding=2, padding_mode="reflect", stride=2), (2, 2, 9)),
    "3d": (nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 4, 5, 3)),
    "time": (nn.Conv2d(3, 4, 3, padding=1), (3, 2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_weight_is_the_layer(name):
    layer, shape = LAYERS[name]
    layer = layer.double()
    x = torch.randn(shape, dtype=DOUBLE)
    dims = layer.weight.ndim - 2
    flat = x.flatten(0, len(shape) - dims - 2) if dims > 0 and len(shape) > dims + 2 else x
    with torch.no_grad():
        out = layer(flat)
        bias = layer.bias
        want = (out if dims == 0 else out.movedim(1, -1)).reshape(-1, layer.weight.shape[0]) - bias
        index = torch.randperm(len(want))[:20].sort().values
        rows = patches(layer, x, out.shape[out.ndim - dims :] if dims else (), index)
        groups = getattr(layer, "groups", 1)
        weight = layer.weight.flatten(1).view(groups, -1, rows.shape[2])
        got = torch.einsum("rgi,goi->rgo", rows, weight).flatten(1)
    torch.testing.assert_close(got, want[index])


def brute_force(x, y, c, dense, mask, ridge):
    """The same minimum by stacking sqrt(c) rows and sqrt(lam) rows and asking lstsq, output by output."""
    result = torch.zeros_like(dense)
    for o in range(len(dense)):
        s = mask[o].nonzero().flatten()
        if not len(s):
            continue
        a, root = x[s].T, c[o].sqrt()
        lam = ridge * (c[o][:, None] * a.square()).sum(0).mean()
        stacked = torch.cat([a * root[:, None], lam.sqrt() * torch.eye(len(s), dtype=DOUBLE)])
        right = torch.cat([y[o] * root, lam.sqrt() * dense[o, s]])
        result[o, s] = torch.linalg.lstsq(stacked, right[:, None]).solution[:, 0]
    return result


@pytest.mark.parametrize("how", ["direct", "iterative"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("groups", "depthwise")])
def test_solve_equals_brute_force(name, weighted, how):
    layer, shape = LAYERS[name]
    layer = layer.double()
    x = (torch.rand(shape, dtype=DOUBLE) < 0.4).double() + 0.1 * torch.rand(shape, dtype=DOUBLE)
    dims = layer.weight.ndim - 2
    with torch.no_grad():
        flat = x.flatten(0, len(shape) - dims - 2) if dims > 0 and len(shape) > dims + 2 else x
        out = layer(flat)
        count = out.numel() // layer.weight.shape[0]
        rows = patches(layer, x, out.shape[out.ndim - dims :] if dims else (), torch.arange(count))[:, 0].T
        dense = layer.weight.flatten(1).clone()
    y = dense @ rows
    c = torch.rand(len(dense), count, dtype=DOUBLE) + 0.05 if weighted else torch.ones(len(dense), count, dtype=DOUBLE)
    mask = torch.rand(dense.shape) < 0.4
    mask[0] = False  # an output without a kept weight
    problem = LeastSquares(rows, y, c if weighted else None)
    solver = Solver(ridge=1e-2, how=how, iterations=400, tolerance=1e-12)
    w = solve(problem, dense, mask, torch.zeros_like(dense), solver)
    assert bool((w[~mask] == 0).all())
    torch.testing.assert_close(w, brute_force(rows, y, c, dense, mask, 1e-2), atol=1e-8, rtol=1e-6)
    # The error that is told is the one of these weights.
    off, whole = problem.error(w)
    assert off == pytest.approx(float((c * (w @ rows - y).square()).sum()))
    assert whole == pytest.approx(float((c * y.square()).sum()))


def test_inverse_diagonal_equals_brute_force():
    x, c = torch.randn(5, 40, dtype=DOUBLE), torch.rand(3, 40, dtype=DOUBLE) + 0.1
    mask = torch.rand(3, 5) < 0.7
    found = inverse_diagonal(LeastSquares(x, torch.zeros(3, 40, dtype=DOUBLE), c), mask, Solver(ridge=0.1))
    for o in range(3):
        s = mask[o].nonzero().flatten()
        a = (x[s] * c[o]) @ x[s].T
        lam = 0.1 * a.diagonal().mean()
        torch.testing.assert_close(found[o, s], (a + lam * torch.eye(len(s))).inverse().diagonal())
        assert bool((found[o][~mask[o]] == 1).all())


def test_rows_of_a_conv_over_time_carry_their_own_criticality():
    """Every row's c is the surrogate's derivative at that very time step, image and position."""
    from spikingjelly.activation_based import functional

    from nets import batch, conv_net
    from spikeprune.model.adapter import adapter_for
    from spikeprune.model.pairing import pair
    from spikeprune.model.trace import trace
    from spikeprune.squeeze.rows import Drawing, collect

    net = conv_net().eval()
    x, _ = batch(0)
    adapter = adapter_for(net)
    pairs = pair(trace(net, x, adapter=adapter))
    layers = {"0.weight": [net[0]], "4.weight": [net[4]]}
    drawing = Drawing(net, adapter, layers, pairs, dict.fromkeys(layers, 1.0), adapter.derivative, seed=0)
    rows = collect(net, adapter, [x], drawing)
    with torch.no_grad():
        functional.reset_net(net)
        current = net[1](net[0](x))
        v = torch.zeros_like(current[0])
        expected = []
        for step in current:
            v = v + (step - v) / 2
            expected.append(adapter.derivative(net[2], v - 1))
            v = v * (v < 1)
        functional.reset_net(net)
    want = torch.stack(expected).movedim(2, -1).reshape(-1, 4).T
    torch.testing.assert_close(rows["0.weight"].c, want)
    unfolded = F.unfold(x.flatten(0, 1), 3, padding=1).transpose(1, 2).reshape(-1, 18).T
    torch.testing.assert_close(rows["0.weight"].x[0], unfolded)
