"""BibTeX for what a study used: `sp.cite("criticality", "lamp")`."""

import spikeprune
from spikeprune.core.errors import unknown
from spikeprune.host.references import TOOLS, Reference, references_of
from spikeprune.methods.base import Method
from spikeprune.methods.registry import name_of, names, source_of

_OWN = """@software{{spikeprune,
  title = {{spikeprune: small, fast spiking neural networks}},
  author = {{{{The spikeprune contributors}}}},
  version = {{{version}}},
  year = {{2026}}
}}"""


def cite(*methods: "str | Method | type[Method]") -> str:
    """BibTeX of this library and of the publications that methods and tools come from.

    Each entry appears once. A comment line says what each name stands for.

    Args:
        methods: names of methods (`sp.methods()`), method objects or classes, and names of tools: "erk", "lamp",
            "cubic", "n:m", "squeeze", "energy", "torch", "spikingjelly", "snntorch", "norse", "nir", "scikit-learn".
    Returns: text for a .bib file.
    Raises: UnknownName with the nearest name.

    Examples:
        >>> print(sp.cite("magnitude"))
        % spikeprune: the library itself
        % magnitude: Zhu and Gupta 2017, arXiv:1710.01878 (GMP); Han et al. 2015, arXiv:1506.02626
        <BLANKLINE>
        @software{spikeprune,
          title = {spikeprune: small, fast spiking neural networks},
        ...
    """
    sources = {name: source_of_name(name) for name in map(_name, methods)}
    return bibliography(sources)


def bibliography(sources: dict[str, str]) -> str:
    """BibTeX of this library and of the publications that the sources name.

    Args:
        sources: what was used -> where it comes from, in words.
    """
    entries = [Reference("spikeprune", _OWN.format(version=spikeprune.__version__))]
    for source in sources.values():
        entries += [entry for entry in references_of(source) if entry not in entries]
    comments = ["% spikeprune: the library itself", *(f"% {name}: {source}" for name, source in sources.items())]
    return "\n\n".join(["\n".join(comments), *(entry.bibtex for entry in entries)])


def _name(method: "str | Method | type[Method]") -> str:
    if isinstance(method, str):
        return method
    return name_of(method() if isinstance(method, type) else method)


def source_of_name(name: str) -> str:
    """The source of a method or a tool, in words. Raises: UnknownName with the nearest name."""
    if name in TOOLS:
        return TOOLS[name]
    if name not in names():
        raise unknown("method or tool", name, [*names(), *TOOLS], "(`spikeprune list methods` lists the methods)")
    return source_of(name)
