"""Optimizers around and inside others, several for one model, closures: the zeros stay and every mask update comes."""

import gc
import weakref

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import spikeprune as sp
from nets import batch, conv_net, loss_of, sgd, train, weights_of
from spikeprune.core.errors import InvalidValue
from spikeprune.upkeep.attachment import closure_of

UPDATES = sp.Cubic(to=0.9, begin=0, end=10, every=2)  # 5 mask updates; 76 of 768 weights stay


class Lookahead(torch.optim.Optimizer):
    """Every 3 steps the fast weights go half of the way back to the slow ones, which are kept in a list."""

    def __init__(self, inner):
        self.inner, self.steps = inner, 0
        self.slow = [[p.detach().clone() for p in g["params"]] for g in inner.param_groups]
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        self.inner.step(closure)
        self.steps += 1
        if self.steps % 3 == 0:
            for group, slow in zip(self.inner.param_groups, self.slow, strict=True):
                for p, kept in zip(group["params"], slow, strict=True):
                    kept.add_(p.detach() - kept, alpha=0.5)
                    p.data.copy_(kept)


class Unhooked:
    """Looks ahead as well, keeps slow weights in the inner optimizer's state, and takes no hooks."""

    def __init__(self, inner):
        self._inner, self.steps = inner, 0
        self.param_groups, self.state = inner.param_groups, inner.state

    def zero_grad(self):
        self._inner.zero_grad()

    def step(self):
        self._inner.step()
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.detach().clone().fill_(0.1))
                if self.steps % 3 == 0:
                    slow.add_(p.detach() - slow, alpha=0.5)
                    p.data.copy_(slow)


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation: two gradients a step, by `first_step` and `second_step` or by `step(closure)`."""

    def __init__(self, params, base, **settings):
        super().__init__(params, settings)
        self.base = base(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self):
        for p in (p for g in self.param_groups for p in g["params"] if p.grad is not None):
            self.state[p]["before"] = p.data.clone()
            p.add_(p.grad, alpha=0.01)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in (p for g in self.param_groups for p in g["params"] if p.grad is not None):
            p.data = self.state[p]["before"]
        self.base.step()
        self.zero_grad()

    def step(self, closure=None):
        with torch.enable_grad():
            self.first_step()
            loss = closure()
        self.second_step()
        return loss


def assert_held(pruner, model):
    """The zeros are those of the report, and the report is that of the plan."""
    parameters = dict(model.named_parameters())
    assert [r.step for r in pruner.rounds] == [2, 4, 6, 8, 10]
    assert pruner.alive == 76
    for name, mask in pruner.masks.items():
        assert not parameters[name][~mask].any()
        assert parameters[name][mask].any()


@pytest.mark.parametrize("outside", [False, True], ids=["inner attached", "outer attached"])
@pytest.mark.parametrize("wrapper", [Lookahead, Unhooked])
def test_lookahead_revives_nothing_and_its_slow_weights_stay_zero(wrapper, outside):
    model = conv_net()
    inner = sgd(model)
    outer = wrapper(inner)
    pruner = sp.Pruner(model, "magnitude", UPDATES)
    pruner.attach(outer if outside else inner)
    train(model, outer, 12)
    assert_held(pruner, model)
    slow = (
        {n: t for (n, _), t in zip(model.named_parameters(), outer.slow[0], strict=True)}
        if wrapper is Lookahead
        else {n: inner.state[p]["slow"] for n, p in model.named_parameters()}
    )
    assert all(not slow[n][~mask].any() for n, mask in pruner.masks.items())
    pruner.finish()
    assert "step" not in vars(outer)
    assert_held(pruner, model)


class Noisy(Unhooked):
    """Adds to every weight after the inner optimizer's step."""

    def step(self):
        self._inner.step()
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(0.01)


def test_what_a_wrapper_without_hooks_writes_is_held_after_each_step():
    model = conv_net()
    outer = Noisy(sgd(model))
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.5, every=2)).attach(outer)
    dead = []

    def after(_):
        parameters = dict(model.named_parameters())
        dead.append(sum(int((~mask).sum()) for mask in pruner.masks.values()))
        assert not any(parameters[name][~mask].any() for name, mask in pruner.masks.items())

    train(model, outer, 4, after=after)
    assert dead == [0, 384, 384, 384]


