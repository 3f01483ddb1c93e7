"""`count`: what a spiking network computes per sample, dense and with its pruned weights left out.

Hooks on the Conv and Linear layers see each input as it passes; nothing of it is kept.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.mask import check_fit, disobeying
from spikeprune.count import formulas
from spikeprune.count.figures import Counts, Figures, Sides
from spikeprune.count.uses import UsedWeight, Uses
from spikeprune.model.adapter import Adapter, find_adapter, weights_of_neurons
from spikeprune.model.arguments import Arguments, on_result
from spikeprune.model.axes import check_time, not_told, samples_axis, samples_of, unknown_parts
from spikeprune.model.operations import has_own_forward, is_mapped
from spikeprune.model.trace import Tracer
from spikeprune.model.weights import layer_modules, stored_weight, weight_of
from spikeprune.model.wrappers import eager

_log = logging.getLogger("spikeprune")
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
_CONVOLUTIONS: dict[int, type[_ConvNd]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def count(
    model: nn.Module,
    data: Iterable[Any],
    masks: Mapping[str, Tensor] | None = None,
    time: str | None = None,
) -> Counts:
    """Parameters, operations, energy and firing rates of a network on `data`, per sample.

    Each pair of a non-zero input and a weight is one operation of a layer. It is an accumulate if all inputs of that
    call of the layer are -1, 0 or 1, and a multiply-accumulate otherwise. Both agree with NeuroBench's
    SynapticOperations. Biases, normalisation and neuron updates are not counted. Weights are counted where they are
    used: in Conv and Linear modules, in functions, inside of neurons. A layer that runs once per image is counted once.

    The model runs in eval mode without gradient; membrane state is reset before and after each batch, and each
    module's own mode is put back.

    Args:
        data: batches, each an input or an (input, target) pair, on the model's device, fed as they are.
        masks: parameter name -> bool tensor of its shape, True = alive, as in `pruner.masks`. Without masks a weight
            that is exactly 0 counts as pruned, which overlooks regrown weights that have not moved yet. If weights do
            not obey the masks, the figures are those of the masks, and a warning says so.
        time: where the time steps of an input are: "first" [T, N, ...], "batch-first" [N, T, ...], "last" [N, ..., T];
            "outside" for a model of one step, which is then called for each x[t] of [T, N, ...]. By default N is read
            from the targets, the neurons or the output.

    Raises: InvalidValue, UnknownName for masks that do not fit the model, where the batch size cannot be told, or for
        nan in a weight or in a layer's input; MissingEvidence if `data` is empty.

    Examples:
        >>> masks = sp.prune(model, "magnitude", 0.75)
        >>> counts = sp.count(model, data, masks)
        >>> counts.dense.alive, counts.pruned.alive
        (768, 192)
    """
    check_time(time)
    model = eager(model)
    check_fit(masks or {}, dict(model.named_parameters()))
    _check_numbers(model)
    _warn_of_disobeyed(masks or {}, model)
    adapter = find_adapter(model)
    modules = layer_modules(model)
    weights = {_name(model, stored_weight(m), name): weight_of(m).detach() for name, m in modules.items()}
    weights |= {name: weight.detach() for name, weight in weights_of_neurons(model).items()}
    zeros = {name: weight != 0 for name, weight in weights.items()}
    # Of a network without masks, a weight tensor without zeros is taken as never pruned.
    masked = {n: alive for n, alive in zeros.items() if not alive.all()} if masks is None else masks
    # Pruned channels mask biases and normalisation too, which are not weights.
    prunable = [mask for mask in (zeros if masks is None else masks).values() if mask.dim() > 1]

    layers = {
        name: LayerMeter(name, module, masked.get(_name(model, stored_weight(module), name)))
        for name, module in modules.items()
    }
    neurons = {} if adapter is None else {n: NeuronMeter(m, adapter) for n, m in adapter.neurons(model).items()}
    uses = Uses(dict(model.named_parameters()), masked.get)
    samples = _run(model, data, adapter, layers, neurons, uses, time)
    if uses.mapped is not None:
        raise _inside_vmap(f"the function {uses.mapped!r}")
    for name, function in uses.unread.items():
        _log.warning(
            "spikeprune: %r goes through the function %r, whose operations are not counted; write it as a product, "
            "such as torch.nn.functional.linear",
            name,
            function,
        )

    def packed(part: nn.Module) -> int:
        return sum(formulas.stored_bytes(p, masked.get(_name(model, p, ""))) for p in part.parameters())

    sides = {name: layer.sides(samples, packed(layer.module)) for name, layer in layers.items()}
    for name, used in uses.weights.items():
        owner = next((n for n, m in modules.items() if stored_weight(m) is used.parameter), name)
        size = formulas.stored_bytes(used.parameter), formulas.stored_bytes(used.parameter, masked.get(name))
        sides[owner] = _together(sides.get(owner), _sides_of_use(used, samples, size))
    values = sum(neuron.values for neuron in neurons.values()) + sum(uses.values.values())
    rate = (sum(n.spikes for n in neurons.values()) + sum(uses.spikes.values())) / values if values else 0.0

    def total(per_layer: list[Figures], alive: int, size: int) -> Figures:
        return Figures(
            parameters=sum(p.numel() for p in model.parameters()),
            alive=alive,
            bytes=size,
            macs=sum(figures.macs for figures in per_layer),
            acs=sum(figures.acs for figures in per_layer),
            mac_ops=sum(figures.mac_ops for figures in per_layer),
            firing_rate=rate,
        )

    whole = sum(formulas.stored_bytes(p) for p in model.parameters())
    return Counts(
        dense=total([side.dense for side in sides.values()], sum(mask.numel() for mask in prunable), whole),
        pruned=total([side.pruned for side in sides.values()], sum(int(m.sum()) for m in prunable), packed(model)),
        layers=sides,
        firing_rates={name: neuron.rate for name, neuron in neurons.items()}
        | {name: uses.spikes[name] / size for name, size in uses.values.items() if size},
        samples=samples,
        products=uses.products / samples,
        uncounted=dict(uses.unread),
    )


def _inside_vmap(part: str) -> InvalidValue:
    return InvalidValue(
        f"{part} multiplies inside of torch.vmap, where operations cannot be counted; call it once on the whole batch"
    )


def _check_numbers(model: nn.Module) -> None:
    """Raises: InvalidValue if a parameter holds nan. Its neurons are silent, so the network would look cheap."""
    bad = next((n for n, p in model.named_parameters() if p.is_floating_point() and bool(p.isnan().any())), None)
    if bad is not None:
        raise InvalidValue(f"{bad!r} holds nan (not a number), so there is nothing to count; load or train it again")


def _warn_of_disobeyed(masks: Mapping[str, Tensor], model: nn.Module) -> None:
    found = disobeying(masks, dict(model.named_parameters()))
    if found:
        _log.warning(
            "spikeprune: %d weights that the masks cut are not 0 (first in %r), so count tells of the masks and not of "
            "this model; masks.apply_(model) zeroes them",
            sum(found.values()),
            next(iter(found)),
        )


def _sides_of_use(used: UsedWeight, samples: int, size: tuple[int, int]) -> Sides:
    def side(index: int, alive: int) -> Figures:
        return Figures(
            parameters=used.parameter.numel(),
            alive=alive,
            bytes=size[index],
            macs=used.applied * alive / samples,
            acs=used.acs[index] / samples,
            mac_ops=used.mac_ops[index] / samples,
            firing_rate=used.active / used.inputs if used.inputs else 0.0,
        )

    return Sides(side(0, used.alive.numel()), side(1, int(used.alive.sum())))


def _together(module: Sides | None, used: Sides) -> Sides:
    """The operations of a layer that is called as a module and by function, or by function alone."""
    if module is None:
        return used

    def both(a: Figures, b: Figures) -> Figures:
        rate = a.firing_rate if a.macs else b.firing_rate
        return replace(a, macs=a.macs + b.macs, acs=a.acs + b.acs, mac_ops=a.mac_ops + b.mac_ops, firing_rate=rate)

    return Sides(both(module.dense, used.dense), both(module.pruned, used.pruned), module.outputs)


class LayerMeter:
    """Running counts of one Conv or Linear layer."""

    def __init__(self, name: str, module: _ConvNd | nn.Linear, mask: Tensor | None) -> None:
        self.name, self.module = name, module
        self.batch = 0
        weight = weight_of(module)
        self.alive = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device).bool()
        self.applied = 0  # how often the whole kernel was laid on, or the matrix multiplied with
        self.acs = (0, 0)  # dense, pruned
        self.mac_ops = (0, 0)
        self.inputs = 0
        self.active = 0
        self._fan_out: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def hook(self, _: nn.Module, given: Arguments, output: Tensor) -> None:
        x = given.first
        if is_mapped(x):
            raise _inside_vmap(f"layer {self.name!r}")
        if isinstance(self.module, nn.Linear):
            x = x.reshape(-1, x.shape[-1])
            self.applied += x.shape[0]
        else:
            space = self.alive.dim() - 2
            # [C, *space], [N, C, *space] or [T, N, C, *space]
            x = x.reshape(-1, *x.shape[-space - 1 :])
            at = x.shape if isinstance(self.module, _ConvTransposeNd) else output.shape
            self.applied += x.shape[0] * math.prod(at[-space:])
        shape = tuple(x.shape[1:])
        if shape not in self._fan_out:
            self._fan_out[shape] = (self.fan_out(torch.ones_like(self.alive), shape), self.fan_out(self.alive, shape))
        dense, pruned = (formulas.operations(x, fan_out) for fan_out in self._fan_out[shape])
        if formulas.is_spiking(x):
            self.acs = (self.acs[0] + dense, self.acs[1] + pruned)
        else:
            if bool(x.isnan().any()):
                raise InvalidValue(
                    f"the input of layer {self.name!r} holds nan (not a number) in batch {self.batch}; check the data "
                    "and what stands before the layer"
                )
            self.mac_ops = (self.mac_ops[0] + dense, self.mac_ops[1] + pruned)
        self.inputs += x.numel()
        self.active += int(x.count_nonzero())

    def fan_out(self, alive: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Uses of each input value by the alive weights."""
        module = self.module
        if isinstance(module, nn.Linear):
            return formulas.linear_fan_out(alive)
        kernel = alive.float()
        if isinstance(module, _ConvTransposeNd):
            settings = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
            transposed = _TRANSPOSED[len(module.stride)]
            return formulas.fan_out(lambda x: transposed(x, kernel, None, *settings), shape, kernel.device)
        # The base's own: a subclass may do more to the weight than multiply with it.
        forward = cast(Callable[..., Tensor], _CONVOLUTIONS[len(module.stride)]._conv_forward)
        return formulas.fan_out(lambda x: forward(module, x, kernel, None), shape, kernel.device)

    def sides(self, samples: int, packed: int) -> Sides:
        """Per-sample figures; `packed` is the layer's stored size with its masks."""
        parameters = list(self.module.parameters())

        def side(index: int, alive: int, size: int) -> Figures:
            return Figures(
                parameters=sum(p.numel() for p in parameters),
                alive=alive,
                bytes=size,
                macs=self.applied * alive / samples,
                acs=self.acs[index] / samples,
                mac_ops=self.mac_ops[index] / samples,
                firing_rate=self.active / self.inputs if self.inputs else 0.0,
            )

        whole = sum(formulas.stored_bytes(p) for p in parameters)
        # A transposed convolution is laid onto its output, so its uses do not tell how many outputs there are.
        outputs = 0.0 if isinstance(self.module, _ConvTransposeNd) else self.applied * self.alive.shape[0] / samples
        return Sides(side(0, self.alive.numel(), whole), side(1, int(self.alive.sum()), packed), outputs)


