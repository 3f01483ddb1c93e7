"""A finished run as a model repository: its card, weights, masks and record; and back to a run folder.

Nothing in it is code or a pickle. The files are the run's own, so that what was pulled is a run folder like any other.
"""

import shutil
from pathlib import Path
from typing import Any

import yaml

from spikeprune.core.errors import InvalidValue, MissingDependency, RunFailed, UserError
from spikeprune.lab.train.folder import RunFolder
from spikeprune.record.run import RunRecord

FILES = (
    "model.safetensors", "masks.safetensors", "record.json", "recipe.yaml", "metrics.jsonl", "statistics.json",
    "plan.json", "spikes.json", "report.html",
)  # fmt: skip
_NEEDED = ("model.safetensors", "masks.safetensors", "record.json", "recipe.yaml")
_CARD = "README.md"


def stage(run: RunFolder, to: Path) -> Path:
    """The files of a repository in a folder: the run's own and a model card. Raises: UserError if `to` holds files."""
    record = run.read_record()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} is not empty; give a folder that is, or none that exists yet")
    to.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, to / name)
    (to / _CARD).write_text(card(record, run.path.name), encoding="utf-8")
    return to


def card(record: RunRecord, name: str) -> str:
    """The model card: what the network is, what it scored, what it costs, and how to use it."""
    dense, pruned, data = record.dense, record.pruned, record.data
    front = {
        "library_name": "spikeprune",
        "tags": ["spiking-neural-network", "pruning", record.settings.method],
        "datasets": [data.name],
        "metrics": ["accuracy"],
    }
    beside = "not trained" if dense.accuracy is None else f"{dense.accuracy:.2%}"
    images = f"{data.counts['test']:,}"
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        f"# {name}",
        "",
        f"`{record.settings.model}` on {data.name}, T = {record.settings.T}, pruned by {record.settings.method} to "
        f"{record.sparsity:.2%} sparsity. One seed ({record.seed}); {images} test images, scored once.",
        "",
        "| | dense | pruned |",
        "|---|--:|--:|",
        f"| accuracy | {beside} | {record.accuracy:.2%} |",
        f"| prunable weights alive | {dense.alive:,} | {pruned.alive:,} |",
        f"| SynOps an image | {dense.synops:,.0f} | {pruned.synops:,.0f} |",
        f"| energy of the synapses (45 nm) | {dense.energy_pj:,.0f} pJ | {pruned.energy_pj:,.0f} pJ |",
        "",
        "```sh",
        "spikeprune pull REPOSITORY      # the repository's name; makes a run folder and prints its path",
        "spikeprune eval RUN             # scores it again; then report, export, bench",
        "```",
        "",
        f"Made by spikeprune {record.environment.versions['spikeprune']}. `report.html` shows the run, `record.json` "
        "has every number and setting.",
        "",
    ]
    return "\n".join(lines)


def push(run: RunFolder, repository: str, private: bool, staged: Path) -> str:
    """Uploads a staged run. Returns: its address. Raises: MissingDependency, RunFailed for what the hub answers."""
    hub = _hub()
    stage(run, staged)
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=str(staged)))
    except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
        raise RunFailed(f"{repository} was not pushed: {' '.join(str(error).split())[:200]}") from error


def pull(repository: str, out: Path) -> RunFolder:
    """A run folder from a repository, or from a folder that `push --to` made.

    Only files that a run folder has are taken, and none of them is run.
    Raises: UserError if something is missing or there already; MissingDependency; RunFailed.
    """
    source = Path(repository)
    if not source.is_dir():
        if repository.count("/") != 1:
            raise InvalidValue(f"expected owner/name or a folder that `spikeprune push --to` made, got {repository!r}")
        try:
            source = Path(_hub().snapshot_download(repository, allow_patterns=[*FILES]))
        except (OSError, ValueError) as error:
            raise RunFailed(f"{repository} was not pulled: {' '.join(str(error).split())[:200]}") from error
    missing = [name for name in _NEEDED if not (source / name).is_file()]
    if missing:
        raise UserError(f"{repository} is no run that spikeprune pushed: it lacks {', '.join(missing)}")
    record = RunFolder(source).read_record()
    target = RunFolder(out / f"{_plain(record.name)}-{record.settings_hash[:10]}")
    if target.path.exists():
        raise UserError(f"{target.path} exists already; move it away, or use another --out")
    target.path.mkdir(parents=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target.path / name)
    return RunFolder.existing(target.path)


def _plain(name: str) -> str:
    """A name that stays in its folder, whatever a stranger wrote into the record."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60] or "run"


def _hub() -> Any:
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingDependency("this needs huggingface_hub; try: pip install 'spikeprune[hub]'") from error
    return huggingface_hub
