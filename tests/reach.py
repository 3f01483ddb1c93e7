"""Which tests reach which line of the package, and which of its `raise` statements none reaches.

    python tests/reach.py map [FILE ...]           one part (build/reach) for each test file; what is there stays
    python tests/reach.py raises [--room ROOM]     every `raise` that no test of the map reaches

Lines are traced in this process alone: what a test starts in another process counts as not reached.
"""

import argparse
import ast
import json
import os
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


def raises(room: str | None) -> None:
    """Prints every `raise` of the package that no test of the map reaches."""
    lines, _ = read_map()
    left = 0
    for path in sorted((SOURCE / room if room else SOURCE).rglob("*.py")):
        name, text = str(path.relative_to(SOURCE)), path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Raise) and f"{name}:{node.lineno}" not in lines:
                left += 1
                print(f"{name}:{node.lineno}: {text.splitlines()[node.lineno - 1].strip()[:100]}")
    print(f"{left} raises that no test of the map reaches" + (f" in {room}" if room else ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["map", "raises"])
    parser.add_argument("files", nargs="*", type=Path, help="test files for the map; all by default")
    parser.add_argument("--room", help="a folder of the package, such as core")
    options = parser.parse_args()
    if options.what == "map":
        write_map([path.resolve() for path in options.files])
    else:
        raises(options.room)
    return 0


if __name__ == "__main__":
    sys.exit(main())
