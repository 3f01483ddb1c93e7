"""Breaks the library on purpose and asks the tests: a mutant that no test notices is a rule that nobody checks.

    python tests/mutants.py map              which tests reach which line (build/mutants/reach.json)
    python tests/mutants.py run [--count N] [--seed S]    N mutants drawn by a seed; goes on where it was stopped
    python tests/mutants.py named            the guards that once had no test, each broken again
    python tests/mutants.py report           the kill rate, and the mutants that survived

A mutant changes one place of core, prune, record or upkeep: a comparison, a sum, a number, a `not`, a condition, a
`raise`. Each runs against the tests that reach its line, the quickest first, in a process of its own.
"""

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src" / "spikeprune"
ROOMS = ("core", "prune", "record", "upkeep")
BUILD = HERE.parent / "build" / "mutants"
TESTS = ("golden", "contract", "property/test_select_random.py", "property/test_allocate_random.py", "property")
UNIT = "schedule select allocate mask statistic surrogate neuron pruner pruner_channels upkeep held guard record_round"
UNIT += " record_run optimizers_around copies_and_layouts survivors prune_once report rivals_dynamic errors objects"
MOST_TESTS, SECONDS = 25, 120

SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip

# (file, what stands there, what is put in its place, the test that must fail)
SURVIVORS = "unit/test_survivors.py -k"
FUSED = "runtime/kernels/fuse_neuron.h"
CLAMP = "(step - begin) / max(self.end - begin, 1)"
READER = 'whole = node.module in ("spikeprune", "spikeprune.methods")'
EDGES = "integration/test_kernel_edges.py -k negative"
NAMED = [
    ("shrink/shrink.py", "_TOLERANCE = 1e-5", "_TOLERANCE = 1e9", f"{SURVIVORS} output"),
    (FUSED, "x = x < -87.0f ? -87.0f : x;", "", f"{SURVIVORS} nan"),
    (FUSED, "5.0000001201e-1f", "5.0001e-1f", f"{SURVIVORS} exponential"),
    (FUSED, "1.3981999507e-3f", "1.39e-3f", f"{SURVIVORS} exponential"),
    ("runtime/kernels/fuse.cpp", "std::max(0.0, square - d * d)", "square - d * d", f"{SURVIVORS} variance"),
    ("core/schedule.py", f"min(max({CLAMP}, 0.0), 1.0)", f"min({CLAMP}, 1.0)", f"{SURVIVORS} share"),
    ("core/schedule.py", "(self.every or 1),)", "1,)", f"{SURVIVORS} one_shot"),
    ("record/statistics.py", "!= len(QUANTILES)", "== -1", f"{SURVIVORS} quantiles"),
    ("../../tests/test_architecture.py", READER, 'whole = node.module == "spikeprune"', f"{SURVIVORS} imports_another"),
    ("runtime/kernels/engine_pool.cpp", "top = -__builtin_inff()", "top = 0", EDGES),
]


def mutants(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, what was changed, the whole changed source) of every mutant of a file."""
    text = path.read_text()
    places = len(list(ast.walk(ast.parse(text))))
    for index in range(places):
        tree = ast.parse(text)
        node = list(ast.walk(tree))[index]
        said = _change(node)
        if said is not None:
            yield getattr(node, "lineno", 0), said, ast.unparse(ast.fix_missing_locations(tree))


def _change(node: ast.AST) -> str | None:
    """Changes one node in place; what was done, or None if there is nothing to change."""
    before = type(node).__name__
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        before = type(node.ops[0]).__name__
        node.ops[0] = SWAPS[type(node.ops[0])]()
        return f"{before} -> {type(node.ops[0]).__name__}"
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        if isinstance(node, ast.BinOp) and (_is_text(node.left) or _is_text(node.right)):
            return None
        before = type(node.op).__name__
        node.op = SWAPS[type(node.op)]()
        return f"{before} -> {type(node.op).__name__}"
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        before, node.value = str(node.value), node.value + 1
        return f"{before} -> {node.value}"
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        node.value = not node.value
        return f"{not node.value} -> {node.value}"
    if isinstance(node, (ast.If, ast.IfExp)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "if -> if not"
    if isinstance(node, ast.Raise):
        node.__class__ = ast.Pass  # type: ignore[assignment]
        return "raise -> pass"
    return None


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _selected() -> list[str]:
    unit = [str(HERE / "unit" / f"test_{name}.py") for name in UNIT.split()]
    return [str(HERE / "golden"), str(HERE / "contract"), *[name for name in unit if Path(name).exists()]]


class Reach:
    """A pytest plugin: which lines of the rooms each test runs, and how long it takes."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self._wanted = tuple(str(SOURCE / room) for room in ROOMS)

    def pytest_runtest_protocol(self, item, nextitem):
        seen: set[tuple[str, int]] = set()

        def line(frame, event, _):
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            return line

        def call(frame, event, _):
            return line if frame.f_code.co_filename.startswith(self._wanted) else None

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


