"""The result of `pruner.table()`: one row for each layer, for code and for printing."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from spikeprune.core.allocate import least
from spikeprune.core.mask import count
from spikeprune.model.pairing import Pairing
from spikeprune.record.text import aligned


@dataclass(frozen=True)
class Row:
    """A prunable weight: how many of it are alive, and the neuron it feeds (None: none, such as the classifier)."""

    name: str
    weights: int
    alive: int
    neuron: str | None
    traced: bool
    outputs: int = 0
    fed: int = 0  # outputs with an input left

    @property
    def density(self) -> float:
        """alive / weights."""
        return self.alive / self.weights

    @property
    def starved(self) -> bool:
        """Whether little passes through the layer: most of its outputs have no input left."""
        return is_starved(self.alive, self.weights, self.fed, self.outputs)


_UNKNOWN = "(methods that read neurons, such as criticality, find them at the first forward)"


def fed_outputs(mask: Tensor) -> int:
    """How many outputs (dimension 0) of a layer have at least one alive weight."""
    return int(mask.flatten(1).any(1).sum()) if mask.dim() > 1 else int(mask.sum())


def is_starved(alive: int, weights: int, fed: int, outputs: int) -> bool:
    """Whether most outputs of a layer have no input left: fewer weights than outputs, or a tenth of the outputs fed."""
    return alive < weights and (alive < outputs or 10 * fed <= outputs)


def floor_notes(layers: Mapping[str, tuple[int, int]], floor: float | None) -> list[str]:
    """A sentence on the layers that keep no more than their floor; none for a floor of 0 or 1, which is no choice.

    Args: layers: name -> (alive, weights).
    """
    if floor is None or floor in (0, 1):
        return []
    held = [name for name, (alive, weights) in layers.items() if alive == least(weights, floor) < weights]
    if not held:
        return []
    more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    return [
        f"{len(held)} of {len(layers)} layers {'is' if len(held) == 1 else 'are'} at the floor of {floor:g}, the least "
        f"that a layer may keep: {', '.join(held[:_SHOWN])}{more}."
    ]


_SHOWN = 4


class Table(list[Row]):
    """Rows that print as a table. Methods that read neurons find them at the first forward."""

    floor: float | None = None

    @classmethod
    def of(
        cls,
        parameters: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        pairs: Mapping[str, Pairing] | None,
        floor: float | None = None,
    ) -> "Table":
        """A table with one row for each parameter.

        A parameter without a mask counts as alive as a whole. `pairs` is None before the first forward.
        """
        table = cls(
            Row(
                name,
                p.numel(),
                count({name: masks[name]}) if name in masks else p.numel(),
                pairs[name].neuron if pairs is not None and name in pairs else None,
                traced=pairs is not None,
                outputs=p.shape[0],
                fed=fed_outputs(masks[name]) if name in masks else p.shape[0],
            )
            for name, p in parameters.items()
        )
        table.floor = floor
        return table

    def __str__(self) -> str:
        head = ("layer", "weights", "alive", "density", "feeds neuron")
        body = [
            (r.name, f"{r.weights:,}", f"{r.alive:,}", f"{r.density:.4f}", r.neuron or ("-" if r.traced else "?"))
            for r in self
        ]
        note = [] if not self or self[0].traced else [_UNKNOWN]
        note += [
            f"{r.name} keeps {r.alive:,} of {r.weights:,} weights, which feed {r.fed:,} of its {r.outputs:,} outputs; "
            f"a {'higher ' if self.floor else ''}floor or allocate='uniform' leaves more of it"
            for r in self
            if r.starved
        ]
        note += floor_notes({r.name: (r.alive, r.weights) for r in self}, self.floor)
        return "\n".join([*aligned([head, *body], left=(0, 4)), *note])
