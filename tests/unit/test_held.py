"""Zeros that stay: hold, masks= of the Pruner, masks.apply_, averaged copies and packed files."""

import copy
import io

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import spikeprune as sp
from nets import assert_same, batch, conv_net, mlp, sgd, train, weights_of
from spikeprune.core.errors import InvalidValue, UnknownName, UserError
from spikeprune.core.mask import Masks

WEIGHTS = ("0.weight", "4.weight", "8.weight")


def sparse(sparsity=0.7, **keywords):
    """A network of 768 weights and the masks that it was pruned to."""
    model = conv_net()
    return model, sp.prune(model, "magnitude", sparsity, **keywords)


def zeros(model, masks):
    return all(not p[~masks[n]].any() for n, p in model.named_parameters() if n in masks)


def averaged(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))


# ---- hold ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zeros", "mapping", "path"])
def test_hold_keeps_exactly_these_zeros_through_training(form, tmp_path):
    model, masks = sparse()
    save_file(dict(masks), tmp_path / "masks.safetensors")
    given = {"zeros": "zeros", "mapping": masks, "path": tmp_path / "masks.safetensors"}[form]
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    pruner = sp.hold(model, given).attach(optimizer)
    assert pruner.preview() == ()
    before = weights_of(model)
    train(model, optimizer, 6)
    assert_same(dict(pruner.masks), dict(masks))
    assert pruner.alive == masks.alive == 230
    assert zeros(model, masks)
    assert all((model.get_parameter(n)[masks[n]] != before[n][masks[n]]).float().mean() > 0.9 for n in WEIGHTS)
    pruner.finish()
    assert zeros(model, masks)


def test_hold_zeroes_weights_outside_the_given_masks_at_once():
    _, masks = sparse()
    other = conv_net(seed=1)
    sp.hold(other, masks)
    assert zeros(other, masks)


def test_fine_tuning_a_sparse_network_again_keeps_its_zeros():
    model, masks = sparse(0.9)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = sp.Constant(0.9, begin=0, end=40, every=20)
    sp.Pruner(model, "magnitude", schedule, masks="zeros").attach(optimizer)
    train(model, optimizer, 2)
    assert zeros(model, masks)


def test_a_mask_update_leaves_given_masks_of_biases_alone():
    model, masks = sparse(0.5)
    bias = next(n for n, p in model.named_parameters() if n.endswith("bias"))
    masks = dict(masks) | {bias: torch.arange(model.get_parameter(bias).numel()) > 0}
    optimizer = sgd(model)  # with momentum: the biases have optimizer state
    pruner = sp.Pruner(model, "magnitude", sp.Cubic(to=0.9, end=4, every=2), masks=masks).attach(optimizer)
    train(model, optimizer, 5)
    assert pruner.alive == 76
    assert model.get_parameter(bias)[0] == 0
    assert bool((optimizer.state[model.get_parameter(bias)]["momentum_buffer"][1:] != 0).any())


def test_hold_of_cut_channels_keeps_their_normalisation_too():
    model = conv_net()
    masks = sp.prune(model, "bn-scale", 0.5, data=[batch(1)], pattern="channel")
    optimizer = sgd(model)
    pruner = sp.hold(model).attach(optimizer)
    train(model, optimizer, 5)
    dead = {n: m for n, m in masks.items() if not m.all()}
    assert {"5.weight", "5.bias"} <= set(dead) <= set(pruner.masks)
    assert zeros(model, dead)
    assert bool((model[5].bias != 0).any())  # the alive channels of the same tensor went on learning


def test_hold_resumes_from_its_state():
    model, masks = sparse()
    optimizer = sgd(model)
    pruner = sp.hold(model).attach(optimizer)
    train(model, optimizer, 3)
    state, weights, momentum = (copy.deepcopy(x.state_dict()) for x in (pruner, model, optimizer))
    train(model, optimizer, 3, first=4)
    again = conv_net()
    again.load_state_dict(weights)
    other = sgd(again)
    resumed = sp.hold(again, masks).attach(other)
    other.load_state_dict(momentum)
    resumed.load_state_dict(state)
    train(again, other, 3, first=4)
    assert_same(weights_of(again), weights_of(model))


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ("zeros", InvalidValue, "no zero to hold"),
        ({"9.weight": torch.ones(2, dtype=torch.bool)}, UnknownName, "no parameter named '9.weight'"),
        ({"0.weight": torch.ones(2, dtype=torch.bool)}, InvalidValue, "has shape"),
        ({"0.weight": torch.rand(4, 2, 3, 3)}, InvalidValue, "only 0 and 1"),
        (3, InvalidValue, "masks must be 'zeros', a mapping"),
        ("no-such-file.safetensors", UserError, "cannot read"),
    ],
)
def test_what_cannot_be_held_is_refused(masks, error, message):
    with pytest.raises(error, match=message) as caught:
        sp.hold(conv_net(), masks)
    assert 20 <= len(str(caught.value)) <= 300


