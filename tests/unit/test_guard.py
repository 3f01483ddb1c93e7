"""Guards of the Pruner: replaced parameters, wrapped optimizers, two Pruners, plans that were not carried out."""

import copy
import logging

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

import spikeprune as sp
from nets import assert_same, batch, conv_net, sgd, train
from spikeprune.core.errors import InvalidValue


def attached(model, optimizer, steps=4):
    return sp.Pruner(model, "magnitude", sp.Cubic(to=0.9, begin=0, end=steps, every=2)).attach(optimizer)


def assign(model):
    model[4].weight = nn.Parameter(torch.randn_like(model[4].weight))


def load(model):
    model.load_state_dict(conv_net(seed=1).state_dict(), assign=True)


def head(model):
    model[8] = copy.deepcopy(model[8])


@pytest.mark.parametrize("replace", [assign, load, head])
def test_a_replaced_parameter_is_seen_at_the_next_step_at_attach_and_at_finish(replace):
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer)
    train(model, optimizer, 4)
    replace(model)
    for act in (lambda: train(model, optimizer, 1, first=5), lambda: pruner.attach(sgd(model)), pruner.finish):
        with pytest.raises(InvalidValue, match="no longer the parameter that the Pruner holds") as caught:
            act()
        assert 20 <= len(str(caught.value)) <= 300


@pytest.mark.parametrize("replace", [assign, load, head])
def test_the_sparsity_of_a_replaced_parameter_is_not_told(replace):
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer)
    train(model, optimizer, 4)
    assert pruner.sparsity == pytest.approx(1 - 76 / 768)
    replace(model)
    for ask in (lambda: pruner.sparsity, lambda: pruner.density):
        with pytest.raises(InvalidValue, match="no longer the parameter that the Pruner holds"):
            ask()
    assert "sparsity 0.9010" in repr(pruner)


def test_the_sparsity_of_a_replaced_parameter_is_not_told_before_and_after_attaching():
    for act in ((), ("attach",), ("finish", "attach")):
        model = conv_net()
        pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.9))
        for name in act:
            pruner.finish() if name == "finish" else pruner.attach(sgd(model))
        assert pruner.sparsity == 0
        assign(model)
        with pytest.raises(InvalidValue, match="no longer the parameter that the Pruner holds"):
            _ = pruner.sparsity


def test_the_sparsity_is_told_after_finish_whatever_becomes_of_the_model():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer)
    train(model, optimizer, 4)
    pruner.finish()
    assign(model)
    assert pruner.alive == 76
    assert pruner.density == 76 / 768


@pytest.mark.parametrize(("given", "told"), [({}, True), ({"masks": "zeros"}, False)])
def test_zeros_that_nobody_holds_are_told_when_training_begins(given, told, caplog):
    """76 of 768 weights are left; a Pruner that begins dense would let training fill the others without a word."""
    model = conv_net()
    sp.prune(model, "magnitude", 0.9)
    sp.Pruner(model, "magnitude", sp.Constant(0.95, end=8, every=4), **given).attach(sgd(model))
    assert ("692 of 768 weights that are alive for the Pruner are exactly 0" in caplog.text) == told
    if told:
        assert "masks='zeros' and sp.hold(model) keep them" in caplog.text


def test_a_dense_network_begins_without_a_word(caplog):
    model = conv_net()
    attached(model, sgd(model))
    sp.prune(conv_net(), "magnitude", 0.9)
    assert not caplog.text


def test_infinite_gradients_of_dead_weights_leave_everything_finite():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer)
    train(model, optimizer, 4)
    dead = ~pruner.masks["4.weight"]
    model[4].weight.register_hook(lambda grad: grad.masked_fill(dead, float("inf")))
    train(model, optimizer, 1, first=5)
    weight = model[4].weight
    assert bool(weight.isfinite().all())
    assert not weight[dead].any()
    assert not optimizer.state[weight]["momentum_buffer"][dead].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_holding_equals_the_product_with_the_mask_bit_for_bit(dtype):
    model = nn.Sequential(nn.Linear(40, 40, bias=False).to(dtype))
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.5))
    pruner.step()
    gradient = torch.randn(40, 40).to(dtype)
    model[0].weight.grad = gradient.clone()
    pruner.mask_grads()
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    product = gradient * pruner.masks["0.weight"].to(dtype)
    assert torch.equal(model[0].weight.grad.view(integer), product.view(integer))


