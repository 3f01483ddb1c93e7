"""Values of channels from a model's parameters: one number for each channel, and masks of parameters from channels."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from spikeprune.model.groups import ChannelGroup


def channel_masks(groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Masks of parameters from masks of channels.

    A cut channel takes its filters, its biases and its normalisation's scale and shift along: with a shift left it
    would go on firing. Columns of the layers that read it stay: they see zeros, and are as they were if it returns.

    Args:
        groups: the channel groups.
        keep: group name -> bool [C], True = alive.
        model: whose parameters the groups name.
    Returns: parameter name -> bool tensor of its shape.
    """
    masks: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for group in groups:
        for part in group.slices:
            parameter = parameters.get(part.tensor)
            if part.role not in ("out", "norm") or parameter is None:
                continue
            mask = masks.setdefault(part.tensor, torch.ones_like(parameter, dtype=torch.bool))
            alive = keep[group.name].cpu()[part.channels.clamp_min(0)] | (part.channels < 0)
            mask.index_fill_(part.dim, torch.nonzero(~alive).flatten().to(mask.device), False)
    return masks


def per_channel(
    group: ChannelGroup, tensors: Mapping[str, Tensor], *roles: str, shifts: bool = False
) -> Shaped[Tensor, "C entries"] | None:
    """Everything that `tensors` hold of each channel, side by side: [C, entries]; None if they hold nothing.

    Args:
        shifts: whether biases and the shifts of normalisations are taken too. Their size does not tell how much a
            channel matters, but a gate on the channel multiplies them as well.
    """
    rows: list[Tensor] = []
    for part in group.slices:
        tensor = tensors.get(part.tensor)
        if (
            part.role not in roles
            or tensor is None
            or (not shifts and tensor.dim() == 1 and part.tensor.endswith(".bias"))
        ):
            continue
        # A dimension may hold a channel several times (behind a flatten) or not at all (behind a cat).
        place = part.channels.to(tensor.device)
        flat = tensor.movedim(part.dim, 0).flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)
        order = torch.argsort(place[place >= 0], stable=True)
        rows.append(flat[place >= 0][order].reshape(group.channels, -1))
    return torch.cat(rows, 1) if rows else None


def bn_scale(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Float[Tensor, "C"] | None:
    """|gamma| of each channel, the mean over the group's normalisations; None if it has none. [C]

    Source: Liu et al. 2017, arXiv:1708.06519 (network slimming).
    """
    scales = per_channel(group, tensors, "norm")
    return None if scales is None else scales.abs().mean(1)


def weight_norm(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Float[Tensor, "C"] | None:
    """Root mean square of each channel's filter weights, over all layers that write it; None if none does. [C]

    The mean in place of the sum lets layers of different fan-in be ranked together.
    Source: Li et al. 2017, arXiv:1608.08710, with the Euclidean norm.
    """
    filters = per_channel(group, tensors, "out")
    return None if filters is None else filters.square().mean(1).sqrt()


def slope(group: ChannelGroup, tensors: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Float[Tensor, "C"] | None:
    """Sum of w * dL/dw over the channel's normalisation scales, or its filters where it has none. [C]

    The derivative of the loss by the channel's size; shifts are left out, as they are from the size.
    """
    return _summed(group, tensors, grads, shifts=False)


def gate_slope(group: ChannelGroup, tensors: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Tensor | None:
    """The derivative of the loss by a gate g = 1 that multiplies the channel. [C]

        gamma * dL/dgamma + beta * dL/dbeta      behind a normalisation, y = g * (gamma * x + beta)
        sum w * dL/dw + bias * dL/dbias          where there is none

    Source: Molchanov et al. 2019, arXiv:1906.10771, section 3.2, gate behind the BatchNorm.
    """
    return _summed(group, tensors, grads, shifts=True)


def _summed(
    group: ChannelGroup, tensors: Mapping[str, Tensor], grads: Mapping[str, Tensor], *, shifts: bool
) -> Tensor | None:
    for role in ("norm", "out"):
        weights = per_channel(group, tensors, role, shifts=shifts)
        slopes = per_channel(group, grads, role, shifts=shifts)
        if weights is not None and slopes is not None:
            return (weights * slopes).sum(1)
    return None
