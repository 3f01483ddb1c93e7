"""The Pruner in a user's loop: counts, records, resume, and everything that loops do to optimizers and models."""

import io
import itertools
import logging

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer
from torch import nn

import spikeprune as sp
from nets import CLASSES, N, assert_same, batch, conv_net, lif, loss_of, mlp, sgd, train, weights_of
from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.mask import unpack

pytestmark = pytest.mark.compat  # here, and against SpikingJelly 0.0.0.0.14 by `make test-compat`
CUBIC = sp.Cubic(to=0.9, end=12, every=3)


def attached(method="criticality", schedule=CUBIC, **keywords):
    model = conv_net()
    optimizer = sgd(model)
    return model, optimizer, sp.Pruner(model, method, schedule, **keywords).attach(optimizer)


def regrown_of(pruner):
    bits = pruner.state_dict()["regrown"]
    return {n: unpack(b, tuple(pruner.masks[n].shape)) for n, b in bits.items()}


def count(masks):
    return sum(int(m.sum()) for m in masks.values())


# ---- counts and records ---------------------------------------------------------------------------------------------


def test_events_meet_their_targets_inside_their_steps():
    model, optimizer, pruner = attached()
    alive = []
    train(model, optimizer, 14, after=lambda step: alive.append(pruner.alive))
    kept = {e.step: e.kept for e in pruner.preview()}
    # Of 768 weights: .9 (1 - (1 - n/4)^3) = .5203, .7875, .8859, .9: 368.4, 163.2, 87.6, 76.8
    assert kept == {3: 368, 6: 163, 9: 87, 12: 76}
    assert alive == [768] * 2 + [368] * 3 + [163] * 3 + [87] * 3 + [76] * 3
    assert pruner.sparsity == 1 - 76 / 768
    assert pruner.prunable == 768
    assert repr(pruner).startswith("Pruner(criticality, Cubic(to=0.9")


def test_rounds_against_a_brute_force_recomputation():
    schedule = sp.Cubic(to=0.8, end=24, every=6)
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.5)
    pruner = sp.Pruner(model, sp.Criticality(regrow=0.4), schedule).attach(optimizer)
    parameters = {n: p for n, p in model.named_parameters() if n in pruner.masks}
    before, expected = {}, []
    last = {}

    def remember(*_):  # after the update and before the Pruner's own hook
        before.update(masks=pruner.masks, weights={n: p.detach().clone() for n, p in parameters.items()})

    handles = list(optimizer._optimizer_step_post_hooks.items())
    optimizer.register_step_post_hook(remember)
    optimizer._optimizer_step_post_hooks.move_to_end(handles[-1][0])

    def after(step):
        if step % 6 or step > 24:
            return
        # What magnitude alone keeps: the largest of the alive, over all layers, with one of each at least.
        values = torch.cat([w.abs().where(before["masks"][n], -1.0).flatten() for n, w in before["weights"].items()])
        keep = next(e.kept for e in pruner.preview() if e.step == step)
        chosen = torch.zeros(768, dtype=torch.bool)
        chosen[values.argsort(descending=True, stable=True)[:keep]] = True
        parts = chosen.split([72, 216, 480])
        magnitude = {n: part.view(p.shape) for (n, p), part in zip(parameters.items(), parts, strict=True)}
        assert all(m.any() for m in magnitude.values())
        if last:
            expected[-1]["survived"] = count({n: last["regrown"][n] & magnitude[n] for n in magnitude})
        regrown, alive = regrown_of(pruner), pruner.masks
        newly = {n: before["masks"][n] & ~magnitude[n] for n in magnitude}
        expected.append({
            "step": step, "kept": count(alive), "regrown": count(regrown), "survived": None,
            "rescued": count({n: newly[n] & alive[n] for n in newly}),
        })  # fmt: skip
        last["regrown"] = regrown

    train(model, optimizer, 26, after=after)
    assert [{k: r[k] for k in expected[0]} for r in pruner.rounds] == expected
    assert [r["target"] for r in pruner.rounds] == [e.target for e in pruner.preview()]
    assert sum(r["regrown"] for r in expected) > 50
    assert sum(r["survived"] or 0 for r in expected) > 0
    assert sum(r["rescued"] for r in expected) > 0


