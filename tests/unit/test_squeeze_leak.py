"""`weighting="membrane"`: the inputs as the membrane gathers them, as SBC takes them."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import spikeprune as sp
from spikeprune.core.errors import InvalidValue
from spikeprune.squeeze.leak import Leak

pytestmark = pytest.mark.filterwarnings("ignore:.*so the ridge decides")
T, N = 3, 40


def net(step_mode: str = "m") -> nn.Sequential:
    torch.manual_seed(0)
    found = nn.Sequential(
        layer.Linear(6, 5, bias=False), neuron.LIFNode(tau=4.0, v_threshold=0.2, step_mode="m"),
        layer.Linear(5, 3, bias=False),
    )  # fmt: skip
    functional.set_step_mode(found, step_mode)
    return found.eval()


def images() -> Tensor:
    return torch.rand(T, N, 6, generator=torch.Generator().manual_seed(1)) * 3


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net("s")

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(step) for step in x])


def test_inputs_are_gathered_as_worked_by_hand():
    x = torch.tensor([[[1.0]], [[2.0]], [[4.0]]])  # decay 1/2: 1, 2 + 1/2, 4 + 5/4
    want = torch.tensor([[[1.0]], [[2.5]], [[5.25]]])
    assert torch.equal(Leak(0.5, multi_step=True).gather(nn.Linear(1, 1), x), want)
    leak = Leak(0.5, multi_step=False)
    assert torch.equal(torch.stack([leak.gather(nn.Linear(1, 1), step) for step in x]), want)
    leak.forget()
    assert torch.equal(leak.gather(nn.Linear(1, 1), x[2]), x[2])


def test_time_that_cannot_be_seen_is_said():
    assert Leak(0.5, multi_step=True).gather(nn.Conv2d(1, 1, 1), torch.ones(6, 1, 2, 2)) is None
    flat = nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 5, bias=False), nn.Unflatten(0, (T, N)), net()[1])
    out = sp.squeeze(flat.eval(), [images()], 0.5, weighting="membrane", rounds=1)
    assert "does not show the time steps" in out.table()[0].note


def test_the_solution_is_the_least_squares_of_potentials_without_reset():
    dense = net()
    w = dense[0].weight.detach().double()
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(2)) < 0.6
    x, gathered = images().double(), []
    for step in x:
        gathered.append(step + (0.75 * gathered[-1] if gathered else 0))
    rows = torch.cat(gathered)  # [T N, 6]
    want = torch.zeros_like(w)
    for o in range(5):
        s = mask[o].nonzero().flatten()
        want[o, s] = torch.linalg.lstsq(rows[:, s], rows @ w[o]).solution
    model = net()
    sp.squeeze(model, [images()], masks={"0.weight": mask}, weighting="membrane", ridge=0.0, rows=10_000)
    torch.testing.assert_close(model[0].weight.detach().double(), want, atol=5e-3, rtol=0)
    plain = copy.deepcopy(dense)
    sp.squeeze(plain, [images()], masks={"0.weight": mask}, weighting="none", ridge=0.0, rows=10_000)
    assert not torch.allclose(plain[0].weight, model[0].weight, atol=2e-2)


def test_single_and_multi_step_agree():
    multi, loop = net(), Loop().eval()
    a = sp.squeeze(multi, [images()], 0.5, weighting="membrane", rows=10_000)
    b = sp.squeeze(loop, [images()], 0.5, weighting="membrane", rows=10_000)
    for name, mask in a.masks.items():
        assert torch.equal(mask, b.masks[f"net.{name}"])
        torch.testing.assert_close(multi.get_parameter(name), loop.get_parameter(f"net.{name}"), atol=1e-4, rtol=1e-3)


def test_it_measures_no_criticality_and_says_so():
    with pytest.raises(InvalidValue, match="weighting='membrane' does not measure"):
        sp.squeeze(net(), [images()], 0.5, weighting="membrane", oversample=2)
    with pytest.raises(InvalidValue, match="weighting='none'"):
        sp.squeeze(nn.Sequential(nn.Linear(6, 3)), [images()[0]], 0.5, weighting="membrane")
