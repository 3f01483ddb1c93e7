"""A certificate of a sparse network: what its files must hold, and how it must fire.

It has a SHA-256 of every tensor of the state_dict and of every mask, a small stored input, and the spikes of every
neuron on that input. So a copy, a compiled form or an export can be compared with the network that was measured.

Spikes that another machine or another engine computes may differ by ties: sums are rounded in another order, and a
potential exactly at the threshold falls to the other side. In the first layer that differs at most
max(2, 1e-5 of its values) may differ; layers behind it follow from that. Rounded weights (int16) flip more: there the
share of all spikes that flipped counts.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from spikeprune.core.errors import UserError
from spikeprune.core.mask import pack, unpack
from spikeprune.model.adapter import Adapter
from spikeprune.model.discover import SpikeNeuron
from spikeprune.model.examples import undisturbed
from spikeprune.model.trace import trace
from spikeprune.record.tensors import as_safetensors
from spikeprune.squeeze.ear import heard
from spikeprune.squeeze.statistics import evaluating

FORMAT = "spikeprune certificate 1"
TOLERANCE = 0.01
_INPUT = "input"
_SPIKES = "spikes/"


@final
@dataclass(frozen=True)
class Fingerprint:
    """The spikes of a network on one input: neuron name -> flat bool tensor, in the order in which neurons ran."""

    spikes: Mapping[str, Tensor]

    @property
    def values(self) -> int:
        return sum(spikes.numel() for spikes in self.spikes.values())


@final
@dataclass(frozen=True)
class Certificate:
    """A network's certificate: hashes of its tensors and masks, and its spikes on one stored input.

    Args:
        tensors: name in the state_dict -> SHA-256 of its type, shape and bytes.
        masks: parameter name -> the same of its mask.
        example: the stored input, as the model takes it.
        fingerprint: the spikes on it.
        tolerance: share of all spikes that a network with rounded weights may flip.
    """

    tensors: Mapping[str, str]
    masks: Mapping[str, str]
    example: Tensor
    fingerprint: Fingerprint
    tolerance: float = TOLERANCE

    def as_bytes(self) -> bytes:
        """One safetensors file: the input, the spikes as bits, and the hashes in its metadata."""
        spikes = self.fingerprint.spikes
        tensors = {_INPUT: self.example.detach().cpu().contiguous().clone()}
        tensors |= {_SPIKES + name: pack(fired.cpu()) for name, fired in spikes.items()}
        head = {
            "tensors": dict(self.tensors),
            "masks": dict(self.masks),
            "neurons": {name: fired.numel() for name, fired in spikes.items()},
            "tolerance": self.tolerance,
        }
        said = json.dumps(head)
        return as_safetensors(tensors, {"format": FORMAT, "head": said, "digest": _digest_of(said, tensors)})

    def as_text(self) -> str:
        """The certificate's bytes as text, for the metadata of another file."""
        return base64.b64encode(self.as_bytes()).decode()


def certify(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    example: Tensor,
    adapter: Adapter | None,
    tolerance: float = TOLERANCE,
) -> Certificate:
    """Makes the certificate of a network: hashes of its tensors and masks, and its spikes on the input `example`.

    The model is not changed. `tolerance` is the share of spikes that rounded weights may flip.
    """
    return Certificate(
        tensors={name: digest(value) for name, value in model.state_dict().items()},
        masks={name: digest(mask) for name, mask in masks.items()},
        example=example.detach().cpu(),
        fingerprint=fingerprint(model, example, adapter),
        tolerance=tolerance,
    )


