"""Show what this machine offers: versions, devices, processor, compiler, data."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from spikeprune.cli._arguments import Parser, print_json
from spikeprune.cli._terminal import show
from spikeprune.core.errors import RunFailed
from spikeprune.host.machine import version
from spikeprune.runtime.native import comes_with_kernels, compiler

_OPTIONAL = {
    "spikingjelly": "the zoo and most recipes: pip install 'spikeprune[demo]'",
    "scikit-learn": "the digits recipe: pip install 'spikeprune[demo]'",
    "snntorch": "models in snnTorch: pip install 'spikeprune[snntorch]'",
    "norse": "models in Norse: pip install 'spikeprune[norse]'",
    "pillow": "image data: pip install 'spikeprune[images]'",
    "h5py": "the datasets shd and ssc: pip install 'spikeprune[events]'",
    "nir": "export to NIR: pip install 'spikeprune[nir]'",
    "onnx": "export to ONNX: pip install 'spikeprune[onnx]'",
    "tensorboard": "--tensorboard true: pip install 'spikeprune[tensorboard]'",
}


_ALL_DOORS = "criticality, counts, squeeze, channels, fuse, compile, exports"
_FOUND_DOORS = "criticality, counts, squeeze, channels, compile, exports (neurons are found by their spike functions)"


def main(arguments: Sequence[str]) -> int:
    parser = Parser("doctor", __doc__ or "", ["doctor", "doctor --json"])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    found = examine()
    if options.json:
        print_json(found)
    else:
        show(_lines(found), hang=13)
    if found["core"] != "works":
        raise RunFailed(f"the core does not work here: {found['core']}; reinstall spikeprune and torch")
    return 0


class Framework(TypedDict):
    """An installed framework: its version, the functions that work with it, and those that do not ("" for none)."""

    version: str
    works: str
    missing: str


class Findings(TypedDict):
    """All findings, with the keys of `spikeprune doctor --json`.

    The optional keys exist if the core can be imported.
    """

    python: str
    spikeprune: str | None
    core: str
    torch: NotRequired[str]
    cpu: NotRequired[str]
    cpu_flags: NotRequired[list[str]]
    threads: NotRequired[int]
    cuda: NotRequired[list[str]]
    precision_auto: NotRequired[str]
    compiler: str | None
    packages: dict[str, str | None]
    frameworks: dict[str, "Framework"]
    data_root: str | None
    data_root_exists: bool


def examine() -> Findings:
    """All findings, as plain values."""
    root = os.environ.get("SPIKEPRUNE_DATA")
    found = Findings(
        python=sys.version.split()[0],
        spikeprune=version("spikeprune"),
        core=_try_core(),
        compiler=compiler(),
        packages={name: version(name) for name in _OPTIONAL},
        frameworks=_frameworks(),
        data_root=root,
        data_root_exists=bool(root) and Path(str(root)).is_dir(),
    )
    if found["core"] == "works":
        import torch

        from spikeprune.host.machine import cpu_features, cpu_name
        from spikeprune.lab.train.device import choose_precision

        flags = cpu_features()
        told = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found["torch"] = torch.__version__
        found["cpu"] = cpu_name()
        found["cpu_flags"] = [flag for flag in told if flag in flags]
        found["threads"] = torch.get_num_threads()
        found["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["precision_auto"] = choose_precision("auto", device)
    return found


def _frameworks() -> dict[str, Framework]:
    """Installed framework -> its version, the functions that work with it, and those that do not."""
    found: dict[str, Framework] = {}
    if (there := version("spikingjelly")) is not None:
        if importlib.util.find_spec("spikingjelly.activation_based") is not None:
            found["spikingjelly"] = {"version": there, "works": _ALL_DOORS, "missing": ""}
        else:
            missing = f"fuse, the zoo: spikingjelly {there} has no activation_based; install 2.0.0"
            found["spikingjelly"] = {"version": there, "works": _FOUND_DOORS, "missing": missing}
    for name in ("snntorch", "norse"):
        if (there := version(name)) is not None:
            found[name] = {"version": there, "works": _ALL_DOORS, "missing": ""}
    found["torch"] = {
        "version": version("torch") or "none",
        "works": f"own neurons: {_FOUND_DOORS}",
        "missing": "fuse of own neurons: without an adapter they run as before (CONTRIBUTING.md, "
        "'A neuron of your own')",
    }
    for name in ("accelerate", "lightning"):
        if (there := version(name)) is not None:
            works = "prepared models and modules work with every function; FSDP is refused"
            found[name] = {"version": there, "works": works, "missing": ""}
    return found


def _try_core() -> str:
    """Whether a network can be pruned here; otherwise why not."""
    try:
        import torch

        import spikeprune

        layer = torch.nn.Linear(8, 8)
        masks = spikeprune.prune(layer, "magnitude", sparsity=0.5)
        alive = sum(int(mask.sum()) for mask in masks.values())
        return "works" if alive == 32 else f"{alive} of 64 weights alive after pruning half of them"
    except Exception as error:  # whatever is broken here is what the user wants to read
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _lines(found: Findings) -> list[str]:
    lines = [f"core         {found['core']}", f"spikeprune   {found['spikeprune']}", f"python       {found['python']}"]
    if "torch" in found:
        lines += [
            f"torch        {found['torch']}, {found.get('threads')} threads",
            f"cpu          {found.get('cpu')} ({' '.join(found.get('cpu_flags', ())) or 'no vector flags known'})",
            f"cuda         {', '.join(found.get('cuda', ())) or 'none'}",
            f"precision    auto means {found.get('precision_auto')}",
        ]
    without = "none, but the package came with kernels" if comes_with_kernels() else "none: slower fallbacks are used"
    lines.append(f"compiler     {found['compiler'] or without}")
    for name, there in found["packages"].items():
        lines.append(f"{name:<12} {there or f'not installed; needed for {_OPTIONAL[name]}'}")
    for name, told in found["frameworks"].items():
        lines.append(f"with {name:<12} {told['version']}: {told['works']}")
        if told["missing"]:
            lines.append(f"{'':<17} missing: {told['missing']}")
    where = found["data_root"] or "SPIKEPRUNE_DATA is not set; --data.root gives it for one run"
    lines.append(
        f"data         {where}{'' if found['data_root_exists'] or not found['data_root'] else ' (no such folder)'}"
    )
    return lines
