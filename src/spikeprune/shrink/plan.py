"""The plan of a shrunken network: which entries of which tensors stay, as data that JSON can hold."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spikeprune.core.errors import InvalidValue
from spikeprune.host.files import ordinary
from spikeprune.model.adapter import Adapter, find_adapter
from spikeprune.model.operations import is_gate

_SCHEMA = 1


@dataclass(frozen=True)
class Cut:
    """One cut: dimension `dim` of a tensor has `size` entries, and those in `keep` stay."""

    tensor: str
    dim: int
    size: int
    keep: tuple[int, ...]


@final
@dataclass(frozen=True)
class ChannelPlan:
    """The plan of a cut: it makes the small network from a network of the original size.

    Attributes:
        cuts: one for each dimension of each parameter and buffer that becomes shorter.
        gates: gate -> the channels it passes on, numbered after the cuts.
        layers: layer -> its output channels before and after; layers that stay as they are included.
        parameters: number of parameters before and after.
        blocked: why channels whose filters are all masked had to stay, if any had to.

    Examples:
        >>> masks = sp.prune(model, "weight-norm", 0.5, data=data, pattern="channel")
        >>> small, plan = sp.shrink(model, masks, data[0][0])
        >>> plan.save("plan.json")
        >>> again = sp.ChannelPlan.load("plan.json").rebuild(fresh, small.state_dict())
        >>> again[4].out_channels
        1
    """

    cuts: tuple[Cut, ...]
    gates: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    blocked: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        Path(path).write_text(self.to_json())

    def to_json(self) -> str:
        """The plan as the text that `save` writes."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, separators=(",", ":")) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> "ChannelPlan":
        """Reads a plan that `save` wrote.

        Raises: InvalidValue if the file is missing, damaged or of another kind.
        """
        try:
            return cls.from_json(ordinary(path).read_text(), str(path))
        except OSError as error:
            raise InvalidValue(f"cannot read the channel plan {path}: {error.strerror}; give the plan.json") from error
        except UnicodeDecodeError as error:
            raise InvalidValue(f"{path} is no channel plan, or a damaged one; `plan.save` writes it anew") from error

    @classmethod
    def from_json(cls, text: str, path: str = "the plan") -> "ChannelPlan":
        """A plan from its text; `path` names it in errors.

        Raises: InvalidValue if the text is damaged or of another kind.
        """
        try:
            content = json.loads(text)
            if content.pop("schema") != _SCHEMA:
                raise InvalidValue(
                    f"{path} is a plan of another version; write it again with this version of spikeprune"
                )
            plan = cls(
                tuple(Cut(c["tensor"], c["dim"], c["size"], tuple(c["keep"])) for c in content["cuts"]),
                {name: tuple(kept) for name, kept in content["gates"].items()},
                {name: tuple(counts) for name, counts in content["layers"].items()},
                tuple(content["parameters"]),
                tuple(content["blocked"]),
            )
            _check(plan)
            return plan
        except InvalidValue:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidValue(f"{path} is no channel plan, or a damaged one; `plan.save` writes it anew") from error

    def rebuild(self, fresh_model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
        """The small network with these weights, from a model of the original size, which is left alone.

        Raises: InvalidValue if model, plan and state_dict do not belong together.
        """
        small = copy_without_state(fresh_model, find_adapter(fresh_model))
        self.apply(small)
        try:
            small.load_state_dict(state_dict)
        except RuntimeError as error:
            raise InvalidValue(
                f"the state_dict does not fit the plan: {str(error).splitlines()[-1].strip()[:150]}; "
                "give the small network's own state_dict"
            ) from error
        return small

    def apply(self, model: nn.Module) -> None:
        """Cuts a model of the original size, in place.

        Raises: InvalidValue if the model lacks a tensor of the plan or has it in another size; nothing is cut then.
        """
        stored = model.state_dict(keep_vars=True)
        for cut in self.cuts:
            tensor = stored.get(cut.tensor)
            if tensor is None or cut.dim >= tensor.dim() or tensor.shape[cut.dim] != cut.size:
                found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise InvalidValue(
                    f"the plan cuts {cut.tensor!r} with {cut.size} entries in dimension {cut.dim}, but it is {found}; "
                    "build the model of the original size"
                )
        missing = [name for name in self.gates if not is_gate(_module(model, name))]
        if missing:
            raise InvalidValue(
                f"the plan sets the gate {missing[0]!r}, which this model lacks; build the original model"
            )
        left = {cut.tensor: len(cut.keep) for cut in self.cuts}
        for name, kept in self.gates.items():
            gate: Any = _module(model, name)
            own: int = gate.channels
            channels = left.get(f"{name}.keep", own)
            if max(kept, default=0) >= channels:
                raise InvalidValue(
                    f"the plan passes channel {max(kept)} on at the gate {name!r}, which is left with {channels}; "
                    "build the model of the original size"
                )
        by_tensor: dict[str, list[Cut]] = {}
        for cut in self.cuts:
            by_tensor.setdefault(cut.tensor, []).append(cut)
        shared: dict[int, Tensor] = {}  # a tensor that two modules hold stays one
        names = [
            (name, module, local)
            for name, module in model.named_modules()
            for local in [*module._parameters, *module._buffers]
        ]
        for prefix, module, local in names:
            held: dict[str, Any] = module._parameters if local in module._parameters else module._buffers
            old = held[local]
            name = f"{prefix}.{local}" if prefix else local
            if old is None:
                continue
            if id(old) in shared:
                held[local] = shared[id(old)]
            elif name in by_tensor:
                new = select(old.detach(), by_tensor[name])
                held[local] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                shared[id(old)] = held[local]
        for module in model.modules():
            _tell_sizes(module)
        for name, kept in self.gates.items():
            gate = _module(model, name)
            keep = torch.zeros(gate.channels, dtype=torch.bool)
            keep[list(kept)] = True
            gate.select(keep)


def _check(plan: ChannelPlan) -> None:
    """Raises: ValueError if an entry is of another kind than `save` writes; the model is not known here."""
    places = {(cut.tensor, cut.dim) for cut in plan.cuts}
    if len(places) < len(plan.cuts) or not all(map(_is_cut, plan.cuts)):
        raise ValueError("cuts")
    if not all(_are_whole(kept) and len(set(kept)) == len(kept) for kept in plan.gates.values()):
        raise ValueError("gates")
    if not all(_are_whole(counts) and len(counts) == 2 for counts in (*plan.layers.values(), plan.parameters)):
        raise ValueError("layers and parameters")
    if not all(isinstance(reason, str) for reason in plan.blocked):
        raise ValueError("blocked")


def _is_cut(cut: Cut) -> bool:
    fits = isinstance(cut.tensor, str) and _are_whole((cut.dim, cut.size)) and _are_whole(cut.keep)
    return fits and 0 < len(set(cut.keep)) == len(cut.keep) and max(cut.keep) < cut.size


def _are_whole(numbers: Sequence[object]) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


def copy_without_state(model: nn.Module, adapter: Adapter | None) -> nn.Module:
    """A copy without membrane state and without a Pruner's hooks; the model keeps both."""
    # Membrane state belongs to an autograd graph and cannot be copied; a Pruner's hooks would bring along the Pruner
    # and its optimizer. Both are put aside for the moment. Hooks of the user's may be part of what the model computes.
    states = adapter.states(model) if adapter is not None else None
    tables = [table for m in model.modules() for table in (m._forward_pre_hooks, m._forward_hooks)]
    hooks = [dict(table) for table in tables]
    try:
        for table in tables:
            for key in [
                k for k, hook in table.items() if str(getattr(hook, "__module__", "")).startswith("spikeprune.")
            ]:
                del table[key]
        if adapter is not None:
            adapter.reset(model)
        return copy.deepcopy(model)
    finally:
        for table, saved in zip(tables, hooks, strict=True):
            table.clear()
            table.update(saved)
        if adapter is not None:
            adapter.restore(model, states)


def select(tensor: Tensor, cuts: list[Cut]) -> Tensor:
    """The part of a tensor that the cuts leave. A dimension of size 1 stays as it is."""
    for cut in cuts:
        if tensor.shape[cut.dim] == cut.size:
            tensor = tensor.index_select(cut.dim, torch.tensor(cut.keep, device=tensor.device))
    return tensor.clone()


def _module(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def _tell_sizes(module: nn.Module) -> None:
    """Correct the sizes that a module states, such as `out_channels`, after its tensors were cut."""
    if isinstance(module, _ConvNd) and module.groups != 1:
        if not isinstance(module, _ConvTransposeNd):  # whole groups go
            module.groups = len(module.weight) * module.groups // module.out_channels
            module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        transposed = isinstance(module, _ConvTransposeNd)
        module.out_channels, module.in_channels = (second, first) if transposed else (first, second)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        sized = next((t for t in (module.weight, module.running_mean) if t is not None), None)
        module.num_features = module.num_features if sized is None else len(sized)
    elif is_gate(module):
        module.channels = len(module.keep)
