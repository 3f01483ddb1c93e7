"""Run by `make test-wheel` against an unpacked wheel, without a compiler: is everything in it that is needed?"""

import sys
from pathlib import Path

import torch

import spikeprune as sp
from spikeprune.lab.page.page import _environment
from spikeprune.lab.recipe import load, shipped
from spikeprune.runtime import native
from spikeprune.runtime.compile import compile


def main(site: str) -> None:
    assert Path(sp.__file__).is_relative_to(Path(site).resolve()), sp.__file__
    assert native.compiler() is None
    for name in native.NAMES:
        assert native.sources(name)
        assert native.library(name) is not None, name
    assert not native.cache_folder().exists()
    assert {"digits", "fashion"} <= set(shipped())
    load("digits")
    assert _environment().get_template("report.html.j2")
    model = sp.model("digits-conv", T=4, size=8).eval()
    x = torch.rand(2, 1, 8, 8)
    compiled = compile(model, x)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)
    assert all("no C++ compiler" not in row.engine for row in compiled.plan())
    print(f"{sp.__file__}: kernels for {native.isa()}, recipes and templates are in the wheel")


if __name__ == "__main__":
    main(sys.argv[1])