def write_map() -> None:
    import pytest

    BUILD.mkdir(parents=True, exist_ok=True)
    reach = Reach()
    os.chdir(HERE.parent)
    pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", *_selected()], plugins=[reach])
    (BUILD / "reach.json").write_text(json.dumps({"lines": reach.lines, "seconds": reach.seconds}))
    print(f"{len(reach.seconds)} tests reach {len(reach.lines)} lines")


def run(count: int, seed: int) -> None:
    """Draws mutants and runs those that results.jsonl does not have yet."""
    reach = json.loads((BUILD / "reach.json").read_text())
    results = BUILD / f"results-{seed}.jsonl"
    done = {(r["file"], r["line"], r["change"], r["number"]) for r in _results(results)}
    every: list[tuple[str, int, str, int]] = []
    sources: dict[tuple[str, int, str, int], str] = {}
    for room in ROOMS:
        for path in sorted((SOURCE / room).rglob("*.py")):
            for number, (line, change, text) in enumerate(mutants(path)):
                key = (str(path.relative_to(SOURCE)), line, change, number)
                every.append(key)
                sources[key] = text
    random.Random(seed).shuffle(every)
    print(f"{len(every)} mutants in {', '.join(ROOMS)}; {count} drawn by seed {seed}", flush=True)
    import numpy  # noqa: F401 - loaded once, before the forks
    import torch  # noqa: F401

    for key in every[:count]:
        if key in done:
            continue
        tests = reach["lines"].get(f"{key[0]}:{key[1]}", [])
        tests = sorted(tests, key=lambda name: reach["seconds"][name])
        tests = tests[: MOST_TESTS - 5] + tests[MOST_TESTS - 5 :][:: max(1, len(tests) // 5)][:5]
        outcome = _fork(key[0], sources[key], tests) if tests else "no test"
        entry = {"file": key[0], "line": key[1], "change": key[2], "number": key[3], "outcome": outcome}
        with results.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"{outcome:<9} {key[0]}:{key[1]} {key[2]}", flush=True)
    report(seed)


def _fork(name: str, text: str, tests: list[str]) -> str:
    """How the tests end in a child process that sees the changed source."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            _replace(SOURCE / name, text)
            os.chdir(HERE.parent)
            import pytest

            plain = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly"]
            status = int(pytest.main([*plain, *tests]))
        finally:
            os._exit(status)
    until = time.time() + SECONDS
    while time.time() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "timeout"


def _replace(path: Path, text: str) -> None:
    """The module of that file is loaded from the changed text."""
    from importlib.machinery import SourceFileLoader

    honest = SourceFileLoader.get_data

    def get_data(self, wanted):
        if str(wanted) == str(path):
            return text.encode()
        if Path(str(wanted)).name.startswith(f"{path.stem}.") and str(wanted).endswith(".pyc"):
            raise OSError("no cached bytecode of a mutant")
        return honest(self, wanted)

    SourceFileLoader.get_data = get_data  # type: ignore[method-assign]
    SourceFileLoader._cache_bytecode = lambda *_: None  # type: ignore[attr-defined]


def _results(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(seed: int) -> None:
    found = _results(BUILD / f"results-{seed}.jsonl")
    tally = {kind: sum(r["outcome"] == kind for r in found) for kind in ("killed", "timeout", "survived", "no test")}
    dead = tally["killed"] + tally["timeout"]
    for r in found:
        if r["outcome"] in ("survived", "no test"):
            print(f"{r['outcome']:<9} {r['file']}:{r['line']} {r['change']}")
    print(f"{dead} of {len(found)} mutants killed ({dead / max(1, len(found)):.1%}), seed {seed}: {tally}")


def named() -> int:
    """Breaks each named guard in a copy of the source, and runs its test, which must fail."""
    import shutil
    import tempfile

    kept = 0
    for file, old, new, test in NAMED:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            shutil.copytree(HERE.parent / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copytree(HERE, root / "tests", ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
            shutil.copy(HERE.parent / "pyproject.toml", root)
            target = (root / "src" / "spikeprune" / file).resolve()
            text = target.read_text()
            assert old in text, f"{file} has no {old!r} any more"
            target.write_text(text.replace(old, new))
            words = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", *f"tests/{test}".split()]
            ran = subprocess.run(
                words, cwd=root, env={**os.environ, "PYTHONPATH": str(root / "src")}, capture_output=True, text=True
            )
        noticed = ran.returncode == 1
        kept += not noticed
        print(f"{'noticed' if noticed else 'NOT NOTICED'}: {file}: {old} -> {new or 'nothing'}", flush=True)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["map", "run", "named", "report"])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "map":
        write_map()
    elif options.what == "run":
        if not (BUILD / "reach.json").exists():
            write_map()
        run(options.count, options.seed)
    elif options.what == "report":
        report(options.seed)
    else:
        return named()
    return 0


if __name__ == "__main__":
    sys.exit(main())
