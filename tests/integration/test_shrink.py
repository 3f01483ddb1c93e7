"""Shrink on small networks: snnTorch, containers, optimizers, plans, what stays, and what is refused."""

import sys
from dataclasses import replace

import pytest
import snntorch as snn
import torch
from shrinking import assert_shrinks, half, lively, masked_copy, run
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spikeprune as sp
from gallery.loops import Rect
from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import Masks
from spikeprune.core.schedule import Constant
from spikeprune.prune.pruner import Pruner
from spikeprune.shrink.plan import ChannelPlan
from spikeprune.shrink.shrink import shrink


class SnnNet(nn.Module):
    """The usual snnTorch network: the loop over T stands in forward."""

    def __init__(self, hidden: bool, T: int = 4):
        super().__init__()
        self.hidden, self.T = hidden, T
        self.conv1, self.lif1 = nn.Conv2d(1, 12, 3), snn.Leaky(0.8, init_hidden=hidden, reset_mechanism="zero")
        self.conv2 = nn.Conv2d(12, 16, 3)
        self.lif2 = snn.Leaky(torch.linspace(0.5, 0.9, 16).view(16, 1, 1), init_hidden=hidden, learn_beta=True)
        self.fc, self.out = nn.Linear(16 * 4, 5), snn.Leaky(0.9, init_hidden=hidden, output=hidden)
        nn.init.normal_(self.conv1.bias, 0.3, 0.3)

    def forward(self, x):
        states = [() if self.hidden else (lif.reset_mem(),) for lif in (self.lif1, self.lif2, self.out)]
        potentials = []
        for _ in range(self.T):
            spk, states[0] = self.fire(self.lif1, nn.functional.max_pool2d(self.conv1(x), 2), states[0])
            spk, states[1] = self.fire(self.lif2, nn.functional.max_pool2d(self.conv2(spk), 2), states[1])
            _, mem = self.out(self.fc(spk.flatten(1)), *states[2])
            states[2] = () if self.hidden else (mem,)
            potentials.append(mem)
        return torch.stack(potentials)

    def fire(self, lif, current, state):
        result = lif(current, *state)
        return (result, ()) if self.hidden else (result[0], (result[1],))


@pytest.mark.parametrize("hidden", [True, False])
def test_snntorch(hidden):
    torch.manual_seed(0)
    model = SnnNet(hidden).eval()
    x = torch.rand(3, 1, 14, 14) * 4
    model(x)  # leaves membrane state behind, which cannot be copied and must not matter
    small, _ = assert_shrinks(model, x)
    assert small.lif2.beta.shape == (small.conv2.out_channels, 1, 1)
    assert small.fc.in_features == 4 * small.conv2.out_channels
    assert model.lif1.mem.shape[0] == 3
    assert small.lif1.mem.numel() == 0


def test_containers_and_per_channel_neurons():
    class Thresholds(neuron.LIFNode):
        """A LIF with one threshold per channel."""

        def __init__(self, channels):
            super().__init__(step_mode="m")
            self.level = nn.Parameter(torch.linspace(0.5, 1.5, channels).view(channels, 1, 1))

        def multi_step_forward(self, x):
            return super().multi_step_forward(x / self.level)

    torch.manual_seed(0)
    model = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)),
        Thresholds(8),
        layer.SeqToANNContainer(nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.AvgPool2d(2)),
        neuron.ParametricLIFNode(step_mode="m"),
        layer.SeqToANNContainer(nn.Flatten(), nn.Linear(12 * 4, 10)),
    )
    small, _ = assert_shrinks(lively(model), torch.rand(4, 2, 2, 10, 10) * 2)
    assert small[1].level.shape[0] == small[0][0].out_channels


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(1, 6, 3, padding=1), layer.BatchNorm2d(6), neuron.LIFNode(), layer.Conv2d(6, 8, 3, padding=1),
        layer.BatchNorm2d(8), neuron.LIFNode(), layer.Flatten(), layer.Linear(8 * 16, 3),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return lively(net)