def test_survival_near_zero_is_warned_about_once(caplog):
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    sp.Pruner(model, sp.Criticality(), CUBIC).attach(optimizer)
    with caplog.at_level(logging.WARNING, "spikeprune"):
        train(model, optimizer, 12)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "spikeprune"]
    assert said.startswith("spikeprune: 0 of ")
    assert "outlived the next cut" in said


def test_grace_lets_regrown_weights_survive_one_event():
    survived = {}
    for grace in (False, True):
        model, optimizer, pruner = attached(sp.Criticality(regrow=sp.Constant(0.2), grace=grace))
        train(model, optimizer, 12)
        survived[grace] = [(r["survived"], r["regrown"]) for r in pruner.rounds[:-1]]
    assert all(s == r for s, r in survived[True])
    assert any(s < r for s, r in survived[False])


def test_new_candidates_are_those_cut_in_this_event():
    model, optimizer, pruner = attached(sp.Criticality(candidates="new", regrow=sp.Constant(0.3)))
    before = {}

    def after(step):
        if step in (3, 6, 9, 12):
            for n, m in regrown_of(pruner).items():
                assert not (m & ~before.get(n, torch.ones_like(m))).any()
        before.update({n: m.clone() for n, m in pruner.masks.items()})

    train(model, optimizer, 12, after=after)
    assert all(r["regrown"] > 0 for r in pruner.rounds)


def test_measure_after_scores_the_pruned_network():
    # The reference: cut a copy by hand, run the same forward, take the mean derivative of every neuron.
    schedule, method = sp.OneShot(0.7, begin=1), sp.Criticality(regrow=0.3, measure="after")
    seen = {}
    for measure in ("before", "after"):
        model, optimizer, pruner = attached(sp.Criticality(regrow=0.3, measure=measure), schedule)
        original = pruner.method.regrow_score

        def spy(evidence, measure=measure, original=original):
            seen[measure] = {n: s.clone() for n, s in evidence.statistics.items()}
            seen[measure + " weights"] = {n: w.clone() for n, w in evidence.weights.items()}
            return original(evidence)

        object.__setattr__(pruner.method, "regrow_score", spy)
        train(model, optimizer, 2)
    assert method.measure == "after"
    assert not torch.equal(seen["before"]["4.weight"], seen["after"]["4.weight"])
    weights = seen["after weights"]  # before the cut: it was made for the measurement only, and put back
    free = torch.cat([weights[n].abs().flatten() for n in ("0.weight", "4.weight")])
    everything = torch.cat([w.abs().flatten() for w in weights.values()]).sort(descending=True).values
    base = int((free >= everything[229]).sum())  # floor(768 * .3) = 230 kept
    cut = free.sort(descending=True).values[base - int(0.3 * base) - 1]
    copy = conv_net()
    optimizer = sgd(copy)
    train(copy, optimizer, 2)
    with torch.no_grad():
        for i in (0, 4):
            copy[i].weight.mul_(copy[i].weight.abs() >= cut)
        copy[8].weight.mul_(copy[8].weight.abs() >= everything[229])
        hidden = copy[1](copy[0](batch(2)[0]))
        v, mean = torch.zeros_like(hidden[0]), 0
        for x in hidden:
            v = v / 2 + x / 2
            mean = mean + 1 / (1 + (torch.pi * (v - 1)) ** 2) / len(hidden)
            v = v * (v < 1)
    torch.testing.assert_close(seen["after"]["0.weight"], mean.flatten(2).amax(2).mean(0))


