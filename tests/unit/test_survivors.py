"""Guards that were once broken on purpose and no test noticed. `python tests/mutants.py named` breaks them again."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import spikeprune as sp
from nets import conv_net
from spikeprune.core.errors import InvalidValue
from spikeprune.record.base import Impossible
from spikeprune.record.statistics import QUANTILES, NeuronStatistics
from spikeprune.runtime import native
from spikeprune.runtime.fuse.kernel import Call, Neuron, fire, statistics
from spikeprune.shrink.plan import ChannelPlan

SIGMOID = Neuron(0.5, 1.0, 0.0, 0.75, 0.0, 0.0, "sigmoid", 4.0)
needs_compiler = pytest.mark.skipif(native.library("fuse") is None, reason="no C++ compiler")


def test_shrink_refuses_a_cut_that_changes_the_output(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    masks = {"0.weight": torch.tensor([[True] * 4, [False] * 4, [True] * 4]), "0.bias": torch.tensor([1, 0, 1]).bool()}
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0
    assert sp.shrink(model, masks, torch.ones(1, 4))[1].cuts
    honest = ChannelPlan.apply

    def wrong(plan, small, *rest):
        honest(plan, small, *rest)
        with torch.no_grad():
            small[1].bias += 2e-5  # twice what is allowed
        return small

    monkeypatch.setattr(ChannelPlan, "apply", wrong)
    with pytest.raises(InvalidValue, match=r"nothing can be cut.*the network differs by 2e-05"):
        sp.shrink(model, masks, torch.ones(1, 4))


def sigmoid_gradient(u: torch.Tensor) -> torch.Tensor:
    """The derivative of sigmoid(4 u), in float64."""
    s = torch.sigmoid(4 * u.double())
    return 4 * s * (1 - s)


@needs_compiler
def test_gradients_of_a_sigmoid_far_from_the_threshold_are_0_and_not_nan():
    """exp(-4 |u|) leaves float32 at |u| = 22; the kernel's exponent would wrap around without its clamp."""
    y = torch.linspace(-400, 400, 2001)[:, None, None].requires_grad_()
    spikes, _ = fire(y, Call(1, SIGMOID))
    (gradient,) = torch.autograd.grad(spikes.sum(), y)
    assert bool(gradient.isfinite().all())
    assert_close(gradient.flatten().double(), sigmoid_gradient(y.detach().flatten() - 0.75), rtol=1e-5, atol=1e-12)


@needs_compiler
def test_the_exponential_of_the_kernel_is_right_to_float32():
    """Each coefficient of its polynomial matters: the second, wrong by 4e-4, shows at 7e-7 of the result.

    Potentials are multiples of 2^-10, which float32 holds exactly, so that only the exponential and four operations
    after it round.
    """
    u = torch.arange(-5 * 1024, 5 * 1024 + 1) / 1024
    y = (u + 0.75)[:, None, None].requires_grad_()
    spikes, _ = fire(y, Call(1, SIGMOID))
    (gradient,) = torch.autograd.grad(spikes.sum(), y)
    wanted = sigmoid_gradient(u)
    assert float(((gradient.flatten().double() - wanted) / wanted).abs().max()) < 6e-7


@needs_compiler
def test_the_variance_of_a_nearly_constant_channel_is_not_negative():
    """One value of 2^22 differs, which is the variance; sums of 32 squares of 3980 round down in float32, by more."""
    y = torch.full((1 << 22, 1), 3980.0)
    y[0] = 0.0
    mean, var = statistics(y, 1, False)
    assert float(mean) == pytest.approx(3980, rel=1e-6)
    assert float(var) >= 0.0


def test_a_share_keeps_its_first_value_before_its_own_begin():
    share = sp.Linear(to=0.0, initial=0.2, begin=10, end=20, every=1)
    assert [share.share(1, 3, step=step) for step in (0, 5, 10)] == pytest.approx([0.2, 0.2, 0.2])
    assert share.share(1, 3, step=15) == pytest.approx(0.1)
    assert [share.share(1, 3, step=step) for step in (20, 99)] == pytest.approx([0.0, 0.0])


def test_one_shot_happens_once_after_every_steps():
    assert sp.OneShot(0.5, every=3).steps() == (3,)
    assert sp.OneShot(0.5, begin=4, every=3).steps() == (7,)
    assert sp.OneShot(0.5, begin=4).steps() == (5,)
    assert [u.step for u in sp.Pruner(conv_net(), "magnitude", sp.OneShot(0.5, every=3)).preview()] == [3]


def test_a_statistics_file_has_as_many_values_as_quantiles():
    values = {"firing_rate": 0.1, "criticality": [0.0] * len(QUANTILES), "peak": 1.0}
    NeuronStatistics.read(values, "n")
    for number in (0, len(QUANTILES) - 1, len(QUANTILES) + 1):
        with pytest.raises(Impossible, match=f"{number} quantiles, must have 7"):
            NeuronStatistics.read({**values, "criticality": [0.0] * number}, "n")


@pytest.mark.parametrize(
    "text",
    [
        "from spikeprune.methods import magnitude",
        "import spikeprune.methods.magnitude",
        "def f():\n    from spikeprune.methods.magnitude import Magnitude",
        "def f():\n    from spikeprune.methods import magnitude as m",
    ],
)
def test_a_method_that_imports_another_is_seen(text, tmp_path):
    from test_architecture import imports

    file = tmp_path / "x.py"
    file.write_text(text)
    ast.parse(text)
    assert any(name.startswith("spikeprune.methods.magnitude") for name, _ in imports(Path(file)))
