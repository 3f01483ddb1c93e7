"""List methods, models, datasets, recipes or networks that come trained."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

from spikeprune.cli._arguments import Parser, print_json
from spikeprune.cli._terminal import paint, terminal_width
from spikeprune.core.errors import unknown
from spikeprune.host.catalogue import UNREAD, Registration, Written, recipe_heads, registrations


def main(arguments: Sequence[str]) -> int:
    parser = Parser("list", __doc__ or "", ["list", "list methods", "list recipes --json"])
    parser.add_argument("kind", nargs="?", metavar="|".join(_KINDS), help="all of them by default")
    parser.add_argument("--json", action="store_true", help="one JSON object: kind -> names")
    options = parser.parse_args(arguments)
    if options.kind not in (None, *_KINDS):
        raise unknown("list", options.kind, _KINDS, "(methods, models, datasets, recipes or pretrained)")
    kinds = [options.kind] if options.kind else list(_KINDS)
    listed = {kind: _KINDS[kind]() for kind in kinds}
    if options.json:
        print_json({kind: list(told) for kind, told in listed.items()})
        return 0
    for kind, told in listed.items():
        if not options.kind:
            print(f"{kind}:")
        indent = "" if options.kind else "  "
        for name, said in told.items():
            print(indent + paint(name, "bold"))  # alone on its line, for scripts
            if said:
                print(_wrapped(said, f"{indent}    "))
    return 0


def _wrapped(text: str, indent: str) -> str:
    """Within the terminal's width; one line where the output goes elsewhere."""
    width = terminal_width()
    if width is None:
        return indent + text
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)


def _methods() -> Mapping[str, str]:
    read = registrations("methods", "SPIKEPRUNE_METHODS", "spikeprune.methods")
    if read is not None:
        return {each.name: each.doc for each in read}
    from spikeprune.methods import names
    from spikeprune.methods.shared.described import summary_of

    return {name: summary_of(name) for name in names()}


def _models() -> Mapping[str, str]:
    from spikeprune.zoo import names
    from spikeprune.zoo.registry import description_of

    return {name: description_of(name) for name in names()}


def _datasets() -> Mapping[str, str]:
    read = registrations("data", "SPIKEPRUNE_DATASETS", "spikeprune.datasets")
    if read is not None:
        return {each.name: _read_dataset(each) or _imported_dataset(each.name) for each in read}
    from spikeprune.data import names

    return {name: _imported_dataset(name) for name in names()}


def _read_dataset(each: Registration) -> str | None:
    """The line of a dataset from the text of its registration, None where that does not tell."""
    facts, cite, needs = (each.facts.get(key, default) for key, default in _TOLD)
    if not isinstance(cite, str) or not isinstance(needs, bool) or facts is UNREAD:
        return None
    if facts is None:
        return _any_images(cite)
    if not isinstance(facts, Written):
        return None
    sizes = dict(zip(("shape", "classes", "train", "test"), facts.args, strict=False)) | dict(facts.named)
    shape = sizes.get("shape")
    numbers = [*(shape if isinstance(shape, tuple) else ()), *(sizes.get(key) for key in ("classes", "train", "test"))]
    whole = [number for number in numbers if isinstance(number, int)]
    return _images(*whole, needs_files=needs, cite=cite) if len(whole) in (4, 6) else None


_TOLD: tuple[tuple[str, object], ...] = (("facts", UNREAD), ("cite", UNREAD), ("needs_files", True))


def _imported_dataset(name: str) -> str:
    from spikeprune.data.registry import known_dataset

    known = known_dataset(name)
    facts = known.facts
    if facts is None:
        return _any_images(known.cite)
    return _images(*facts.shape, facts.classes, facts.train, facts.test, needs_files=known.needs_files, cite=known.cite)


def _any_images(cite: str) -> str:
    return f"any images of your own; {cite}"


def _images(*sizes: int, needs_files: bool, cite: str) -> str:
    *shape, classes, train, test = sizes
    needs = "" if needs_files else "; comes with scikit-learn"
    return f"{train:,} + {test:,} samples of {'x'.join(map(str, shape))}, {classes} classes{needs}; {cite}"


def _pretrained() -> Mapping[str, str]:
    from spikeprune.zoo.pretrained import card, names

    return {
        name: f"{found.model}, T = {found.T}: {found.accuracy:.2%} on the {found.counts['test']:,} test images of "
        f"{found.data}"
        for name, found in ((name, card(name)) for name in names())
    }


_KINDS: dict[str, Callable[[], Mapping[str, str]]] = {
    "methods": _methods,
    "models": _models,
    "datasets": _datasets,
    "recipes": recipe_heads,
    "pretrained": _pretrained,
}
