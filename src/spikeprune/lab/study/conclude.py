"""The conclusion of a comparison, in sentences."""

from collections.abc import Sequence

from spikeprune.lab.study.compare import Arm, Block, Comparison

_LEVEL = 0.05  # Holm's corrected p below which a difference counts
_SAME = 5e-5  # shares that differ by less print alike


def conclusions(comparison: Comparison) -> list[str]:
    """The headline, then sentences on the best method of each table, on what is significant, and on the seeds."""
    blocks = [block for block in comparison.blocks if block.target is not None]
    if not blocks:
        best = max(comparison.rows, key=_accuracy)
        return [f"{best.label} reaches {100 * _accuracy(best):.2f} %", f"No pruned run is among these. {_seeds(best)}"]
    last = max(blocks, key=lambda block: block.target or 0.0)
    rest = [block for block in blocks if block is not last]
    said = [_headline(last, comparison.reference)]
    said += [_sentence(block, comparison.reference) for block in rest]
    return [*said, _significant(comparison, blocks), _seeds(_best(last))]


def _headline(block: Block, reference: str | None) -> str:
    return f"At {_percent(block)} sparsity {_lead(block, reference)}"


def _sentence(block: Block, reference: str | None) -> str:
    return f"{block.dataset}, {block.model}, {_percent(block)}: {_lead(block, reference)}."


def _lead(block: Block, reference: str | None) -> str:
    """Who leads, or which arms share the first place, and how far from the reference."""
    best = _best(block)
    first = [row for row in block.rows if row.target is not None and _accuracy(best) - _accuracy(row) < _SAME]
    if len(first) == 1:
        alone = sum(row.target is not None for row in block.rows) == 1
        return f"{best.label} {'reaches' if alone else 'leads with'} {_against(best, block, reference)}"
    named = [row.label for row in first]
    who = f"{len(named)} arms" if len(named) > 3 else f"{', '.join(named[:-1])} and {named[-1]}"
    inside = any(reference in (row.label, row.method) for row in first)
    return f"{who} are level at {f'{100 * _accuracy(best):.2f} %' if inside else _against(best, block, reference)}"


def _against(best: Arm, block: Block, reference: str | None) -> str:
    accuracy = f"{100 * _accuracy(best):.2f} %"
    others = [row for row in block.rows if row is not best and reference in (row.label, row.method)]
    if best.label == reference and len(block.rows) > 1:
        second = max((row for row in block.rows if row is not best and row.target is not None), key=_accuracy)
        return f"{accuracy}, {_points(_accuracy(best) - _accuracy(second))} {second.label}"
    if not others:
        return accuracy
    return f"{accuracy}, {_points(_accuracy(best) - _accuracy(others[0]))} {others[0].label}"


def _points(difference: float) -> str:
    if abs(difference) < _SAME:
        return "level with"
    return f"{100 * abs(difference):.2f} points {'above' if difference > 0 else 'below'}"


def _significant(comparison: Comparison, blocks: Sequence[Block]) -> str:
    tested = [(block, row) for block in blocks for row in block.rows if row.target is not None and row.tested]
    if not tested:
        pruned = [row.versus for block in blocks for row in block.rows if row.target is not None]
        if any(versus is not None and versus.alike for versus in pruned):
            return f"Nothing is tested here: the differences to {comparison.reference} are equal in all seeds."
        return "Nothing is tested here: that takes a reference and at least two seeds in common with it."
    clear = [(b, r) for b, r in tested if r.versus and r.versus.holm_p is not None and r.versus.holm_p < _LEVEL]
    if not clear:
        return (
            f"None of the {len(tested)} differences to {comparison.reference} is significant (Holm, p < {_LEVEL}); "
            "that they are equal does not follow."
        )
    said = [
        f"{row.label} at {_percent(block)} ({100 * row.versus.difference.mean:+.2f} points)"
        for block, row in clear
        if row.versus is not None
    ]
    more = f" and {len(said) - 4} more" if len(said) > 4 else ""
    return (
        f"{len(clear)} of {len(tested)} differences to {comparison.reference} are significant (Holm, p < {_LEVEL}): "
        f"{'; '.join(said[:4])}{more}."
    )


def _seeds(best: Arm) -> str:
    count = len(best.seeds)
    if count == 1:
        return "One seed: it shows what happened once, and no spread."
    return f"Means over {count} seeds." + (" Three or fewer seeds tell large differences only." if count <= 3 else "")


def _best(block: Block) -> Arm:
    return max((row for row in block.rows if row.target is not None), key=_accuracy)


def _accuracy(row: Arm) -> float:
    return row.values["accuracy"].mean


def _percent(block: Block) -> str:
    return f"{100 * (block.target or 0.0):.4g} %"