def test_only_a_mask_update_that_regrows_runs_the_forwards_again():
    model = conv_net()
    optimizer = sgd(model)
    method = sp.Criticality(regrow=0.2, measure="after")  # the share of the second and last mask update is 0
    pruner = sp.Pruner(model, method, sp.Cubic(to=0.8, end=4, every=2)).attach(optimizer)
    forwards, seen = [], []
    model[0].register_forward_hook(lambda *_: forwards.append(0))
    train(model, optimizer, 4, after=lambda _: seen.append(len(forwards)))
    assert [after - before for before, after in itertools.pairwise(seen)] == [2, 1, 1]  # of steps 2, 3 and 4
    assert [bool(r.regrown) for r in pruner.rounds] == [True, False]


def test_observe_needs_what_the_method_needs():
    with pytest.raises(MissingEvidence, match="pass data="):
        sp.Pruner(conv_net(), "criticality", CUBIC).observe(None)


# ---- never dense ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocate", ["global", "uniform", "erk"])
@pytest.mark.parametrize("method", ["random", "gradient", "criticality"])
def test_random_start_with_constant_sparsity_is_never_dense(method, allocate):
    model = conv_net()
    pruner = sp.Pruner(model, method, sp.Constant(0.8, end=12, every=3), allocate=allocate, start="random")
    assert pruner.alive == 153  # floor(768 * .2) = 153.6
    assert all((p[~pruner.masks[n]] == 0).all() for n, p in model.named_parameters() if n in pruner.masks)
    optimizer = sgd(model)
    pruner.attach(optimizer)
    first = pruner.masks
    layers = {n: int(m.sum()) for n, m in first.items()}

    def after(step):
        assert pruner.alive == 153
        if allocate != "global":  # dropped and regrown per layer
            assert {n: int(m.sum()) for n, m in pruner.masks.items()} == layers

    train(model, optimizer, 13, after=after)
    assert any((pruner.masks[n] != first[n]).any() for n in first)
    assert all(r["kept"] == 153 for r in pruner.rounds)


def test_gradient_regrows_where_the_dense_gradient_is_largest():
    for clip in (False, True):
        model, optimizer, pruner = attached(sp.Gradient(regrow=0.2), sp.Cubic(to=0.8, end=6, every=3))
        grads = {}
        for step in range(1, 7):
            x, y = batch(step)
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            grads = {n: p.grad.abs().clone() for n, p in model.named_parameters() if n in pruner.masks}
            if clip:  # the user's clipping sees masked gradients, the method still those of dead weights
                pruner.mask_grads()
                assert all(not p.grad[~pruner.masks[n]].any() for n, p in model.named_parameters() if n in grads)
            optimizer.step()
            functional.reset_net(model)
            if step == 3:
                regrown, alive = regrown_of(pruner), pruner.masks
                worst_in = min(float(grads[n][m].min()) for n, m in regrown.items() if m.any())
                best_out = max(float(grads[n][~alive[n]].max()) for n in grads)
                assert worst_in >= best_out > 0


def test_gradient_regrowth_inside_a_closure_uses_that_steps_gradient():
    model, optimizer, pruner = attached(sp.Gradient(regrow=0.2), sp.OneShot(0.8))
    x, y = batch(1)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    # Nothing had a gradient before the step, so all that was regrown follows from the closure's own.
    grads = {n: p.grad.abs() for n, p in model.named_parameters() if n in pruner.masks}
    regrown, alive = regrown_of(pruner), pruner.masks
    worst_in = min(float(grads[n][m].min()) for n, m in regrown.items() if m.any())
    assert worst_in >= max(float(grads[n][~alive[n]].max()) for n in grads) > 0


# ---- the same again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["random", "gradient", "criticality", "magnitude"])
def test_same_seed_same_masks_and_another_seed_others(method):
    masks = []
    for seed in (1, 1, 2):
        model, optimizer, pruner = attached(method, seed=seed)
        train(model, optimizer, 7)
        masks.append(dict(pruner.masks))
    assert_same(masks[0], masks[1])
    same = all(torch.equal(masks[0][n], masks[2][n]) for n in masks[0])
    assert same == (method != "random")  # of these only random regrowth draws


