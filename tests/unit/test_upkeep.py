"""What happens in every step: dead weights and their optimizer state stay exactly 0, whatever the optimizer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikeprune as sp
from nets import assert_same, conv_net, mlp, sgd, train, weights_of
from spikeprune.core.mask import unpack
from spikeprune.upkeep.upkeep import Upkeep


class Lookalike(torch.optim.Optimizer):
    """An optimizer nobody knows: momentum of the sign, state that is not 0 for a zero gradient, a decaying average."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("mean", torch.full_like(p, 0.5))
                state["mean"].lerp_(p.grad.sign(), 0.1)
                p.add_(state["mean"], alpha=-group["lr"])


class SGD(Lookalike):
    """One that borrows a famous name."""


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "SGD nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=1e-2, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.05, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01),
    "unknown": Lookalike,
    "same name": SGD,
}


def plain_step(model, optimizer, generator, closure=False):
    x, y = torch.randn(8, 5, generator=generator), torch.randint(3, (8,), generator=generator)

    def run():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    if closure:
        optimizer.step(run)
    else:
        run()
        optimizer.step()


def assert_dead_are_zero(pruner, model, optimizer):
    parameters = dict(model.named_parameters())
    for name, mask in pruner.masks.items():
        assert not parameters[name][~mask].any(), name
        for key, value in optimizer.state[parameters[name]].items():
            if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                assert not value[~mask].any(), (name, key)


@pytest.mark.parametrize("start", ["dense", "random"])
@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_dead_weights_and_their_state_stay_zero(name, closure, start):
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    schedule = sp.Cubic(to=0.8, initial=0.5 if start == "random" else 0.0, end=60, every=10)
    pruner = sp.Pruner(model, sp.Random(regrow=0.3), schedule, start=start).attach(optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        plain_step(model, optimizer, generator, closure)
        assert_dead_are_zero(pruner, model, optimizer)
    assert pruner.alive == 12  # floor(64 * .2) = 12.8
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_lbfgs_keeps_dead_weights_at_zero():
    # Its history is one flat vector over all parameters, so only the weights can be held.
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    pruner = sp.Pruner(model, "magnitude", sp.Cubic(to=0.8, end=10, every=2)).attach(optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        plain_step(model, optimizer, generator, closure=True)
        assert_dead_are_zero(pruner, model, torch.optim.SGD(model.parameters(), 1.0))
    assert pruner.alive == 12


def test_state_from_before_the_pruner_is_cleared_for_dead_weights():
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    generator = torch.Generator().manual_seed(0)
    plain_step(model, optimizer, generator)
    pruner = sp.Pruner(model, "random", sp.Constant(0.8, end=50, every=5), start="random").attach(optimizer)
    assert_dead_are_zero(pruner, model, optimizer)


@pytest.mark.parametrize("momentum", ["clean", "warm"])
def test_regrown_weights_start_at_zero_with_clean_or_warm_state(momentum):
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, sp.Criticality(regrow=0.3, momentum=momentum), sp.Cubic(to=0.8, end=12, every=4))
    pruner.attach(optimizer)
    parameters = dict(model.named_parameters())
    seen = torch.zeros(2)

    def after(step):
        if step not in (4, 8):
            return
        for name, bits in pruner.state_dict()["regrown"].items():
            mask = unpack(bits, tuple(parameters[name].shape))
            assert not parameters[name][mask].any()
            buffer = optimizer.state[parameters[name]]["momentum_buffer"][mask]
            seen[0] += mask.sum()
            seen[1] += (buffer != 0).sum()

    train(model, optimizer, 12, after=after)
    assert seen[0] == sum(r["regrown"] for r in pruner.rounds) > 0
    assert seen[1] == (0 if momentum == "clean" else seen[0])


def test_warm_regrown_weights_move_at_once():
    def moved(momentum):
        model = conv_net()
        optimizer = sgd(model)
        method = sp.Criticality(regrow=sp.Constant(0.3), momentum=momentum)
        pruner = sp.Pruner(model, method, sp.Cubic(to=0.8, end=4, every=4)).attach(optimizer)
        train(model, optimizer, 4)
        zero = {n: pruner.masks[n] & (p == 0) for n, p in model.named_parameters() if n in pruner.masks}
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()  # nothing but momentum
        return sum(int((p[zero[n]] != 0).sum()) for n, p in model.named_parameters() if n in zero)

    assert moved("warm") > 0
    assert moved("clean") == 0


def test_frozen_layers_are_untouched():
    model = conv_net()
    model[4].weight.requires_grad_(False)
    before = model[4].weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    pruner = sp.Pruner(model, sp.Criticality(), sp.Cubic(to=0.8, end=6, every=2)).attach(optimizer)
    train(model, optimizer, 8)
    assert torch.equal(model[4].weight, before)
    assert set(pruner.masks) == {"0.weight", "8.weight"}


def test_biases_and_normalisation_are_never_masked():
    model = conv_net()
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.95))
    untouched = {n: p.clone() for n, p in model.named_parameters() if n not in pruner.masks}
    pruner.step()
    assert set(pruner.masks) == {"0.weight", "4.weight", "8.weight"}
    assert all(torch.equal(p, untouched[n]) for n, p in model.named_parameters() if n in untouched)


