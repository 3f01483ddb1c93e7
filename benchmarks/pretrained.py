"""Networks that come trained, squeezed: accuracy beside speed, against fp32 and int8 engines.

    python benchmarks/pretrained.py --root DATA [--networks NAME ...] [--sparsities 0.9 0.95 0.98]

Each network of `sp.pretrained` is squeezed with 500 training images (digits: 100), under a budget of weights and of
multiplies. Then engines take turns on one thread, on CPU time. ONNX Runtime and OpenVINO run the squeezed network,
whose zeros they do not use. The int8 rival is the *dense* network, quantised by ONNX Runtime with the same images
(weights per channel, inputs of convolutions and linear layers per tensor): it is what one would deploy instead of a
sparse network, so its accuracy stands beside its time. Accuracies are of the first 2,000 test images (--images).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from common import measured, one_thread
from torch import Tensor

import spikeprune as sp
from spikeprune.data import Dataset, batches
from spikeprune.lab.train.pretrained import data_of
from spikeprune.runtime.bench import call_time, exported_runners, share_of_multiplies
from spikeprune.runtime.compile import CompiledSNN
from spikeprune.runtime.interchange import onnx_model

OUT = Path(__file__).parent / "results" / "pretrained.json"
CALIBRATION = {"digits": 100}
BATCHES, REPEATS, LEAST = (1, 32), 5, 0.1
Runner = Callable[[Tensor], Any]


def int8_runner(compiled: CompiledSNN, example: Tensor, images: Tensor) -> Runner:
    """The compiled network's function at the example's shape in ONNX Runtime, quantised with the images."""
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            whole = len(images) // len(example) * len(example)
            self.rest = iter(images[:whole].split(len(example)))

        def get_next(self) -> dict[str, Any] | None:
            x = next(self.rest, None)
            return None if x is None else {"x": x.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        written, source, target = (Path(folder) / f"{name}.onnx" for name in ("written", "fp32", "int8"))
        written.write_bytes(onnx_model(compiled.network, example, any_batch=False))
        quant_pre_process(written, source)
        quantization.quantize_static(
            source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(target.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]


def accuracy(run: Runner, data: Dataset, images: int, batch: int = 32) -> float:
    """Of the first test images, as many as fill batches."""
    right = seen = 0
    for x, target in batches(data, "test", batch):
        if len(x) < batch or seen + batch > images:
            break
        scores = torch.as_tensor(run(x))
        scores = scores if scores.ndim == 2 else scores.mean(0)
        right += int((scores.argmax(1) == target).sum())
        seen += batch
    return right / seen


def timed(runners: dict[str, Runner], x: Tensor) -> dict[str, dict[str, float]]:
    """Milliseconds of each engine, in turns: median, least, most."""
    spent: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run(x)
    for _ in range(REPEATS):
        for name, run in runners.items():
            spent[name].append(1e3 * call_time(run, x, time.process_time, LEAST))
    return {n: {"median": statistics.median(v), "low": min(v), "high": max(v)} for n, v in spent.items()}


def row(name: str, budget: str, sparsity: float, root: Path | None, images: int) -> dict[str, Any]:
    """Squeezes and times one network."""
    data = data_of(name, root)
    drawn = batches(data, "train", 100, shuffle=True, seed=0)
    seen = torch.cat([x for x, _ in islice(drawn, CALIBRATION.get(name, 500) // 100)])
    squeezed = sp.pretrained(name)
    result = sp.squeeze(squeezed, [seen], sparsity, budget=budget, images=len(seen))
    ours = {"compiled fp32": sp.compile(squeezed, seen[:2]), "compiled int16": sp.compile(squeezed, seen[:2], "int16")}
    whole = sp.compile(sp.pretrained(name), seen[:2])
    time_of: dict[str, dict[str, dict[str, float]]] = {}
    for batch in BATCHES:
        x = seen[:batch].contiguous()
        others = exported_runners(ours["compiled fp32"], x, 1)
        runners = {**ours, "dense, own": CompiledSNN(ours["compiled fp32"].network, engine="dense"), **others}
        int8 = int8_runner(whole, x, seen)
        time_of[str(batch)] = timed({**runners, "int8, dense network": int8}, x)
    return {
        "budget": budget, "asked": sparsity, "sparsity": result.sparsity, "images": images,
        "multiplies_kept": share_of_multiplies(ours["compiled fp32"].network),
        "accuracy": {
            "dense": accuracy(whole, data, images),
            **{engine: accuracy(run, data, images) for engine, run in ours.items()},
            "int8, dense network": accuracy(int8, data, images),
        },
        "ms": time_of,
    }  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Accuracies, and how much faster than the fastest fp32 engine and than int8."""
    yield (
        "| network | cut | multiplies kept | accuracy, %: dense, squeezed, int16, int8 dense | batch | ms "
        "| fastest fp32 engine, ms | faster | int8 engine, ms | faster |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for title, found in rows.items():
        right = ", ".join(f"{100 * value:.1f}" for value in found["accuracy"].values())
        for batch, spent in found["ms"].items():
            own, int8 = spent["compiled fp32"]["median"], spent["int8, dense network"]["median"]
            rivals = {n: t["median"] for n, t in spent.items() if n not in ("compiled fp32", "compiled int16")}
            del rivals["int8, dense network"]
            fastest = min(rivals, key=lambda name: rivals[name])
            yield (
                f"| {title.split(',')[0]} | {100 * found['asked']:g} % of the {found['budget']} "
                f"| {found['multiplies_kept']:.1%} | {right} | {batch} | {own:.2f} | {fastest}, {rivals[fastest]:.2f} "
                f"| {rivals[fastest] / own:.1f}x | {int8:.2f} | {int8 / own:.1f}x |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the datasets, as for `spikeprune run`")
    parser.add_argument("--networks", nargs="+", default=["digits", "fashion-small", "cifar10-vgg"])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95, 0.98])
    parser.add_argument("--budgets", nargs="+", default=["weights", "macs"])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    one_thread()
    wanted = (
        (f"{name}, {budget} {sparsity:g}", partial(row, name, budget, sparsity, given.root, given.images))
        for name in given.networks
        for budget in given.budgets
        for sparsity in given.sparsities
    )
    found: dict[str, dict[str, Any]] = {}
    for title, result in measured(given.out, wanted):
        found[title] = result
        print(title, {k: round(v["median"], 2) for k, v in result["ms"]["1"].items()}, result["accuracy"], flush=True)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
