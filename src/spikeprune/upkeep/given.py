"""Masks as users give them: "zeros" of a model, a mapping, or the path of a masks.safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.core.mask import Masks, check_fit
from spikeprune.host.files import ordinary
from spikeprune.model.prunable import prunable
from spikeprune.model.wrappers import eager

Given = Mapping[str, Tensor] | str | Path


def masks_of(model: nn.Module, masks: Given) -> Masks:
    """Masks of a model in any of the forms that a user may give them in, checked against its parameters.

    Raises: UserError if they are not of this network, or the file cannot be read.
    """
    inner = eager(model)
    if isinstance(masks, (str, Path)):
        masks = zeros_of(inner) if masks == "zeros" else _read(Path(masks))
    if not isinstance(masks, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidValue(f"masks must be 'zeros', a mapping as pruner.masks or a path, got {type(masks).__name__}")
    found, parameters = Masks(masks), dict(inner.named_parameters())
    check_fit(found, parameters)
    return Masks({n: m.to(parameters[n].device) for n, m in found.items()})


def zeros_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> which entries are not exactly 0, of all prunable weights.

    Where a whole filter is 0, its bias if that is 0, and normalisations whose scale and shift are both 0 there, belong
    to the channel that is cut, and have masks too.
    """
    masks = {n: p.detach() != 0 for n, p in prunable(model).items()}
    for name, module in model.named_modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter):
            continue
        own = f"{name}." if name else ""
        if weight.dim() == 1 and weight.shape == bias.shape:
            alive = (weight.detach() != 0) | (bias.detach() != 0)
            if bool(alive.any()) and not bool(alive.all()):
                masks |= {f"{own}weight": alive, f"{own}bias": alive}
        elif f"{own}weight" in masks and len(bias) == len(weight):
            alive = masks[f"{own}weight"].flatten(1).any(1) | (bias.detach() != 0)
            if not bool(alive.all()):
                masks[f"{own}bias"] = alive
    return masks


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        masks = load_file(ordinary(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give a masks.safetensors file") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file; give a masks.safetensors file") from error
    wrong = next((n for n, m in masks.items() if m.dtype is not torch.bool), None)
    if wrong is not None:
        raise UserError(
            f"{path} holds {wrong!r} as {masks[wrong].dtype}, which is no mask; give a masks.safetensors file"
        )
    return masks
