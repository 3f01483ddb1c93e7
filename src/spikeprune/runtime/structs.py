"""The kernels' C interface, mirrored once: structs, array types, function signatures and codes.

Every library tells its own sizes, offsets and codes (`<name>_abi`, kernels/abi.h). They are compared with this file
when the library is loaded, so that a library of other sources is refused and never run.
"""

import ctypes
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from spikeprune.core.errors import RunFailed

_void_p, _i32, _i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

# Kinds of buffers of the engine.
WORDS, REAL, EXTERNAL, STATIC = range(4)
# Codes of the training kernels, by place.
SURROGATES = ("atan", "sigmoid", "clamped-tanh")
POOLS = ("", "max", "avg")
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}


class BufferStruct(ctypes.Structure):
    """SpBuffer of engine.h."""

    _fields_ = [("data", _void_p)] + [
        (name, _i32) for name in ("kind", "channels", "height", "width", "pad", "channels_last")
    ]


class NeuronStruct(ctypes.Structure):
    """SpNeuron of engine.h."""

    _fields_ = [(name, _void_p) for name in ("decay", "threshold", "reset", "start")] + [
        (name, _i32) for name in ("soft", "unused")
    ]


_OP_INTS = (
    "code", "input", "spikes", "real", "residual", "unused", "kernel_h", "kernel_w", "stride_h", "stride_w",
    "pad_h", "pad_w", "dilation_h", "dilation_w", "channels", "height", "width", "first_event",
)  # fmt: skip
OP_POINTERS = (
    "scale", "bias", "post_scale", "post_bias", "starts", "map", "pairs", "event_starts", "events", "weights",
)  # fmt: skip


class OpStruct(ctypes.Structure):
    """The C struct `SpOp` of engine.h, field by field."""

    _fields_ = (
        [(name, _i32) for name in _OP_INTS] + [(name, _void_p) for name in OP_POINTERS] + [("neuron", NeuronStruct)]
    )


PAIR = np.dtype([("a", np.float32), ("b", np.float32), ("first", np.uint16), ("second", np.uint16)])
EVENT = np.dtype([("value", np.float32), ("row", np.uint32)])
WEIGHT = np.dtype([("value", np.float32), ("column", np.int32)])


class FuseStruct(ctypes.Structure):
    """The C struct `FuseSpec` of fuse.h."""

    _fields_ = (
        [(name, _i64) for name in ("T", "N", "C", "P", "W")]
        + [
            (name, _i32)
            for name in (
                "channels_last", "per_step", "is_static", "surrogate", "smooth", "strict", "detach_reset", "threads",
                "pool",
            )
        ]
        + [
            (name, ctypes.c_double)
            for name in (
                "decay", "gain", "offset", "v_threshold", "reset_scale", "reset_shift", "v_start", "alpha"
            )
        ]
    )  # fmt: skip


class EventStruct(ctypes.Structure):
    """EventSpec of fuse.h."""

    _fields_ = tuple(
        (name, _i64)
        for name in (
            "M", "inputs", "H", "W", "outputs", "out_H", "out_W", "kernel_h", "kernel_w", "pad_h", "pad_w",
            "out_stride", "in_stride", "tap_stride", "x_last", "y_last", "threads",
        )
    )  # fmt: skip


class SparseStruct(ctypes.Structure):
    """SparseSpec of sparse_train.cpp."""

    _fields_ = (
        *(
            (name, _i64)
            for name in (
                "M", "inputs", "H", "W", "outputs", "out_H", "out_W", "kernel_h", "kernel_w", "pad_h", "pad_w",
                "threads",
            )
        ),
        ("x_stride", _i64 * 4),
        ("y_stride", _i64 * 4),
    )  # fmt: skip


def _places(name: str, struct: type[ctypes.Structure], *fields: str) -> dict[str, int]:
    return {name: ctypes.sizeof(struct)} | {f"{name}.{field}": getattr(struct, field).offset for field in fields}


# Library -> what its `<name>_abi` must say.
ABI: Mapping[str, Mapping[str, int]] = {
    "engine": {
        **_places("SpBuffer", BufferStruct, "channels_last"),
        **_places("SpNeuron", NeuronStruct, "soft"),
        **_places("SpOp", OpStruct, "first_event", "weights", "neuron"),
        "SpPair": PAIR.itemsize, "SpPair.second": PAIR.fields["second"][1], "SpWeight": WEIGHT.itemsize,  # pyright: ignore[reportOptionalSubscript]
        "SpEvent": EVENT.itemsize, "words": WORDS, "real": REAL, "external": EXTERNAL, "static": STATIC,
    },
    "fuse": {
        **_places("FuseSpec", FuseStruct, "pool", "alpha"),
        **_places("EventSpec", EventStruct, "threads"),
        **{str(dtype).removeprefix("torch."): code for dtype, code in ELEMENTS.items()},
        **{name: code for code, name in (*enumerate(SURROGATES), *enumerate(POOLS))},
    },
    "sparse_train": _places("SparseSpec", SparseStruct, "threads", "y_stride"),
}  # fmt: skip