@pytest.mark.parametrize("method", ["magnitude", "criticality", "gradient"])
@pytest.mark.parametrize("place", ["outer", "base"])
def test_sam_by_two_steps_makes_every_mask_update(place, method):
    model = conv_net()
    sam = Sam(model.parameters(), torch.optim.SGD, lr=0.1)
    pruner = sp.Pruner(model, method, UPDATES).attach(sam if place == "outer" else sam.base)
    for step in range(1, 12):
        for act in (sam.first_step, sam.second_step):
            loss_of(model, *batch(step)).backward()
            act()
            functional.reset_net(model)
    assert_held(pruner, model)
    pruner.finish()


def test_sam_by_one_step_makes_every_mask_update():
    model = conv_net()
    sam = Sam(model.parameters(), torch.optim.SGD, lr=0.1)
    pruner = sp.Pruner(model, "magnitude", UPDATES).attach(sam)
    for step in range(1, 12):

        def closure(step=step):
            loss = loss_of(model, *batch(step))
            loss.backward()
            functional.reset_net(model)
            return loss

        closure()
        sam.step(closure)
    assert_held(pruner, model)


def test_an_optimizer_that_was_never_attached_is_refused_at_its_first_step():
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "magnitude", UPDATES).attach(optimizer)
    train(model, optimizer, 5)
    with pytest.raises(InvalidValue, match=r"SGD\) that the Pruner is not attached to.*pruner\.attach") as caught:
        train(model, sgd(model), 1, first=6)
    assert 20 <= len(str(caught.value)) <= 300
    functional.reset_net(model)
    masks = pruner.masks
    assert all(not dict(model.named_parameters())[n][~m].any() for n, m in masks.items())  # held all the same
    pruner.attach(second := sgd(model))
    train(model, second, 7, first=6)
    assert_held(pruner, model)
    pruner.finish()
    train(model, sgd(model), 1, first=20)  # pruning is over, and nobody watches


def test_a_phase_after_the_last_mask_update_needs_its_attach_too():
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "magnitude", UPDATES).attach(optimizer)
    train(model, optimizer, 10)
    with pytest.raises(InvalidValue, match="is not attached to"):
        train(model, sgd(model), 1, first=11)
    assert pruner.alive == 76


def test_optimizers_of_other_models_and_pruners_that_nobody_holds_do_not_matter():
    model, other = conv_net(), conv_net(seed=1)
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "magnitude", UPDATES).attach(optimizer)
    train(other, sgd(other), 2)
    train(model, optimizer, 2)
    del pruner, optimizer
    gc.collect()
    train(model, sgd(model), 2)


def test_a_pruner_that_dies_within_the_step_of_another_optimizer_does_not_break_it():
    """The collector of garbage may run at any moment, also while torch goes through its global hooks."""
    before = register_optimizer_step_pre_hook(lambda *_: gc.collect() and None)
    try:
        gc.disable()
        model, other = conv_net(), conv_net(seed=1)
        optimizer = sgd(model)
        pruner = sp.Pruner(model, "magnitude", UPDATES).attach(optimizer)
        attachment = weakref.ref(pruner._steps._attachment)
        del pruner, optimizer, model
        assert attachment() is not None
        train(other, sgd(other), 1)
        assert attachment() is None
    finally:
        gc.enable()
        before.remove()


@pytest.mark.parametrize("method", ["magnitude", "gradient", "criticality"])
def test_several_optimizers_of_one_model_are_ranked_together(method):
    """The same settings in two optimizers give what one optimizer gives, bit for bit."""
    one, two = conv_net(), conv_net()
    together = torch.optim.SGD(one.parameters(), 0.1, momentum=0.9)
    first = torch.optim.SGD([p for p in two.parameters() if p.dim() > 2], 0.1, momentum=0.9)
    second = torch.optim.SGD([p for p in two.parameters() if p.dim() <= 2], 0.1, momentum=0.9)
    single = sp.Pruner(one, method, UPDATES).attach(together)
    several = sp.Pruner(two, method, UPDATES).attach(first, second)
    train(one, together, 12)
    for step in range(1, 13):
        first.zero_grad()
        second.zero_grad()
        loss_of(two, *batch(step)).backward()
        first.step()
        second.step()
        functional.reset_net(two)
    assert several.rounds == single.rounds
    assert all(torch.equal(value, weights_of(two)[name]) for name, value in weights_of(one).items())
    assert_held(several, two)


def test_optimizers_that_leave_a_weight_out_are_refused():
    model = conv_net()
    with pytest.raises(InvalidValue, match=r"does not hold '0\.weight'"):
        sp.Pruner(model, "magnitude", UPDATES).attach(
            torch.optim.SGD([model[4].weight], 0.1), torch.optim.SGD([model[8].weight], 0.1)
        )
    train(model, sgd(model), 1)  # the refused attach left no watch behind