X = torch.rand(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adafactor"])
def test_the_optimizer_goes_on_as_if_nothing_had_happened(kind):
    """A step of the small network is what the masked network's step leaves of it.

    Adafactor's factored moments mix what is cut into what stays, so there only the shapes are held to account.
    """
    model = small_net().train()
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
        "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    }
    optimizer = make[kind](model.parameters())
    masks = half(model, X)

    def step(net, opt, keep=None):
        functional.reset_net(net)
        opt.zero_grad()
        net(X).square().mean().backward()
        opt.step()
        for name, parameter in net.named_parameters():
            if keep is not None and name in keep:
                parameter.data *= keep[name]

    step(model, optimizer, masks)
    small, plan = shrink(model, masks, X, optimizer)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    for parameter in small.parameters():
        shapes = [v.shape for v in optimizer.state[parameter].values() if torch.is_tensor(v) and v.numel() > 1]
        assert all(shape == parameter.shape for shape in shapes) or kind == "adafactor"
    step(small, optimizer)
    if kind == "adafactor":
        return
    fresh = small_net().train()
    half(fresh, X)
    other = make[kind](fresh.parameters())
    step(fresh, other, masks)
    step(fresh, other, masks)
    plan.apply(fresh)
    for (name, wanted), found in zip(fresh.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_mode_and_state_are_kept():
    model = small_net().train()
    model[1].eval()
    model(X)
    v = model[2].v
    small, _ = shrink(model, half(model, X), X)
    assert small.training
    assert small[0].training
    assert not small[1].training
    assert model[2].v is v
    assert small[2].step_mode == "m"
    assert not torch.is_tensor(small[2].v)


def test_a_watching_pruner_stays_with_the_model():
    model = small_net()
    masks = half(model, X)
    pruner = Pruner(model, "criticality", Constant(0.5, every=1, end=5), exclude="7")
    pruner.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    model[0].register_forward_hook(lambda module, args, out: out + 0)
    before = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    small, _ = shrink(model, masks, X)
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == before
    assert [name for name, m in small.named_modules() if m._forward_hooks] == ["0"]
    assert all(not m._forward_pre_hooks for m in small.modules())


def test_plan_round_trip(tmp_path):
    model = small_net()
    small, plan = shrink(model, half(model, X), X)
    plan.save(tmp_path / "plan.json")
    again = ChannelPlan.load(tmp_path / "plan.json")
    assert again == plan
    assert torch.equal(run(again.rebuild(small_net(), small.state_dict()), X), run(small, X))
    with pytest.raises(InvalidValue, match="own state_dict"):
        plan.rebuild(small_net(), model.state_dict())
    with pytest.raises(InvalidValue, match="original size"):
        plan.rebuild(small, small.state_dict())
    (tmp_path / "plan.json").write_text('{"schema": 1, "cuts": 3}')
    with pytest.raises(InvalidValue, match="damaged"):
        ChannelPlan.load(tmp_path / "plan.json")
    with pytest.raises(InvalidValue, match="cannot read"):
        ChannelPlan.load(tmp_path / "none.json")


def test_a_leftover_shift_keeps_a_channel_firing():
    model = small_net()
    masks = half(model, X)
    with torch.no_grad():
        model[1].bias.fill_(5.0)  # far above the threshold
    whole = dict(masks)
    del masks["1.weight"], masks["1.bias"]
    small, plan = shrink(model, masks, X)
    assert small[0].out_channels == 6
    assert small[3].out_channels < 8
    assert "'1' may still fire" in plan.blocked[0]
    assert shrink(masked_copy(model, whole), whole, X)[1].blocked == ()
    only = {"0.weight": masks["0.weight"]}
    with pytest.raises(InvalidValue, match="nothing can be cut"):
        shrink(model, only, X)


def test_unstructured_masks_lose_channels_that_cannot_fire_or_are_not_read():
    model = small_net()
    masks = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in ("0.weight", "3.weight")}
    masks["0.weight"][1] = False  # filter 1 gives its bias; BatchNorm makes -9 of it: never fires
    with torch.no_grad():
        model[1].bias[1] = -9.0
    masks["3.weight"][:, 4] = False  # nobody reads channel 4
    small, plan = shrink(masked_copy(model, masks), masks, X)
    assert plan.layers["0"] == (6, 4)
    assert (run(small, X) - run(masked_copy(model, masks), X)).abs().max() < 1e-9


def test_a_layer_whose_mask_is_empty_keeps_one_channel():
    model = small_net()
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        masks[name][:] = False
    small, plan = shrink(masked_copy(model, masks), masks, X)
    assert plan.layers["0"] == (6, 1)
    assert torch.equal(run(small, X), run(masked_copy(model, masks), X))


def test_nothing_masked_gives_an_equal_copy():
    model = small_net()
    small, plan = shrink(model, {}, X)
    assert plan.cuts == ()
    assert small is not model
    assert torch.equal(run(small, X), run(model, X))


class Unknown(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, -3)


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.ConvTranspose2d(6, 6, 3, padding=1, groups=6), "'3' (ConvTranspose2d) has groups=6"),
        (nn.GroupNorm(2, 6), "'3' (GroupNorm)"),
        (Unknown(), "'cumsum'"),
        (snn.RLeaky(0.5, conv2d_channels=6, kernel_size=3, init_hidden=True), "holds a layer of its own"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(module, named):
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), snn.Leaky(0.5, init_hidden=True), module, nn.Conv2d(6, 4, 3),
        snn.Leaky(0.5, init_hidden=True), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    mask = {"0.weight": torch.ones(6, 1, 3, 3, dtype=torch.bool)}
    with pytest.raises(InvalidValue) as error:
        shrink(model, mask, torch.rand(1, 1, 6, 6))
    assert named in str(error.value)
    assert 20 <= len(str(error.value)) <= 300


