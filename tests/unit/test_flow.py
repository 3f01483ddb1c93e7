"""SynFlow and the flow that it ranks by: worked by hand, alike in all frameworks, and where there is none."""

import norse.torch as norse
import pytest
import snntorch
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

import spikeprune as sp
from nets import assert_same, batch, conv_net, sgd, train, weights_of
from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.mask import count
from spikeprune.methods.synflow import Synflow


def two_layers(between=neuron.IFNode):
    """Weights 1, -2 / 3, 0.5 into two neurons, and 4, -1 out of them."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), between(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    model[2].weight.data = torch.tensor([[4.0, -1.0]])
    return model


ONE = [torch.randn(1, 2)]


def test_the_score_worked_by_hand():
    # R = 4 (1 + 2) + 1 (3 + 0.5) = 15.5. Scores: 4 1, 4 2 / 1 3, 1 0.5 before the neurons; 4 3 and 1 3.5 behind them.
    masks = sp.prune(two_layers(), sp.Synflow(cuts=1), 0.5, data=ONE, floor=0)
    assert masks["0.weight"].tolist() == [[True, True], [False, False]]
    assert masks["2.weight"].tolist() == [[True, False]]


def test_each_cut_ranks_what_the_last_one_left():
    seen = []

    class Spy(Synflow):
        def score(self, evidence):
            scores = super().score(evidence)
            seen.append({n: s.tolist() for n, s in scores.items()})
            return scores

    masks = sp.prune(two_layers(), Spy(cuts=3), 2 / 3, data=ONE, floor=0)
    # Densities (1/3)^(1/3), (1/3)^(2/3), 1/3 of 6 weights keep 5, 3 and 2.
    assert seen[0] == {"0.weight": [[4, 8], [3, 0.5]], "2.weight": [[12, 3.5]]}
    assert seen[1] == {"0.weight": [[4, 8], [3, 0]], "2.weight": [[12, 3]]}  # 0.5 is gone, and 1 * 3 flows
    assert seen[2] == {"0.weight": [[4, 8], [0, 0]], "2.weight": [[12, 0]]}
    assert {n: m.tolist() for n, m in masks.items()} == {
        "0.weight": [[False, True], [False, False]],
        "2.weight": [[True, False]],
    }


def test_the_densities_of_the_cuts_fall_by_the_same_factor():
    seen = []

    class Spy(sp.Magnitude):
        def cuts_per_update(self):
            return 4

        def score(self, evidence):
            seen.append(count(evidence.masks))
            return super().score(evidence)

    model = nn.Sequential(nn.Linear(10, 10, bias=False))
    assert sp.prune(model, Spy(), 15 / 16).alive == 6
    assert seen == [100, 50, 25, 13]  # halves of 100; 12.5 is rounded up
    model = nn.Sequential(nn.Linear(10, 10, bias=False))
    sp.prune(model, "magnitude", 0.36)
    seen.clear()
    assert sp.prune(model, Spy(), 0.96, masks="zeros").alive == 4
    assert seen == [64, 32, 16, 8]


class _SnnTorch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.lif1, self.lif2 = snntorch.Leaky(beta=0.9), snntorch.Leaky(beta=0.9)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        out = []
        for x_t in x:
            spk, mem1 = self.lif1(self.fc1(x_t), mem1)
            _, mem2 = self.lif2(self.fc2(spk), mem2)
            out.append(mem2)
        return torch.stack(out)


class _Norse(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.lif1, self.lif2 = norse.LIFCell(), norse.LIFCell()

    def forward(self, x):
        one = two = None
        out = []
        for x_t in x:
            spk, one = self.lif1(self.fc1(x_t), one)
            spk, two = self.lif2(self.fc2(spk), two)
            out.append(spk)
        return torch.stack(out)


class _SpikingJelly(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = layer.Linear(4, 6, step_mode="m"), layer.Linear(6, 3, step_mode="m")
        self.lif1, self.lif2 = neuron.LIFNode(step_mode="m"), neuron.ParametricLIFNode(step_mode="m")

    def forward(self, x):
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


def test_neurons_of_all_frameworks_hand_on_the_same():
    weights = {"fc1.weight": torch.randn(6, 4), "fc2.weight": torch.randn(3, 6)}
    found = []
    for make in (_SpikingJelly, _SnnTorch, _Norse):
        model = make()
        for name, value in weights.items():
            model.get_parameter(name).data = value.clone()
            model.get_parameter(name.replace("weight", "bias")).data.zero_()
        found.append(dict(sp.prune(model, sp.Synflow(5), 0.7, data=[torch.rand(3, 2, 4)])))
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_nothing_of_the_model_changes_but_the_cut_weights():
    model = conv_net()
    model(batch(3)[0])  # a membrane state to be left alone, and running statistics that moved
    before, v, modes = weights_of(model), model[2].v.clone(), [m.training for m in model.modules()]
    masks = sp.prune(model, sp.Synflow(2), 0.5, data=[batch(1)])
    assert_same({n: v * masks[n] if n in masks else v for n, v in before.items()}, weights_of(model))
    assert torch.equal(model[2].v, v)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or "forward" in vars(m) for m in model.modules())


def test_the_data_give_nothing_but_their_shape():
    results = [dict(sp.prune(conv_net(), sp.Synflow(3), 0.9, data=[(x, y)])) for x, y in (batch(1), batch(2))]
    assert_same(*results)


def test_a_fused_network_has_the_same_flow():
    found = [dict(sp.prune(m, sp.Synflow(3), 0.7, data=[batch(1)])) for m in (conv_net(), sp.fuse(conv_net()))]
    assert_same(*found)


def test_it_works_within_training_and_after_a_restart():
    def run(stop):
        model = conv_net()
        optimizer = sgd(model)
        pruner = sp.Pruner(model, sp.Synflow(4), sp.Cubic(to=0.8, end=6, every=2)).attach(optimizer)
        train(model, optimizer, stop)
        if stop < 6:
            state = pruner.state_dict()
            pruner.finish()
            pruner = sp.Pruner(model, sp.Synflow(4), sp.Cubic(to=0.8, end=6, every=2)).attach(optimizer)
            pruner.load_state_dict(state)
            train(model, optimizer, 6 - stop, first=stop + 1)
        assert pruner.alive == 153
        return dict(pruner.masks)

    assert_same(run(6), run(3))


def test_it_keeps_to_patterns_budgets_and_layer_sizes():
    for keywords in ({"pattern": "2:4"}, {"budget": "macs"}, {"allocate": "erk"}):
        masks = sp.prune(conv_net(), sp.Synflow(5), 0.5, data=[batch(1)], **keywords)
        plain = sp.prune(conv_net(), "magnitude", 0.5, data=[batch(1)], **keywords)
        if "allocate" in keywords:
            assert {n: int(m.sum()) for n, m in masks.items()} == {n: int(m.sum()) for n, m in plain.items()}
        assert masks.alive == plain.alive or "budget" in keywords


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (1 + u * u)


class _Fires(nn.Module):
    def forward(self, x):
        return _Step.apply(x - 1)


class _Inside(neuron.IFNode):
    """Multiplies its input with weights of its own."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return super().forward(self.inside(x))


