"""Finding, building and loading kernels."""

import logging
import signal
import time

import pytest

from forked import Forked
from spikeprune.cli import doctor
from spikeprune.core.errors import InvalidValue, RunFailed, UnknownName
from spikeprune.host import machine
from spikeprune.runtime import native, structs

SOURCE = 'extern "C" int answer(void) {{ return {value}; }}\n'


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A kernel folder with one tiny kernel, an empty cache and nothing loaded yet."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "tiny.cpp").write_text(SOURCE.format(value=42))
    monkeypatch.setattr(native, "KERNELS", folder)
    monkeypatch.setattr(native, "BUILT", folder / "built")
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")


@needs_compiler
def test_built_once_and_again_when_the_source_changes(kernels, monkeypatch):
    assert native.library("tiny").answer() == 42
    (built,) = native.cache_folder().iterdir()
    monkeypatch.setattr(native, "_loaded", {})
    before = built.stat().st_mtime_ns
    assert native.library("tiny").answer() == 42
    assert built.stat().st_mtime_ns == before
    (kernels / "tiny.cpp").write_text(SOURCE.format(value=43))
    monkeypatch.setattr(native, "_loaded", {})
    assert native.library("tiny").answer() == 43
    assert len(list(native.cache_folder().iterdir())) == 2


@needs_compiler
def test_a_library_built_ahead_comes_first_unless_its_source_changed(kernels, monkeypatch):
    monkeypatch.setattr(native, "NAMES", ("tiny",))
    assert not native.comes_with_kernels()
    built = native.build_ahead(["tiny"])
    assert native.comes_with_kernels()
    assert [path.name.split("-")[1] for path in built] in (["avx512", "avx2", "portable"], ["neon", "portable"])
    monkeypatch.setattr(native, "compiler", lambda: None)
    assert native.library("tiny").answer() == 42
    assert not native.cache_folder().exists()
    (kernels / "tiny.cpp").write_text(SOURCE.format(value=43))
    monkeypatch.setattr(native, "_loaded", {})
    assert native.library("tiny") is None


@needs_compiler
def test_building_ahead_again_leaves_nothing_of_old_sources(kernels):
    before = native.build_ahead(["tiny"])
    (kernels / "tiny.cpp").write_text(SOURCE.format(value=43))
    after = native.build_ahead(["tiny"])
    assert set(native.BUILT.iterdir()) == set(after)
    assert set(after).isdisjoint(before)


def test_kernels_built_ahead_are_all_there_are():
    assert {path.stem.split("_")[0] for path in native.KERNELS.glob("*.cpp")} == {n.split("_")[0] for n in native.NAMES}


@needs_compiler
def test_two_processes_may_build_at_once(kernels, tmp_path):
    runs = [Forked(lambda: print(native.library("tiny").answer())) for _ in range(2)]
    assert [run.wait().stdout.strip() for run in runs] == ["42", "42"]
    assert [path.suffix for path in native.cache_folder().iterdir()] == [".so"]


def test_without_a_compiler_none_and_one_log_line(kernels, monkeypatch, caplog):
    monkeypatch.setattr(native, "compiler", lambda: None)
    with caplog.at_level(logging.WARNING, logger="spikeprune"):
        assert native.library("tiny") is None
        assert native.library("tiny") is None
    assert [record.message for record in caplog.records] == [
        "no C++ compiler found (g++ or clang++): the tiny kernels run as slower PyTorch code"
    ]


def test_building_ahead_without_a_compiler_is_refused(kernels, monkeypatch):
    monkeypatch.setattr(native, "compiler", lambda: None)
    with pytest.raises(RunFailed, match=r"no C\+\+ compiler found .*; install one or set CXX"):
        native.build_ahead(["tiny"])


@needs_compiler
def test_source_that_does_not_compile(kernels, caplog):
    (kernels / "tiny.cpp").write_text("this is not C++")
    with pytest.raises(RunFailed, match="compiling the tiny kernel"):
        native.build("tiny", kernels / "tiny.so", native.isa(), native.compiler())
    assert not (kernels / "tiny.so").exists()
    assert native.library("tiny") is None
    assert "slower PyTorch code" in caplog.text


