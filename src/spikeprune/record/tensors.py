"""Tensors as the bytes of a safetensors file: the same tensors and facts always give the same bytes."""

import json
from collections.abc import Mapping

from torch import Tensor


def as_safetensors(tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> bytes:
    """The file's content.

    The library writes the metadata in an order that changes from call to call; here it is sorted by name.

    Args: facts: the metadata of the file.
    """
    from safetensors.torch import save

    content = save(dict(tensors), None if facts is None else dict(facts))
    if facts is None or len(facts) < 2:
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(facts.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data behind the header stays aligned
    return len(text).to_bytes(8, "little") + text + content[end:]
