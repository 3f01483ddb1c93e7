"""Breaks the library on purpose and asks the tests: a mutant that no test notices is a rule that nobody checks.

    python tests/mutants.py run [--count N] [--seed S] [--share 1/2]    N mutants drawn by a seed; goes on as well
    python tests/mutants.py named [--table FILE]          the guards that once had no test, each broken again
    python tests/mutants.py report           the kill rate, and the mutants that survived

A mutant changes one place of core, prune, record or upkeep: a comparison, a sum, a number, a `not`, a condition, a
`raise`. Each runs against tests that reach its line, in a process of its own: first a few quick ones, and if it
survives those, as many of the others as a minute allows. A mutant that changes nothing that a user could see is listed
in EQUIVALENT, with the reason.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from reach import HERE, PLAIN, SOURCE, import_others, read_map, silent, write_map

ROOMS = ("core", "prune", "record", "upkeep")
BUILD = HERE.parent / "build" / "mutants"
MOST_TESTS, MOST_SECONDS, SECONDS = 25, 12.0, 120
MORE_SECONDS = 60.0  # of tests for a mutant that has survived the first; they were timed while their lines were traced

SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip

# (file, a part of one line alone, change, why nobody could see the difference)
BRACKET = "low = sample[min(place + margin, sample.numel() - 1)]"
MISSED = "time alone: where the bracket misses, all is searched"
EQUIVALENT = [
    ("core/allocate.py", "sign = 1 if gap > 0 else -1", "Gt -> GtE", "the gap is not 0"),
    (
        "core/allocate.py",
        "if gap > 0 else result[layer] > floor[layer])]",
        "Gt -> GtE",
        "as above (the other is held)",
    ),
    ("core/nm.py", "nan_to_num(posinf=0.0).max()) for s in", "0.0 -> 1.0", "a wider span lifts as well"),
    ("core/select.py", "_SAMPLE = 1 << 16", "1 -> 2", "time alone: the size of a sample"),
    ("core/select.py", "stride = max(1, total // _SAMPLE)", "FloorDiv -> Mult", MISSED),
    ("core/select.py", "margin = int(3 * sample.numel() ** 0.5) + 8", "Pow -> Mult", "time alone: a wider bracket"),
    ("core/select.py", BRACKET, "1 -> 2", MISSED),
    ("core/select.py", BRACKET, "Add -> Sub", MISSED),
    ("core/select.py", "clamp_(1e-20, 1 - 1e-7)", "1 -> 2", "torch.rand stays below 1"),
    ("prune/history.py", "self.regrown: dict[str, Tensor] | None = None", "BitOr -> BitAnd", "an annotation"),
    ("prune/updater.py", "{}, 0.0, target, alive=alive).alive", "0.0 -> 1.0", "a share of no regrow scores"),
    ("record/base.py", "if len(repr(value)) <= 40 else", "40 -> 41", "the length of a shortened text"),
    ("record/base.py", "@dataclass_transform(frozen_default=True, kw_only", "True -> False", "for type checkers"),
    ("record/checkpoint.py", "class PhasesState(TypedDict, total=False):", "False -> True", "for type checkers"),
]

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
    (FUSED, "1.3981999507e-3f", "1.0e-3f", f"{SURVIVORS} exponential"),
    ("runtime/kernels/fuse.cpp", "std::max(0.0, square - d * d)", "square - d * d", f"{SURVIVORS} variance"),
    ("core/schedule.py", f"min(max({CLAMP}, 0.0), 1.0)", f"min({CLAMP}, 1.0)", f"{SURVIVORS} share"),
    ("core/schedule.py", "(self.every or 1),)", "1,)", f"{SURVIVORS} one_shot"),
    ("record/statistics.py", "!= len(QUANTILES)", "== -1", f"{SURVIVORS} quantiles"),
    ("../../tests/test_architecture.py", READER, 'whole = node.module == "spikeprune"', f"{SURVIVORS} imports_another"),
    ("runtime/kernels/engine_pool.cpp", "top = -__builtin_inff()", "top = 0", EDGES),
]


def places(text: str) -> Iterator[tuple[int, int, str]]:
    """(index of the node, line, what is changed) of every mutant of a source; the texts of errors are left alone."""
    nodes = list(ast.walk(ast.parse(text)))
    said = {id(part) for node in nodes if isinstance(node, ast.Raise) for part in ast.walk(node) if part is not node}
    for index, node in enumerate(nodes):  # a change leaves the nodes below it as they are
        change = None if id(node) in said else _change(node)
        if change is not None:
            yield index, getattr(node, "lineno", 0), change


def mutant(text: str, index: int) -> str:
    tree = ast.parse(text)
    _change(list(ast.walk(tree))[index])
    return ast.unparse(ast.fix_missing_locations(tree))


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


def run(count: int, seed: int, share: tuple[int, int] = (1, 1)) -> None:
    """Draws mutants and runs those that the results do not have yet; of several shares, one."""
    reached, seconds = read_map()
    BUILD.mkdir(parents=True, exist_ok=True)
    results = BUILD / f"results-{seed}-{share[0]}.jsonl"
    done = {(r["file"], r["line"], r["change"], r["number"]) for r in _results(seed)}
    every: list[tuple[str, int, str, int]] = []
    for room in ROOMS:
        for path in sorted((SOURCE / room).rglob("*.py")):
            name = str(path.relative_to(SOURCE))
            every += [(name, line, change, number) for number, line, change in places(path.read_text())]
    random.Random(seed).shuffle(every)
    print(f"{len(every)} mutants in {', '.join(ROOMS)}; {count} drawn by seed {seed}", flush=True)
    import_others()
    for key in every[share[0] - 1 : count : share[1]]:
        if key in done:
            continue
        honest = (SOURCE / key[0]).read_text()
        every_test = _reaching(reached, key[0], key[1], honest)
        tests = _chosen(every_test, seconds)
        outcome = _fork(key[0], mutant(honest, key[3]), tests) if tests else "no test"
        others = _within(MORE_SECONDS, sorted(set(every_test) - set(tests), key=lambda name: seconds[name]), seconds)
        if outcome == "survived" and others:
            tests, outcome = others, _fork(key[0], mutant(honest, key[3]), others)
        if outcome == "not found" and _fork(key[0], honest, tests) == "survived":
            outcome = "killed"
        line = honest.splitlines()[key[1] - 1].strip()
        entry = {"file": key[0], "line": key[1], "change": key[2], "number": key[3], "outcome": outcome, "text": line}
        with results.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"{outcome:<9} {key[0]}:{key[1]} {key[2]}", flush=True)
    report(seed)


def _reaching(reached: dict[str, list[str]], name: str, line: int, text: str) -> list[str]:
    """The tests that reach a line.

    A line outside of functions runs at the import alone, whoever needs it. There the tests count that reach the
    function whose head it is in, or else any function of the file, or else the import. In a statement of several lines,
    the first one may stand for all of them.
    """
    nodes = list(ast.walk(ast.parse(text)))
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    bodies = {node: range(node.body[0].lineno, (node.end_lineno or 0) + 1) for node in functions}
    if any(line in body for body in bodies.values()):
        starts = [n.lineno for n in nodes if isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or 0)]
        return reached.get(f"{name}:{line}") or reached.get(f"{name}:{max(starts)}", [])
    heads = [node for node in functions if node.lineno <= line < bodies[node].start]
    wanted = {number for node in heads or functions for number in bodies[node]}
    found = sorted({test for number in wanted for test in reached.get(f"{name}:{number}", [])})
    return found or reached.get(f"{name}:{line}", [])


def _chosen(tests: list[str], seconds: dict[str, float]) -> list[str]:
    """The quickest tests that reach a line, and a few of each other file, within a limit of time."""
    tests = sorted(tests, key=lambda name: seconds[name])
    files: dict[str, int] = {}
    for name in tests:
        files[name.partition("::")[0]] = files.get(name.partition("::")[0], 0) + 1
    first = {file: next(n for n in tests if n.startswith(file)) for file in files}
    ordered = list(dict.fromkeys([*tests[: MOST_TESTS // 2], *first.values(), *tests]))[:MOST_TESTS]
    return _within(MOST_SECONDS, ordered, seconds)


def _within(limit: float, tests: list[str], seconds: dict[str, float]) -> list[str]:
    """The first tests of a list that take no longer than the limit together; at least one, if there is one."""
    chosen, spent = [], 0.0
    for name in tests:
        spent += seconds[name]
        if chosen and spent > limit:
            break
        chosen.append(name)
    return chosen


def _fork(name: str, text: str, tests: list[str]) -> str:
    """How the tests end in a child process that sees the changed source."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            silent()
            _replace(SOURCE / name, text)
            os.chdir(HERE.parent)
            import pytest

            status = int(pytest.main([*PLAIN, "-x", *tests]))
        finally:
            os._exit(status)
    until = time.time() + SECONDS
    while time.time() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:  # a file that cannot be imported and a test that is not there both end pytest with 4
            code = os.waitstatus_to_exitcode(status)
            return {0: "survived", 4: "not found"}.get(code, "killed")
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


