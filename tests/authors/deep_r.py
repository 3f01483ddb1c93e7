"""Deep rewiring against its authors' code, in float64: which connections exist, at six looks.

    python tests/authors/deep_r.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/guillaumeBellec/deep_rewiring (made at commit 533e016). Their scripts are written for
TensorFlow 1 and train as they are imported, so their function `rewiring` is taken out of the file and runs as it is,
with NumPy in the place of TensorFlow. The three updates of a strength (gradient, walk and pull of alive connections)
are graph nodes there and are written down here. Both sides draw the same numbers.
"""

import ast
import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import spikeprune as sp

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, uniform

FILE = NUMBERS / "deep_r.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/guillaumeBellec/deep_rewiring",
    "commit": "533e016",
    "network": "toy, 626 weights",
    "steps": 36,
    "looks": 6,
    "sparsity": 0.7,
    "l1": 0.2,
    "noise": 0.3,
    "lr": 0.05,
    "dtype": "float64",
    "made": "python tests/authors/deep_r.py CHECKOUT --write",
}
_EVERY = SETTING["steps"] // SETTING["looks"]


def ours() -> dict[str, Any]:
    """What this library does before its last mask update, which ends the rewiring."""
    model = toy.net()
    pruner = _pruner(model)
    optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"])
    pruner.attach(optimizer)
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % _EVERY == 0:
            found.append(toy.entry(dict(pruner.masks), toy.weights(model)))

    module = "spikeprune.methods.deep_r"
    with mock.patch(f"{module}._normal", _normal), mock.patch(f"{module}._uniform", _uniform):
        toy.train(model, optimizer, SETTING["steps"], after)
    return {"updates": found}


def _pruner(model: torch.nn.Module) -> sp.Pruner:
    """It draws the masks that both sides start from, with ERK layer sizes."""
    end = SETTING["steps"] + 1
    schedule = sp.Constant(SETTING["sparsity"], begin=0, end=end, every=end)
    method = sp.DeepR(SETTING["l1"], SETTING["noise"])
    return sp.Pruner(model, method, schedule, floor=0, start="random", allocate="erk")


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' function does after each step."""
    draw: dict[str, Any] = {}
    rewiring = _their_function(checkout / "script_mnist_deep_rewiring.py", draw)
    model = toy.net()
    parameters = dict(model.named_parameters())
    masks = dict(_pruner(toy.net()).masks)
    sign: dict[str, Tensor] = {}
    theta: dict[str, _Theta] = {}
    for name, alive in masks.items():
        w = parameters[name].detach() * alive
        sign[name] = torch.where(w == 0, _normal(w, _Seed(1)).sign(), w.sign())
        theta[name] = _Theta((sign[name] * w).numpy().copy())
        parameters[name].data.copy_(w)
    rest = torch.optim.SGD([p for n, p in parameters.items() if n not in masks], SETTING["lr"])
    found: list[dict[str, Any]] = []

    def step_all(step: int) -> None:
        rest.step()
        for name in masks:
            th = theta[name].value
            connected, lr = th > 0, SETTING["lr"]
            grad = (sign[name] * parameters[name].grad).numpy() * connected
            noise = SETTING["noise"] * _normal(parameters[name], _Seed(step)).numpy()
            th += -lr * grad + lr * connected * noise - lr * connected * SETTING["l1"]
            draw["now"] = _uniform(parameters[name], _Seed(step)).detach().numpy().flatten()
            rewiring(theta[name], int(masks[name].sum()))
            parameters[name].data.copy_(sign[name] * torch.from_numpy(np.maximum(th, 0)))

    def after(step: int) -> None:
        step_all(step)
        if step % _EVERY == 0:
            alive = {n: torch.from_numpy(theta[n].value > 0) for n in masks}
            found.append(toy.entry(alive, toy.weights(model)))

    acting = SimpleNamespace(zero_grad=model.zero_grad, step=lambda: None)
    toy.train(model, acting, SETTING["steps"], after)
    return {"updates": found}


class _Theta:
    """Their variable."""

    def __init__(self, value: Any):
        self.value = value

    def read_value(self) -> Any:
        return self.value


class _Seed:
    """What the draws look at of a generator: its seed, which is the step for the library's seed 0."""

    def __init__(self, step: int):
        self.step = step

    def initial_seed(self) -> int:
        return self.step


def _their_function(script: Path, draw: dict[str, Any]) -> Any:
    """`rewiring` of their script, with NumPy for TensorFlow; `draw["now"]` orders the candidates."""

    def shuffle(ids: Any) -> Any:
        candidates = np.flatnonzero(draw["candidates"])
        return ids[np.argsort(-draw["now"][candidates], kind="stable")]

    def where(dead: Any, name: str) -> Any:
        draw["candidates"] = dead
        return np.argwhere(dead)

    def update(theta: _Theta, places: Any, values: Any, name: str) -> None:
        theta.value[tuple(places.T)] = values

    def check(condition: Any, data: Any, name: str) -> None:
        assert condition, data

    def scope(*_: Any) -> Any:
        return contextlib.nullcontext()

    tf = SimpleNamespace(
        name_scope=scope, control_dependencies=scope, no_op=lambda _: None, greater=lambda a, b, **_: a > b,
        reduce_sum=np.sum, cast=lambda x, kind: np.asarray(x).astype(kind), maximum=max, equal=np.equal,
        logical_not=np.logical_not, where=where, shape=np.shape, random_shuffle=shuffle, range=np.arange,
        gather=lambda x, ids, **_: x[ids], fill=lambda dims, value, **_: np.full(dims, value),
        scatter_nd_update=update, Assert=check, int32=np.int64,
    )  # fmt: skip
    wanted = ("rewiring", "assert_connection_number")
    tree = ast.parse(script.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    space: dict[str, Any] = {"tf": tf}
    exec(compile(tree, str(script), "exec"), space)
    return space["rewiring"]


def _normal(like: Tensor, generator: Any) -> Tensor:
    return 2 * uniform(tuple(like.shape), 500 + 10 * generator.initial_seed() + like.dim())


def _uniform(like: Tensor, generator: Any) -> Tensor:
    return (1 + uniform(tuple(like.shape), 5_000 + 10 * generator.initial_seed() + like.dim())) / 2


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