@pytest.mark.parametrize("method", ["magnitude", "criticality", "gradient", "admm", "rcmo", "stds", "grad-r"])
def test_a_closure_gives_what_a_plain_loop_gives(method):
    """Lightning steps with closures; methods that take part in every step see the gradients inside of it."""
    one, two = conv_net(), conv_net()
    plain, closed = sgd(one), sgd(two)
    schedule = sp.Constant(0.9, begin=0, end=10, every=2) if method in ("admm", "rcmo") else UPDATES
    first = sp.Pruner(one, method, schedule).attach(plain)
    second = sp.Pruner(two, method, schedule).attach(closed)
    train(one, plain, 11)
    for step in range(1, 12):

        def closure(step=step):
            closed.zero_grad()
            loss = loss_of(two, *batch(step))
            loss.backward()
            return loss

        if step % 2:
            closed.step(closure)
        else:
            closed.step(closure=closure)
        functional.reset_net(two)
    assert second.rounds == first.rounds
    assert all(torch.equal(value, weights_of(two)[name]) for name, value in weights_of(one).items())


class Accelerated(torch.optim.Optimizer):
    """As accelerate's: a subclass of Optimizer that never calls its __init__, and hands the step on."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        self.optimizer.step(closure)


def test_an_optimizer_wrapped_as_accelerate_does_is_attached_inside():
    model = conv_net()
    wrapped = Accelerated(sgd(model))
    pruner = sp.Pruner(model, "magnitude", UPDATES).attach(wrapped)
    train(model, wrapped, 11)
    assert_held(pruner, model)


def test_lbfgs_starts_its_history_anew_at_each_mask_update():
    model = conv_net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=2)
    pruner = sp.Pruner(model, "magnitude", UPDATES).attach(optimizer)
    for step in range(1, 12):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, *batch(step))
            loss.backward()
            functional.reset_net(model)
            return loss

        optimizer.step(closure)
        state = optimizer.state[optimizer.param_groups[0]["params"][0]]
        assert bool(state) == (step % 2 == 1 or step > 10)
    assert_held(pruner, model)
    direction, at = state["d"], 0
    for name, p in model.named_parameters():
        if name in pruner.masks:
            assert not direction[at : at + p.numel()].view_as(p)[~pruner.masks[name]].any()
        at += p.numel()


def test_a_step_that_failed_leaves_the_count_right():
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "magnitude", UPDATES).attach(optimizer)

    def fails():
        raise RuntimeError("out of memory")

    for step in range(1, 11):
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(fails)
        train(model, optimizer, 1, first=step)
    assert_held(pruner, model)


@pytest.mark.parametrize("how", ["forward", "layer by layer"])
def test_a_forward_that_is_not_called_through_the_model_is_seen_after_a_trace(how):
    def run(model, x):
        if how == "forward":
            return model.forward(x)
        for layer in model:
            x = layer(x)
        return x

    one, two = conv_net(), conv_net()
    a, b = sgd(one), sgd(two)
    first = sp.Pruner(one, "criticality", UPDATES).attach(a)
    second = sp.Pruner(two, "criticality", UPDATES).trace(batch(1)[0]).attach(b)
    train(one, a, 11)
    for step in range(1, 12):
        x, y = batch(step)
        b.zero_grad()
        nn.functional.cross_entropy(run(two, x).mean(0), y).backward()
        b.step()
        functional.reset_net(two)
    assert second.rounds == first.rounds
    assert sum(r.regrown for r in second.rounds) > 0
    untraced = conv_net()
    optimizer = sgd(untraced)
    sp.Pruner(untraced, "criticality", UPDATES).attach(optimizer)
    for step in range(1, 3):
        x, y = batch(step)
        nn.functional.cross_entropy(run(untraced, x).mean(0), y).backward()
        functional.reset_net(untraced)
        if step == 1:
            optimizer.step()
    with pytest.raises(LookupError, match=r"call the very object.*pruner\.trace"):
        optimizer.step()


def test_a_closure_is_found_wherever_it_was_given():
    optimizer, closure = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), torch.ones
    assert closure_of((optimizer, closure), {}) is closure
    assert closure_of((optimizer,), {"closure": closure}) is closure
    assert closure_of((optimizer, None), {}) is closure_of((optimizer,), {"closure": None}) is None
    assert closure_of((lambda: optimizer,), {}) is None  # the optimizer comes first, even where it can be called
