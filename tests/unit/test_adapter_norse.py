"""The Norse adapter against a membrane trace worked by hand."""

from functools import partial

import norse.torch as norse
import pytest
import torch
from norse.torch.functional.lif_box import lif_box_feed_forward_step
from norse.torch.functional.threshold import threshold
from norse.torch.module.snn import SNNCell
from torch import nn
from torch.testing import assert_close

import spikeprune as sp
from spikeprune.core.errors import InvalidValue
from spikeprune.core.neuron import lif_step
from spikeprune.model.adapter import adapter_for
from spikeprune.model.pairing import pair
from spikeprune.model.trace import trace


def test_potential_before_firing_worked_by_hand():
    # LIFBox: v_pre = v + dt * tau_mem_inv * (x + v_leak - v) = v + 0.1 (x - v), threshold 1, reset to 0; x = 6:
    # 0.6;  0.6 + 0.1 * 5.4 = 1.14 fires -> 0;  0.6 again.
    cell = norse.LIFBoxCell()
    adapter = adapter_for(nn.Sequential(cell))
    x, state, seen = torch.full((1, 1), 6.0), None, []
    for _ in range(3):
        seen += [u + 1 for u in adapter.potentials(cell, (x, state))]
        _, state = cell(x, state)
    assert_close(torch.stack(seen).flatten(), torch.tensor([0.6, 1.14, 0.6]))


def test_a_module_over_time_gives_the_same_steps_as_its_cell():
    over_time, cell = norse.LIF(), norse.LIFCell()
    adapter = adapter_for(nn.Sequential(over_time))
    x = torch.rand(5, 2, 3) * 20
    whole = torch.stack(list(adapter.potentials(over_time, (x,))))
    state, single = None, []
    for x_t in x:
        single += list(adapter.potentials(cell, (x_t, state)))
        _, state = cell(x_t, state)
    assert_close(whole, torch.stack(single))


def test_normal_form_gives_the_same_potential():
    cell = norse.LIFBoxCell()
    adapter = adapter_for(nn.Sequential(cell))
    p = adapter.describe(cell)
    assert p is not None
    x = torch.rand(4, 3) * 8
    _, v_pre, _ = lif_step(
        x, 0.0, decay=p.decay, gain=p.gain, v_threshold=p.v_threshold, v_reset=p.v_reset, v_rest=p.v_rest,
        spike_function=adapter.surrogate(cell),
    )  # fmt: skip
    (u,) = adapter.potentials(cell, (x,))
    assert_close(u + p.v_threshold, v_pre)


def test_a_norse_network_is_paired_pruned_and_regrown():
    torch.manual_seed(0)
    model = norse.SequentialState(nn.Linear(16, 32), norse.LIFBoxCell(), nn.Linear(32, 10))
    graph = trace(model, torch.rand(2, 16), adapter=adapter_for(model))
    assert {n: p.neuron for n, p in pair(graph).items()} == {"0.weight": "1", "2.weight": None}
    pruner = sp.Pruner(model, sp.Criticality(regrow=0.2), sp.Cubic(to=0.9, begin=0, end=6, every=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach(optimizer)
    for _ in range(6):
        state, out = None, 0
        for _ in range(3):
            y, state = model(torch.rand(8, 16) * 20, state)
            out = out + y
        out.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pruner.alive == int(832 * 0.1 + 1e-6)
    assert pruner.rounds[0]["regrown"] > 0


def test_no_smooth_curve_says_what_to_try():
    cell = norse.LIFBoxCell()
    with pytest.raises(InvalidValue, match="surrogate='atan'"):
        adapter_for(nn.Sequential(cell)).smooth(cell, torch.zeros(1))


def test_a_neuron_that_keeps_its_surrogate_elsewhere_is_refused_by_its_name():
    x, net = torch.rand(3, 2, 6) * 20, norse.SequentialState(nn.Linear(6, 4), norse.LIFRefracCell(), nn.Linear(4, 2))
    with pytest.raises(InvalidValue, match="LIFRefracCell keeps no surrogate"):
        sp.prune(net, "criticality", 0.5, data=[x[0]])


def _own_step(x, state, p, dt):
    v = state.v + dt * p.tau_mem_inv * (x - state.v)
    spikes = threshold(v - p.v_th, p.method, p.alpha)
    return spikes, type(state)(v=v * (1 - spikes))


def _borrowed_step(x, state, p, dt):
    return lif_box_feed_forward_step(2 * x, state, p, dt)


def _cell(step):
    return SNNCell(step, norse.LIFBoxCell().initial_state, norse.LIFBoxParameters())


def test_a_step_of_the_users_own_is_read_if_it_calls_the_threshold_itself():
    torch.manual_seed(0)
    net = norse.SequentialState(nn.Linear(6, 4), _cell(_own_step), nn.Linear(4, 2))
    assert sp.prune(net, "criticality", 0.5, data=[torch.rand(2, 6) * 20]).sparsity == 0.5
    net = norse.SequentialState(nn.Linear(6, 4), _cell(_borrowed_step), nn.Linear(4, 2))
    with pytest.raises(InvalidValue, match=r"step of SNNCell does not call Norse's threshold.*; call it there, or"):
        sp.prune(net, "criticality", 0.5, data=[torch.rand(2, 6)])
    assert lif_box_feed_forward_step.__globals__["threshold"] is _own_step.__globals__["threshold"] is threshold


def test_a_step_that_was_exchanged_after_the_neuron_was_known_is_refused():
    cell = _cell(_own_step)
    adapter = adapter_for(nn.Sequential(cell))
    cell.activation = partial(_own_step)  # has no globals to look into
    with pytest.raises(InvalidValue, match="SNNCell does not call Norse's threshold"):
        list(adapter.potentials(cell, (torch.rand(2, 6),)))