def _results(seed: int) -> list[dict]:
    return [
        json.loads(line)
        for path in sorted(BUILD.glob(f"results-{seed}-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def report(seed: int) -> None:
    found = _results(seed)
    for r in found:
        if r["outcome"] in ("survived", "no test") and _why_equivalent(r) is not None:
            r["outcome"] = "equivalent"
    tally = {kind: sum(r["outcome"] == kind for r in found) for kind in ("killed", "timeout", "equivalent")}
    tally |= Counter(r["outcome"] for r in found)
    for r in found:
        if r["outcome"] not in ("killed", "timeout"):
            why = f": {_why_equivalent(r)}" if r["outcome"] == "equivalent" else ""
            print(f"{r['outcome']:<10} {r['file']}:{r['line']} {r['change']}{why}")
    dead, whole = tally["killed"] + tally["timeout"], len(found)
    rest = whole - tally["equivalent"]
    print(f"{dead} of {whole} mutants killed ({dead / max(1, whole):.1%}), seed {seed}: {tally}")
    print(f"{dead} of the {rest} that are not equivalent ({dead / max(1, rest):.1%})")


def _why_equivalent(result: dict) -> str | None:
    line = result.get("text") or (SOURCE / result["file"]).read_text().splitlines()[result["line"] - 1]
    listed = [e for e in EQUIVALENT if e[0] == result["file"] and e[1] in line and e[2] == result["change"]]
    return listed[0][3] if listed else None


def named(table: Path | None) -> int:
    """Breaks each named guard, and runs its test, which must pass before and fail after. What is done stays."""
    kept = 0
    BUILD.mkdir(parents=True, exist_ok=True)
    book = BUILD / "named.json"
    said: dict[str, tuple[str, str]] = json.loads(book.read_text()) if book.exists() else {}
    whole: set[str] = set()
    import_others()
    for file, old, new, test in NAMED:
        key = "\n".join((file, old, new, test, _digest(test)))
        if key not in said:
            if test not in whole:
                before, why = _broken(file, old, old, test)
                if before != "passed":
                    print(f"{test}: {before} although nothing is broken: {why}", flush=True)
                    return 1
                whole.add(test)
            said[key] = _broken(file, old, new, test)
            book.write_text(json.dumps(said, indent=1))
        kept += said[key][0] != "failed"
        noticed = "noticed" if said[key][0] == "failed" else "NOT NOTICED"
        print(f"{noticed}: {file}: {old} -> {new or 'nothing'}", flush=True)
    if table is not None:
        found = [(entry, said["\n".join((*entry, _digest(entry[3])))]) for entry in NAMED]
        table.write_text(
            _table([(*entry, (end[1] or "failed") if end[0] == "failed" else "NOT NOTICED") for entry, end in found])
        )
    return kept


def _digest(test: str) -> str:
    return hashlib.sha256((HERE / test.split()[0]).read_bytes()).hexdigest()[:16]


def _broken(file: str, old: str, new: str, test: str) -> tuple[str, str]:
    """Whether a test has passed, failed or not run in a child where `old` is `new`, and the first line of its error."""
    target = (SOURCE / file).resolve()
    text = target.read_text()
    assert old in text, f"{file} has no {old!r} any more"
    words = [*PLAIN, "-x", "--tb=line", "-rs", *f"tests/{test}".split()]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        child = os.fork()
        if child == 0:
            status = 3
            try:
                os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
                os.chdir(HERE.parent)
                if old == new:
                    pass
                elif target.suffix == ".py":
                    _replace(target, text.replace(old, new))
                else:
                    _replace_kernel(target, text.replace(old, new), Path(folder))
                import pytest

                plain = ["--assert=plain"] if HERE in target.parents else []  # pytest reads test files in its own way
                status = int(pytest.main([*words, *plain]))
            finally:
                sys.stdout.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = [line.removeprefix("E").strip() for line in out.read_text().splitlines()]
    if status == 1:
        error = next((line for line in lines if re.search(r"\.py:\d+: ", line)), "")
        return "failed", re.split(r"\.py:\d+: ", error)[-1][:110]
    whole = status == 0 and not any("SKIPPED" in line for line in lines)  # a kernel that is not built skips its tests
    return ("passed", "") if whole else ("not run", " ".join(lines)[-300:])


def _replace_kernel(path: Path, text: str, folder: Path) -> None:
    """The kernels are built from a copy with that file changed, into a cache of their own."""
    from spikeprune.runtime import native

    shutil.copytree(native.KERNELS, folder / "kernels", ignore=shutil.ignore_patterns("built"))
    (folder / "kernels" / path.name).write_text(text)
    native.KERNELS, native.BUILT = folder / "kernels", folder / "kernels" / "built"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")


def _table(rows: list[tuple[str, ...]]) -> str:
    head = (
        "# Guards that are seen to fire\n\nMade by `python tests/mutants.py named --table tests/guards.md`. Each guard"
        " is broken in a copy of the source; its test passes before and fails after.\n\n"
        "| file | guard | broken | test | failure of the test |\n|---|---|---|---|---|\n"
    )
    return head + "".join(f"| {' | '.join(_cell(text) for text in row)} |\n" for row in rows)


def _cell(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    return int(number), int(of)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "named", "report"])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=_share, default=(1, 1), help="K/N: every N-th mutant from the K-th on")
    parser.add_argument("--table", type=Path, help="write the guards as a table")
    options = parser.parse_args()
    if options.what == "run":
        write_map()
        run(options.count, options.seed, options.share)
    elif options.what == "report":
        report(options.seed)
    else:
        return named(options.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