class Wrapped:
    """An optimizer as accelerate wraps it: no hooks of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = [] if optimizer is None else optimizer.param_groups


def test_a_wrapped_optimizer_is_attached_inside():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, Wrapped(optimizer))
    train(model, optimizer, 4)
    assert pruner.alive == 76  # of 768: a tenth, rounded down
    with pytest.raises(InvalidValue, match="takes no step hooks"):
        pruner.attach(Wrapped(None))


def test_two_pruners_of_one_weight_on_one_optimizer_are_refused():
    model = conv_net()
    optimizer = sgd(model)
    first = attached(model, optimizer)
    with pytest.raises(InvalidValue, match="another Pruner is attached"):
        attached(model, optimizer)
    first.attach(optimizer)  # itself is no other
    first.finish()
    attached(model, optimizer)


def test_a_plan_that_was_not_carried_out_is_told(caplog):
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, steps=10)
    train(model, optimizer, 5)
    assert "3 of 5 mask updates to come, from step 6 to 10 (asked: sparsity 0.9)" in repr(pruner)
    with caplog.at_level(logging.WARNING, "spikeprune"):
        pruner.finish()
    assert "at step 5, 3 of 5 mask updates to come" in caplog.text


def test_a_plan_that_was_carried_out_is_not_mentioned(caplog):
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer)
    train(model, optimizer, 4)
    pruner.finish()
    assert "to come" not in repr(pruner) + caplog.text


# ---- written over, frozen, out of the plan --------------------------------------------------------------------------


def test_a_learning_rate_finder_between_is_seen_at_the_next_step():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, steps=8)
    train(model, optimizer, 4)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    train(model, optimizer, 5, first=100)  # it tries rates, and puts model and optimizer back
    model.load_state_dict(before[0])
    optimizer.load_state_dict(before[1])
    with pytest.raises(InvalidValue, match="dead weights are not 0"):
        train(model, optimizer, 1, first=5)
    functional.reset_net(model)
    pruner.load_state_dict(before[2])  # the way out: it puts the Pruner back too
    train(model, optimizer, 4, first=5)
    pruner.finish()
    straight = conv_net()
    optimizer = sgd(straight)
    attached(straight, optimizer, steps=8)
    train(straight, optimizer, 8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), straight.parameters(), strict=True))


def test_a_best_checkpoint_from_before_the_final_sparsity_is_not_cut_without_a_word():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, steps=8)
    train(model, optimizer, 2)
    best, state = copy.deepcopy(model.state_dict()), copy.deepcopy(pruner.state_dict())
    train(model, optimizer, 8, first=3)
    model.load_state_dict(best)
    with pytest.raises(InvalidValue, match="292 dead weights are not 0"):  # 768 - 400 zeros then, 768 - 76 now
        pruner.finish()
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())
    pruner.load_state_dict(state)
    pruner.finish()
    assert sum(int((p == 0).sum()) for n, p in model.named_parameters() if p.dim() > 1) == 768 - pruner.alive == 400


class Quantised(nn.Module):
    """Fake quantisation to 8 bits, with gradients straight through."""

    def forward(self, weight):
        return torch.fake_quantize_per_tensor_affine(weight, 0.01, 0, -128, 127)


def test_fake_quantisation_registered_later_is_refused_with_the_new_name():
    model = conv_net()
    optimizer = sgd(model)
    attached(model, optimizer)
    train(model, optimizer, 2)
    nn.utils.parametrize.register_parametrization(model[4], "weight", Quantised())
    with pytest.raises(InvalidValue, match=r"now called '4\.parametrizations\.weight\.original'"):
        train(model, optimizer, 1, first=3)


def test_quantisation_aware_training_keeps_the_masks_counts_and_resumes():
    def quantised():
        model = conv_net()
        nn.utils.parametrize.register_parametrization(model[4], "weight", Quantised())
        optimizer = sgd(model)
        return model, optimizer, attached(model, optimizer, steps=8)

    model, optimizer, pruner = quantised()
    train(model, optimizer, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    train(model, optimizer, 6, first=5)
    mask = pruner.masks["4.parametrizations.weight.original"]
    assert pruner.alive == 76
    assert not model[4].weight[~mask].any()  # the weight that acts
    assert torch.equal(model[4].weight, Quantised()(model[4].weight))
    assert sp.count(model, [batch(1)], pruner.masks).pruned.alive == 76
    again, optimizer, other = quantised()
    again.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    train(again, optimizer, 6, first=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("later", [False, True])
def test_torch_prune_is_refused_by_the_layers_name(later):
    from torch.nn.utils import prune as torch_prune

    model = conv_net()
    optimizer = sgd(model)
    if later:
        attached(model, optimizer)
    torch_prune.l1_unstructured(model[4], "weight", 0.3)
    with pytest.raises(InvalidValue, match="'4" if later else "the weight that acts in '4'"):
        train(model, optimizer, 1) if later else attached(model, sgd(model))


def test_a_layer_that_is_unfrozen_later_is_not_left_dense_without_a_word():
    model = conv_net()
    model[4].weight.requires_grad_(False)
    optimizer = sgd(model)
    pruner = attached(model, optimizer)
    train(model, optimizer, 2)
    model[4].weight.requires_grad_(True)
    with pytest.raises(InvalidValue, match=r"'4\.weight' was frozen when the Pruner was made"):
        train(model, optimizer, 1, first=3)
    pruner.finish()
    new = sp.Pruner(model, "magnitude", sp.OneShot(0.7), masks=pruner.masks)
    assert set(new.masks) == {"0.weight", "4.weight", "8.weight"}


def test_a_layer_that_was_left_out_may_be_unfrozen():
    model = conv_net()
    model[4].weight.requires_grad_(False)
    optimizer = sgd(model)
    sp.Pruner(model, "magnitude", sp.OneShot(0.5), exclude="4").attach(optimizer)
    model[4].weight.requires_grad_(True)
    train(model, optimizer, 2)


def test_a_layer_that_is_frozen_during_pruning_is_not_cut_without_a_word():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, steps=8)
    train(model, optimizer, 2)
    model[4].weight.requires_grad_(False)
    before = model[4].weight.clone()
    with pytest.raises(InvalidValue, match=r"'4\.weight' is frozen now.*exclude=\['4\.weight'\]"):
        train(model, optimizer, 2, first=3)
    assert torch.equal(model[4].weight, before)
    pruner.finish()


def test_a_schedule_wholly_in_the_past_of_a_state_is_refused():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, steps=8)
    train(model, optimizer, 8)
    state = pruner.state_dict()
    late = sp.Pruner(conv_net(), "magnitude", sp.Cubic(to=0.95, begin=0, end=8, every=2))
    with pytest.raises(InvalidValue, match=r"at step 8, behind the last mask update of this schedule \(step 8\)"):
        late.load_state_dict(state, strict=False)
    assert late.alive == 768
    later = sp.Pruner(conv_net(), "magnitude", sp.Cubic(to=0.95, begin=8, end=12, every=2, initial=0.9))
    later.load_state_dict(state, strict=False)
    assert later.alive == 76
    same = sp.Pruner(conv_net(), "magnitude", sp.Cubic(to=0.9, begin=0, end=8, every=2))
    same.load_state_dict(state)  # the end of its own training is no fault


def test_weights_that_move_to_another_dtype_are_held():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, steps=8)
    train(model, optimizer, 2)
    model.double()
    for step in range(3, 10):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.double()).mean(0), y).backward()
        optimizer.step()
        functional.reset_net(model)
    assert sum(int((p != 0).sum()) for n, p in model.named_parameters() if n in pruner.masks) == pruner.alive == 76


# ---- states of wrong kinds ------------------------------------------------------------------------------------------

WRONG = {
    "step": [1.5, True, -1, "3", None],
    "masks": [None, [], {"0.weight": torch.ones(9)}, {"0.weight": torch.ones(4, 2, 3, 3)}, {1: torch.ones(9)}, "x"],
    "regrown": [[], 3, {"0.weight": None}, {"other": torch.zeros(9, dtype=torch.uint8)}],
    "ever_regrown": [[1], {"0.weight": torch.zeros(2)}],
    "rounds": [None, 3, [1], [{}], [{"step": 1.5}]],
    "totals": [None, [], {"0.weight": 3}, {"0.weight": (1, 2, 3)}, {"0.weight": ("a", 1.0)}],
    "space": [None, [], 3, "x", {}, {"last": 3}, {"last": {"0.weight": 3}}, {"last": {"0.weight": torch.zeros(2)}}],
    "memory": [None, [], {"kind": 3}, {"kind": {"0.weight": 3}}],
    "rewind": [3, "x", {"point": 3, "since": 0}],
    "settings": [None, 3, {}],
    "version": [None, 99, "1"],
    "began": ["x", 2.0, True, []],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_state_of_wrong_kinds_is_refused_and_changes_nothing(key):
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, steps=8)
    train(model, optimizer, 4)
    good = pruner.state_dict()
    fresh = attached(other := conv_net(seed=1), sgd(other), steps=8)
    before = copy.deepcopy((fresh.state_dict(), other.state_dict()))
    for value in WRONG[key]:
        for state in ({**good, key: value}, {k: v for k, v in good.items() if k != key}):
            if key not in state and key in ("ever_regrown", "began"):
                continue  # states of 0.1.0 lack them
            with pytest.raises(InvalidValue) as caught:
                fresh.load_state_dict(state)
            assert 20 <= len(str(caught.value)) <= 300, state[key]
            assert_same(fresh.state_dict(), before[0])
            assert_same(dict(other.state_dict()), dict(before[1]))
    fresh.load_state_dict(good)
    assert fresh.alive == pruner.alive


# ---- masks that the weights do not obey -----------------------------------------------------------------------------


def test_count_warns_of_masks_that_the_weights_do_not_obey(caplog):
    dense, sparse = conv_net(), conv_net()
    masks = sp.prune(sparse, "magnitude", 0.9)
    with caplog.at_level(logging.WARNING, "spikeprune"):
        told = sp.count(sparse, [batch(1)], masks)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING, "spikeprune"):
        found = sp.count(dense, [batch(1)], masks)
    assert found.pruned.alive == told.pruned.alive == 76  # the figures are those of the masks
    assert "692 weights that the masks cut are not 0 (first in '0.weight')" in caplog.text


@pytest.mark.parametrize("name", ["compile", "export_nir", "export_onnx"])
def test_nothing_leaves_whose_weights_do_not_obey_an_attached_pruner(name, tmp_path):
    x = batch(1)[0]
    leave = {
        "compile": lambda model: sp.compile(model.eval(), x),
        "export_nir": lambda model: sp.export_nir(model.eval(), tmp_path / "a.nir", x),
        "export_onnx": lambda model: sp.export_onnx(model.eval(), tmp_path / "a.onnx", x),
    }[name]
    model = conv_net()
    dense = copy.deepcopy(model.state_dict())
    optimizer = sgd(model)
    pruner = attached(model, optimizer, 8)
    train(model, optimizer, 3)
    leave(model)
    model.load_state_dict(dense)
    with pytest.raises(InvalidValue, match=r"dead weights are not 0.*pruner\.masks\.apply_"):
        leave(model)
    assert name == "compile" or len(list(tmp_path.iterdir())) == 1
    pruner.masks.apply_(model)
    leave(model)


def test_a_model_in_place_of_an_optimizer_is_told():
    model = conv_net()
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.5))
    with pytest.raises(InvalidValue, match=r"attach takes the optimizer, got Sequential.*pruner\.attach\(optimizer\)"):
        pruner.attach(model)


@pytest.mark.parametrize("first", ["optimizer", "pruner"])
def test_an_optimizer_state_of_before_a_mask_update_brings_no_momentum_back(first):
    """The state is of step 3; at the next step nothing of it is left where weights have died since."""
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, 8)
    train(model, optimizer, 3)
    old = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 8, first=4)
    optimizer.load_state_dict(old)
    if first == "pruner":
        pruner.load_state_dict(pruner.state_dict())
    train(model, optimizer, 1, first=12)
    for name, mask in pruner.masks.items():
        assert not optimizer.state[model.get_parameter(name)]["momentum_buffer"][~mask].any()
        assert not model.get_parameter(name)[~mask].any()


def test_going_back_in_one_process_is_bit_exact():
    """Optimizer, model and Pruner are loaded in this order; the momentum of weights that live again stays."""
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, 8)
    train(model, optimizer, 3)
    old = [copy.deepcopy(part.state_dict()) for part in (optimizer, model, pruner)]
    train(model, optimizer, 5, first=4)
    wanted = copy.deepcopy(model.state_dict())
    for part, state in zip((optimizer, model, pruner), old, strict=True):
        part.load_state_dict(copy.deepcopy(state))
    train(model, optimizer, 5, first=4)
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_statistics_of_another_network_in_a_state_are_refused():
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "criticality", sp.Cubic(to=0.9, begin=0, end=8, every=4))
    pruner.attach(optimizer)
    train(model, optimizer, 3)
    state = pruner.state_dict()
    totals = {name: (torch.zeros(7), number) for name, (_, number) in state["totals"].items()}
    assert totals
    pruner.load_state_dict({**state, "totals": totals})
    with pytest.raises(InvalidValue, match="the saved pruner state is of another network"):
        train(model, optimizer, 1, first=4)


def test_a_step_beyond_any_training_is_refused():
    pruner = sp.Pruner(conv_net(), "magnitude", sp.Cubic(to=0.9, begin=0, end=8, every=4))
    with pytest.raises(InvalidValue, match="step is 1000"):
        pruner.load_state_dict({**pruner.state_dict(), "step": 10**30})
