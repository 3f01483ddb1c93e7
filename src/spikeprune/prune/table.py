"""What `pruner.table()` returns: one row a layer, to read in code and to print."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A prunable weight: how many of it are alive, and the neuron it feeds (None: none, such as the classifier)."""

    name: str
    weights: int
    alive: int
    neuron: str | None
    traced: bool

    @property
    def density(self) -> float:
        """alive / weights."""
        return self.alive / self.weights


class Table(list[Row]):
    """Rows that print as a table; the neurons are known after the first forward."""

    def __str__(self) -> str:
        head = ("layer", "weights", "alive", "density", "feeds neuron")
        body = [
            (r.name, f"{r.weights:,}", f"{r.alive:,}", f"{r.density:.4f}", r.neuron or ("-" if r.traced else "?"))
            for r in self
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

        def line(cells: tuple[str, ...]) -> str:
            return "  ".join(
                cell.rjust(width) if 0 < i < 4 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()

        note = [] if not self or self[0].traced else ["(neurons are known after the first forward)"]
        return "\n".join([line(head), *map(line, body), *note])
