"""One squeeze, from data to result: it measures, cuts and solves in rounds, writes the weights, and compares."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import Masks
from spikeprune.core.pattern import nm_pattern
from spikeprune.core.surrogate import curve_named
from spikeprune.core.update import Target
from spikeprune.model.adapter import Adapter
from spikeprune.model.discover import NOT_FOUND, Discovered, SpikeNeuron
from spikeprune.model.input_rates import InputRates
from spikeprune.model.prunable import normed_by_row, prunable
from spikeprune.squeeze.batches import Batches, first_images
from spikeprune.squeeze.ear import heard
from spikeprune.squeeze.goals import given_masks, is_met, size_of, target
from spikeprune.squeeze.layers import LayerProblem, too_few_rows
from spikeprune.squeeze.near import thinned
from spikeprune.squeeze.network import Network, norm_behind, read, snapshot
from spikeprune.squeeze.polish import Polish, Polisher
from spikeprune.squeeze.progress import Progress
from spikeprune.squeeze.rows import Drawing, Rows, collect, is_solvable, rows_per_forward
from spikeprune.squeeze.search import highest, judge_of
from spikeprune.squeeze.select import Quantities, comparable, cut, noise, path, score
from spikeprune.squeeze.settings import SqueezeSettings
from spikeprune.squeeze.solve import Solver
from spikeprune.squeeze.statistics import SpikeKeeper, Spikes, evaluating, measure_again, norms, watch_spikes
from spikeprune.squeeze.table import Squeezed, SqueezedLayer, SqueezedNeuron, some_of

_PART = 50  # images of one step of `polish`
_FEW = 1000  # images up to which `polish` matches the spikes too


@final
class Squeezing:
    """One run over a model: from the data to the result."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        data: Iterable[Any],
        settings: SqueezeSettings,
        bar: Progress,
        time_axis: str | None = None,
    ) -> None:
        self.started = time.perf_counter()
        self.settings, self.bar = settings, bar
        self.phases: dict[str, float] = {}
        self.notes: list[str] = []
        parameters = prunable(model, settings.include, settings.exclude, nm_pattern(settings.pattern))
        normed = sorted(normed_by_row(model, parameters))
        if normed:
            raise InvalidValue(
                f"the rows of {normed[0]!r} are divided by their norm (weight_norm), so squeeze cannot solve them; "
                "call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first; no output changes"
            )
        bad = next((n for n, p in parameters.items() if not bool(torch.isfinite(p).all())), None)
        if bad is not None:
            raise InvalidValue(
                f"the weights of {bad!r} hold nan or infinite values; squeeze needs a trained, finite network"
            )
        self.batches: Batches = first_images(data, settings.images, model, adapter, time_axis)
        self.network: Network = read(model, adapter, parameters, self.batches.inputs[0])
        self._check_neurons()
        self.rates: dict[str, Tensor] = {}  # share of non-zero inputs, for a budget of synaptic operations
        self.before = Spikes({})
        self.polisher: Polisher | None = None
        self._clock("reading the model")

    def _check_neurons(self) -> None:
        network, settings = self.network, self.settings
        known = network.adapter is not None and network.adapter.neurons(network.model)
        asked = settings.weighting != "none" or settings.score == "critical"
        if asked and not known and not network.graph.spikes:
            raise InvalidValue(
                f"{NOT_FOUND.partition(':')[0]}, so nothing tells which errors flip a spike; register an adapter "
                "(spikeprune.integrations.register_adapter), or squeeze an ordinary network with weighting='none'"
            )

    def _clock(self, phase: str) -> None:
        now = time.perf_counter() - self.started - sum(self.phases.values())
        self.phases[phase] = self.phases.get(phase, 0.0) + now

    # ---- the whole ------------------------------------------------------------------------------------------------

    def run(self) -> Squeezed:
        """Does it all; the caller puts the model back if anything fails."""
        parameters, settings = self.network.parameters, self.settings
        alive = {n: p.detach() != 0 for n, p in parameters.items()}
        if settings.masks is not None:
            masks = given_masks(self.network, settings.masks)
            values = dict(self.network.model.named_parameters())
            if all(not bool(values[n].detach()[~m].any()) for n, m in masks.items()):
                return self._unchanged(masks)
            problems = self._look()
            weights = self._solve_all(problems, masks)
        else:
            if (
                settings.tolerance is None
                and settings.budget != "synops"
                and is_met(alive, self._target(settings.sparsity))
            ):
                return self._unchanged(alive)
            problems = self._look()
            sparsity = settings.sparsity if settings.tolerance is None else self._tolerated(problems, alive)
            wanted = self._target(sparsity)
            if is_met(alive, wanted):
                return self._unchanged(alive)
            weights, masks = self._rounds(problems, alive, wanted)
        advice = too_few_rows(problems, masks, self.batches.images) if settings.solve else None
        if advice is not None:
            self._warn(advice)
        self._clock("solving")
        return self._apply(problems, weights, masks)

    def _target(self, sparsity: float) -> Target:
        return target(self.network, self.settings, sparsity, self.rates)

    def _tolerated(self, problems: Mapping[str, LayerProblem], alive: dict[str, Tensor]) -> float:
        """The highest sparsity found at which the quality falls by at most the tolerance. The model is put back."""
        network = self.network
        judge = judge_of(network, self.batches, self.before)
        allowed = judge() - (self.settings.tolerance or 0.0)

        def passes(sparsity: float) -> bool:
            try:
                wanted = self._target(sparsity)
            except InvalidValue:  # the budget cannot be met
                return False
            if is_met(alive, wanted):
                return True
            put_back = snapshot(network.model)
            try:
                self._write(problems, *self._rounds(problems, alive, wanted))
                return judge() >= allowed - 1e-9
            finally:
                put_back()

        found = highest(passes)
        self._clock("searching")
        return found

    def _unchanged(self, masks: Mapping[str, Tensor]) -> Squeezed:
        network = self.network
        spikes = watch_spikes(network.model, network.adapter, network.graph, self.batches.inputs)
        layers = [
            SqueezedLayer(n, m.numel(), int(m.sum()), self._feeds(n), 0, None, 0.0, "as it was")
            for n, m in masks.items()
            if n in network.parameters
        ]
        self._clock("comparing")
        return self._result(masks, layers, spikes, spikes)

    # ---- looking at the dense network -----------------------------------------------------------------------------

    def _look(self) -> dict[str, LayerProblem]:
        """Draws rows of every layer of the network as it came, and keeps its spikes."""
        network, settings = self.network, self.settings
        outputs = {n: int(p.shape[0]) for n, p in network.parameters.items()}
        per_forward = rows_per_forward(network.graph, outputs)
        first = self.batches.inputs[0].numel()
        scale = sum(x.numel() for x in self.batches.inputs) / max(first, 1)
        layers = {n: m for n, m in network.layers.items() if m and n in per_forward and all(map(is_solvable, m))}
        wanted = settings.rows * settings.oversample
        shares = {n: min(1.0, wanted / (per_forward[n] * scale)) for n in layers}
        drawing = Drawing(
            network.model, network.adapter, layers, network.pairs, shares, self._derivative(), settings.seed,
            leaky=settings.weighting == "membrane",
        )  # fmt: skip
        keeper = SpikeKeeper(network.model, network.adapter, network.graph)

        def hear(neuron: SpikeNeuron) -> None:
            drawing.hear(neuron)
            keeper.hear(neuron)

        meter = InputRates(network.model) if settings.budget == "synops" else None
        try:
            watched = heard(network.model, network.adapter, network.graph, hear)
            with evaluating(network.model), keeper, watched as hidden:
                batches = self.bar.over(self.batches.inputs, "looking")
                drawn = collect(network.model, network.adapter, batches, drawing, hidden)
        finally:
            if meter is not None:
                meter.remove()
        if meter is not None:
            self.rates = meter.rates(lambda tensor: tensor)
        self.before = Spikes(keeper.calls)
        if settings.polish:
            self.polisher = Polisher(
                network.model,
                network.adapter,
                self.batches.parts(_PART),
                match_spikes=self.batches.images <= _FEW,
                statistics=settings.statistics,
            )
        self._clock("drawing rows")
        return self._problems(drawn)

    def _derivative(self) -> Callable[[nn.Module, Tensor], Tensor] | None:
        settings, adapter = self.settings, self.network.adapter
        if adapter is None or (settings.weighting != "criticality" and settings.score != "critical"):
            return None
        if settings.surrogate is None:
            return lambda neuron, u: (Discovered() if isinstance(neuron, SpikeNeuron) else adapter).derivative(
                neuron, u
            )
        curve = curve_named(settings.surrogate).derivative
        return lambda _, u: curve(u)

    def _problems(self, drawn: Mapping[str, Rows]) -> dict[str, LayerProblem]:
        settings = self.settings
        weighted = settings.weighting == "criticality" and settings.solve
        silent = {n for n in self.before.calls if self.before.rate(n) == 0}
        if silent:
            self._warn(
                f"no spike on the calibration images in {some_of(silent)}: the layers that feed it are solved plainly; "
                "check the inputs, or exclude the layer"
            )
        problems: dict[str, LayerProblem] = {}
        for name, parameter in self.network.parameters.items():
            rows = drawn.get(name)
            if rows is not None and not bool(torch.isfinite(rows.x).all()):
                raise InvalidValue(
                    f"the inputs of {name!r} hold nan or infinite values on this data; check the data and the network"
                )
            if rows is not None and (self._feeds(name) in silent or not rows.weighable):
                rows = Rows(rows.x, None, rows.available, "its neuron is silent")
            if rows is not None and settings.oversample > 1:
                rows = thinned(rows, settings.rows, settings.seed * 1_000_003 + len(problems))
            problems[name] = LayerProblem(
                parameter,
                rows,
                weighted=weighted,
                shift=settings.shift and settings.solve,
                power=settings.power,
                eps=settings.eps,
                solver=Solver(settings.ridge, settings.iterations),
            )
        lost = [n for n in self.network.parameters if n not in drawn]
        if lost:
            self._warn(f"{some_of(lost)} cannot be solved (not called, or a transposed convolution): masked only")
        self._clock("preparing")
        return problems

    # ---- cutting and solving --------------------------------------------------------------------------------------

    def _rounds(
        self, problems: Mapping[str, LayerProblem], alive: dict[str, Tensor], wanted: Target
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        settings = self.settings
        weights = {n: problems[n].dense.view(p.shape) for n, p in self.network.parameters.items()}
        draw = noise({n: p.shape for n, p in weights.items()}, settings.seed) if settings.score == "random" else {}
        goals = path(size_of(alive, wanted), wanted.keep if wanted.cost is None else wanted.budget, settings.rounds)
        self.bar.begin("solving", len(goals) * len(problems))
        for number, goal in enumerate(goals, 1):
            last = number == len(goals)
            now = Target(
                wanted.keep if last else round(goal), wanted.allocate, wanted.floor,
                cost=wanted.cost, budget=goal, pattern=wanted.pattern,
            )  # fmt: skip
            known = {n: self._known(p, alive[n], draw.get(n)) for n, p in problems.items()}
            scores = {n: score(settings.score, w.flatten(1), known[n]).view(w.shape) for n, w in weights.items()}
            alive = cut(comparable(settings.allocate, scores, known, alive), alive, now)
            weights = self._solved(problems, weights, alive, last)
        return weights, alive

    def _known(self, problem: LayerProblem, alive: Tensor, draw: Tensor | None) -> Quantities:
        known = problem.known
        if self.settings.score == "obs":
            return Quantities(known.energy, known.critical, known.output, problem.inverse(alive))
        if draw is not None:
            return Quantities(known.energy, known.critical, known.output, noise=draw.to(alive.device).flatten(1))
        return known

    def _solve_all(self, problems: Mapping[str, LayerProblem], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mine = {n: p for n, p in problems.items() if n in masks}
        self.bar.begin("solving", len(mine))
        return self._solved(mine, {n: p.dense.view(p.shape) for n, p in mine.items()}, masks, last=True)

    def _solved(
        self,
        problems: Mapping[str, LayerProblem],
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        last: bool,
    ) -> dict[str, Tensor]:
        steps = self.settings.iterations if last else self.settings.early_iterations
        found: dict[str, Tensor] = {}
        for name, problem in problems.items():
            w = weights[name]
            if self.settings.solve:
                found[name] = problem.solve(w, masks[name], steps)
            else:
                found[name] = torch.where(masks[name], w, torch.zeros_like(w))
            if not bool(torch.isfinite(found[name]).all()):
                raise InvalidValue(
                    f"the least squares of {name!r} have no finite solution on this data, as its inputs are too "
                    "large; scale down what it reads, lower ridge, or exclude it"
                )
            self.bar.advance()
        return found

    # ---- writing it down ------------------------------------------------------------------------------------------

    def _apply(
        self,
        problems: Mapping[str, LayerProblem],
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Squeezed:
        self._write(problems, weights, masks)
        network = self.network
        torch.manual_seed(self.settings.seed)
        batches = self.bar.over(self.batches.inputs, "comparing")
        after = watch_spikes(network.model, network.adapter, network.graph, batches)
        self._clock("comparing")
        layers = [self._layer(n, masks[n], problems[n], w) for n, w in weights.items()]
        return self._result(masks, layers, self.before, after)

    def _write(
        self, problems: Mapping[str, LayerProblem], weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> None:
        """Gives the weights to the model, and measures BatchNorm's statistics again."""
        network = self.network
        with torch.no_grad():
            for name, w in weights.items():
                network.parameters[name].data.copy_(torch.where(masks[name], w, torch.zeros_like(w)))
            for name in masks.keys() - weights.keys():  # of cut channels: biases and normalisation
                parameter = network.model.get_parameter(name)
                parameter.data.copy_(torch.where(masks[name], parameter, torch.zeros_like(parameter)))
            if self.settings.shift:
                for name in weights:
                    self._shift(name, problems[name])
        if self.settings.statistics and norms(network.model):
            torch.manual_seed(self.settings.seed)
            measure_again(network.model, network.adapter, self.bar.over(self.batches.inputs, "statistics"))
            self._clock("statistics")
        if self.polisher is not None:
            rate = self.polisher.fit(masks, Polish(self.settings.polish), self.settings.seed, self.bar.over)
            if rate is None:
                self.notes.append("not polished: the outputs do not depend on the weights by way of gradients")
            elif rate == 0:
                self.notes.append("not polished: steps of every size led away from the dense network's outputs")
            self._clock("polishing")

    def _shift(self, name: str, problem: LayerProblem) -> None:
        if problem.rows is None:
            return
        behind = norm_behind(self.network, name)
        bias = getattr(self.network.layers[name][0], "bias", None)
        mean = getattr(behind, "running_mean", None)
        if isinstance(bias, Tensor):
            bias.data.add_(problem.shift.to(bias.dtype))
        elif isinstance(mean, Tensor) and len(mean) == len(problem.shift):
            mean.sub_(problem.shift.to(mean.dtype))
        elif bool(problem.shift.any()):
            self.notes.append(f"{name} has neither a bias nor a BatchNorm behind it, so its shift was left out")

    def _layer(self, name: str, mask: Tensor, problem: LayerProblem, weight: Tensor) -> SqueezedLayer:
        rows = problem.rows
        note = "masked only" if rows is None else rows.note
        used = 0 if rows is None else rows.x.shape[2]
        return SqueezedLayer(
            name, mask.numel(), int(mask.sum()), self._feeds(name), used, problem.error(weight), problem.seconds, note
        )  # fmt: skip

    def _feeds(self, name: str) -> str | None:
        pairing = self.network.pairs.get(name)
        return None if pairing is None else pairing.neuron

    def _result(
        self, masks: Mapping[str, Tensor], layers: list[SqueezedLayer], before: Spikes, after: Spikes
    ) -> Squeezed:
        neurons = {
            n: SqueezedNeuron(*before.against(after, n), before.rate(n), after.rate(n)) for n in before.calls
        }  # fmt: skip
        return Squeezed(
            masks=Masks(masks),
            agreement={n: neuron.equal for n, neuron in neurons.items()},
            neurons=neurons,
            layers=layers,
            seconds=time.perf_counter() - self.started,
            phases=dict(self.phases),
            images=self.batches.images,
            notes=list(self.notes),
        )

    def _warn(self, text: str) -> None:
        self.notes.append(text)
        warnings.warn(text, UserWarning, stacklevel=5)
