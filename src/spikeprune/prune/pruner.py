"""The Pruner: the one stateful object, between a model and its optimizer; the training loop stays the user's."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.mask import Masks, count
from spikeprune.core.schedule import MaskUpdate, Schedule
from spikeprune.count.layers import Table
from spikeprune.methods.base import Method
from spikeprune.methods.registry import name_of
from spikeprune.model.prunable import Names
from spikeprune.prune.assemble import assemble
from spikeprune.prune.choices import Choices, method_of
from spikeprune.prune.state import load_state, read_state, settings_of, state_of
from spikeprune.record.checkpoint import PrunerSettings, PrunerState
from spikeprune.record.round import Round
from spikeprune.upkeep.follow import Follower
from spikeprune.upkeep.given import Given


class Pruner:
    """Prunes and regrows a model during the user's own training.

    Step k is the k-th completed optimizer step. A mask update happens inside its `optimizer.step()`, after the weights
    were updated, with evidence from that step's forward. After every step dead weights and their state are exactly 0.

    Args:
        model: the user's. Its class, state_dict keys and forward stay as they are.
        method: a method object or its name.
        schedule: when the mask updates are and what sparsity each one has; steps count optimizer steps.
        allocate: how layers share the cut: "global" ranks all layers together; "uniform", "erk", "lamp" set quotas.
        pattern: "weight"; "n:m" (such as "2:4") for at most n alive of m neighbouring inputs; "channel" for whole
            channels, with all that must go along; or "gate", which cuts behind a network's own channel gates and leaves
            its residual stream wide. Which channels belong together shows in the first forward.
        budget: the quantity that sparsity is a share of: "weights" (channels under "channel" and "gate"); "parameters",
            "macs" or "synops" rank globally under a budget of that.
        include, exclude: names or patterns (`*`) of parameters or modules; default: every Conv and Linear weight.
        floor: the least that every layer keeps: a count, or a share of the layer if below 1. None: one weight; of
            channels that are ranked globally, half of what an even cut would leave of each group, at least one.
        seed: of the random generator, for methods that draw.
        start: "dense", or "random": begin with a random mask at the schedule's first sparsity, so that with a
            `Constant` schedule training is never dense; "erk": the same with layers as "erk" sizes them.
        masks: of a network that is sparse already: "zeros", a mapping as `masks` has, or a masks.safetensors path.
            Weights outside become 0 at once and return only by regrowth; the schedule runs from their sparsity.
        regrow_exclude: names or patterns of layers that are pruned but get nothing back.
    Raises: InvalidValue or UnknownName (both ValueError or LookupError) for a bad setting, when the object is made.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Criticality(regrow=0.2), sp.Cubic(to=0.75, begin=0, end=4, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(4)  # your training loop
        >>> pruner.finish()
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method | str,
        schedule: Schedule,
        *,
        allocate: str = "global",
        pattern: str = "weight",
        budget: str = "weights",
        include: Names = None,
        exclude: Names = None,
        floor: float | None = None,
        seed: int = 0,
        start: str = "dense",
        masks: Given | None = None,
        regrow_exclude: Names = None,
    ) -> None:
        self.method, self.schedule = method_of(method, schedule), schedule
        self.choices = Choices(allocate, pattern, budget, floor, seed, start)
        self.choices.check(self.method)
        self._steps = assemble(model, self.method, schedule, self.choices, include, exclude, masks, regrow_exclude)
        self._space, self._updater = self._steps.space, self._steps.updater
        self._observer, self._parameters = self._updater.observer, self._space.parts.parameters

    @property
    def masks(self) -> Masks:
        """Parameter name -> bool tensor of its shape, True = alive. A snapshot; works after `finish` too.

        With channels: of every weight, bias and normalisation that they take along; empty before the first forward.
        """
        return Masks(self._space.parts.upkeep.masks)

    @property
    def rounds(self) -> list[Round]:
        """One entry for each mask update: its target, how many weights it kept, and how many it regrew."""
        return self._steps.history.rounds

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights (or channels) that is dead. Raises: as `density`."""
        return 1.0 - self.density

    @property
    def density(self) -> float:
        """Share of the prunable weights (or channels) that is alive. Raises: InvalidValue if one was replaced."""
        return self._steps.density()

    @property
    def alive(self) -> int:
        """Number of prunable weights (or channels) that are alive; 0 while the channels are not known."""
        return count(self._space.alive)

    @property
    def prunable(self) -> int:
        """Number of prunable weights (or channels); 0 while the channels are not known."""
        return self._space.total

    @property
    def regrown_alive(self) -> dict[str, Tensor]:
        """Parameter name -> bool tensor: the alive weights that some mask update brought back and no later one cut."""
        return self._space.masks(self._steps.history.alive(alive)) if (alive := self._space.alive) else {}

    @property
    def channels(self) -> dict[str, Tensor]:
        """Layer -> bool [C], True = alive, with a channel pattern; empty for others and before the first forward."""
        return {n: m.clone() for n, m in self._space.alive.items()} if self.choices.by_channel else {}

    @property
    def round_steps(self) -> tuple[int, int | None]:
        """First and last step of the present round of a method that rewinds; (0, None) for others.

        Each round is a training of its own, so the learning rate starts anew after `first`; None is the end of the run.
        """
        return self._steps.round()

    @property
    def searching(self) -> bool:
        """Whether a coming mask update may still change the masks."""
        return self._steps.searching

    @property
    def seconds(self) -> float:
        """Wall-clock time that the Pruner has spent, in seconds."""
        return self._steps.seconds

    @property
    def full_gradients(self) -> int:
        """How many gradients that include dead weights the method needed in the last step."""
        return self._steps.full_gradients

    def preview(self) -> tuple[MaskUpdate, ...]:
        """Each mask update: step, target, kept weights (or channels: None before the first forward or `trace`)."""
        return tuple(map(self._space.counted, self._steps.plan.updates))

    def trace(self, example: Any) -> "Pruner":
        """Traces a forward pass on an example now, in place of the first one in training. The model is not changed.

        Args: example: an input as the model takes it; random numbers of the right shape will do.
        Raises: InvalidValue if the model cannot run on it, or if the trace does not show the channels or neurons that
            the method or pattern needs.
        """
        self._observer.trace(example)
        return self

    def quota(self, sparsity: float) -> dict[str, int]:
        """How many weights (or channels) each layer would keep at a sparsity, by the magnitude of the present ones."""
        return self._updater.quota(sparsity)

    def table(self) -> Table:
        """One row a layer: weights, alive, density and the neuron it feeds (known after the first forward)."""
        return Table.of(
            self._parameters, self._space.parts.upkeep.masks, self._observer.pairs, self.choices.weight_floor
        )

    def __repr__(self) -> str:
        return (
            f"Pruner({name_of(self.method)}, {self.schedule!r}, step {self._steps.done}, "
            f"{self.alive} of {self.prunable} {'channels' if self.choices.by_channel else 'weights'} alive, sparsity "
            f"{1 - self._steps.density(checked=False):.4f}{', ' if (left := self._steps.missing) else ''}{left})"
        )

    def attach(self, *optimizers: torch.optim.Optimizer) -> "Pruner":
        """Hooks into `optimizer.step()`. Attaching again, or to a new optimizer, replaces the old hooks.

        Args: optimizers: one, or several that share the parameters (Muon, AdamW): a step ends with the last one's.
        Raises: InvalidValue if they do not hold a prunable parameter; on every rank, if ranks differ.
        """
        self._steps.attach(optimizers, self.settings(), weakref.ref(self))
        return self

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Complete one step, as the hook of `attach` does; call it after each update if there are no step hooks.

        With the optimizer the state of dead weights is cleared too. `mask_grads` before the update masks gradients.
        """
        if optimizer is not None:
            self._space.parts.upkeep.optimizers = (optimizer,)
        self._steps.advance(closure=True)

    def mask_grads(self) -> None:
        """Zeroes the gradients of dead weights; for users who clip gradients, to be called before clipping."""
        self._steps.keep_grads()
        self._steps.hold_grads()

    def follow(self, copy: nn.Module) -> "Pruner":
        """Keeps an averaged copy of the model (EMA, SWA) at the masks, until `finish`.

        The copy is held after each of its own updates (`update_parameters` of torch's AveragedModel, `update` of
        timm's), after each step, before it computes and before its state_dict is made.

        Args: copy: a module with the model's parameters, or a wrapper around one.
        Raises: InvalidValue or UnknownName if it is another network.
        """
        self._steps.followers.append(Follower(copy, lambda: self.masks))
        return self

    def finish(self) -> None:
        """Takes every hook off. The model is an ordinary module whose pruned weights are exactly 0.

        Raises: InvalidValue if parameters were replaced or dead weights written over; then nothing is changed.
        """
        self._steps.finish()

    def observe(self, data: Iterable[Any] | None, loss: Callable[[Any, Any], Tensor] | None = None) -> None:
        """Shows the model batches outside of any training loop; `sp.prune` uses it. Nothing of the model changes.

        Args:
            data: inputs or (input, target) pairs; None if the method needs no evidence.
            loss: loss(output, target), for methods that need gradients.
        Raises: MissingEvidence if the method needs what is not given.
        """
        self._steps.observe(data, loss)

    def cut(self) -> None:
        """Makes the next mask update now, with no training step around it; `sp.prune` uses it."""
        self._steps.cut()

    def settings(self) -> PrunerSettings:
        """All settings that decide the masks. A saved state must agree with them."""
        return settings_of(self.method, self.schedule, self.choices, self._updater.no_regrowth, self._parameters)

    def state_dict(self) -> PrunerState:
        """Everything needed to go on bit for bit; plain types and tensors, loads under `weights_only=True`."""
        return state_of(self._steps, self.settings())

    def load_state_dict(self, state: PrunerState, *, strict: bool = True) -> None:
        """Takes up a saved state, before or after `attach`; weights outside the masks become 0.

        With `strict=False` a layer of another shape, such as a new head, starts dense, which is logged.
        Raises: InvalidValue if the state was saved under other settings (unless `strict=False`) or is damaged.
        """
        load_state(self._steps, read_state(state, self.settings(), self._space, strict=strict))