def test_files_that_hold_no_masks_are_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"0.weight": torch.rand(4, 2, 3, 3)}, tmp_path / "weights.safetensors")
    for name, message in (("text", "damaged or no safetensors"), ("weights", "which is no mask")):
        with pytest.raises(UserError, match=message):
            sp.hold(conv_net(), tmp_path / f"{name}.safetensors")


# ---- masks= of the Pruner --------------------------------------------------------------------------------------


def test_the_schedule_runs_from_the_given_sparsity():
    # s_0 = 1 - 384 / 768 = .5, to = .9, M = 2: s_1 = .5 + .4 * (1 - (1/2)^3) = .85, kept floor(768 * .15) = 115
    model, masks = sparse(0.5)
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "magnitude", sp.Cubic(to=0.9, end=4, every=2), masks=masks).attach(optimizer)
    assert [e.target for e in pruner.preview()] == pytest.approx([0.85, 0.9])
    assert [e.kept for e in pruner.preview()] == [115, 76]

    def after(step):
        assert all((pruner.masks[n] <= masks[n]).all() for n in masks)

    train(model, optimizer, 5, after=after)
    assert [r.kept for r in pruner.rounds] == [115, 76]


@pytest.mark.parametrize("kind", [sp.Linear, sp.Cosine, sp.Geometric, sp.Cubic])
def test_every_schedule_runs_from_there(kind):
    schedule = kind(to=0.9, end=4, every=2).since(0.5)
    assert schedule.at(0.0) == pytest.approx(0.5)
    assert schedule.at(1.0) == 0.9
    assert 0.5 < schedule.value(1, 2) < 0.9


def test_a_method_that_regrows_may_bring_back_what_the_masks_cut():
    model, masks = sparse(0.5)
    optimizer = sgd(model)
    schedule = sp.Constant(0.5, end=4, every=2)
    pruner = sp.Pruner(model, sp.Random(regrow=sp.Constant(0.3)), schedule, masks=masks).attach(optimizer)
    train(model, optimizer, 3)
    assert pruner.alive == 384
    assert any(bool((pruner.masks[n] & ~masks[n]).any()) for n in masks)


def test_given_masks_of_channels():
    model = conv_net()
    masks = sp.prune(model, "bn-scale", 0.5, data=[batch(1)], pattern="channel")
    optimizer = sgd(model)
    schedule = sp.Cubic(to=0.7, end=4, every=2)
    pruner = sp.Pruner(model, "bn-scale", schedule, pattern="channel", masks=masks).attach(optimizer)
    assert zeros(model, masks)
    pruner.trace(batch(1)[0])
    assert (pruner.alive, pruner.prunable) == (5, 10)
    assert pruner.preview()[0].target == pytest.approx(0.5 + 0.2 * 0.875)
    train(model, optimizer, 5)
    assert pruner.alive == 3
    assert all((pruner.masks[n] <= masks[n]).all() for n in masks)


def test_masks_that_cut_no_whole_channels_are_refused_for_a_channel_pattern():
    model, masks = sparse()
    pruner = sp.Pruner(model, "bn-scale", sp.OneShot(0.75), pattern="channel", masks=masks)
    with pytest.raises(InvalidValue, match="does not cut whole channels"):
        pruner.trace(batch(1)[0])


def test_a_sparsity_below_that_of_the_masks_is_refused():
    model, masks = sparse(0.7)
    with pytest.raises(InvalidValue, match=r"the given masks keep 230 of 768.*raise `to`") as caught:
        sp.Pruner(model, "magnitude", sp.Cubic(to=0.6, end=4, every=2), masks=masks)
    assert 20 <= len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("method", "keywords"),
    [
        ("magnitude", {"start": "random"}),
        ("magnitude", {"budget": "macs"}),
        ("stds", {}),
        ("magnitude", {"pattern": "1:2"}),
    ],
)
def test_what_given_masks_exclude(method, keywords):
    model, masks = sparse(0.5)
    with pytest.raises(InvalidValue, match="masks= takes") as caught:
        sp.Pruner(model, method, sp.OneShot(0.5), masks=masks, **keywords)
    assert 20 <= len(str(caught.value)) <= 300


def test_a_state_that_began_from_masks_goes_on_with_zeros_of_later():
    model, masks = sparse(0.5)
    optimizer = sgd(model)
    schedule = sp.Cubic(to=0.9, end=6, every=2)
    pruner = sp.Pruner(model, "magnitude", schedule, masks=masks).attach(optimizer)
    train(model, optimizer, 3)
    saved = [copy.deepcopy(x.state_dict()) for x in (model, optimizer, pruner)]
    train(model, optimizer, 5, first=4)
    again = conv_net()
    again.load_state_dict(saved[0])
    other = sgd(again)
    resumed = sp.Pruner(again, "magnitude", schedule, masks="zeros").attach(other)
    other.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    assert [e.target for e in resumed.preview()] == [e.target for e in pruner.preview()]
    train(again, other, 5, first=4)
    assert_same(weights_of(again), weights_of(model))
    plain = sp.Pruner(conv_net(), "magnitude", schedule)
    with pytest.raises(InvalidValue, match="began from masks="):
        plain.load_state_dict(saved[2])


