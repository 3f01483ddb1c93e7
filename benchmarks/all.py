"""Reruns every number that the README and the docs claim, and writes the tables of benchmarks/README.md from them.

    python benchmarks/all.py [--only inference sweep ...] [--tables]

Scripts write benchmarks/results/*.json (training.py what it prints); a row that is there is not measured again where a
script keeps rows, so remove the file of what should be measured anew. `--tables` only rewrites the tables. Everything
takes hours on a small machine; each script says what its rows mean and which goals they have.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SCRIPTS: dict[str, list[str]] = {
    "inference": ["inference.py"],
    "sweep": ["sweep.py"],
    "shrink": ["shrink.py"],
    "opponents": ["opponents.py"],
    "trained": ["trained.py"],
    "pretrained": ["pretrained.py"],
    "squeeze": ["squeeze.py"],
    "training": ["training.py"],
    "overhead": ["overhead.py", "--json", "benchmarks/results/overhead.json"],
    "channels": ["channels_table.py", "--write", "docs/results/channels.md"],
}


def head(found: dict[str, Any]) -> str:
    """The machine in one line."""
    m = found["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in m["versions"].items() if v != "not installed")
    kind = f"{' '.join(m['flags'])}; {m['kernels']} kernels"
    return f"**{m['cpu']}** ({kind}), {m['cores']} cores, load {m['load']} after the last row; {versions}."


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def inference(found: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    # One processor has one peak; a slope measured beside other work errs either way.
    peak = statistics.median(r["roofline"]["peak_adds_per_ns"] for r in found["rows"].values() if "roofline" in r)
    for row in found["rows"].values():
        for engine in ("compiled fp32", "compiled int16"):
            timed = next(e for e in row["engines"] if e["engine"] == engine)
            rival = next(e for e in row["engines"] if e["engine"] == timed["opponent"])
            roof = row.get("roofline")
            times = f"{timed['median_ms']:.1f} ({timed['low_ms']:.1f} to {timed['high_ms']:.1f})"
            share = ""
            if roof and "fp32" in engine:
                made = roof["adds"] / peak / (1e6 * timed["low_ms"])
                share = f"{made:.0%} ({made * roof['share_of_weights'] / roof['share']:.0%})"
            rows.append(
                [row["masks"], f"{row['multiplies_kept']:.1%}", str(row["batch"]), engine.split()[1],
                 f"{timed['speedup']:.1f}x", times,
                 f"{rival['engine']}, {rival['median_ms']:.0f}", share, str(row["repeats"])]
            )  # fmt: skip
    columns = ["masks", "multiplies kept", "batch", "weights", "faster", "ms (range)", "fastest opponent, ms",
               "of the roofline (one a weight)", "repeats"]  # fmt: skip
    return f"{table(columns, rows)}\n\nPeak: {peak:.1f} G masked additions a second, median of the rows."


def sweep(found: dict[str, Any]) -> str:
    rows = list(found["rows"].values())
    sparsities = sorted({row["sparsity"] for row in rows})
    cells = {(row["network"], row["batch"], row["sparsity"]): row for row in rows}
    body = [
        [network, str(batch), *(_cell(cells.get((network, batch, sparsity))) for sparsity in sparsities)]
        for network, batch in sorted({key[:2] for key in cells})
    ]
    ratios = [row["speedup"] for row in rows]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    columns = ["network", "batch", *(f"{sparsity:.0%}" for sparsity in sparsities)]
    few = sum(row["repeats"] < 5 for row in rows)
    result = f"Over {len(rows)} rows: geometric mean {mean:.2f}, lowest {min(ratios):.2f}."
    return f"{table(columns, body)}\n\n{result} Medians of 5 interleaved repeats, in {few} slow rows (marked *) of 3."


def _cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['speedup']:.2f}" + "*" * (row["repeats"] < 5)


def shrink(found: dict[str, Any]) -> str:
    rows = [
        [str(r["batch"]), r["through"], f"{float(r['channels']):.0%}", f"{r['ms']:.0f}", f"{r['speed_up']:.2f}x",
         f"{r['mac_ratio']:.2f}x", f"{r['share_of_mac_ratio']:.2f}"]
        for r in found["rows"] if r["channels"] != "dense"
    ]  # fmt: skip
    columns = ["batch", "through", "channels kept", "ms", "faster than dense", "fewer MACs", "share of the MAC ratio"]
    return f"{table(columns, rows)}\n\nMedians of {found['repeats']} interleaved repeats."


def opponents(found: dict[str, Any]) -> str:
    names = list(found["rows"][0]["speedup"])
    rows: list[list[str]] = []
    for r in found["rows"]:
        factors = [f"{r['speedup'][name]:.1f}x" for name in names]
        rows.append([f"{r['sparsity']:.0%}", str(r["batch"]), f"{r['ms']['compiled']:.2f}", *factors])
    columns = ["sparsity", "batch", "compiled, ms", *(f"over {name}" for name in names)]
    return f"{table(columns, rows)}\n\nMedians of {found['repeats']} interleaved repeats."


def trained(found: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for title, row in found["rows"].items():
        a = row["accuracy"]
        fast = [r for r in row["timings"][0]["rows"] if r["engine"] == "compiled fp32"]
        rows.append(
            [title, row["model"], f"{row['multiplies_kept']:.1%}", f"{a['model']:.2%}", f"{a['compiled fp32']:.2%}",
             f"{a['compiled int16']:.2%}", " / ".join(f"{r['speedup']:.1f}x" for r in fast)]
        )  # fmt: skip
    columns = [
        "run",
        "network",
        "multiplies kept",
        "accuracy",
        "compiled fp32",
        "compiled int16",
        "faster, batch 1 / 32",
    ]
    return table(columns, rows)


def pretrained(found: dict[str, Any]) -> str:
    from pretrained import table as rows  # its networks need the data and ONNX Runtime; the table needs neither

    return "\n".join(rows(found["rows"]))


def squeeze(found: dict[str, Any]) -> str:
    from squeeze import layers

    rows = [
        [name, f"{r['weights']:,}", f"{r['cpu_seconds']:.0f}", f"{r['peak_gb']:.1f}",
         ", ".join(f"{phase} {s:.0f}" for phase, s in sorted(r["phases"].items(), key=lambda p: -p[1])[:3])]
        for name, r in found["rows"].items()
    ]  # fmt: skip
    said = table(["what", "weights", "CPU seconds", "peak memory, GB", "where the time goes, s by the wall"], rows)
    counts = {name: size[-1] for name, size in layers().items()}
    if not counts.keys() <= found["rows"].keys():
        return said
    whole = sum(number * found["rows"][name]["cpu_seconds"] for name, number in counts.items())
    return (
        f"{said}\n\nSEW-ResNet-152 by these sizes, {sum(counts.values())} convolutions: {whole / 60:.0f} CPU minutes. "
        "The first blocks of its stages, whose inputs are wider, count as the others, and the stem is left out."
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "inference": inference, "sweep": sweep, "shrink": shrink, "opponents": opponents, "trained": trained,
    "pretrained": pretrained, "squeeze": squeeze,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in options.only if not options.tables else []:
        script, *words = SCRIPTS[name]
        done = subprocess.run(
            [sys.executable, str(HERE / script), *words], check=True, stdout=subprocess.PIPE, text=True
        )
        print(done.stdout, flush=True)
        if name == "training":
            (RESULTS / "training.txt").write_text(done.stdout)
    readme = HERE / "README.md"
    text = readme.read_text()
    for name, make in TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            found = json.loads(path.read_text())
            made = f"<!-- {name} -->\n{head(found)}\n\n{make(found)}\n<!-- end -->"
            text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, made=made: made, text, flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    main()
