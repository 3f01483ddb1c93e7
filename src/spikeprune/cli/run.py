"""Train, prune and regrow, fine-tune, evaluate and report; run again to resume."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spikeprune.cli._arguments import take
from spikeprune.cli._terminal import show
from spikeprune.core.errors import InvalidValue

if TYPE_CHECKING:
    from spikeprune.lab.recipe import Recipe
    from spikeprune.lab.train.folder import RunFolder
    from spikeprune.lab.train.progress import OnEpoch
    from spikeprune.record.epoch import Epoch
    from spikeprune.record.run import RunRecord

_HELP = """usage: spikeprune run RECIPE [--key value ...] [--dry-run]

Carries a recipe out: a shipped one (`spikeprune list recipes`) or a YAML file.
The last line of the output is the run folder. The same command continues a run
that was stopped, and prints the folder of a finished one.
Under torchrun (`torchrun --nproc-per-node 2 -m spikeprune run RECIPE`) the
processes train one network together: each takes a part of every batch.
A run takes all cores; OMP_NUM_THREADS=1 gives it one, which is faster beside
other work.
--dry-run trains nothing and needs no data: it prints the mask updates and the
quota of each layer.
A recipe.yaml inside a run folder may name Python code. That code runs with
--trust, or if --model or --data.name names it.

--on-epoch package.module:function calls function(epoch, epochs) after each
epoch; epoch has the keys of metrics.jsonl as attributes.

Every key can be overridden. A YAML file spells a key with underscores
(regrow_schedule); the command line takes --regrow-schedule and
--regrow_schedule. Durations read 200ep (epochs), 2000it (optimizer steps) or
0.5turnover. The defaults below are those of a recipe that says nothing of the
key; `spikeprune config RECIPE` prints the values of a recipe.

examples:
  spikeprune run digits                a minute on a laptop; a good first run
  spikeprune run digits --method magnitude --sparsity 0.98
  spikeprune run fashion --data.root DIR --prune.every 0.5turnover
  spikeprune run digits --model mypackage.nets:build       your own network
  spikeprune config digits > mine.yaml; spikeprune run mine.yaml
"""


def main(arguments: Sequence[str]) -> int:
    from spikeprune.lab.recipe import load

    words = list(arguments)
    if not words or words[0] in ("--help", "-h") or "--help" in words[1:]:
        from spikeprune.lab.recipe.help import help_lines
        from spikeprune.methods.shared.described import meanings_of

        print("\n".join([_HELP.rstrip(), *help_lines(meanings_of)]))
        if words:
            return 0
        raise InvalidValue("run needs a recipe: `spikeprune run digits`, or a YAML file; see `spikeprune list recipes`")
    listener = _listener(take(words, "--on-epoch", "run"))
    dry = "--dry-run" in words
    trust = "--trust" in words
    words = [word for word in words if word not in ("--dry-run", "--trust")]
    from spikeprune.lab.train.code import vouch_for_recipe

    vouch_for_recipe(words[0], words[1:], trust)
    recipe = load(words[0], words[1:])
    if dry:
        _dry_run(recipe)
        return 0
    from spikeprune.lab.page import write_report
    from spikeprune.lab.study.ranks import this_rank
    from spikeprune.lab.train.progress import epoch_line
    from spikeprune.lab.train.run import run

    def say(text: str) -> None:
        print(text, flush=True)

    def hear(line: "Epoch", epochs: int) -> None:
        say(epoch_line(line, epochs, recipe.method))
        if listener is not None:
            listener(line, epochs)

    rank = this_rank()
    if rank is not None:
        from spikeprune.lab.train.together import Together

        together = Together(rank.number, rank.of)
        with together.joined(), together.recipe_of(recipe) as mine:
            if rank.number > 0:
                run(mine, lambda line, epochs: None, lambda text: None, together)
                return 0
            folder = run(mine, hear, say, together)
    else:
        folder = run(recipe, hear, say)
    if not folder.report.is_file():
        write_report(folder.path)
    record = folder.read_record()
    show([*summary(record), *(f"note    {note}" for note in _notes(folder, record))], hang=8)
    print(folder.path)
    return 0


def _listener(spec: str | None) -> "OnEpoch | None":
    """The function that --on-epoch names; None without the option.

    Raises: UserError if it cannot be found, or cannot be called.
    """
    if spec is None:
        return None
    from spikeprune.host.objects import resolve_object

    found = resolve_object(spec)
    if not callable(found):
        raise InvalidValue(f"--on-epoch {spec} must be a function of (epoch, epochs), got {type(found).__name__}")
    return found


def _notes(folder: "RunFolder", record: "RunRecord") -> list[str]:
    """Notes on faults of the network, if it has any, and on what its energy figure leaves out."""
    from spikeprune.lab.train.notes import energy_note, run_notes
    from spikeprune.record.statistics import StatisticsRecord

    statistics = StatisticsRecord.of_file(folder.statistics).pruned if folder.statistics.is_file() else None
    masks = folder.read_masks(record)
    return [*run_notes(record, statistics, masks), energy_note(statistics, masks)]


def summary(record: "RunRecord") -> list[str]:
    """The result of a finished run as a few lines."""
    from spikeprune.core.pattern import unit_of

    if record.squeeze is not None:
        from spikeprune.cli.squeeze import summary as squeeze_summary

        return squeeze_summary(record)
    dense, pruned = record.dense, record.pruned
    lines = []
    unit = unit_of(record.settings.pattern)
    if dense.accuracy is not None:
        lines.append(f"dense   accuracy {dense.accuracy:.2%}  {dense.synops:,.0f} synaptic operations an image")
    lines.append(
        f"pruned  accuracy {record.accuracy:.2%}  {pruned.synops:,.0f} synaptic operations an image  "
        f"sparsity {record.sparsity:.4f} ({pruned.alive:,} {unit} alive)"
    )
    regrown = sum(update.regrown > 0 for update in record.rounds)
    images, updates = f"{record.data.counts['test']:,}", len(record.rounds)
    lines.append(
        f"masks   updated {updates} time{'s' * (updates != 1)}, {regrown} of them with regrowth  "
        f"(test: {images} images)"
    )
    return lines


def _dry_run(recipe: "Recipe") -> None:
    from spikeprune.lab.train.preview import preview

    show(preview(recipe))
