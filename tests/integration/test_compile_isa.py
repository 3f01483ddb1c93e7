"""Every instruction set's path, forced: on this processor where it can, by a cross compiler and emulator where not."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from spikeprune.runtime import native
from spikeprune.runtime.compile import compile

pytest.importorskip("spikingjelly.activation_based")
from spikeprune import zoo

CHECK = Path(__file__).with_name("engine_check.cpp")
X86 = platform.machine().lower() in ("x86_64", "amd64")


def run_check(folder, compiler, flags, *, emulator=()):
    binary = folder / "check"
    subprocess.run(
        [compiler, "-std=c++17", "-O0", "-pthread", "-static", "-ffp-contract=off", f"-I{native.KERNELS}", *flags,
         str(CHECK), *map(str, native.sources("engine")), "-o", str(binary)],
        check=True, capture_output=True,
    )  # fmt: skip
    return subprocess.run([*emulator, str(binary)], capture_output=True, text=True)


@pytest.mark.parametrize("isa", native.ISA_FLAGS)
def test_forced_path_gives_the_same_spikes(isa, monkeypatch):
    if not native.NEEDED_FEATURES[isa] <= native.cpu_features():
        pytest.skip(f"this processor has no {isa}")
    if native.compiler() is None:
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    model = zoo.build("digits-conv", classes=10, T=4, size=8).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.3)
    x = torch.rand(3, 1, 8, 8)
    with monkeypatch.context() as plain:
        plain.setattr(native, "library", lambda _: None)
        expected = compile(model, x).trace(x)
    monkeypatch.setenv("SPIKEPRUNE_ISA", isa)
    compiled = compile(model, x)
    assert compiled._library is not None
    assert compiled._library.sp_lanes() == {"avx512": 16, "avx2": 8}.get(isa, 4)
    spikes = compiled.trace(x)
    for name, values in expected.items():
        assert values.any()
        assert int((spikes[name] != values).sum()) <= 2, name


def test_neon_under_an_emulator(tmp_path):
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user)")
    result = run_check(tmp_path, compiler, native.ISA_FLAGS["neon"], emulator=(emulator,))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "lanes 4" in result.stdout


@pytest.mark.skipif(not X86 or shutil.which("g++") is None, reason="needs g++ on x86")
def test_avx512_path_compiles_and_runs_where_it_can(tmp_path):
    try:
        result = run_check(tmp_path, "g++", native.ISA_FLAGS["avx512"])
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr.decode()[:2000])
    if not native.NEEDED_FEATURES["avx512"] <= native.cpu_features():
        pytest.skip("compiled; this processor has no AVX-512 to run it on")
    assert result.returncode == 0, result.stdout
    assert "lanes 16" in result.stdout