RESUME = {
    "plain": sp.Criticality(),
    "window": sp.Criticality(batches=3),
    "after": sp.Criticality(measure="after", batches=2),
    "sample": sp.Criticality(pick="sample", unit="synapse"),
    "grace": sp.Criticality(grace=True, regrow=sp.Constant(0.3)),
    "authors": sp.Criticality(rule="authors", regrow=sp.Constant(0.2), curve="value"),
    "gradient": sp.Gradient(),
    "random": sp.Random(),
}


def dropout_net():
    """With noise in front of the neurons, so that a resumed trace must not shift the random numbers."""
    net = conv_net()
    net.insert(1, layer.Dropout(0.2, step_mode="m"))
    return net


@pytest.mark.parametrize("order", ["before attach", "after attach"])
@pytest.mark.parametrize("name", sorted(RESUME))
def test_resume_at_any_step_is_bit_exact(name, order):
    def fresh():
        model = dropout_net()
        optimizer = sgd(model)
        return model, optimizer, sp.Pruner(model, RESUME[name], sp.Cubic(to=0.9, end=8, every=4))

    model, optimizer, pruner = fresh()
    pruner.attach(optimizer)
    saved = {}

    def save(step):
        buffer = io.BytesIO()
        parts = {"model": model.state_dict(), "opt": optimizer.state_dict(), "pruner": pruner.state_dict()}
        torch.save({**parts, "rng": torch.get_rng_state()}, buffer)
        saved[step] = buffer

    torch.manual_seed(5)
    train(model, optimizer, 9, after=save)
    for step in (0, 1, 2, 3, 4, 5, 7) if order == "before attach" else (3, 6):
        if step == 0:
            continue
        again, other, resumed = fresh()
        saved[step].seek(0)
        state = torch.load(saved[step], weights_only=True)
        if order == "after attach":
            resumed.attach(other)
        again.load_state_dict(state["model"])
        other.load_state_dict(state["opt"])
        resumed.load_state_dict(state["pruner"])
        if order == "before attach":
            resumed.attach(other)
        torch.set_rng_state(state["rng"])
        train(again, other, 9 - step, first=step + 1)
        assert_same(dict(resumed.masks), dict(pruner.masks))
        assert_same(weights_of(again), weights_of(model))
        assert_same(other.state_dict()["state"], optimizer.state_dict()["state"])
        assert resumed.rounds == pruner.rounds


def test_a_state_of_other_settings_is_refused():
    _, _, pruner = attached(seed=3)
    state = pruner.state_dict()
    others = {
        "method": {"method": "magnitude"}, "schedule": {"schedule": sp.Linear(to=0.9, end=12, every=3)},
        "allocate": {"allocate": "erk"}, "floor": {"floor": 2}, "seed": {"seed": 4}, "parameters": {"exclude": ["0"]},
    }  # fmt: skip
    for what, changed in others.items():
        keywords = {"method": "criticality", "schedule": CUBIC, "seed": 3} | changed
        other = sp.Pruner(conv_net(), **keywords)
        with pytest.raises(InvalidValue, match=f"another {what}") as caught:
            other.load_state_dict(state)
        assert 20 <= len(str(caught.value)) <= 300
    sp.Pruner(conv_net(), "magnitude", CUBIC).load_state_dict(state, strict=False)


def test_a_damaged_state_is_refused_and_changes_nothing():
    model, optimizer, pruner = attached()
    train(model, optimizer, 7)
    good = pruner.state_dict()
    fresh = sp.Pruner(conv_net(), "criticality", CUBIC)
    cut = {n: b[:-1] for n, b in good["masks"].items()}
    broken = [
        {}, None, {**good, "version": 99}, {**good, "masks": {}}, {**good, "masks": cut}, {**good, "rounds": None},
        {k: v for k, v in good.items() if k != "totals"}, {**good, "settings": None},
    ]  # fmt: skip
    for state in broken:
        with pytest.raises(InvalidValue) as caught:
            fresh.load_state_dict(state)  # type: ignore[arg-type]
        assert 20 <= len(str(caught.value)) <= 300
    assert fresh.alive == 768
    fresh.load_state_dict(good)
    assert fresh.alive == pruner.alive


