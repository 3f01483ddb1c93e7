"""One file for a compiled network: a magic word, a SHA-256 of the rest, then safetensors. No pickle.

The tensors are packed (see `packed.py`); in files of version 1 they lie as they are.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.host.files import ordinary
from spikeprune.runtime.compile.network import Layout, LoweredNetwork
from spikeprune.runtime.compile.packed import packed, unpacked
from spikeprune.runtime.compile.validate import network_of

MAGIC = b"spikeprune compiled 2\n"
_UNPACKED = b"spikeprune compiled 1\n"  # of the same length


def save(
    path: str | os.PathLike[str], network: LoweredNetwork, precision: str, facts: Mapping[str, str] | None = None
) -> None:
    """Writes one file at exactly `path`, whole or not at all.

    Args:
        facts: further entries of its metadata, which loading does not read.
    """
    layers = [
        {"kind": layer.kind, "name": layer.name, "inputs": layer.inputs, "output": layer.output,
         "shape": layer.shape, "options": layer.options, "tensors": sorted(layer.tensors)}
        for layer in network.layers
    ]  # fmt: skip
    tensors = {
        f"{place}.{name}": tensor
        for place, layer in enumerate(network.layers)
        for name, tensor in layer.tensors.items()
    }
    stored, said = packed(tensors)
    head = {
        "precision": precision, "layers": layers, "output": network.output, "input_shape": network.input_shape,
        "T": network.T, "still": network.still,
        "busy": [[value, *shares] for value, shares in network.busy.items()],
        "packed": said,
    }  # fmt: skip
    if network.layout != Layout():
        head["layout"] = [*network.layout.input, *network.layout.output, network.layout.fixed]
    body = save_tensors(stored, {**(facts or {}), "network": json.dumps(head)})
    target = Path(path)
    try:
        handle, scratch = tempfile.mkstemp(prefix=target.name, dir=target.parent)
    except OSError as error:
        raise InvalidValue(
            f"cannot write {str(path)!r}: {error.strerror}; give a path in a folder that exists"
        ) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + hashlib.sha256(body).digest() + body)
        os.chmod(scratch, 0o644)
        os.replace(scratch, target)
    finally:
        Path(scratch).unlink(missing_ok=True)


def is_compiled(content: bytes) -> bool:
    """Whether the content of a file begins as that of a compiled network."""
    return content.startswith((MAGIC, _UNPACKED))


def load(path: str | os.PathLike[str]) -> tuple[LoweredNetwork, str]:
    """The network and precision that `save` wrote.

    Raises: InvalidValue for a missing, cut, changed or foreign file.
    """
    name = str(path)[-120:]
    try:
        data = ordinary(path).read_bytes()
    except OSError as error:
        raise InvalidValue(
            f"cannot read the compiled model {name!r}: {error.strerror}; write one with .save(path)"
        ) from None
    if not is_compiled(data):
        raise InvalidValue(f"{name!r} is not a compiled spikeprune model of this version; write one with .save(path)")
    start = len(MAGIC) + 32
    body = data[start:]
    if hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        raise InvalidValue(f"{name!r} is damaged: its checksum does not match; compile the model again and .save(path)")
    try:
        tensors = load_tensors(body)
        said = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]["network"]
        head = json.loads(said)
        if data.startswith(MAGIC):
            tensors = unpacked(tensors, head.pop("packed"))
        return network_of(head, tensors)
    except UserError as error:
        raise InvalidValue(f"cannot load {name!r}: {error}"[:380]) from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InvalidValue(
            f"{name!r} is no compiled network ({type(error).__name__}); compile the model again and .save(path)"
        ) from None
