"""BibTeX for the sources of methods: "Deng et al. 2021, arXiv:1911.00822" names one entry of references.bib."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

_FILE = Path(__file__).parents[1] / "references.bib"
_ENTRY = re.compile(r"^@\w+\{(?P<key>[^,\s]+),\n.*?^\}", re.MULTILINE | re.DOTALL)
_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")
# "Deng et al. 2021", "Zhu and Gupta 2017", "Xiao, Rasul and Vollgraf 2017", "Hassibi & Stork 1993", "Horowitz 2014"
_AUTHORS = re.compile(r"\b([A-Z][\w-]+)(?:, [A-Z][\w-]+)*(?: et al\.| (?:and|&) [A-Z][\w-]+)?,? ((?:19|20)\d\d)\b")

# What a run may use beside methods and data -> the source that its authors ask to be named.
TOOLS = {
    "erk": "Evci et al. 2020, arXiv:1911.11134; Mocanu et al. 2018, arXiv:1707.04780",
    "lamp": "Lee et al. 2021, arXiv:2010.07611",
    "cubic": "Zhu and Gupta 2017, arXiv:1710.01878",
    "n:m": "Mishra et al. 2021, arXiv:2104.08378",
    "squeeze": "Hassibi & Stork 1993; Frantar et al. 2022, arXiv:2208.11580; Chen et al. 2023, arXiv:2311.16141",
    "energy": "Horowitz 2014",
    "torch": "Paszke et al. 2019, arXiv:1912.01703",
    "spikingjelly": "Fang et al. 2023",
    "snntorch": "Eshraghian et al. 2023, arXiv:2109.12894",
    "norse": "Pehle and Pedersen 2021",
    "nir": "Pedersen et al. 2024, arXiv:2311.14641",
    "scikit-learn": "Pedregosa et al. 2011",
}


@final
@dataclass(frozen=True)
class Reference:
    """One BibTeX entry.

    Args:
        key: the name that \\cite takes.
        bibtex: the entry, from "@" to its last brace.
    """

    key: str
    bibtex: str

    def field(self, name: str) -> str | None:
        """A field's text without its outer braces, None if the entry has no such field."""
        found = re.search(rf"^  {name} = \{{(.*)\}},?$", self.bibtex, re.MULTILINE)
        return found[1] if found else None


@functools.cache
def known_references() -> tuple[Reference, ...]:
    """All entries of references.bib, in the order of the file."""
    text = _FILE.read_text(encoding="utf-8")
    return tuple(Reference(found["key"], found[0]) for found in _ENTRY.finditer(text))


def references_of(source: str) -> list[Reference]:
    """The entries that a source names, in its order, each once; none for a source that names no publication.

    An arXiv number names an entry. In a part without one, a first author and a year name an entry that has no number.
    A publication that references.bib does not hold yields a short entry with what the source tells, so that a new
    method needs no other file.
    """
    found: dict[str, Reference] = {}
    for part in source.split(";"):
        numbers = _ARXIV.findall(part)
        authors = _AUTHORS.findall(part)
        if numbers:
            entries = [
                _numbered(number, authors[0] if len(numbers) == len(authors) == 1 else None) for number in numbers
            ]
        else:
            entries = [_named(surname, year) for surname, year in authors]
        found.update((entry.key, entry) for entry in entries)
    return list(found.values())


def _numbered(number: str, authors: tuple[str, str] | None) -> Reference:
    for entry in known_references():
        if entry.field("eprint") == number:
            return entry
    if authors is None:
        return _short(f"arxiv{number}", eprint=number, archivePrefix="arXiv")
    surname, year = authors
    return _short(f"{surname.lower()}{year}", author=surname, year=year, eprint=number, archivePrefix="arXiv")


def _named(surname: str, year: str) -> Reference:
    for entry in known_references():
        first = (entry.field("author") or "").partition(",")[0]
        # An entry with a number is found by the number alone: two papers of one surname and year are not rare.
        if entry.field("eprint") is None and first == surname and entry.field("year") == year:
            return entry
    return _short(f"{surname.lower()}{year}", author=surname, year=year)


def _short(key: str, *, author: str | None = None, **fields: str) -> Reference:
    """A short entry of the fields that are known. "and others" stands for authors whom the source does not name."""
    if author is not None:
        fields = {"author": f"{author} and others", **fields}
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return Reference(key, f"@misc{{{key},\n{lines}\n}}")