# ---- what loops do --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused):
    # A fused optimizer is called all the same, and skips inside its kernel.
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=fused)
    pruner = sp.Pruner(model, "gradient", sp.Cubic(to=0.5, end=4, every=2)).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    steps = []
    for i in range(6):
        x, y = batch(i)
        optimizer.zero_grad()
        scaler.scale(loss_of(model, x, y)).backward()
        if i in (1, 4):
            model[0].weight.grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        functional.reset_net(model)
        steps.append(pruner.state_dict()["step"])
        assert all((p[~pruner.masks[n]] == 0).all() for n, p in model.named_parameters() if n in pruner.masks)
    assert steps == [1, 1, 2, 3, 3, 4]
    assert [r["step"] for r in pruner.rounds] == [2, 4]
    assert pruner.alive == 384
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_autocast_gives_the_same_gradients_as_without_us():
    losses = []
    for method in (None, sp.Criticality(regrow=0)):
        model = conv_net()
        optimizer = sgd(model)
        if method is not None:  # traced and recorded inside the user's autocast, dead weights none
            sp.Pruner(model, sp.Criticality(regrow=0.2), sp.Linear(to=0.0, end=4, every=2)).attach(optimizer)
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(train(model, optimizer, 5))
    assert losses[0] == losses[1]


def test_gradient_accumulation_counts_steps_and_sees_every_forward():
    # Two halves of a batch give the statistic of the whole batch: a mean over N.
    seen = []
    for halves in (1, 2):
        model = conv_net().eval()  # running averages, so that a half is normalised like the whole
        optimizer = sgd(model)
        pruner = sp.Pruner(model, sp.Criticality(), sp.OneShot(0.5)).attach(optimizer)
        original = pruner.method.regrow_score
        object.__setattr__(
            pruner.method, "regrow_score", lambda e, f=original: (seen.append(dict(e.statistics)), f(e))[1]
        )
        x, y = batch(1)
        for part in range(halves):
            size = N // halves
            loss_of(model, x[:, part * size : (part + 1) * size], y[part * size : (part + 1) * size]).backward()
            functional.reset_net(model)
        optimizer.step()
    for name in seen[0]:
        torch.testing.assert_close(seen[0][name], seen[1][name])


def test_learning_rate_schedulers_go_on():
    model, optimizer, pruner = attached()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    train(model, optimizer, 13, after=lambda _: scheduler.step())
    assert pruner.alive == 76
    assert optimizer.param_groups[0]["lr"] < 0.1


def test_clipping_sees_only_alive_gradients():
    model, optimizer, pruner = attached("magnitude", sp.OneShot(0.9))
    train(model, optimizer, 1)
    x, y = batch(2)
    loss_of(model, x, y).backward()
    pruner.mask_grads()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    alive = [p.grad * pruner.masks.get(n, torch.ones(())) for n, p in model.named_parameters()]
    assert torch.stack([g.norm() for g in alive]).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert norm > 0.01


def test_explicit_step_equals_attach():
    results = []
    for explicit in (False, True):
        model = conv_net()
        optimizer = sgd(model)
        pruner = sp.Pruner(model, sp.Gradient(), CUBIC)
        if not explicit:
            pruner.attach(optimizer)
            train(model, optimizer, 13)
        else:
            for step in range(1, 14):
                x, y = batch(step)
                optimizer.zero_grad()
                loss_of(model, x, y).backward()
                pruner.mask_grads()
                optimizer.step()
                pruner.step(optimizer)
                functional.reset_net(model)
        results.append((dict(pruner.masks), weights_of(model)))
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])