def test_masks_that_the_weights_do_not_obey_are_refused():
    model = small_net()
    masks = half(model, X)
    small, _ = shrink(model, masks, X)
    with torch.no_grad():
        model[0].weight[~masks["0.weight"]] = 1.0
    with pytest.raises(
        InvalidValue, match=r"weights that the masks cut are not 0 .*'0\.weight'.*masks\.apply_"
    ) as caught:
        shrink(model, masks, X)
    assert 20 <= len(str(caught.value)) <= 300
    Masks(masks).apply_(model)
    assert torch.equal(run(shrink(model, masks, X)[0], X), run(small, X))


def test_wrong_input_is_named():
    model = small_net()
    with pytest.raises(InvalidValue, match=r"example of shape \(3, 2, 5, 4, 4\)"):
        shrink(model, {}, torch.rand(3, 2, 5, 4, 4))
    with pytest.raises(InvalidValue, match="names no parameter"):
        shrink(model, {"9.weight": torch.ones(2, dtype=torch.bool)}, X)
    with pytest.raises(InvalidValue, match="must be bool of shape"):
        shrink(model, {"0.weight": torch.ones(6, 1, 3, 3)}, X)
    with pytest.raises(InvalidValue, match="holds no parameter of the model"):
        shrink(model, half(model, X), X, torch.optim.SGD(small_net().parameters(), lr=0.1))


