"""RigL and SET against the code of RigL's authors, in float64: six mask updates of each.

    python tests/authors/rigl.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/google-research/rigl (made at commit d39fc7d). Its optimizers are written for
TensorFlow 1. What they call of it in a mask update are array functions, so NumPy stands in its place
(tests/authors/tensorflow_by_numpy.py), and the mask updates of `SparseRigLOptimizerBase` and `SparseSETOptimizerBase`
run as they are. Three things are set equal: the weights of the update's own step have been updated (theirs skips that
step); the noise of 1e-5 on |w| is 0; SET's draw is the same on both sides.
"""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import spikeprune as sp

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import tensorflow_by_numpy, toy
from authors.exact import NUMBERS, compared, uniform

FILE = NUMBERS / "rigl.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/google-research/rigl",
    "commit": "d39fc7d",
    "network": "toy, 626 weights",
    "methods": ["rigl", "set"],
    "updates": 6,
    "every": 3,
    "density": 0.2,
    "share": 0.3,
    "lr": 0.2,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "seed": 60,
    "dtype": "float64",
    "made": "python tests/authors/rigl.py CHECKOUT --write",
}
_STEPS = SETTING["updates"] * SETTING["every"]


def ours() -> dict[str, Any]:
    """Both methods of this library."""
    return {"updates": [*_ours("rigl"), *_ours("set")]}


def theirs(checkout: Path) -> dict[str, Any]:
    """Both optimizers of theirs."""
    _sgd(toy.net())  # torch looks for TensorFlow when it makes its first optimizer, and must not find the stand-in
    tensorflow_by_numpy.stand_in()
    sys.path.insert(0, str(checkout / "rigl"))
    import sparse_optimizers_base as base

    return {"updates": [*_theirs(base.SparseRigLOptimizerBase, "rigl"), *_theirs(base.SparseSETOptimizerBase, "set")]}


def _ours(name: str) -> list[dict[str, Any]]:
    model = toy.net()
    masks = toy.masks(model, SETTING["density"], SETTING["seed"])
    alive = sum(int(m.sum()) for m in masks.values())
    schedule = sp.Constant(1 - alive / 626, begin=0, end=_STEPS, every=SETTING["every"])
    method = {"rigl": sp.RigL, "set": sp.Set}[name](regrow=sp.Constant(SETTING["share"]))
    pruner = sp.Pruner(model, method, schedule, floor=0, masks=masks)
    optimizer = _sgd(model)
    pruner.attach(optimizer)
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % SETTING["every"] == 0:
            found.append(toy.entry(dict(pruner.masks), toy.weights(model)))

    with mock.patch("spikeprune.methods.set.uniform", lambda evidence: _draw(evidence.weights, evidence.number)):
        toy.train(model, optimizer, _STEPS, after)
    return found


def _theirs(kind: Any, name: str) -> list[dict[str, Any]]:
    model = toy.net()
    parameters = dict(model.named_parameters())
    masks = toy.masks(model, SETTING["density"], SETTING["seed"])
    optimizer = _sgd(model)
    wrapped = kind(_Slots(optimizer), 0, -1, SETTING["every"], drop_fraction=SETTING["share"])
    wrapped.drop_fraction, wrapped._global_step = SETTING["share"], 0
    wrapped._random_normal = lambda shape, **_: 0.0
    found: list[dict[str, Any]] = []

    class Masked:
        """Their step between two mask updates: dead weights get no gradient and stay 0."""

        def zero_grad(self) -> None:
            optimizer.zero_grad()

        def step(self) -> None:
            self.dense = {n: parameters[n].grad.clone() for n in masks}
            for n, alive in masks.items():
                parameters[n].grad.mul_(alive)
            optimizer.step()
            hold()

    def hold() -> None:
        with torch.no_grad():
            for n, alive in masks.items():
                parameters[n].mul_(alive)

    def after(step: int) -> None:
        if step % SETTING["every"]:
            return
        draw = _draw({n: parameters[n] for n in masks}, step // SETTING["every"])
        refs = {n: tensorflow_by_numpy.Variable(n, parameters[n].detach().numpy()) for n in masks}
        for n, ref in refs.items():
            ref.parameter = parameters[n]
            if name == "rigl":
                wrapped._weight2masked_grads = {n: acting.dense[n].numpy()}
            wrapped._random_uniform = lambda shape, seed, n=n: draw[n].numpy()
            alive = tensorflow_by_numpy.Variable(n, masks[n].double().numpy())
            wrapped.generic_mask_update(alive, ref)
            masks[n] = torch.from_numpy(alive.value.copy()) != 0
        hold()
        found.append(toy.entry(dict(masks), toy.weights(model)))

    hold()
    acting = Masked()
    toy.train(model, acting, _STEPS, after)
    return found


class _Slots:
    """Their view of an optimizer's state: the momentum, which a new connection starts without."""

    def __init__(self, optimizer: torch.optim.SGD):
        self.optimizer = optimizer

    def get_slot_names(self) -> list[str]:
        return ["momentum"]

    def get_slot(self, weights: Any, _: str) -> Any:
        buffer = self.optimizer.state[weights.parameter]["momentum_buffer"]
        return tensorflow_by_numpy.Variable("momentum", buffer.numpy())


def _draw(weights: Any, number: int) -> dict[str, Tensor]:
    """A number in (-1, 1) for each weight, from integers."""
    return {n: uniform(tuple(w.shape), 300 + 10 * number + k) for k, (n, w) in enumerate(sorted(weights.items()))}


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), SETTING["lr"], SETTING["momentum"], weight_decay=SETTING["weight_decay"])


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
