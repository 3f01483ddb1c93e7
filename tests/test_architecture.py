"""Imports go one way, and only two folders may name a framework: read from the source, lazy imports included."""

import ast
from pathlib import Path

import pytest

import spikeprune

ROOT = Path(spikeprune.__file__).parent
ORDER = [
    "core",
    "host",
    "record",
    "methods",
    "model",
    "upkeep",
    "count",
    "prune",
    "squeeze",
    "integrations",
    "zoo",
    "shrink",
    "runtime",
]
ORDER += ["data", "lab", "cli"]
LAB_ORDER = ["recipe", "train", "sweep", "study", "page"]
FRAMEWORKS = {"spikingjelly", "snntorch", "norse"}
# Imported only where they are used, inside functions: they take seconds, or are extras.
HEAVY = {
    "huggingface_hub",
    "matplotlib",
    "sklearn",
    "PIL",
    "onnx",
    "onnxruntime",
    "nir",
    "nirtorch",
    "torch_pruning",
    "tensorboard",
    "scipy",
}
CORE_MAY_IMPORT = {"torch", "jaxtyping", "spikeprune"}
FILES = sorted(ROOT.rglob("*.py"))


def folder_of(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else None


def imports(path):
    """(module, whether at the top level, whether for type checkers only) of every import in a file."""
    tree = ast.parse(path.read_text())
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from spikeprune import cli` names a folder as well, and so with methods
            whole = node.module in ("spikeprune", "spikeprune.methods")
            names = [f"{node.module}.{a.name}" for a in node.names] if whole else [node.module]
        else:
            continue
        for name in names:
            yield name, node not in inside


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    folder = folder_of(path)
    if folder is None:
        return  # the package's own front door, which loads names when first used
    assert folder in [*ORDER, "recipes"], f"{folder} has no place in the order of folders"
    for name, at_top in imports(path):
        top, _, rest = name.partition(".")
        if top == "spikeprune" and (target := rest.split(".")[0]) in ORDER:
            assert ORDER.index(target) <= ORDER.index(folder), f"{folder} may not import {name}"
            if folder == target == "lab" and (room := rest.split(".")[1]) in LAB_ORDER:
                own = path.relative_to(ROOT).parts[1]
                assert LAB_ORDER.index(room) <= LAB_ORDER.index(own), f"lab/{own} may not import {name}"
        if top in FRAMEWORKS:
            assert folder in ("integrations", "zoo"), f"only integrations/ and zoo/ may import {name}"
        if top in HEAVY:
            assert not at_top or folder == "integrations", f"import {name} inside the function that needs it"


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=lambda p: p.name)
def test_core_needs_torch_and_the_standard_library_only(path):
    import sys

    for name, _ in imports(path):
        top = name.split(".")[0]
        assert top in CORE_MAY_IMPORT or top in sys.stdlib_module_names, name


def test_no_method_imports_another():
    files = {p.stem for p in (ROOT / "methods").glob("*.py")} - {"base", "registry", "__init__"}
    for path in (ROOT / "methods").glob("*.py"):
        if path.stem in files:
            taken = {f"spikeprune.methods.{stem}" for stem in files}
            assert not taken & {name for name, _ in imports(path)}, path


def test_dynamic_imports_of_our_own_stand_in_known_places():
    # A name in a string escapes the reading above: only these may look modules up by name.
    allowed = {"__init__.py", "model/adapter.py", "methods/registry.py", "host/objects.py"}
    allowed |= {"runtime/compile/ops/__init__.py"}
    ours = {str(p.relative_to(ROOT)) for p in FILES if "import_module(" in p.read_text()}
    late = {f for f in ours - allowed if 'import_module(f"spikeprune' in (ROOT / f).read_text()}
    assert not {f for f in late if not f.startswith("cli/")}


def test_importing_the_package_is_cheap():
    import subprocess
    import sys

    code = "import sys, spikeprune; print(sorted({'torch', 'matplotlib', 'spikingjelly'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_no_two_classes_share_a_name():
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(found) > 200
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def rooms():
    """(room, lines, lines of its largest file, rooms it imports from), in the order of the rooms."""
    for room in ORDER:
        files = [path for path in FILES if folder_of(path) == room]
        sizes = [len(path.read_text().splitlines()) for path in files]
        taken = {name.split(".")[1] for path in files for name, _ in imports(path) if name.startswith("spikeprune.")}
        yield room, sum(sizes), max(sizes), len(taken & set(ORDER) - {room})


if __name__ == "__main__":  # the table of docs/decisions/0010-rooms.md
    for row in rooms():
        print("| `{}` | {:,} | {} | {} |".format(*row))