class Stated(nn.Module):
    """The width of the second layer stands in the forward as a number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.n1, self.n2 = neuron.IFNode(), neuron.IFNode()

    def forward(self, x):
        return self.c(self.n2(self.b(self.n1(self.a(x))).view(-1, 8)))


def test_a_group_that_cannot_be_cut_stays_and_the_others_go(caplog):
    model, x = Stated().eval(), torch.rand(5, 3) * 4
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    for name in ("a.weight", "a.bias", "b.weight", "b.bias"):
        masks[name][:3] = False
    model = masked_copy(model, masks)
    small, plan = shrink(model, masks, x)
    assert (small.a.out_features, small.b.in_features, small.b.out_features) == (5, 5, 8)
    assert "the channels of 'b' stay, as without them the network fails with" in plan.blocked[0]
    assert "the channels of 'b' stay" in caplog.text
    torch.testing.assert_close(run(small, x), run(masked_copy(model, masks), x))


class Together(Stated):
    """Runs with either layer cut, and not with both."""

    def forward(self, x):
        if len(self.a.weight) + len(self.b.weight) < 12:
            raise RuntimeError("too narrow")
        return self.c(self.n2(self.b(self.n1(self.a(x)))))


def test_cuts_that_only_together_break_the_network_are_refused():
    model = Together().eval()
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    for name in ("a.weight", "a.bias", "b.weight", "b.bias"):
        masks[name][:3] = False
    model = masked_copy(model, masks)
    with pytest.raises(InvalidValue, match="with 'too narrow', though no group of channels does it alone; nothing was"):
        shrink(model, masks, torch.rand(5, 3))


def test_a_small_network_of_another_size_than_planned_is_not_handed_out(monkeypatch):
    module = sys.modules["spikeprune.shrink.shrink"]
    plan = module._plan
    monkeypatch.setattr(module, "_plan", lambda *given: replace(plan(*given), parameters=(900, 7)))
    model = small_net()
    with pytest.raises(InvalidValue, match="parameters where 7 were planned; nothing was changed"):
        shrink(model, half(model, X), X)


def test_state_of_another_shape_than_its_parameter_is_refused_before_anything_changes():
    model = small_net()
    masks, optimizer = half(model, X), torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight]["rows"] = torch.zeros(6, 2)
    with pytest.raises(InvalidValue, match=r"'rows' of '0\.weight' has shape \(6, 2\).*shrink without optimizer="):
        shrink(model, masks, X, optimizer)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}


class Mixer(nn.Module):
    """Self-attention and an MLP, with a residual stream, as in spiking transformers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.q, self.k = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.wide, self.back, self.out = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)
        self.n1, self.n2, self.n3, self.n4 = (neuron.IFNode() for _ in range(4))

    def forward(self, x):
        x = self.n1(self.stem(x))
        x = x + self.n2(self.q(x)) @ self.n3(self.k(x)).transpose(-1, -2) @ x
        return self.out(x + self.back(self.n4(self.wide(x))))


def test_the_width_of_an_mlp_is_cut_beside_attention():
    model, x = Mixer().eval(), torch.rand(5, 4, 3) * 4
    masks = sp.prune(model, "magnitude", 0.3, data=[x], pattern="channel")
    small, plan = shrink(model, masks, x)
    assert small.wide.out_features < 16
    assert small.q.out_features == small.k.out_features == 8
    assert plan.layers["wide"] == (16, small.wide.out_features)
    torch.testing.assert_close(run(small, x), run(masked_copy(model, masks), x))


