"""List methods, models, datasets, recipes or networks that come trained."""

from collections.abc import Callable, Sequence

from spikeprune.cli._arguments import Parser, print_json
from spikeprune.core.errors import InvalidValue, unknown


def main(arguments: Sequence[str]) -> int:
    parser = Parser("list", __doc__ or "")
    parser.add_argument("kind", nargs="?", metavar="|".join(_KINDS), help="all of them by default")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object: kind -> names")
    form.add_argument("--markdown", action="store_true", help="of methods: the page docs/methods.md")
    options = parser.parse_args(arguments)
    if options.kind not in (None, *_KINDS):
        raise unknown("list", options.kind, _KINDS, "(methods, models, datasets, recipes or pretrained)")
    if options.markdown:
        return _page(options.kind)
    kinds = [options.kind] if options.kind else list(_KINDS)
    listed = {kind: _KINDS[kind]() for kind in kinds}
    if options.json:
        print_json(listed)
        return 0
    for kind, names in listed.items():
        if not options.kind:
            print(f"{kind}:")
        indent = "" if options.kind else "  "
        for name in names:
            print(f"{indent}{name}")  # alone on its line, for scripts
            if said := _DESCRIPTIONS[kind](name):
                print(f"{indent}    {said}")
    return 0


def _page(kind: str | None) -> int:
    if kind != "methods":
        raise InvalidValue("list --markdown makes a page of the methods alone: `spikeprune list methods --markdown`")
    from spikeprune.lab.page.method_page import methods_page

    print(methods_page(), end="")
    return 0


def _methods() -> list[str]:
    from spikeprune.methods import names

    return names()


def _models() -> list[str]:
    from spikeprune.zoo import names

    return names()


def _datasets() -> list[str]:
    from spikeprune.data import names

    return names()


def _recipes() -> list[str]:
    from spikeprune.lab.recipe import shipped

    return shipped()


def _pretrained() -> list[str]:
    from spikeprune.zoo.pretrained import names

    return names()


_KINDS: dict[str, Callable[[], list[str]]] = {
    "methods": _methods,
    "models": _models,
    "datasets": _datasets,
    "recipes": _recipes,
    "pretrained": _pretrained,
}


def _method(name: str) -> str:
    from spikeprune.methods.shared.described import summary_of

    return summary_of(name)


def _model(name: str) -> str:
    from spikeprune.zoo.registry import description_of

    return description_of(name)


def _dataset(name: str) -> str:
    from spikeprune.data.registry import known_dataset

    known = known_dataset(name)
    if known.facts is None:
        return f"any images of your own; {known.cite}"
    facts = known.facts
    shape = "x".join(map(str, facts.shape))
    needs = "" if known.needs_files else "; comes with scikit-learn"
    return f"{facts.train:,} + {facts.test:,} samples of {shape}, {facts.classes} classes{needs}; {known.cite}"


def _recipe(name: str) -> str:
    from spikeprune.lab.recipe import about

    return about(name)


def _trained(name: str) -> str:
    from spikeprune.zoo.pretrained import card

    found = card(name)
    images = f"{found.counts['test']:,} test images of {found.data}"
    return f"{found.model}, T = {found.T}: {found.accuracy:.2%} on the {images}"


_DESCRIPTIONS: dict[str, Callable[[str], str]] = {
    "methods": _method,
    "models": _model,
    "datasets": _dataset,
    "recipes": _recipe,
    "pretrained": _trained,
}