_STRUCT_P = {
    struct: ctypes.POINTER(struct) for struct in (FuseStruct, EventStruct, SparseStruct, BufferStruct, OpStruct)
}
# Library -> function -> (result, arguments). Functions that give a status are called through `run`.
_SIGNATURES: Mapping[str, Mapping[str, tuple[object, list[object]]]] = {
    "engine": {
        "sp_lanes": (_i32, []),
        "sp_block": (_i32, [_i32]),
        "sp_code": (_i32, [ctypes.c_char_p]),
        "sp_bytes": (_i64, [_STRUCT_P[BufferStruct], _i64, _i64]),
        "sp_run": (_i32, [_STRUCT_P[OpStruct], _i32, _STRUCT_P[BufferStruct], _i32, _i64, _i64, _i64, _i32]),
    },
    "fuse": {
        "fuse_statistics": (_i32, [_STRUCT_P[FuseStruct], _i32, *[_void_p] * 3]),
        "fuse_forward": (_i32, [_STRUCT_P[FuseStruct], _i32, *[_void_p] * 7]),
        "fuse_backward": (_i32, [_STRUCT_P[FuseStruct], _i32, *[_void_p] * 12]),
        "fuse_through_norm": (_i32, [_STRUCT_P[FuseStruct], _i32, *[_void_p] * 5]),
        "fuse_pack": (_i32, [_i32, _i64, *[_void_p] * 2]),
        "fuse_unpack": (_i32, [_i32, _i64, *[_void_p] * 2]),
        "fuse_events_count": (_i64, [_i64, _void_p]),
        "fuse_events_forward": (_i32, [_STRUCT_P[EventStruct], _i32, *[_void_p] * 4]),
        "fuse_events_weight": (_i32, [_STRUCT_P[EventStruct], _i32, *[_void_p] * 3]),
    },
    "sparse_train": {
        "sparse_train_forward": (_i32, [_STRUCT_P[SparseStruct], *[_void_p] * 5]),
        "sparse_train_backward": (_i32, [_STRUCT_P[SparseStruct], *[_void_p] * 9]),
    },
}


def mismatch(name: str, library: ctypes.CDLL) -> str:
    """Why the library does not fit this file, "" if it does; a library that has no mirror here fits."""
    expected = ABI.get(name)
    if expected is None:
        return ""
    try:
        told = getattr(library, f"{name}_abi")
    except AttributeError:
        return f"it does not say what its structs look like ({name}_abi is missing)"
    told.restype = ctypes.c_char_p
    lines = (line.split(" ", 1) for line in (told() or b"").decode().splitlines())
    found = {key: int(value) for value, key in lines}
    for key in expected:
        if found.get(key) != expected[key]:
            what = key or "no pooling"
            return f"it says {found.get(key)} for {what}, this version of spikeprune expects {expected[key]}"
    unknown = sorted(found.keys() - expected.keys())
    return f"it speaks of {unknown[0]}, which this version of spikeprune does not know" if unknown else ""


def declare(name: str, library: ctypes.CDLL) -> None:
    """Tells ctypes the signatures of the library's functions."""
    for function, (result, arguments) in _SIGNATURES.get(name, {}).items():
        declared = getattr(library, function)
        declared.restype, declared.argtypes = result, arguments


_FAILURES = {
    1: "not enough memory; give it smaller batches",
    2: "its sizes do not fit the kernel's 32-bit offsets; give it smaller batches or maps",
    3: "the kernel refused its arguments; please report this",
    4: "the system gives no more threads; lower torch.set_num_threads",
}


def run(what: str, status: int) -> None:
    """Turns the status that a kernel returned into an error.

    Args:
        what: what was computed, for the message.
        status: what the function returned; 0 is success (kernels/status.h).
    Raises: RunFailed for every other status.
    """
    if status:
        raise RunFailed(
            f"{what} failed in the C++ kernel: {_FAILURES.get(status, 'unknown reason; please report this')}"
        )


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor's first element, None (a null pointer) for none. Keep the tensor alive meanwhile."""
    return None if tensor is None else tensor.data_ptr()