class Named(nn.Module):
    """Arguments of functions are named, and spikes are float32 whatever went in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        spikes = Rect.apply(self.a(x) - 0.3)
        return self.c(Rect.apply(nn.functional.linear(input=spikes, weight=self.b.weight, bias=self.b.bias)))


def test_named_arguments_are_compared_in_float64_too():
    model, x = Named().eval(), torch.rand(5, 3) * 4
    masks = sp.prune(model, "magnitude", 0.5, data=[x], pattern="channel", allocate="uniform")
    small, plan = shrink(model, masks, x)
    assert not plan.blocked
    assert (small.a.out_features, small.b.out_features) == (4, 4)
    torch.testing.assert_close(small(x), model(x))


def test_grouped_convolutions_are_cut_by_group():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3), neuron.IFNode(), nn.Conv2d(12, 12, 3, groups=12), neuron.IFNode(),
        nn.Conv2d(12, 8, 1), neuron.IFNode(), nn.Conv2d(8, 8, 3, groups=4), neuron.IFNode(), nn.Flatten(),
        nn.Linear(8 * 4, 3),
    ).eval()  # fmt: skip
    x = torch.rand(3, 2, 8, 8) * 4
    masks = sp.prune(model, "magnitude", 0.5, data=[x], pattern="channel", allocate="uniform")
    small, _ = shrink(model, masks, x)
    assert small[2].groups == small[2].in_channels == small[0].out_channels < 12
    assert small[6].groups < 4
    assert small[6].in_channels == small[4].out_channels == 2 * small[6].groups
    torch.testing.assert_close(run(small, x), run(masked_copy(model, masks), x))


@pytest.mark.parametrize("norm", ["TemporalEffectiveBatchNorm2d", "BatchNormThroughTime2d"])
def test_norms_over_time_are_cut_with_their_channels_or_stay(norm):
    """A scale for each time step, as TEBN's, is no product that is followed: its channels stay, the others go."""
    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Conv2d(2, 8, 3, bias=False), getattr(layer, norm)(3, 8), neuron.LIFNode(), layer.Conv2d(8, 4, 3),
        neuron.LIFNode(), layer.Flatten(), layer.Linear(4 * 16, 3),
    )  # fmt: skip
    functional.set_step_mode(model, "m")
    x = torch.rand(3, 2, 2, 8, 8) * 4
    model.train()(x)
    functional.reset_net(model.eval())
    masks = sp.prune(model, "magnitude", 0.5, data=[x], pattern="channel", allocate="uniform")
    small, _ = shrink(model, masks, x)
    assert (small[0].out_channels < 8) == (norm == "BatchNormThroughTime2d")
    assert small[3].out_channels < 4
    torch.testing.assert_close(run(small, x), run(masked_copy(model, masks), x))


class AddsIntoAState(nn.Module):
    """`record[t] += spikes`: what was written is read before the next write."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def steps(self, linear, x):
        v, record = 0, torch.zeros(len(x), x.shape[1], 8)
        for t in range(len(x)):
            v = 0.5 * v + linear(x[t])
            spikes = Rect.apply(v - 1)
            v = v - spikes
            record[t] += spikes
        return record

    def forward(self, x):
        return self.out(self.steps(self.b, self.steps(self.a, x))).mean(0)


def test_spikes_added_into_a_state_are_followed_or_refused():
    net = AddsIntoAState().eval()
    masks = sp.prune(net, "magnitude", 0.3, pattern="channel", data=[torch.rand(4, 3, 6) * 3])
    with pytest.raises(InvalidValue, match=r"nothing can be cut: \d masked filters of 'a.weight' stay"):
        sp.shrink(net, masks, torch.rand(4, 3, 6) * 3)


class Halves(nn.Module):
    """A layer whose weight is used in two parts."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        parts = [nn.functional.linear(x, self.a.weight[i : i + 4]) for i in (0, 4)]
        return self.out(Rect.apply(torch.cat(parts, 1) - 0.1))


def test_a_layer_that_is_used_in_parts_is_refused_by_its_name():
    with pytest.raises(InvalidValue, match="'cat' reads the outputs of a part of a weight"):
        sp.prune(Halves(), "magnitude", 0.3, pattern="channel", data=[torch.rand(3, 6)])


class Compares(nn.Module):
    """Spikes of a plain comparison, as in code that only infers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        spikes = (self.a(x) > 1).float()
        return self.out((self.b(spikes) > 0.1).float())


def test_a_comparison_that_is_false_on_the_example_does_not_make_a_channel_dead():
    net, x = Compares().eval(), torch.rand(5, 6) * 4
    masks = sp.prune(net, "magnitude", 0.3, pattern="channel", data=[x])
    cut = {name: int((~mask.flatten(1).any(1)).sum()) for name, mask in masks.items() if mask.dim() > 1}
    assert sum(cut.values()) > 0
    small, _ = sp.shrink(net, masks, x * 0.01)
    assert (small.a.out_features, small.b.out_features) == (8 - cut["a.weight"], 8 - cut["b.weight"])
    assert (net.a(x) > 1).any()
    assert net(x).std(0).max() > 0.01
    torch.testing.assert_close(small(x), net(x))
