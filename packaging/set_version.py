"""Writes a version into the files that repeat it: `python packaging/set_version.py 0.2.0 2026-11-30`.

`src/spikeprune/__init__.py` holds the version. The citation, the conda recipe, the README's BibTeX and the
heading of the changelog repeat it, and `tests/unit/test_metadata.py` compares them.
"""

import datetime
import re
import sys
from pathlib import Path

# file -> pattern whose group 1 stays and whose group 2 is replaced, and what is written: "version", "date" or "heading"
PLACES = (
    ("src/spikeprune/__init__.py", r'^(__version__ = ")([^"]+)', "version"),
    ("CITATION.cff", r"^(version: )(\S+)", "version"),
    ("CITATION.cff", r"^(date-released: )(\S+)", "date"),
    ("packaging/conda/recipe.yaml", r'^(  version: ")([^"]+)', "version"),
    ("README.md", r"^(  version = \{)([^}]+)", "version"),
    ("CHANGELOG.md", r"^(## )(VERSION \(unreleased\))$", "heading"),
)


def set_version(root: Path, version: str, date: str) -> None:
    """Changes all places, or none.

    Raises: SystemExit for a version or date of another form, and for a file in which a place is not found exactly once.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise SystemExit(f"a version is three whole numbers such as 0.2.0, got {version!r}")
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        raise SystemExit(f"a date is written as 2026-11-30, got {date!r}") from None
    said = {"version": version, "date": date, "heading": f"{version} ({date})"}
    texts = {name: (root / name).read_text(encoding="utf-8") for name, _, _ in PLACES}
    for name, pattern, what in PLACES:
        place = re.compile(pattern.replace("VERSION", re.escape(version)), re.MULTILINE)
        if len(place.findall(texts[name])) != 1:
            raise SystemExit(f"{name} must have one line like {place.pattern}; nothing was written")
        texts[name] = place.sub(lambda found, what=what: found[1] + said[what], texts[name])
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
        print(name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python packaging/set_version.py VERSION DATE")
    set_version(Path(__file__).parents[1], *sys.argv[1:])
