"""Refusals of core, prune, count and model that no other test sees: each fires, with a text that says what to do."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn
from torch.nn.functional import cross_entropy, linear

import spikeprune as sp
from gallery.loops import Rect
from nets import batch, conv_net, mlp, sgd, train
from spikeprune.core.errors import InvalidValue, MissingEvidence, UnknownName, UserError
from spikeprune.core.evidence import Evidence
from spikeprune.core.mask import Masks, check_fit, unpack
from spikeprune.core.select import keep_under_cost
from spikeprune.core.statistic import SynapseMean
from spikeprune.core.surrogate import curve_named
from spikeprune.count.costs import weight_costs
from spikeprune.host.objects import resolve_object
from spikeprune.methods.base import Method
from spikeprune.methods.registry import make_method
from spikeprune.model.discover import SpikeNeuron
from spikeprune.upkeep.rewind import Rewind


@dataclass(frozen=True)
class Flows(Method):
    """Reads what it did not ask for."""

    def score(self, evidence):
        return evidence.flows()


@dataclass(frozen=True)
class Curvatures(Method):
    def score(self, evidence):
        return evidence.curvatures()


@dataclass(frozen=True)
class Silent(Method):
    """Needs potentials and does not say what of them."""

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "membrane"})

    def score(self, evidence):
        return evidence.per_weight()


@dataclass(frozen=True)
class Unchecked(sp.Cubic):
    """A schedule of the user's own that leaves out the check of its steps."""

    def __post_init__(self):
        pass


class UsedInPlace(nn.Module):
    """A parameter that the forward multiplies with itself, without a layer that could be watched."""

    def __init__(self):
        super().__init__()
        self.net, self.mixing = conv_net(), nn.Parameter(torch.rand(5, 5))

    def forward(self, x):
        return linear(self.net(x), self.mixing)


def traced_alone(method, **settings):
    """Attaches a Pruner to a model that was traced, and takes a step of which no forward is seen."""
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, method, sp.Cubic(to=0.5, begin=0, end=2, every=1), **settings)
    pruner.trace(batch(1)[0])
    pruner.attach(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


SCHEDULE = sp.Cubic(to=0.9, begin=0, end=8, every=2)
WEIGHTS = {"a": torch.ones(2, 3)}


def evidence(**given):
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in WEIGHTS.items()}
    return Evidence(weights=WEIGHTS, masks=masks, generator=torch.Generator(), **given)


def over_the_budget():
    return keep_under_cost({"a": torch.rand(3)}, lambda keep: 10.0 * int(keep["a"].sum()), 5.0, {"a": 1})


def traced(**choices):
    pruner = sp.Pruner(conv_net(), "magnitude", sp.OneShot(0.5), **choices)
    pruner.trace(batch(1)[0])
    return pruner


