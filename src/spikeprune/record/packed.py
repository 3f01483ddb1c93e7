"""A pruned network in one small safetensors file: a bit for every weight, and the values of those that are alive.

    <name>          a tensor that no mask belongs to, as it is in the model's state_dict
    <name>.mask     uint8 [ceil(n / 8)]: which of the n weights are alive, in row-major order, lowest bit first
    <name>.values   the alive weights in that order

The metadata holds `format` ("spikeprune packed 1") and `shapes` (JSON: name of each masked tensor -> its shape), so
that any reader of safetensors can put the weights back: `w[bits] = values`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from spikeprune.core.errors import UserError
from spikeprune.core.mask import pack, unpack
from spikeprune.host.files import ordinary
from spikeprune.record.tensors import as_safetensors
from spikeprune.record.whole import write_whole

FORMAT = "spikeprune packed 1"


def write_packed(
    path: Path, state: Mapping[str, Tensor], masks: Mapping[str, Tensor], facts: Mapping[str, str]
) -> None:
    """Write the file, whole or not at all.

    Args:
        state: a model's state_dict; pruned weights are 0.
        masks: name in `state` -> bool tensor of its shape, True = alive.
        facts: further entries of the metadata.
    Raises: UserError if a mask does not belong to its tensor, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, mask in masks.items():
        if name not in state or state[name].shape != mask.shape or bool(state[name][~mask].any()):
            raise UserError(
                f"the mask of {name!r} does not fit the network's weights; call masks.apply_(model) first, or restore "
                "the files or run again"
            )
        tensors |= {f"{name}.mask": pack(mask), f"{name}.values": state[name][mask]}
    tensors |= {name: value.detach().clone().contiguous() for name, value in state.items() if name not in masks}
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    try:
        write_whole(path, as_safetensors(tensors, {"format": FORMAT, "shapes": shapes, **facts}))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give a file in a folder that exists") from error


def read_packed(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state_dict and the masks that `write_packed` wrote.

    Raises: UserError if the file is missing, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(ordinary(path)), "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if facts.get("format") != FORMAT:
            raise UserError(f"{path} is no packed network; `spikeprune export RUN --to safetensors` writes one")
        shapes: dict[str, list[int]] = json.loads(facts["shapes"])
        if not all(type(size) is int and size >= 0 for shape in shapes.values() for size in shape):
            raise ValueError("a shape holds something else than sizes")
        masks = {name: unpack(tensors.pop(f"{name}.mask"), tuple(shape)) for name, shape in shapes.items()}
        for name, mask in masks.items():
            values = tensors.pop(f"{name}.values")
            if values.dim() != 1 or len(values) != int(mask.sum()):
                raise ValueError(f"{name} has another number of values than bits")
            tensors[name] = torch.zeros(mask.shape, dtype=values.dtype).masked_scatter_(mask, values)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give a file that `export` wrote") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is damaged; `spikeprune export RUN --to safetensors` writes it anew") from error
    return tensors, masks