def test_attaching_twice_counts_once_and_keeps_what_was_recorded():
    plain = attached(sp.Criticality(batches=3))
    train(plain[0], plain[1], 6)
    model, optimizer, pruner = attached(sp.Criticality(batches=3))
    train(model, optimizer, 2)
    pruner.attach(optimizer).attach(optimizer)
    train(model, optimizer, 4, first=3)
    assert_same(dict(pruner.masks), dict(plain[2].masks))


def test_an_optimizer_reloaded_after_attaching():
    # Accelerate sends the optimizer's state through state_dict and load_state_dict when it prepares it.
    plain = attached()
    train(plain[0], plain[1], 9)
    model, optimizer, pruner = attached()
    for first in (1, 4, 7):
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, 3, first=first)
    assert_same(weights_of(model), weights_of(plain[0]))
    assert_same(dict(pruner.masks), dict(plain[2].masks))


def test_shared_parameters_are_masked_once():
    model = conv_net()
    model[4] = layer.Conv2d(4, 4, 3, padding=1, bias=False, step_mode="m")
    model[5] = layer.BatchNorm2d(4, step_mode="m")
    model[8] = layer.Linear(64, CLASSES, step_mode="m")
    tied = nn.Sequential(*model[:6], model[4], *model[6:])  # the same conv twice before one neuron
    optimizer = sgd(tied)
    pruner = sp.Pruner(tied, sp.Criticality(), CUBIC).attach(optimizer)
    train(tied, optimizer, 13)
    assert list(pruner.masks) == ["0.weight", "4.weight", "9.weight"]
    assert (tied[4].weight[~pruner.masks["4.weight"]] == 0).all()
    assert pruner.alive == pruner.preview()[-1].kept


def test_compiled_model_records_at_events():
    plain = attached(sp.Criticality(), sp.OneShot(0.5, begin=1))
    train(plain[0], plain[1], 3)
    model = conv_net()
    compiled = torch.compile(model, backend="eager")
    optimizer = sgd(model)
    pruner = sp.Pruner(compiled, sp.Criticality(), sp.OneShot(0.5, begin=1)).attach(optimizer)
    train(compiled, optimizer, 3)
    assert list(pruner.masks) == list(plain[2].masks)  # names of the user's model, without _orig_mod
    assert_same(dict(pruner.masks), dict(plain[2].masks))
    assert "forward" not in compiled.__dict__ or compiled.forward is not model.__call__


def test_validation_between_steps_is_not_recorded():
    runs = []
    for validate in (False, True):
        model, optimizer, pruner = attached(sp.Criticality(batches=2))

        def after(step, model=model, validate=validate):
            if validate:
                model.eval()
                with torch.no_grad():
                    model(batch(50 + step)[0])
                functional.reset_net(model)
                model.train()

        train(model, optimizer, 13, after=after)
        runs.append(dict(pruner.masks))
    assert_same(*runs)


def test_no_hook_of_ours_runs_far_from_an_event():
    model, optimizer, _ = attached(sp.Criticality(batches=2), sp.Cubic(to=0.8, end=20, every=10))
    hooks = []

    def count_hooks(step):
        modules = list(model.modules())
        hooks.append((step, sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)))

    count_hooks(0)
    train(model, optimizer, 22, after=count_hooks)
    # Behind step k stand the hooks for step k + 1: the trace for step 1, the windows 9, 10 and none at 19, 20,
    # because the last event regrows nothing.
    assert [step + 1 for step, number in hooks if number] == [1, 9, 10]


def test_recording_disturbs_nothing():
    # Same losses with and without a Pruner that records at every step but has nothing to prune yet.
    losses = []
    for record in (False, True):
        model = dropout_net()
        optimizer = sgd(model)
        if record:
            method = sp.Criticality(batches=50, unit="synapse")
            sp.Pruner(model, method, sp.Cubic(to=0.5, end=100, every=50)).attach(optimizer)
        torch.manual_seed(3)
        losses.append((train(model, optimizer, 6), weights_of(model), torch.get_rng_state()))
    assert losses[0][0] == losses[1][0]
    assert_same(losses[0][1], losses[1][1])
    assert torch.equal(losses[0][2], losses[1][2])