REFUSALS = {
    "channel scores of weights": (
        lambda: evidence().of_channels("scale"), InvalidValue, "pass pattern='channel' or pattern='gate'"
    ),
    "channel statistics without any": (
        lambda: evidence(channels={}).of_channels("statistic"), MissingEvidence, "needs membrane statistics"
    ),
    "channels without normalisation": (
        lambda: evidence(channels={"scale": {}}).of_channels("scale"), InvalidValue, "'a' have no normalisation"
    ),
    "criticality without statistics": (lambda: evidence().per_weight(), MissingEvidence, "needs membrane statistics"),
    "gradients without any": (lambda: evidence().gradients(), MissingEvidence, "call loss.backward()"),
    "a flow that was not asked for": (
        lambda: sp.prune(conv_net(), Flows(), 0.5, data=[batch(1)]), MissingEvidence,
        "flow through the network was not measured; a method that reads it names 'flow' in its `needs`"
    ),
    "a curvature that was not asked for": (
        lambda: sp.prune(conv_net(), Curvatures(), 0.5, data=[batch(1)], loss=cross_entropy), MissingEvidence,
        "curvature of the loss was not measured; a method that reads it names 'curvature' in its `needs`"
    ),
    "potentials of which nothing is recorded": (
        lambda: sp.prune(conv_net(), Silent(), 0.5, data=[batch(1)]), InvalidValue,
        "Silent names 'membrane' or 'spikes' in its `needs`, but does not say what is recorded; define statistic(layer)"
    ),
    "components without a forward": (
        lambda: traced_alone("pca", pattern="channel"), MissingEvidence,
        "no membrane potential was recorded before this mask update; run a forward pass in the step"
    ),
    "firing rates without a forward": (
        lambda: traced_alone("magnitude", budget="synops"), MissingEvidence,
        "budget='synops' needs firing rates; pass data=, or attach before the forward"
    ),
    "the rate of a weight without a layer": (
        lambda: sp.prune(UsedInPlace(), "magnitude", 0.5, data=[batch(1)], budget="synops"), MissingEvidence,
        "the input rate of 'mixing', which no layer of its own multiplies with; take budget='macs'"
    ),
    "the rate of a weight without a layer, of channels": (
        lambda: sp.prune(UsedInPlace(), "bn-scale", 0.5, data=[batch(1)], budget="synops", pattern="channel"),
        MissingEvidence, "the input rate of 'mixing', which no layer of its own multiplies with; take budget='macs'"
    ),
    "components that explain nothing": (
        lambda: sp.Pca(variance=0.0), InvalidValue, "variance must be in (0, 1], the share of variance to explain"
    ),
    "components that explain more than all": (lambda: sp.Pca(variance=1.01), InvalidValue, "in (0, 1], the share"),
    "masks of other names": (
        lambda: Masks({"a": torch.ones(2)}) | {"b": torch.ones(2).bool()}, UnknownName, "no mask named 'a'; known: b"
    ),
    "a mask that there is not": (lambda: Masks({"a": torch.ones(2)})["b"], UnknownName, "'b'"),
    "masks of other shapes": (
        lambda: Masks({"a": torch.ones(2)}) & {"a": torch.ones(3, dtype=torch.bool)}, InvalidValue, "in shape"
    ),
    "a mask of another shape": (
        lambda: check_fit({"a": torch.ones(3, dtype=torch.bool)}, WEIGHTS), InvalidValue, "'a'"
    ),
    "a mask of numbers": (lambda: Masks({"a": torch.tensor([0.0, 0.5])}), InvalidValue, "only 0 and 1"),
    "bits of another shape": (lambda: unpack(torch.zeros(2, dtype=torch.uint8), (3,)), InvalidValue, "do not fit"),
    "a spec without a name": (lambda: resolve_object("my_net"), InvalidValue, "expected package.module:name"),
    "a name that a module lacks": (lambda: resolve_object("json:lods"), UnknownName, "did you mean 'loads'"),
    "an end before the begin": (lambda: sp.Cubic(to=0.9, begin=8, end=4, every=2), InvalidValue, "come after begin"),
    "no update fits": (lambda: sp.Cubic(to=0.9, begin=0, end=4, every=9), InvalidValue, "no mask update fits"),
    "no update fits into steps that nobody checked": (
        lambda: sp.Pruner(mlp(), "magnitude", Unchecked(to=0.9, begin=0, end=4, every=9)), InvalidValue,
        "no mask update fits between step 0 and 4 at one every 9 steps; take a smaller every"
    ),
    "more updates than any training has": (
        lambda: sp.Cubic(to=0.9, begin=0, end=22_000_000, every=1), InvalidValue, "22,000,000 mask updates"
    ),
    "a budget below the floors": (over_the_budget, InvalidValue, "the budget of 5 cannot be met"),
    "a synapse without its input": (
        lambda: SynapseMean(torch.abs, lambda d, x: d, len).step(torch.ones(1, 1)), MissingEvidence, "layer's input"
    ),
    "an unknown curve": (lambda: curve_named("atna"), UnknownName, "did you mean 'atan'"),
    "a budget without a trace": (lambda: weight_costs("macs", mlp(), {}, None, {}), MissingEvidence, "pass data="),
    "an unknown budget": (lambda: sp.Pruner(conv_net(), "magnitude", SCHEDULE, budget="flops"), UnknownName, "flops"),
    "channel scores for weights": (
        lambda: sp.Pruner(conv_net(), "bn-scale", SCHEDULE), InvalidValue, "scores whole channels"
    ),
    "weights' own gradients for channels": (
        lambda: sp.Pruner(conv_net(), "gradient", SCHEDULE, pattern="channel"), InvalidValue, "works by single weights"
    ),
    "the authors' rule within layers": (
        lambda: sp.Pruner(conv_net(), sp.Criticality(rule="authors"), SCHEDULE, allocate="erk"),
        InvalidValue, "rule='authors'"
    ),
    "gradients without a loss": (
        lambda: sp.prune(conv_net(), "snip", 0.5, data=[batch(1)]), MissingEvidence, "pass loss="
    ),
    "a method without data": (lambda: sp.prune(conv_net(), "criticality", 0.5), MissingEvidence, "pass data="),
    "an unknown method": (lambda: make_method("magnitud"), UnknownName, "did you mean 'magnitude'"),
    "sizes of layers that an n:m pattern fixes": (
        lambda: sp.Pruner(conv_net(), "magnitude", SCHEDULE, pattern="2:4", allocate="erk"),
        InvalidValue, "takes allocate='global' or 'uniform', no start='erk' and budget='weights'; got 'erk', 'dense'"
    ),
    "channels that no forward has shown": (
        lambda: sp.Pruner(conv_net(), "magnitude", sp.OneShot(0.5), pattern="channel").cut(),
        MissingEvidence, "must see one forward to know which channels belong together; pass data="
    ),
    "rates of channels that no forward has shown": (
        lambda: traced(pattern="channel", budget="synops").cut(), MissingEvidence, "needs firing rates; pass data="
    ),
    "a spike function that was not called": (
        lambda: SpikeNeuron("Rect of a")(torch.zeros(2)), InvalidValue, "'Rect of a' was not called yet"
    ),
    "a rewind without a point": (lambda: Rewind(mlp(), 0).load_state_dict(None), InvalidValue, "point"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_it_fires(name):
    act, kind, words = REFUSALS[name]
    with pytest.raises(kind) as caught:
        act()
    assert words in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert 20 <= len(str(caught.value)) <= 300


class OfItsOwn(neuron.LIFNode):
    """A subclass may have dynamics of its own, so its threshold is not known."""


class Broadcast(nn.Module):
    """One value is added to all channels of another layer."""

    def __init__(self):
        super().__init__()
        self.one, self.four, self.spikes = nn.Linear(6, 1), nn.Linear(6, 4), neuron.IFNode()

    def forward(self, x):
        return self.spikes(self.one(x) + self.four(x))


class Loop(nn.Module):
    """Its spike function is found, and nothing else is known of its neuron."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(Rect.apply(self.a(x) - 1))


UNTOLD = {
    "no smooth curve": (
        Loop(), sp.Criticality(curve="value"), {},
        r"'Rect of a' is known by its spikes and its gradient only.*give one by name, for example surrogate='atan'",
    ),
    "no threshold": (
        nn.Sequential(nn.Linear(6, 4), OfItsOwn(), nn.Linear(4, 2)), "membrane", {"pattern": "channel"},
        r"threshold of OfItsOwn behind '0\.weight' is not known.*take a method that does without, such as firing-rate",
    ),
    "other channels": (
        Broadcast(), "criticality", {},
        r"'one\.weight' and 'four\.weight' feed one neuron but have 1 and 4 outputs.*exclude=\['four\.weight'\]",
    ),
    "channels among positions": (
        nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 4), nn.Flatten(), neuron.IFNode()), "criticality", {},
        r"'1\.weight' has 4 outputs, and IFNode behind it sees \[3, 8\].*exclude=\['1\.weight'\]",
    ),
    "positions added up": (
        nn.Sequential(
            nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), neuron.IFNode()
        ),
        sp.Criticality(unit="synapse"), {},
        r"'1\.weight' gives \[3, 4, 2\], and IFNode behind it sees \[3, 4\].*exclude=\['1\.weight'\] or unit='neuron'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTOLD)
def test_what_cannot_be_told_of_a_neuron_is_refused_with_a_way_out(name):
    model, method, choices, words = UNTOLD[name]
    with pytest.raises(InvalidValue, match=words):
        sp.prune(model, method, 0.5, data=[torch.rand(3, 6)], **choices)


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.layer, self.error = nn.Linear(2, 2), error

    def forward(self, x):
        raise self.error


RUNS = {
    "trace": lambda model, x: sp.Pruner(model, "magnitude", SCHEDULE).trace(x),
    "shrink": lambda model, x: sp.shrink(model, {}, x),
    "squeeze": lambda model, x: sp.squeeze(model, [x], 0.5),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_models_own_refusal_of_an_input_is_not_reworded(run):
    with pytest.raises(InvalidValue, match=r"^this network takes \[N, 1, 8, 8\].*got \[2, 3, 8, 8\]"):
        RUNS[run](sp.model("mlp", size=8), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("error", "said"), [(ValueError(), "ValueError"), (TypeError("no\nway"), "no")])
def test_a_model_that_cannot_run_is_told_in_one_line(run, error, said):
    with pytest.raises(InvalidValue, match=rf"cannot run on an \w+ of shape .4, 2.: {said}; give [^\n]*$"):
        RUNS[run](Fails(error), torch.rand(4, 2))


class Unused(nn.Module):
    """A layer that no forward reaches."""

    def __init__(self):
        super().__init__()
        self.net, self.spare = conv_net(), nn.Linear(3, 3)

    def forward(self, x):
        return self.net(x)


def test_a_layer_that_took_no_part_cannot_be_priced():
    model = Unused()
    optimizer = sgd(model.net)
    optimizer.add_param_group({"params": list(model.spare.parameters())})
    sp.Pruner(model, "magnitude", sp.Cubic(to=0.9, begin=0, end=4, every=2), budget="macs").attach(optimizer)
    with pytest.raises(MissingEvidence, match=r"'spare\.weight' took no part in the traced forward"):
        train(model, optimizer, 2)


@pytest.mark.parametrize("wrong", [{"penalty": -0.1}, {"mask_rate": 0.0}, {"first": 0.0}, {"first": 9.0, "last": 8.0}])
def test_upf_takes_a_penalty_a_rate_and_a_range_of_slopes(wrong):
    assert sp.Upf(penalty=0.0, first=8.0, last=8.0).penalty == 0
    came = ", ".join(
        str(value) for value in {"penalty": 1e-3, "mask_rate": 1.0, "first": 5.0, "last": 1e3, **wrong}.values()
    )
    with pytest.raises(
        InvalidValue, match="upf takes penalty of 0 or more, mask_rate above 0 and 0 < first <= last"
    ) as caught:
        sp.Upf(**wrong)
    assert str(caught.value).endswith(f"got {came}")


@pytest.mark.parametrize("began", [-0.1, 1.5, "0.5", True, float("nan")])
def test_a_state_that_began_at_an_impossible_share_is_refused(began):
    model = conv_net()
    masks = sp.prune(model, "magnitude", 0.5)
    pruner = sp.Pruner(model, "magnitude", sp.Cubic(to=0.9, begin=0, end=4, every=2), masks=masks)
    state = pruner.state_dict()
    pruner.load_state_dict(state)
    with pytest.raises(InvalidValue, match="began is"):
        pruner.load_state_dict({**state, "began": began})