@needs_compiler
def test_a_damaged_library_is_not_loaded(kernels, caplog):
    native.BUILT.mkdir()
    (native._built_ahead("tiny", native.isa())).write_bytes(b"not a library")
    assert native.library("tiny") is None
    assert "slower PyTorch code" in caplog.text


def test_unknown_kernel(kernels):
    with pytest.raises(UnknownName, match="tiny"):
        native.library("tinny")


def test_forced_instruction_set(monkeypatch):
    monkeypatch.setenv("SPIKEPRUNE_ISA", "portable")
    assert native.isa() == "portable"
    monkeypatch.setenv("SPIKEPRUNE_ISA", "AVX-9")
    with pytest.raises(UnknownName, match="instruction set"):
        native.isa()
    monkeypatch.setattr(native, "cpu_features", lambda: frozenset({"sse2"}))
    monkeypatch.setenv("SPIKEPRUNE_ISA", "avx2")
    with pytest.raises(InvalidValue, match="avx2 needs avx2, fma") as error:
        native.isa()
    assert 20 <= len(str(error.value)) <= 300
    monkeypatch.delenv("SPIKEPRUNE_ISA")
    assert native.isa() == "portable"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2", "portable"),
        ("fpu avx2 fma", "avx2"),
        ("avx512f avx512bw avx512dq avx512vl avx2 fma", "avx512"),
        ("avx512f avx2 fma", "avx2"),
        ("fp asimd", "neon"),
    ],
)
def test_the_best_instruction_set_is_taken(flags, expected, monkeypatch):
    monkeypatch.delenv("SPIKEPRUNE_ISA", raising=False)
    monkeypatch.setattr(native, "cpu_features", native.cpu_features.__wrapped__)  # not what is remembered
    monkeypatch.setattr(machine, "_cpuinfo", lambda: ["model name\t: A processor", f"flags\t: {flags}"])
    assert native.isa() == expected
    assert native.cpu_name() == "A processor"


@needs_compiler
def test_kernels_include_no_torch_header():
    for path in native.KERNELS.iterdir():
        if path.suffix in (".cpp", ".h"):
            assert "torch/" not in path.read_text(), path.name


ABI = 'extern "C" {{ const char* engine_abi(void) {{ return "{text}"; }} }}\n'


@needs_compiler
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts | {"SpOp": facts["SpOp"] + 8}, "for SpOp"),
        (lambda facts: facts | {"SpOp.weights": 0}, "for SpOp.weights"),
        (lambda facts: facts | {"external": 3, "static": 2}, "for external"),
        (lambda facts: {key: value for key, value in facts.items() if key != "SpPair"}, "says None for SpPair"),
        (lambda facts: facts | {"SpNew": 1}, "speaks of SpNew"),
        (lambda facts: {}, "says None"),
    ],
)
def test_a_library_with_another_interface_is_refused(change, said, kernels, caplog):
    facts = change(dict(structs.ABI["engine"]))
    text = "".join(f"{value} {key}\\n" for key, value in facts.items())
    (kernels / "engine.cpp").write_text(ABI.format(text=text))
    with caplog.at_level(logging.WARNING, logger="spikeprune"):
        assert native.library("engine") is None
    (record,) = caplog.records
    assert said in record.getMessage()


@needs_compiler
def test_a_library_without_a_handshake_is_refused(kernels, caplog):
    (kernels / "engine.cpp").write_text(SOURCE.format(value=1))
    with caplog.at_level(logging.WARNING, logger="spikeprune"):
        assert native.library("engine") is None
    assert "engine_abi is missing" in caplog.text


@needs_compiler
@pytest.mark.parametrize("name", native.NAMES)
def test_the_kernels_of_this_version_agree_with_the_mirror(name):
    library = native.library(name)
    assert library is not None
    assert structs.mismatch(name, library) == ""
    assert set(structs.ABI) == set(native.NAMES)


@pytest.mark.parametrize("status", [1, 2, 3, 4, 5, 99])
def test_a_status_becomes_an_error(status):
    structs.run("a layer", 0)
    with pytest.raises(RunFailed, match="a layer failed in the C") as error:
        structs.run("a layer", status)
    assert 20 <= len(str(error.value)) <= 300


