"""Which tests reach which line of the package, and which of its `raise` statements none reaches.

    python tests/reach.py map [FILE ...]           one part (build/reach) for each test file; what is there stays
    python tests/reach.py raises [WORD ...]        runs pytest, and lists every `raise` that none of them reached

Lines of the map are traced in this process alone: what a test starts in another process counts as not reached. `raises`
sees all processes: the tests run on a copy of the package in which each `raise` notes itself in a file first.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src" / "spikeprune"
BUILD = HERE.parent / "build" / "reach"
TESTS = ("golden", "contract", "property", "unit")
SLOW = ("test_docs_code", "test_docs_messages", "test_examples", "test_study", "test_first_hour", "test_authors")
PLAIN = ["-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly"]


def import_others() -> None:
    """Packages that the library uses are loaded once, before the forks; the library itself is not."""
    import numpy  # noqa: F401
    import spikingjelly.activation_based  # noqa: F401
    import torch

    torch.set_num_threads(1)


def silent() -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)


def _selected() -> list[Path]:
    """The test files of the map, those of the fewest bytes first."""
    found = [path for part in TESTS for path in (HERE / part).glob("test_*.py") if not path.stem.startswith(SLOW)]
    return sorted(found, key=lambda path: path.stat().st_size)


class Reach:
    """A pytest plugin: which lines of the package each test runs, and how long it takes."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_protocol(self, item, nextitem):
        seen: set[tuple[str, int]] = set()
        wanted = str(SOURCE)

        def line(frame, event, _):
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            return line

        def call(frame, event, _):
            return line if frame.f_code.co_filename.startswith(wanted) else None

        began = time.perf_counter()
        sys.settrace(call)
        try:
            from _pytest.runner import runtestprotocol

            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            reports = runtestprotocol(item, nextitem=nextitem)
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        finally:
            sys.settrace(None)
        if all(report.passed for report in reports):
            self.seconds[item.nodeid] = time.perf_counter() - began
            for file, number in seen:
                self.lines.setdefault(f"{Path(file).relative_to(SOURCE)}:{number}", []).append(item.nodeid)
        return True


def write_map(files: list[Path] | None = None) -> None:
    """One file of the map for each test file, made in a process of its own; what is there stays."""
    BUILD.mkdir(parents=True, exist_ok=True)
    import_others()
    for path in files or _selected():
        target = BUILD / f"{path.parent.name}.{path.stem}.json"
        if not target.exists():
            child = os.fork()
            if child == 0:
                _map_one(path, target)
            os.waitpid(child, 0)
    lines, seconds = read_map()
    print(f"{len(seconds)} tests reach {len(lines)} lines")


def _map_one(path: Path, target: Path) -> None:
    try:
        import pytest

        silent()
        reach = Reach()
        os.chdir(HERE.parent)
        pytest.main([*PLAIN, str(path)], plugins=[reach])
        beside = target.with_suffix(".part")
        beside.write_text(json.dumps({"lines": reach.lines, "seconds": reach.seconds}))
        os.replace(beside, target)
    finally:
        os._exit(0)


def read_map() -> tuple[dict[str, list[str]], dict[str, float]]:
    lines: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    for path in sorted(BUILD.glob("*.json")):
        found = json.loads(path.read_text())
        seconds |= found["seconds"]
        for line, tests in found["lines"].items():
            lines.setdefault(line, []).extend(tests)
    return lines, seconds


def raises(tests: list[str]) -> int:
    """Runs tests (all by default) on the marked copy; prints each `raise` that none reached. Returns their number."""
    copy = BUILD.parent / "marked"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(SOURCE, copy / "spikeprune", ignore=shutil.ignore_patterns("__pycache__"))
    notes = copy / "reached.txt"
    notes.touch()
    (copy / "spikeprune" / "_marks.py").write_text(_MARKS.format(str(notes)))
    places = {}
    for path in sorted(SOURCE.rglob("*.py")):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                place, old = f"{path.relative_to(SOURCE)}:{node.lineno}", lines[node.lineno - 1]
                places[place] = old.strip()
                mark = f"__import__('spikeprune._marks', fromlist=['note']).note({place!r}); "
                lines[node.lineno - 1] = old[: node.col_offset] + mark + old[node.col_offset :]
        (copy / "spikeprune" / path.relative_to(SOURCE)).write_text("\n".join(lines) + "\n")
    found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(copy), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "pytest", "-q", *(tests or ["-n", "2"])]
    status = subprocess.run(command, cwd=HERE.parent, env=found, check=False).returncode
    reached = set(notes.read_text().split())
    left = [f"{place}: {text[:100]}" for place, text in places.items() if place not in reached]
    print(*left, f"{len(left)} of {len(places)} raises were not reached; pytest ended with {status}", sep="\n")
    return len(left)


_MARKS = """import os

def note(place):
    file = os.open({!r}, os.O_WRONLY | os.O_APPEND)
    os.write(file, place.encode() + b"\\n")
    os.close(file)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["map", "raises"])
    parser.add_argument(
        "tests", nargs=argparse.REMAINDER, help="test files; for `raises` words for pytest; default: all"
    )
    options = parser.parse_args()
    if options.what == "map":
        write_map([Path(test).resolve() for test in options.tests])
        return 0
    return int(raises(options.tests) > 0)


if __name__ == "__main__":
    sys.exit(main())
