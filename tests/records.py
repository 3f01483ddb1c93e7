"""Run folders with numbers made by hand, for tests of comparisons: nothing was trained."""

import json

import yaml

from spikeprune.lab.recipe import complete, from_values, settings_hash

COST = {
    "epochs": 4, "seconds": 10.0, "train_macs": 1e9, "train_macs_effective": 4e8, "pruning_seconds": 0.1,
    "search_epochs": 2.5, "search_seconds": 6.0,
}  # fmt: skip


def write_run(out, accuracy, *words, rounds=(), **cost):
    """A finished run of an mlp with that accuracy; `words` are recipe keys as `key=value`. Returns its hash."""
    recipe = from_values("hand", {"model": "mlp", "epochs": 4, "prune.end": "2ep"}, [f"--{word}" for word in words])
    folder = out / f"hand-{settings_hash(recipe)}"
    folder.mkdir(parents=True)
    pruned = {"accuracy": accuracy, "synops": 1000.0 * (1 - recipe.sparsity), "macs": 5.0, "energy_pj": 9.0}
    pruned |= {"firing_rate": 0.1, "bytes": 100, "alive": 50, "parameters": 110}
    versions = {"spikeprune": "0.1.0", "torch": "2.13.0"}
    record = {
        "schema": 1, "name": "hand", "settings": complete(recipe),
        "settings_hash": settings_hash(recipe), "seed": recipe.seed,
        "environment": {
            "device": "a processor", "threads": 1, "precision": "fp32", "versions": versions, "platform": "a system",
            "git": None,
        },
        "data": {
            "name": "digits", "counts": {"train": 100, "validation": 0, "test": 50}, "checksum": "c0ffee", "notes": [],
            "counted": 50,
        },
        "rounds": list(rounds), "dense": pruned | {"accuracy": None, "alive": 100}, "pruned": pruned,
        "sparsity": recipe.sparsity, "density": 1 - recipe.sparsity, "cost": COST | cost, "status": "finished",
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(complete(recipe)))
    return settings_hash(recipe)
