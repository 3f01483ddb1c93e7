"""The array functions of TensorFlow 1 that RigL's optimizers call in a mask update, by NumPy."""

import contextlib
import sys
import types
from typing import Any

import numpy as np


class Variable(np.lib.mixins.NDArrayOperatorsMixin):
    """A named array that `state_ops.assign` writes to in place, so that a tensor sharing its memory changes too."""

    parameter: Any = None

    def __init__(self, name: str, value: Any):
        self.name, self.value = name, value

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> Any:
        return self.value.dtype

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.value, dtype=dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        plain = [x.value if isinstance(x, Variable) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **keywords)


def stand_in() -> None:
    """Puts modules of these functions where their code looks for TensorFlow."""
    functions: dict[str, dict[str, Any]] = {
        "framework.dtypes": {"float32": np.float32, "int32": np.int32},
        "framework.ops": {"convert_to_tensor": _tensor, "control_dependencies": lambda _: contextlib.nullcontext()},
        "ops.array_ops": {
            "size": np.size, "reshape": np.reshape, "expand_dims": np.expand_dims, "where": np.where,
            "ones_like": np.ones_like, "zeros_like": np.zeros_like, "scatter_nd": _scatter,
        },
        "ops.math_ops": {
            "cast": _cast, "reduce_sum": np.sum, "reduce_min": np.min, "range": np.arange, "equal": np.equal,
            "logical_and": np.logical_and, "abs": np.abs,
        },
        "ops.nn_ops": {"top_k": _top},
        "ops.control_flow_ops": {"Assert": _check, "group": lambda ops: ops, "no_op": lambda *_: None},
        "ops.state_ops": {"assign": _assign},
        "ops.init_ops": {}, "ops.random_ops": {}, "ops.stateless_random_ops": {}, "ops.variable_scope": {},
        "tpu.ops.tpu_ops": {},
        "training.learning_rate_decay": {}, "training.training_util": {},
        "training.optimizer": {"Optimizer": _Optimizer},
    }  # fmt: skip
    sys.modules["six"] = types.ModuleType("six")
    vars(sys.modules["six"])["string_types"] = (str,)
    for path, content in functions.items():
        whole = f"tensorflow.python.{path}"
        parts = whole.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            module = sys.modules.setdefault(name, types.ModuleType(name))
            if end > 1:
                setattr(sys.modules[name.rpartition(".")[0]], parts[end - 1], module)
        vars(sys.modules[whole]).update(content)


class _Optimizer:
    def __init__(self, use_locking: bool, name: str):
        """Their base class."""


def _tensor(value: Any, name: str | None = None) -> Any:
    return value


def _cast(x: Any, dtype: Any) -> Any:
    return np.asarray(x).astype(dtype)


def _top(x: Any, k: int) -> tuple[Any, Any]:
    order = np.argsort(-x, kind="stable")[:k]  # among equal ones the lower index comes first, as there
    return x[order], order


def _scatter(indices: Any, updates: Any, shape: Any) -> Any:
    out = np.zeros(shape, dtype=updates.dtype)
    out[indices[:, 0]] = updates
    return out


def _assign(variable: Variable, value: Any) -> Variable:
    variable.value[...] = value
    return variable


def _check(condition: Any, data: Any) -> None:
    assert condition, data
