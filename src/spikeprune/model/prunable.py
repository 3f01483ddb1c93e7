"""Which parameters may be pruned."""

import fnmatch
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import weights_of_neurons
from spikeprune.model.weights import is_computed, keeps_zeros, layer_modules, stored_weight

Names = Sequence[str] | str | None


def prunable(
    model: nn.Module, include: Names = None, exclude: Names = None, pattern: tuple[int, int] | None = None
) -> dict[str, nn.Parameter]:
    """Name -> parameter, of all that may be pruned: every Conv and Linear weight that is trained and not excluded.

    Shared parameters, and views of one memory such as tied transposed weights, appear once, under their first name.
    Layers that an n:m pattern does not divide stay dense.

    Args:
        include, exclude: names or patterns (`*`) of parameters or of their modules.
        pattern: (n, m), if the layers must be divisible by m.
    Raises: InvalidValue if nothing is left, if a name matches nothing, or if a layer computes its weight in a way that
        does not keep zeros; the message names it.
    """
    check_there(model)
    layers = layer_modules(model)
    held = {id(p) for p in weights_of_neurons(model).values()} | {id(stored_weight(m)) for m in layers.values()}
    trained = _one_each({n: p for n, p in model.named_parameters() if p.requires_grad})
    computed = _computed(model, layers)
    candidates = {n: p for n, p in trained.items() if id(p) in held and n not in computed}
    if not candidates:
        raise InvalidValue(
            f"{type(model).__name__} has no prunable layer: no Conv or Linear weight that requires a gradient"
        )
    # Other matrices, such as recurrent weights in a model's own forward, are pruned if they are asked for by name.
    asked = candidates if include is None else {n: p for n, p in trained.items() if p.dim() >= 2}
    chosen = set(candidates) if include is None else matching(candidates, include, "include", asked)
    candidates = {n: p for n, p in trained.items() if n in candidates or n in chosen}
    if exclude is not None:
        chosen -= matching(candidates | computed | frozen(model), exclude, "exclude")
        computed = {n: m for n, m in computed.items() if not _hits(n, exclude)}
    if include is not None:
        computed = {n: m for n, m in computed.items() if n in chosen}
    if computed:
        names = [_owner(name) for name in computed]
        kind = type(next(iter(computed.values()))).__name__
        raise InvalidValue(
            f"the weight that acts in {', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''} ({kind}) is "
            f"computed from the stored one, and a pruned 0 does not stay 0 in it; pass exclude={names[:3]}, or "
            "make them plain layers (remove_parametrizations)"
        )
    if pattern is not None:
        chosen = {n for n in chosen if candidates[n].shape[1] % pattern[1] == 0}
    if not chosen:
        raise InvalidValue(f"include, exclude and pattern leave none of {len(candidates)} layers: {_some(candidates)}")
    return {n: p for n, p in candidates.items() if n in chosen}


def normed_by_row(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """The weights among these whose rows are divided by their norm (weight_norm), so that each must keep one entry."""
    own = {id(p): n for n, p in parameters.items()}
    layers = [m for m in layer_modules(model).values() if is_computed(m) and id(stored_weight(m)) in own]
    return {own[id(stored_weight(m))] for m in layers if not keeps_zeros(m)}


def frozen(model: nn.Module, include: Names = None, exclude: Names = None) -> dict[str, nn.Parameter]:
    """Name -> weights of Conv and Linear layers that are not trained now, less what is left out on purpose."""
    held = {id(stored_weight(m)) for m in layer_modules(model).values()}
    resting = {n: p for n, p in model.named_parameters() if id(p) in held and not p.requires_grad}
    wanted = resting if include is None else {n: p for n, p in resting.items() if _hits(n, include)}
    return {n: p for n, p in wanted.items() if exclude is None or not _hits(n, exclude)}


def check_there(model: nn.Module) -> None:
    """Raises: InvalidValue if a parameter has no values yet (lazy modules, the meta device)."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidValue(
                f"{name!r} is a lazy parameter without a shape; call the model once on a batch before this"
            )
        if parameter.is_meta:
            raise InvalidValue(
                f"{name!r} is on the meta device and has no values; move the model with to_empty(device=...) and load "
                "its weights before this"
            )


def _one_each(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """One parameter, the first, of each group that are views of one memory and so share their zeros."""
    found: dict[tuple[object, ...], str] = {}
    for name, p in parameters.items():
        found.setdefault((p.untyped_storage().data_ptr() or name, p.storage_offset(), p.numel()), name)
    return {name: parameters[name] for name in found.values()}


def _computed(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Name of a weight -> its layer, for layers that compute their weight so that a stored 0 does not stay 0."""
    names = {id(p): n for n, p in model.named_parameters()}
    known: dict[type, bool] = {}  # of layers whose weight is their own, the class decides
    found: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        stored = stored_weight(layer)
        if is_computed(layer):
            keeps = keeps_zeros(layer, rows=False)
        else:
            keeps = known[type(layer)] if type(layer) in known else known.setdefault(type(layer), keeps_zeros(layer))
        if not keeps:
            found[names.get(id(stored), f"{name}.weight")] = layer
    return found


def _owner(name: str) -> str:
    """The layer that a parameter belongs to."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


def _hits(name: str, wanted: Sequence[str] | str) -> bool:
    texts = [wanted] if isinstance(wanted, str) else wanted
    return any(fnmatch.fnmatchcase(x, text) for text in texts for x in (name, _owner(name)))


def matching(
    candidates: Collection[str],
    wanted: Sequence[str] | str,
    setting: str,
    others: Collection[str] = (),
) -> set[str]:
    """The names that a setting asks for. Raises: InvalidValue if a name or pattern matches none of them."""
    found: set[str] = set()
    for text in [wanted] if isinstance(wanted, str) else wanted:
        hits = {n for n in candidates if _hits(n, text)} or {n for n in others if n == text}
        if not hits:
            raise InvalidValue(f"0 of {len(candidates)} layers matched {setting}={text!r}: {_some(candidates)}")
        found |= hits
    return found


def _some(candidates: Collection[str]) -> str:
    return ", ".join(list(candidates)[:4]) + (", ..." if len(candidates) > 4 else "")
