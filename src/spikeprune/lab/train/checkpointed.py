"""A training that a kill at any moment does not harm: checkpoints, the lines of metrics.jsonl, the chosen epoch."""

import time
from collections.abc import Mapping
from typing import Any, Protocol, final

import torch

from spikeprune.core.errors import UserError
from spikeprune.lab.train.folder import RunFolder
from spikeprune.lab.train.loop import Phase, Setting
from spikeprune.lab.train.parts import set_layout
from spikeprune.lab.train.progress import ProgressBar
from spikeprune.lab.train.tensorboard import TensorBoard
from spikeprune.record.checkpoint import BestCheckpoint, LastCheckpoint, PhasesState, SqueezeState
from spikeprune.runtime.fuse import unfuse
from spikeprune.runtime.sparse_train import densify

_ENTRIES = {"hash", "checksum", "precision", "threads", "metrics", "done", "phase"}
# Between two checkpoints at most so much work is lost, in seconds.
_CHECKPOINT_EVERY = 60.0


class FinishedPhases(Protocol):
    """The results of the phases that are over, as a checkpoint stores them."""

    def state_dict(self) -> PhasesState | SqueezeState: ...


@final
class CheckpointedTraining:
    """Trains the phases of one run.

    Args:
        setting: of the whole run.
    """

    def __init__(self, folder: RunFolder, setting: Setting) -> None:
        self.folder, self.recipe, self.setting = folder, setting.recipe, setting
        self.hash, self.checksum = setting.job.hash, setting.data.checksum
        self.metrics = 0

    def resume(self) -> LastCheckpoint | None:
        """The last checkpoint, if there is one; metrics.jsonl is cut back to it.

        After a power cut metrics.jsonl may lack lines that the last checkpoint knows of; then the one before counts.
        Raises: UserError if the data is not the same any more, or lines of metrics.jsonl are lost.
        """
        state = self.folder.load_checkpoint("last", self._fits, hash=self.hash)
        if state is not None:
            if state["checksum"] != self.checksum:
                raise UserError(
                    f"the run in {self.folder.path} began with other data than {self.recipe.data.name} is now; "
                    "bring that data back, or use another --out"
                )
            self.metrics = state["metrics"]
        self.folder.cut_metrics(self.metrics)
        return state

    def _fits(self, state: Mapping[str, Any]) -> bool:
        """Whether a checkpoint has all entries, and metrics.jsonl all lines that it knows of."""
        length = state.get("metrics")
        return set(state) >= _ENTRIES and type(length) is int and 0 <= length <= self.folder.metrics_length

    def begin(self, phase: Phase, state: LastCheckpoint | None) -> Phase:
        """The phase as it was in a checkpoint, or at its start.

        Raises: UserError if the checkpoint holds something else than this phase.
        """
        try:
            return phase.begin(None if state is None else state["phase"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if state is None or isinstance(error, UserError):
                raise
            raise UserError(
                f"the checkpoint in {self.folder.checkpoints} does not hold this run ({type(error).__name__}); remove "
                "that folder to start the run anew"
            ) from error

    def train(self, phase: Phase, done: FinishedPhases, epochs: int, bar: ProgressBar) -> None:
        """The rest of a phase, with a checkpoint after every epoch and every minute."""
        while phase.epoch < epochs:
            saved = time.monotonic()
            for loss in phase.train_epoch():
                bar.advance(f"{phase.name} epoch {phase.epoch + 1}/{epochs} loss {loss:.3f}")
                if time.monotonic() - saved > _CHECKPOINT_EVERY:
                    self.save(phase, done)
                    saved = time.monotonic()
            best_before = phase.best
            line = phase.end_epoch()
            self.metrics = self.folder.add_metrics(line)
            bar.epoch(line, phase.first + epochs)
            if phase.best != best_before:
                weights = phase.network.model.state_dict()
                best = BestCheckpoint(phase=phase.name, epoch=phase.epoch, model=weights)
                self.folder.save_checkpoint("best", best)
            self.save(phase, done)
            if self.recipe.tensorboard:
                TensorBoard(self.folder, self.setting).write(line, phase)

    def save(self, phase: Phase, done: FinishedPhases) -> None:
        """Write the last checkpoint. Raises: RunFailed rather than keep weights that are not numbers."""
        phase.check_weights()
        self.folder.save_checkpoint(
            "last",
            {
                "hash": self.hash,
                "checksum": self.checksum,
                "precision": phase.precision,
                "threads": torch.get_num_threads(),
                "metrics": self.metrics,
                "done": done.state_dict(),
                "phase": phase.state_dict(),
            },
        )


def settle(folder: RunFolder, phase: Phase) -> None:
    """Put the chosen epoch's weights in place."""
    if phase.best is not None:
        best = folder.load_checkpoint("best", phase=phase.name, epoch=phase.best["epoch"])
        if best is not None:
            phase.network.model.load_state_dict(best["model"])
    # What is scored is the plain network that model.safetensors holds.
    densify(phase.network.model)
    set_layout(unfuse(phase.network.model), torch.contiguous_format)