# ---- apply_ and follow -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, AveragedModel, lambda m: nn.ModuleDict({"net": m})])
def test_masks_are_applied_to_another_model_of_the_same_shape(wrap):
    _, masks = sparse()
    other = conv_net(seed=1)
    other[0].weight.data[~masks["0.weight"]] = torch.inf
    whole = wrap(other)
    assert masks.apply_(whole) is whole
    inner = next(m for m in whole.modules() if isinstance(m, nn.Sequential))
    assert zeros(inner, masks)
    assert all(torch.isfinite(p).all() for p in inner.parameters())


def test_masks_of_another_network_change_nothing():
    _, masks = sparse()
    other = mlp()
    before = weights_of(other)
    with pytest.raises(UnknownName, match="no parameter named"):
        Masks({n: m for n, m in masks.items() if n != "0.weight"}).apply_(other)
    with pytest.raises(InvalidValue, match="has shape"):
        Masks({"0.weight": torch.zeros(8, 5).bool(), "2.weight": torch.ones(9, 9).bool()}).apply_(other)
    assert_same(weights_of(other), before)


def test_an_average_keeps_to_the_masks_after_each_of_its_updates():
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, sp.Random(), sp.Cubic(to=0.9, end=8, every=2)).attach(optimizer)
    ema, free = averaged(model), averaged(model)
    assert pruner.follow(ema) is pruner

    def after(step):
        ema.update_parameters(model)
        free.update_parameters(model)
        assert zeros(ema.module, pruner.masks)

    train(model, optimizer, 12, after=after)
    pruner.finish()
    ema.update_parameters(model)
    assert zeros(ema.module, pruner.masks)
    assert "update_parameters" not in vars(ema)
    assert not ema._forward_pre_hooks
    assert not zeros(free.module, pruner.masks)


def test_a_copy_averaged_by_hand_is_held_before_it_computes_or_is_saved():
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.9)).attach(optimizer)
    hand = copy.deepcopy(conv_net())
    pruner.follow(hand)
    train(model, optimizer, 2)
    for act in (lambda: hand.state_dict(), lambda: hand(batch(1)[0])):
        hand[0].weight.data.fill_(1.0)
        act()
        assert zeros(hand, pruner.masks)


def test_a_copy_of_the_average_follows_nobody_and_works():
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.9)).attach(optimizer)
    ema = AveragedModel(model)
    pruner.follow(ema)
    twin = copy.deepcopy(ema)
    buffer = io.BytesIO()
    torch.save(ema, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    train(model, optimizer, 2)
    for other in (twin, loaded):
        other.update_parameters(model)
        assert int(other.n_averaged) == 1
        other.update_parameters(conv_net(seed=3))
        assert not zeros(other.module, pruner.masks)
        other(batch(1)[0])
    assert int(ema.n_averaged) == 0


def test_an_average_of_another_network_is_refused():
    pruner = sp.Pruner(conv_net(), "magnitude", sp.OneShot(0.9))
    with pytest.raises(UserError):
        pruner.follow(AveragedModel(mlp()))


# ---- packed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zeros", "masks"])
def test_a_packed_file_gives_the_network_and_its_masks_back(form, tmp_path):
    model, masks = sparse(0.9)
    path = tmp_path / "net.safetensors"
    sp.save_packed(nn.DataParallel(model), path, masks if form == "masks" else "zeros")
    state, found = sp.load_packed(path)
    assert_same(dict(found), dict(masks))
    other = conv_net(seed=1)
    other.load_state_dict(state)
    assert_same(weights_of(other), weights_of(model))
    assert found.apply_(other) is other
    dense = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    assert path.stat().st_size < dense  # 76 of 768 values and 96 bytes of masks, in place of 3 kB


def test_weights_that_do_not_obey_the_masks_are_not_packed(tmp_path):
    _, masks = sparse()
    with pytest.raises(UserError, match=r"masks\.apply_\(model\)") as caught:
        sp.save_packed(conv_net(), tmp_path / "net.safetensors", masks)
    assert 20 <= len(str(caught.value)) <= 300
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    model, masks = sparse()
    path = tmp_path / "net.safetensors"
    sp.save_packed(model, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="is damaged"):
        sp.load_packed(path)
    save_file(dict(masks), path)
    with pytest.raises(UserError, match="is no packed network"):
        sp.load_packed(path)
    with pytest.raises(UserError, match="cannot read"):
        sp.load_packed(tmp_path / "none")
