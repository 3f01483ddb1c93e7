"""Any model as layers: its forward is recorded, taken apart into time steps, rolled up, and compared with itself."""

import copy

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, first_line
from spikeprune.model.adapter import Adapter
from spikeprune.model.discover import spiking_adapter
from spikeprune.model.examples import evaluating, opened, undisturbed
from spikeprune.runtime.compile.network import Layout, LoweredNetwork, interpret
from spikeprune.runtime.follow import Batch, call, find_batches, generated
from spikeprune.runtime.steps.blocks import Origins
from spikeprune.runtime.steps.build import LayerMaker
from spikeprune.runtime.steps.capture import CapturedCall, captured
from spikeprune.runtime.steps.roll import Roller

SCALES = (0.4, 1.0, 3.0)  # of the generated inputs, in units of the example's largest value
LONGEST = 4  # steps that are recorded where the model takes any number of them
TOLERANCE = 1e-3


def lower_any(model: nn.Module, example: Tensor) -> LoweredNetwork:
    """The model's forward in eval mode as a network that is not folded yet, on the CPU.

    Raises: InvalidValue, naming the module, for what differs from step to step, mixes samples, or decides by values.
    """
    adapter = spiking_adapter(model)
    example = example.detach().cpu()
    with evaluating(model):
        batches = find_batches(model, adapter, example)
        if not batches:
            raise InvalidValue(
                f"{type(model).__name__} was not found to treat the samples of a batch apart, so no time step can be "
                "told from a sample; give an example whose first or second axis is the batch"
            )
        refused: InvalidValue | None = None
        _check_opened(model, adapter, example)
        for batch, axis in [(b, axis) for b in batches for axis in _time_axes(example, b)]:
            for T in _lengths(example.shape[axis]):
                try:
                    return _lowered(model, adapter, example, batch, axis, T)
                except InvalidValue as error:
                    refused = refused or error
    raise refused or InvalidValue(
        f"no time axis was found in the example of shape {list(example.shape)}; give a sequence, such as [T, N, ...]"
    )


def _check_opened(model: nn.Module, adapter: Adapter, example: Tensor) -> None:
    """Neurons that are recorded in another form must fire as their own forward does, on generated currents."""
    neurons = {n: name for name, n in adapter.neurons(model).items() if adapter.plain_forward(n) is not None}
    if not neurons:
        return
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(neuron: nn.Module, args: tuple[Tensor, ...]) -> None:
        shapes.setdefault(neuron, tuple(args[0].shape))

    hooks = [neuron.register_forward_pre_hook(note) for neuron in neurons]
    try:
        call(model, adapter, example)
    finally:
        for hook in hooks:
            hook.remove()
    for neuron, shape in shapes.items():
        params, many = adapter.describe(neuron), adapter.multi_step(neuron)
        if params is None:
            continue
        threshold, gain = (torch.as_tensor(v).abs() for v in (params.v_threshold, params.gain))
        size = float(threshold.max()) / max(float(gain.min()), 1e-6)
        shape = (8, *shape[1:]) if many else shape
        steps = [generated(shape, scale * max(size, 1e-3), seed=i) for i, scale in enumerate((0.8, 1.5, 4.0, 1.0) * 2)]
        found: list[Tensor] = []
        for opened_too in (False, True):
            with torch.no_grad(), undisturbed(model, adapter):
                if opened_too:
                    with opened(model, adapter):
                        found.append(torch.stack([neuron(x) for x in steps]))
                else:
                    found.append(torch.stack([neuron(x) for x in steps]))
        if float((found[0] != found[1]).float().mean()) > 1e-3:
            raise InvalidValue(
                f"cannot compile the neuron {neurons[neuron]!r}: spikes differ from those of its numbers on a "
                "generated current; let its adapter's describe() return None, or correct it"
            )


def _time_axes(example: Tensor, batch: Batch) -> list[int]:
    if batch.input == 1:
        return [0]
    return [axis for axis in dict.fromkeys((1, example.dim() - 1)) if axis != 0 and axis < example.dim()]


def _lengths(T: int) -> list[int]:
    """Numbers of steps to record, in the order in which to try them."""
    return [T] if T == LONGEST else [LONGEST, T]