def read_certificate(content: bytes | str, source: str) -> Certificate:
    """The certificate that `as_bytes` or `as_text` gave.

    Args:
        source: where it stands, for messages.
    Raises: UserError if it is damaged or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    wrong = f"the certificate in {source} is damaged or none of ours; squeeze again, or restore the file"
    try:
        raw = base64.b64decode(content, validate=True) if isinstance(content, str) else content
        tensors = load(raw)
        facts: dict[str, str] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        if facts["format"] != FORMAT or facts["digest"] != _digest_of(facts["head"], tensors):
            raise UserError(wrong)
        head = json.loads(facts["head"])
        spikes = {name: unpack(tensors[_SPIKES + name], (int(size),)) for name, size in head["neurons"].items()}
        hashes, masks = {**head["tensors"]}, {**head["masks"]}
        return Certificate(hashes, masks, tensors[_INPUT], Fingerprint(spikes), float(head["tolerance"]))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(wrong) from error


@torch.no_grad()
def fingerprint(model: nn.Module, example: Tensor, adapter: Adapter | None) -> Fingerprint:
    """The spikes of every neuron on an input, in eval mode, from a fresh membrane state."""
    calls: dict[str, list[Tensor]] = {}

    def keep(name: str, spikes: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            calls.setdefault(name, []).append((spikes.detach() != 0).flatten())

    def keeper(name: str) -> Any:
        return lambda _, __, output: keep(name, output[0] if isinstance(output, tuple) else output)

    with evaluating(model):
        graph = trace(model, example, adapter=adapter)
    names = {neuron: name for name, neuron in graph.spikes.items()}

    def hear(neuron: SpikeNeuron) -> None:
        if neuron in names and neuron.call is not None:
            keep(names[neuron], neuron.call(neuron.call.u))

    neurons = {} if adapter is None else adapter.neurons(model)
    hooks = [neuron.register_forward_hook(keeper(name)) for name, neuron in neurons.items()]
    try:
        with evaluating(model), heard(model, adapter, graph, hear), undisturbed(model, adapter):
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return Fingerprint({name: torch.cat(parts).cpu() for name, parts in calls.items()})


def digest(value: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    flat = value.detach().cpu().contiguous()
    found = hashlib.sha256(f"{flat.dtype} {list(flat.shape)}\n".encode())
    found.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def differing(expected: Mapping[str, str], found: Mapping[str, Tensor], what: str) -> list[str]:
    """One line for each tensor that is absent, new or changed."""
    lines = [f"{what} {name!r} is missing" for name in expected if name not in found]
    lines += [f"{what} {name!r} is new" for name in found if name not in expected]
    changed = [name for name in expected if name in found and digest(found[name]) != expected[name]]
    return lines + [f"{what} {name!r} has changed" for name in changed]


def disobeyed(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> list[str]:
    """One line for each parameter with a value where its mask has none."""
    return [
        f"{int((state[name][~mask] != 0).sum())} weights of {name!r} are not 0 although they are cut"
        for name, mask in masks.items()
        if name in state and state[name].shape == mask.shape and bool((state[name][~mask] != 0).any())
    ]


def flips(expected: Fingerprint, found: Mapping[str, Tensor]) -> dict[str, int]:
    """Neuron -> spikes that differ, in the order of the network.

    Raises: UserError if a neuron is missing or has another size.
    """
    counts: dict[str, int] = {}
    for name, fired in expected.spikes.items():
        other = found.get(name)
        if other is None or other.numel() != fired.numel():
            size = "none" if other is None else f"{other.numel():,} values"
            raise UserError(
                f"the network has {size} of neuron {name!r} where the certificate has {fired.numel():,}; "
                "it is of another network"
            )
        counts[name] = int(((other != 0).flatten().cpu() != fired).sum())
    return counts


def only_ties(expected: Fingerprint, counts: Mapping[str, int]) -> bool:
    """Whether the first layer that differs does so by no more than ties can explain."""
    first = next((name for name, count in counts.items() if count), None)
    return first is None or counts[first] <= max(2, 1e-5 * expected.spikes[first].numel())


def _digest_of(head: str, tensors: Mapping[str, Tensor]) -> str:
    """The hash of the whole certificate, which shows a change of any part."""
    return hashlib.sha256(
        "\n".join([head, *(f"{n} {digest(t)}" for n, t in sorted(tensors.items()))]).encode()
    ).hexdigest()
