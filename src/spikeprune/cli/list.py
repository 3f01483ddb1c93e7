"""List methods, models, datasets or recipes."""

from collections.abc import Callable, Sequence

from spikeprune.cli._arguments import Parser, print_json
from spikeprune.core.errors import unknown


def main(arguments: Sequence[str]) -> int:
    parser = Parser("list", __doc__ or "")
    parser.add_argument("kind", nargs="?", metavar="|".join(_KINDS), help="all of them by default")
    parser.add_argument("--json", action="store_true", help="one JSON object: kind -> names")
    options = parser.parse_args(arguments)
    if options.kind not in (None, *_KINDS):
        raise unknown("list", options.kind, _KINDS, "(methods, models, datasets or recipes)")
    kinds = [options.kind] if options.kind else list(_KINDS)
    listed = {kind: _KINDS[kind]() for kind in kinds}
    if options.json:
        print_json(listed)
        return 0
    for kind, names in listed.items():
        if not options.kind:
            print(f"{kind}:")
        for name in names:
            print(name if options.kind else f"  {name}")
    return 0


def _methods() -> list[str]:
    from spikeprune.methods import names

    return names()


def _models() -> list[str]:
    from spikeprune.zoo import names

    return names()


def _datasets() -> list[str]:
    from spikeprune.train.data import names

    return names()


def _recipes() -> list[str]:
    from spikeprune.train.recipe import shipped

    return shipped()


_KINDS: dict[str, Callable[[], list[str]]] = {
    "methods": _methods,
    "models": _models,
    "datasets": _datasets,
    "recipes": _recipes,
}
