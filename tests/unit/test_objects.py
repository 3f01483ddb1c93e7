"""`package.module:name`: found in the working folder, and every way it can go wrong told in one line."""

import sys
from pathlib import Path

import pytest

from spikeprune.core.errors import InvalidValue, UnknownName, UserError
from spikeprune.host.objects import resolve_object


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose modules are forgotten again after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("userland"):
            del sys.modules[name]


def test_an_installed_object_and_a_dotted_name() -> None:
    from collections import OrderedDict

    assert resolve_object("collections:OrderedDict") is OrderedDict
    assert resolve_object("collections:OrderedDict.fromkeys") == OrderedDict.fromkeys


def test_a_module_and_a_package_of_the_working_folder(folder: Path) -> None:
    (folder / "userland_net.py").write_text("def build():\n    import userland_part\n    return userland_part.WIDTH\n")
    (folder / "userland_part.py").write_text("WIDTH = 7\n")
    (folder / "userland_pkg").mkdir()
    (folder / "userland_pkg" / "__init__.py").write_text("")
    (folder / "userland_pkg" / "inner.py").write_text("class Net:\n    @staticmethod\n    def build(): return 3\n")
    assert resolve_object("userland_net:build")() == 7  # its own late import is found as well
    assert resolve_object("userland_pkg.inner:Net.build")() == 3


@pytest.mark.parametrize("spec", ["", "build", "module:", ":build"])
def test_a_spec_without_module_or_name(spec: str) -> None:
    with pytest.raises(InvalidValue, match=r"expected package\.module:name"):
        resolve_object(spec)


def test_what_can_be_missing_is_named(folder: Path) -> None:
    (folder / "userland_bad.py").write_text("import userland_absent\n")
    (folder / "userland_broken.py").write_text("1 / 0\n")
    (folder / "userland_syntax.py").write_text("def (:\n")
    (folder / "userland_good.py").write_text("def build(): pass\n")
    expected = {
        "userland_nowhere:build": (InvalidValue, "no module 'userland_nowhere'"),
        "userland_good.deeper:build": (InvalidValue, "no module 'userland_good.deeper'|failed"),
        "userland_bad:build": (InvalidValue, "'userland_bad' failed: ModuleNotFoundError: .*userland_absent"),
        "userland_broken:build": (InvalidValue, "failed: ZeroDivisionError"),
        "userland_syntax:build": (InvalidValue, "failed: SyntaxError"),
        "userland_good:buidl": (UnknownName, "no object named 'buidl'; did you mean 'build'"),
    }
    for spec, (kind, text) in expected.items():
        with pytest.raises(kind, match=text) as caught:
            resolve_object(spec)
        assert isinstance(caught.value, UserError)
        assert 20 <= len(str(caught.value)) <= 300