class _Sums(neuron.IFNode):
    def forward(self, x):
        return super().forward(x).unsqueeze(0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: two_layers(_Fires), "was found by its spike function; register an adapter"),
        (lambda: two_layers(_Inside), "'1.inside.weight' is multiplied inside of a neuron"),
        (lambda: two_layers(_Sums), r"_Sums returns nothing of its input's shape \[1, 2\]"),
        (lambda: nn.Sequential(two_layers(), Zero()), "from an input of ones 0 flows to the outputs of Sequential"),
        (lambda: nn.Sequential(two_layers(), Single()), "cannot run on ones in float64"),
    ],
)
def test_a_network_without_a_flow_is_refused(make, text):
    with pytest.raises(InvalidValue, match=text) as caught:
        sp.prune(make(), "synflow", 0.5, data=ONE)
    assert 20 <= len(str(caught.value)) <= 300


class Zero(nn.Module):
    def forward(self, x):
        return x * 0


class Single(nn.Module):
    def forward(self, x):
        return x @ torch.ones(1, 1)


def test_what_it_lacks_is_named():
    with pytest.raises(MissingEvidence, match="synflow must see batches of data; pass data="):
        sp.prune(two_layers(), "synflow", 0.5)
    with pytest.raises(InvalidValue, match="synflow takes 1 or more cuts in a mask update, got 0"):
        sp.Synflow(cuts=0)
    with pytest.raises(InvalidValue, match="synflow works by single weights"):
        sp.prune(conv_net(), "synflow", 0.5, data=[batch(1)], pattern="channel")
    model = two_layers()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "synflow", sp.OneShot(0.5)).attach(optimizer)
    with pytest.raises(MissingEvidence, match="the model was not called between two optimizer steps"):
        pruner.step()