class NeuronMeter:
    """Running spike count of one neuron layer, and the batch size of its last call."""

    def __init__(self, module: nn.Module, adapter: Adapter) -> None:
        self.module = module
        self.adapter = adapter
        self.spikes = 0
        self.values = 0
        self.batch: int | None = None

    def hook(self, module: nn.Module, given: Arguments, output: Any) -> None:
        # Some frameworks return (spikes, state).
        spikes = cast(Tensor, output[0] if isinstance(output, tuple) else output)
        self.spikes += int(spikes.count_nonzero())
        self.values += spikes.numel()
        shape = given.first.shape
        batch_dim = 1 if self.adapter.multi_step(module) else 0
        self.batch = shape[batch_dim] if len(shape) > batch_dim else None

    @property
    def rate(self) -> float:
        return self.spikes / self.values if self.values else 0.0


def _run(
    model: nn.Module,
    data: Iterable[Any],
    adapter: Adapter | None,
    layers: Mapping[str, LayerMeter],
    neurons: Mapping[str, NeuronMeter],
    uses: Uses,
    time: str | None,
) -> int:
    """Feeds the batches; returns the number of samples. Leaves no hook, no state and no changed mode behind."""
    # It slows the forward down, so it stays only if the first batch shows something that hooks do not see.
    tracer: Tracer | None = Tracer(model, adapter, uses.done, listener=uses, once=False)
    modes = [(module, module.training) for module in model.modules()]
    # A layer with a forward of the user's own is counted by `uses`, in the functions that its forward calls.
    hooks = [on_result(layer.module, layer.hook) for layer in layers.values() if not has_own_forward(layer.module)]
    hooks += [on_result(neuron.module, neuron.hook) for neuron in neurons.values()]
    samples, plain = 0, not unknown_parts(model, adapter)
    try:
        model.eval()
        with torch.no_grad():
            for batch in [data] if isinstance(data, Tensor) else data:
                x, target = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
                if adapter is not None:
                    adapter.reset(model)
                for layer in layers.values():
                    layer.batch += 1
                for neuron in neurons.values():
                    neuron.batch = None
                outputs = [model(step) for step in x] if time == "outside" else [model(x)]
                if tracer is not None and uses.empty:
                    tracer.remove()
                    tracer = None
                seen = uses.batches | {neuron.batch for neuron in neurons.values() if neuron.batch is not None}
                samples += _batch_size(x, target, seen, outputs[0], time, plain)
    finally:
        for hook in hooks:
            hook.remove()
        if tracer is not None:
            tracer.remove()
        if adapter is not None:
            adapter.reset(model)
        for module, training in modes:
            module.training = training
    if not samples:
        raise MissingEvidence("there is no batch to count on; give data=[x, ...], or (input, target) pairs")
    return samples


def _batch_size(x: Any, target: Any, seen: set[int], output: Any, time: str | None, plain: bool) -> int:
    """The number of samples N of a batch: from the order of axes `time`, else from the target or the neurons' input.

    Raises: UserError if none of them shows N.
    """
    if time is not None and isinstance(x, Tensor) and x.dim():
        sizes = x.shape[:2]
        return sizes[1] if samples_axis(time) else sizes[0]
    found = samples_of(x, target, seen, output, plain)
    if found is None:
        raise not_told(x, seen)
    return found


def _name(model: nn.Module, parameter: Tensor | None, otherwise: str) -> str:
    """The parameter's name in the model, or `otherwise` if the weight is computed (parametrized)."""
    return next((name for name, p in model.named_parameters() if p is parameter), otherwise)
