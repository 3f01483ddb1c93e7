"""Compiled files with fields and bytes changed and their checksum made anew: each is refused in one line, or runs.

    python tests/integration/fuzz_compiled.py --inputs 1000000 [--seed 0] [--batch 2000]

Every batch runs in a process of its own with a limit on memory and time, so that a signal is counted and not fatal.
"""

import argparse
import copy
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from spikeprune.core.errors import UserError
from spikeprune.runtime.compile import load
from spikeprune.runtime.compile.store import MAGIC

VALUES = (
    0, 1, 2, 3, 5, 9, -1, 100, 65_535, 65_536, 2**31 - 1, 2**31, 2**63, 10**30, 1.5, float("nan"), float("inf"), True,
    False, None, "", "x" * 5000, "conv", "neuron", [], [0], [1, 1], [2**20, 2**20], {}, [[1]],
)  # fmt: skip


def parts(path):
    """(header, data) of a compiled file."""
    body = Path(path).read_bytes()[len(MAGIC) + 32 :]
    size = int.from_bytes(body[:8], "little")
    return json.loads(body[8 : 8 + size]), body[8 + size :]


def places(tree, path=()):
    """The path of every value in a JSON tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def mutate(tree, rng):
    """One value replaced, removed, doubled, or swapped with another."""
    path = rng.choice(list(places(tree)))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.random()
    if kind < 0.7:
        parent[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    elif kind < 0.8:
        del parent[path[-1]]
    elif isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[path[-1]]))
    else:
        other = rng.choice(sorted(parent))
        parent[path[-1]], parent[other] = parent[other], parent[path[-1]]


def changed(header, data, rng):
    """A whole file with one to three changes and a checksum that fits."""
    header, data = copy.deepcopy(header), bytearray(data)
    network = json.loads(header["__metadata__"]["network"])
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.random()
        if way < 0.75:
            mutate(network, rng)
        elif way < 0.9:
            mutate(header, rng)
        elif data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if not isinstance(network, dict):
            break
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["network"] = json.dumps(network)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = bytearray(len(text).to_bytes(8, "little") + text + data)
    if rng.random() < 0.1:
        body[rng.randrange(min(len(body), 200 + len(text)))] ^= 1 << rng.randrange(8)
    return MAGIC + hashlib.sha256(body).digest() + bytes(body)


def attempt(content, path, x):
    """What a file does: "refused", "ran", or the name of what went wrong."""
    path.write_bytes(content)
    begin = time.process_time()
    try:
        compiled = load(path)
        loaded = time.process_time() - begin
        if compiled.network.T * sum(map(len, (compiled.network.layers,))) < 5_000:
            compiled(x if x[0, 0].shape == torch.Size(compiled.network.input_shape) else
                     torch.rand(1, 1, *compiled.network.input_shape))  # fmt: skip
    except UserError as error:
        if "\n" in str(error) or not 20 <= len(str(error)) < 400:
            return f"message of {len(str(error))} characters"
        loaded, outcome = time.process_time() - begin, "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    else:
        outcome = "ran"
    return outcome if loaded < 1 else f"took {loaded:.1f} s"


def batch(header, data, x, seed, size, folder):
    """Outcomes of `size` changed files, counted."""
    rng = random.Random(seed)
    path = folder / "changed.snn"
    return Counter(attempt(changed(header, data, rng), path, x) for _ in range(size))


def separately(header, data, x, seed, size, folder):
    """`batch` in a process of its own."""
    return apart(lambda: batch(header, data, x, seed, size, folder), size, f"the batch of seed {seed}")


def apart(function, size, what="a batch"):
    """The counted outcomes that a function returns, in a process of its own with limits on memory and time."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (60 + size // 10, 70 + size // 10))  # a hang ends by SIGXCPU
        os.write(write, json.dumps(function()).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if status & 127:
        return Counter({f"KILLED by {signal.Signals(status & 127).name} in {what}": 1})
    return Counter(json.loads(said))


def main():
    from compiled_nets import good_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = Counter()
    with tempfile.TemporaryDirectory() as name:
        path, x = good_file(Path(name))
        header, data = parts(path)
        for begin in range(0, options.inputs, options.batch):
            size = min(options.batch, options.inputs - begin)
            found += separately(header, data, x, options.seed + begin, size, Path(name))
            print(begin + size, dict(found), flush=True)
    return 0 if set(found) <= {"refused", "ran"} else 1


if __name__ == "__main__":
    sys.exit(main())
