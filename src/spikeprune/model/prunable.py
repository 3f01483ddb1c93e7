"""Which parameters may be pruned."""

import fnmatch
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from spikeprune.core.errors import InvalidValue

Names = Sequence[str] | str | None


def prunable(
    model: nn.Module, include: Names = None, exclude: Names = None, pattern: tuple[int, int] | None = None
) -> dict[str, nn.Parameter]:
    """Name -> parameter of what may be pruned: every Conv and Linear weight that is trained, less what is excluded.

    Shared parameters appear once, under their first name. Layers that an n:m pattern does not divide stay dense.

    Args:
        include, exclude: names or patterns (`*`) of parameters or of their modules.
        pattern: (n, m), if the layers must be divisible by m.
    Raises: InvalidValue if nothing is left, or a name matches nothing.
    """
    weights = {id(m.weight) for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))}
    candidates = {n: p for n, p in model.named_parameters() if id(p) in weights and p.requires_grad}
    if not candidates:
        raise InvalidValue(
            f"{type(model).__name__} has no prunable layer: no Conv or Linear weight that requires a gradient"
        )
    chosen = set(candidates) if include is None else _matching(candidates, include, "include")
    if exclude is not None:
        chosen -= _matching(candidates, exclude, "exclude")
    if pattern is not None:
        chosen = {n for n in chosen if candidates[n].shape[1] % pattern[1] == 0}
    if not chosen:
        raise InvalidValue(f"include, exclude and pattern leave none of {len(candidates)} layers: {_some(candidates)}")
    return {n: p for n, p in candidates.items() if n in chosen}


def _matching(candidates: dict[str, nn.Parameter], wanted: Sequence[str] | str, setting: str) -> set[str]:
    found: set[str] = set()
    for text in [wanted] if isinstance(wanted, str) else wanted:
        hits = {n for n in candidates if any(fnmatch.fnmatchcase(x, text) for x in (n, n.rpartition(".")[0]))}
        if not hits:
            raise InvalidValue(f"0 of {len(candidates)} layers matched {setting}={text!r}: {_some(candidates)}")
        found |= hits
    return found


def _some(candidates: dict[str, nn.Parameter]) -> str:
    return ", ".join(list(candidates)[:4]) + (", ..." if len(candidates) > 4 else "")