def _sized(x: Tensor, axis: int, size: int) -> Tensor:
    """x with `size` entries along an axis, cut or begun again."""
    repeats = [1] * x.dim()
    repeats[axis] = -(-size // x.shape[axis])
    return x.repeat(repeats).narrow(axis, 0, size)


def _recorded(model: nn.Module, adapter: Adapter, x: Tensor) -> tuple[list[CapturedCall], Tensor, Tensor]:
    try:
        with undisturbed(model, adapter), opened(model, adapter):
            return captured(model, x)
    except (RuntimeError, IndexError) as error:
        said = first_line(error, 120)
        raise InvalidValue(f"the model cannot take an input of shape {list(x.shape)}: {said}") from error


def _lowered(model: nn.Module, adapter: Adapter, example: Tensor, batch: Batch, axis: int, T: int) -> LoweredNetwork:
    N = 2
    x = _sized(_sized(example, axis, T), batch.input, N).clone()
    if example.shape[batch.input] == 1:
        other = generated(tuple(x.shape), float(example.abs().max()) or 1.0, seed=3)
        x.narrow(batch.input, 1, 1).copy_(other.narrow(batch.input, 1, 1))
    if T < 3:
        raise InvalidValue(f"T = {T} time steps are too few to tell what every step does; give at least 3")
    calls, codes, output = _recorded(model, adapter, x)
    origins = Origins(calls, axis, batch.input, N)
    roller = Roller(origins, T)
    rolled = roller.roll(codes)
    builder = LayerMaker(rolled, {n: c.value for n, c in enumerate(calls) if c.name == "constant"})
    network = builder.network(T)
    network.layout = Layout((axis, batch.input), _output_axes(codes, origins, rolled.sequence))
    values = _interpreted(network, x)
    _compare(network, values, builder, roller, origins)
    _same_output(network.returned(values, False), output, "the example")
    same = [(c.name, c.shape) for c in calls]
    top = float(example.abs().max()) or 1.0
    for seed, scale in enumerate(SCALES):
        other = generated(tuple(x.shape), scale * top, seed=10 + seed)
        calls, codes, output = _recorded(model, adapter, other)
        if [(c.name, c.shape) for c in calls] != same:
            raise InvalidValue(
                f"cannot compile {type(model).__name__}: it computes something else for another input; sp.compile "
                "takes models that do the same for every input"
            )
        again = copy.copy(origins)  # the same calls have the same codes, and other values
        again.calls = calls
        values = _interpreted(network, other)
        _compare(network, values, builder, roller, again)
        _same_output(network.returned(values, False), output, "a generated input")
    network.T = example.shape[axis]
    whole = _sized(example, batch.input, N)
    longer = _sized(whole, axis, network.T + 1)
    fixed = not _agrees(network, _interpreted(network, longer), model, adapter, longer)
    values = _interpreted(network, whole)
    if not _agrees(network, values, model, adapter, whole):
        raise InvalidValue(
            f"cannot compile {type(model).__name__}: it computes something else for T = {network.T} steps"
        )
    network.layout = Layout(network.layout.input, network.layout.output, fixed)
    network.measure(values, False)
    return network


def _output_axes(codes: Tensor, origins: Origins, sequence: bool) -> tuple[int, int]:
    """Axes of T and N in what the model returns."""
    if not sequence:
        return (0, 1)
    found: list[int] = []
    for labels in (origins.time[codes], origins.sample[codes]):
        differ = [d for d in range(codes.dim()) if not torch.equal(labels, labels.narrow(d, 0, 1).expand_as(labels))]
        if len(differ) != 1 or differ[0] in found:
            raise InvalidValue(
                "the model does not return time in one axis and the batch in another one; let it return [T, N, ...] or "
                "[N, ...]"
            )
        found.append(differ[0])
    return found[0], found[1]


def _interpreted(network: LoweredNetwork, x: Tensor) -> dict[int, Tensor]:
    with torch.no_grad():
        return interpret(network, network.layout.inside(x), False)


def _compare(
    network: LoweredNetwork, values: dict[int, Tensor], builder: LayerMaker, roller: Roller, origins: Origins
) -> None:
    """Every layer's values, potentials among them, at every step but the first, where a model may begin otherwise."""
    places: dict[int, dict[int, tuple[int, int]]] = {}
    for place, key in roller.key.items():
        places.setdefault(key, {}).setdefault(place[1], place)
    for layer in network.layers:
        key = builder.of.get(layer.output)
        if key is None or layer.op.ends_time:
            continue
        at = places.get(key, {})  # keys are numbered as they come, so a forward that does the same has the same ones
        missing = [t for t in range(1, roller.T - 1) if t not in at]
        if missing:
            raise InvalidValue(
                f"cannot compile {layer.name!r}: at step {missing[0]} it computes something else; sp.compile takes "
                "models that do the same at every step"
            )
        for t in sorted(at.keys() - {0}):
            expected = origins.values(origins.codes[at[t]])
            found = values[layer.output][t].reshape(expected.shape)
            far = (found - expected).abs() > TOLERANCE * float(expected.abs().max()) + 1e-5
            differ = int(far.sum())
            binary = bool(((expected == 0) | (expected.abs() == expected.abs().max())).all())
            if differ and binary and differ <= max(2, 1e-4 * expected.numel()):
                return  # rounding at the threshold; behind it differences only spread
            if differ:
                raise InvalidValue(
                    f"cannot compile {layer.name!r}: {differ} of {expected.numel()} values of its {layer.kind} differ "
                    f"from the model's at step {t}; give sp.compile an example of the first steps that the model sees, "
                    "and let the model do the same for every input"
                )


def _same_output(found: Tensor, expected: Tensor, what: str) -> None:
    if found.shape != expected.shape:
        raise InvalidValue(
            f"the layers give the shape {list(found.shape)} for {what}, and the model {list(expected.shape)}; "
            "let it return [T, N, ...] or [N, ...]"
        )
    if not _near(found, expected):
        raise InvalidValue(
            f"cannot compile what follows the last neuron: the output for {what} differs from the model's; let the "
            "model return [T, N, ...] or [N, ...]"
        )


def _near(found: Tensor, expected: Tensor) -> bool:
    far = (found - expected).abs() > TOLERANCE * float(expected.abs().max()) + 1e-4
    return int(far.sum()) <= 0.1 * far.numel()  # a spike that rounding decided moves some outputs of one sample


def _agrees(network: LoweredNetwork, values: dict[int, Tensor], model: nn.Module, adapter: Adapter, x: Tensor) -> bool:
    try:
        expected = call(model, adapter, x)
    except Exception:  # a model may refuse any other length in words of its own
        return False
    found = network.returned(values, False)
    return found.shape == expected.shape and _near(found, expected.float())