def test_doctor_and_the_builder_name_the_same_compiler(monkeypatch, tmp_path):
    fake = tmp_path / "c++-of-mine"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    assert doctor.examine()["compiler"] == native.compiler() == str(fake)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "c++").write_text("#!/bin/sh\n")  # the builder does not look for this name, so doctor must not either
    (tmp_path / "c++").chmod(0o755)
    assert doctor.examine()["compiler"] is None


@needs_compiler
def test_own_flags_make_a_library_of_their_own(kernels, monkeypatch):
    (kernels / "tiny.cpp").write_text('extern "C" int answer(void) { return ANSWER; }\n')
    for answer in (1, 2):
        monkeypatch.setenv("SPIKEPRUNE_CXXFLAGS", f"-DANSWER={answer}")
        monkeypatch.setattr(native, "_loaded", {})
        assert native.library("tiny").answer() == answer


# ---- what lies in the cache -----------------------------------------------------------------------------------------


def again(monkeypatch):
    monkeypatch.setattr(native, "_loaded", {})
    return native.library("tiny")


@needs_compiler
@pytest.mark.parametrize("spoil", ["cut", "changed", "writable"])
def test_a_library_that_was_cut_changed_or_opened_to_others_is_built_anew(kernels, monkeypatch, spoil):
    assert native.library("tiny").answer() == 42
    (built,) = native.cache_folder().iterdir()
    content = built.read_bytes()
    other = built.with_name("copy.so")
    other.write_bytes({"cut": content[: len(content) // 2], "changed": content[:-1] + b"?", "writable": content}[spoil])
    other.chmod(0o757 if spoil == "writable" else 0o755)
    other.replace(built)  # the loaded one stays as it is in memory
    assert again(monkeypatch).answer() == 42
    (after,) = native.cache_folder().iterdir()
    assert after.read_bytes() == content
    assert not after.stat().st_mode & 0o022


@needs_compiler
def test_a_cache_folder_that_others_may_write_is_not_used(kernels, monkeypatch, caplog):
    native.cache_folder().mkdir(parents=True)
    native.cache_folder().chmod(0o777)
    assert native.library("tiny") is None
    assert "is not yours alone to write" in caplog.text
    native.cache_folder().chmod(0o700)
    assert again(monkeypatch).answer() == 42


def test_a_library_of_somebody_else_is_not_loaded(kernels, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    assert native._ours(tmp_path / "file")
    monkeypatch.setattr(native.os, "getuid", lambda: 12345, raising=False)
    assert not native._ours(tmp_path / "file")


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_the_user_interrupts_is_ended_with_what_it_started(tmp_path):
    before, began = signal.signal(signal.SIGINT, signal.default_int_handler), time.monotonic()  # xdist ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            native._run([script(tmp_path / "cxx", "sleep 60 & sleep 0.1; kill -INT $PPID; wait")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 30  # its pipes are closed, so what it had started is gone too


@pytest.mark.parametrize("text", ["exit 1", "sleep 30", "exec /no/such/program"])
def test_a_compiler_that_fails_hangs_or_cannot_start_is_told(kernels, monkeypatch, caplog, tmp_path, text):
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", text))
    monkeypatch.setattr(native, "MOST_SECONDS", 0.5)
    assert native.library("tiny") is None
    assert "slower PyTorch code" in caplog.text


@needs_compiler
def test_the_compiler_may_have_options(kernels, monkeypatch):
    (kernels / "tiny.cpp").write_text('extern "C" int answer(void) { return ANSWER; }\n')
    monkeypatch.setenv("CXX", f"{native.compiler()} -DANSWER=7")
    assert native.library("tiny").answer() == 7
    monkeypatch.setenv("CXX", "g++ 'unclosed")
    assert native.compiler() is None or "unclosed" not in native.compiler()


@needs_compiler
def test_a_cache_that_cannot_be_written_is_told(kernels, monkeypatch, caplog, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.library("tiny") is None
    assert "slower PyTorch code" in caplog.text