def test_finish_refuses_what_was_written_over_and_changes_nothing():
    model = mlp()
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.5))
    pruner.step()
    name, mask = next(iter(pruner.masks.items()))
    parameter = dict(model.named_parameters())[name]
    with torch.no_grad():
        parameter[~mask] = 3.0
    with pytest.raises(ValueError, match=r"dead weights are not 0.*pruner\.masks\.apply_\(model\)") as caught:
        pruner.finish()
    assert 20 <= len(str(caught.value)) <= 300
    assert bool((parameter[~mask] == 3.0).all())
    pruner.masks.apply_(model)
    pruner.finish()
    assert not parameter[~mask].any()


def test_mixed_precision_parameters():
    model = nn.Sequential(nn.Linear(6, 6).to(torch.bfloat16), nn.Linear(6, 6))
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.75))
    pruner.step()
    assert pruner.alive == 18
    assert all((p[~pruner.masks[n]] == 0).all() for n, p in model.named_parameters() if n in pruner.masks)


def test_regrow_zero_is_magnitude_bit_for_bit():
    runs = []
    for method in (sp.Magnitude(), sp.Criticality(regrow=0), sp.Gradient(regrow=0), sp.Random(regrow=0)):
        model = conv_net()
        optimizer = sgd(model)
        pruner = sp.Pruner(model, method, sp.Cubic(to=0.9, end=12, every=3)).attach(optimizer)
        train(model, optimizer, 15)
        runs.append((dict(pruner.masks), weights_of(model), pruner.rounds))
    for masks, weights, rounds in runs[1:]:
        assert_same(masks, runs[0][0])
        assert_same(weights, runs[0][1])
        assert rounds == runs[0][2]


def test_state_is_cleared_outside_of_the_masks_that_are_asked_for():
    """A channel that comes back is alive, and its state is cleared once: for other masks than those that are held."""
    p = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([p], 0.1, momentum=0.9)
    optimizer.state[p]["momentum_buffer"] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    upkeep = Upkeep({"w": p})
    upkeep.optimizers = (optimizer,)
    upkeep.set({"w": torch.tensor([True, True, True, False])})
    upkeep.hold_state({"w": torch.tensor([False, True, True, True])})
    assert optimizer.state[p]["momentum_buffer"].tolist() == [0.0, 2.0, 3.0, 4.0]
    upkeep.hold_state(upkeep.masks)
    assert optimizer.state[p]["momentum_buffer"].tolist() == [0.0, 2.0, 3.0, 0.0]


class Drifting(torch.optim.SGD):
    """Torch's SGD but for its state, which grows without any gradient."""

    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["momentum_buffer"] += 1.0


@pytest.mark.parametrize("kind", [torch.optim.SGD, Drifting])
def test_the_state_of_an_optimizer_that_is_not_torchs_own_is_held_whatever_it_calls_it(kind):
    p = nn.Parameter(torch.ones(4))
    optimizer = kind([p], 0.1, momentum=0.9)
    upkeep = Upkeep({"w": p})
    upkeep.optimizers = (optimizer,)
    upkeep.set({"w": torch.tensor([True, False, True, False])})
    for _ in range(2):
        p.grad = torch.ones(4)
        upkeep.hold_grads()
        optimizer.step()
        upkeep.after_step(closure=False, clean=True)
        assert p[[1, 3]].tolist() == [0.0, 0.0]
        assert optimizer.state[p]["momentum_buffer"][[1, 3]].tolist() == [0.0, 0.0]
        assert bool((optimizer.state[p]["momentum_buffer"][[0, 2]] > 0).all())