def test_finish_leaves_an_ordinary_module():
    model, optimizer, pruner = attached()
    keys, cls = list(model.state_dict()), type(model)
    train(model, optimizer, 8)
    alive = pruner.alive
    pruner.finish()
    assert list(model.state_dict()) == keys
    assert type(model) is cls
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert pruner.alive == alive == 163
    assert all(not p[~pruner.masks[n]].any() for n, p in model.named_parameters() if n in pruner.masks)
    assert [row.name for row in pruner.table()] == ["0.weight", "4.weight", "8.weight"]


def test_table_shows_the_pairing_after_the_first_forward():
    model, optimizer, pruner = attached()
    assert "?" in str(pruner.table())
    train(model, optimizer, 1)
    assert {r.name: r.neuron for r in pruner.table()} == {"0.weight": "2", "4.weight": "6", "8.weight": None}
    assert "at the first forward" not in str(pruner.table())


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_nm_pattern_in_training(pattern):
    n, m = map(int, pattern.split(":"))
    model = conv_net()
    optimizer = sgd(model)
    schedule = sp.Cubic(to=1 - n / m, end=12, every=3)
    method = sp.Criticality(regrow=sp.Constant(0.2))
    pruner = sp.Pruner(model, method, schedule, pattern=pattern).attach(optimizer)
    assert list(pruner.masks) == ["4.weight", "8.weight"]  # two input channels cannot be grouped by four
    train(model, optimizer, 13)
    assert pruner.rounds[-1]["regrown"] > 0
    for mask in pruner.masks.values():
        assert (mask.movedim(1, -1).reshape(-1, m).sum(1) == n).all()


@pytest.mark.parametrize("budget", ["macs", "synops", "parameters"])
def test_budgets_are_met_in_training(budget):
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, sp.Criticality(), sp.Cubic(to=0.7, end=12, every=3), budget=budget).attach(optimizer)
    train(model, optimizer, 13)
    alive = {n: int(m.sum()) for n, m in pruner.masks.items()}
    if budget == "macs":  # positions: 8 * 8 and 4 * 4 maps, the classifier once
        spent = alive["0.weight"] * 64 + alive["4.weight"] * 16 + alive["8.weight"]
        whole = 72 * 64 + 216 * 16 + 480
        assert 0.3 * whole - 3 * 64 < spent <= 0.3 * whole
    if budget == "parameters":  # biases and BN count, and are never cut
        rest = sum(p.numel() for p in model.parameters()) - 768
        assert sum(alive.values()) == int((768 + rest) * 0.3) - rest
    assert 0 < sum(alive.values()) < 768


def test_a_weight_only_method_takes_any_module():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruner = sp.Pruner(model, "magnitude", sp.Cubic(to=0.9, end=6, every=2)).attach(optimizer)
    for _ in range(7):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 5)), torch.randint(3, (8,))).backward()
        optimizer.step()
    assert pruner.alive == 6


def test_single_and_multi_step_models_end_alike():
    def losses(step_mode):
        model = conv_net(step_mode).eval()
        optimizer = sgd(model)
        pruner = sp.Pruner(model, sp.Criticality(measure="after"), CUBIC).attach(optimizer)
        for step in range(1, 7):
            x, y = batch(step)
            out = model(x).mean(0) if step_mode == "m" else torch.stack([model(frame) for frame in x]).mean(0)
            optimizer.zero_grad()
            F.cross_entropy(out, y).backward()
            optimizer.step()
            functional.reset_net(model)
        return dict(pruner.masks)

    assert_same(losses("m"), losses("s"))


def test_a_neuron_called_with_a_keyword_is_read():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.out = nn.Linear(6, 4), lif(), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.lif(x=self.fc(input=x)))

    model = Net()
    for unit in ("neuron", "synapse"):
        masks = sp.prune(model, sp.Criticality(unit=unit), sparsity=0.5, data=[torch.rand(4, 6)])
        assert masks.alive == 18
