"""Captured calls taken apart into time steps: every number gets a time and a sample, every call a part for each time.

    time of a result = the latest time of what went into it        sample = the one sample of what went into it

T time steps, N batch; a block is what belongs to one sample at one time step.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime.steps.capture import Argument, CapturedCall
from spikeprune.runtime.steps.steps import ELEMENTWISE, IMAGES, REDUCTIONS, Region, StepFunction

Place = tuple[int, int]  # a call and a time step
_ROWS = {"convolution", "native_batch_norm", "_native_batch_norm_legit_no_training", *IMAGES}


@dataclass
class StepRows:
    """The elements of a tensor that belong to one time step.

    index: [N, M], the positions of each sample's M elements in the flattened tensor. shape: of one sample's elements.
    """

    index: Tensor
    shape: tuple[int, ...]


class Origins:
    """Time, sample and place in its block of every code."""

    def __init__(self, calls: list[CapturedCall], time_axis: int, batch_axis: int, N: int) -> None:
        self.calls, self.N = calls, N
        size = calls[-1].start + math.prod(calls[-1].shape)
        self.time, self.sample = torch.full((size,), -1), torch.full((size,), -1)
        self.offset, self.call = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
        self.steps: dict[Place, StepFunction] = {}
        self.blocks: dict[Place, tuple[int, ...]] = {}
        self.codes: dict[Place, Tensor] = {}  # [N, M] of each part
        self.batch_axis, self.time_axis = batch_axis, time_axis
        # Of one call: what its steps read. A square matrix and its transpose differ in their strides alone.
        self._read: dict[tuple[int, torch.Size, tuple[int, ...]], dict[int, StepRows]] = {}
        for number, call in enumerate(calls):
            span = slice(call.start, call.start + math.prod(call.shape))
            self.call[span] = number
            if call.name == "constant":
                self.offset[span] = torch.arange(span.stop - span.start)
                continue
            time, sample = self._labels(call)
            self.time[span], self.sample[span] = time.reshape(-1), sample.reshape(-1)
            rows = self.rows(torch.arange(span.start, span.stop).view(call.shape), call)
            for t, own in rows.items():
                self.offset[span.start + own.index] = torch.arange(own.index.shape[1])
                self.blocks[number, t] = own.shape
                self.codes[number, t] = span.start + own.index
            self._read.clear()
            for t, own in rows.items():
                self._step(number, call, t, own)

    # -- times and samples -------------------------------------------------------------------------------------------

    def refuse(self, call: CapturedCall, why: str) -> InvalidValue:
        """The error for a call that has no part in a time step."""
        what = f"{call.module!r}" if call.module else "the model's forward"
        return InvalidValue(f"cannot compile {what}: its {call.name.partition('.')[0]!r} {why}")

    def _labels(self, call: CapturedCall) -> tuple[Tensor, Tensor]:
        if call.name == "input":
            t, n = (torch.full(call.shape, -1) for _ in range(2))
            for labels, axis in ((t, self.time_axis), (n, self.batch_axis)):
                view = [-1 if d == axis else 1 for d in range(len(call.shape))]
                labels.copy_(torch.arange(call.shape[axis]).view(view).expand(call.shape))
            return t, n
        base = call.name.partition(".")[0]
        inputs = [(self.time[codes], self.sample[codes]) for codes in call.inputs]
        if base in ELEMENTWISE:
            times = torch.broadcast_tensors(*[t for t, _ in inputs], torch.full(call.shape, -1))
            samples = torch.broadcast_tensors(*[n for _, n in inputs], torch.full(call.shape, -1))
            time, sample = torch.stack(times).amax(0), torch.stack(samples).amax(0)
            if any(bool(((n >= 0) & (n != sample)).any()) for n in samples):
                raise self.refuse(call, "mixes samples of the batch")
            return time, sample
        if base in ("mm", "addmm"):
            first = inputs[0 if base == "mm" else 1]
            if bool((inputs[1 if base == "mm" else 2][1] >= 0).any()):
                raise self.refuse(call, "multiplies a weight with time or samples on its right side")
            return self._by_row(call, *first)
        if base in _ROWS:
            if any(bool((n >= 0).any()) for _, n in inputs[1:]):
                raise self.refuse(call, "has weights that depend on the input")
            return self._by_row(call, *inputs[0])
        if base == "bmm" and self._weighted(call):
            time, sample = (labels.amax(2, keepdim=True).expand(call.shape) for labels in inputs[0])
            return time, sample
        if base == "bmm":
            rows = [torch.stack([x.flatten(1).amax(1) for x in pair]).amax(0) for pair in zip(*inputs, strict=True)]
            return rows[0].view(-1, 1, 1).expand(call.shape), self._one(call, inputs, rows[1]).expand(call.shape)
        if base in REDUCTIONS:
            dims, keep = _reduced(call)
            t, n = (x.amax(dims, keepdim=keep) for x in inputs[0])
            return t.reshape(call.shape), n.reshape(call.shape)
        raise self.refuse(call, "is not known to keep time steps apart")

    def _weighted(self, call: CapturedCall) -> bool:
        """Whether a batched product multiplies with one weight that is the same for all samples."""
        weight = call.inputs[1]
        return weight.shape[0] == 1 and bool((self.sample[weight] < 0).all())

    def _one(self, call: CapturedCall, inputs: list[tuple[Tensor, Tensor]], sample: Tensor) -> Tensor:
        for _, n in inputs:
            if bool(((n >= 0) & (n != sample.view(-1, *[1] * (n.dim() - 1)))).any()):
                raise self.refuse(call, "mixes samples of the batch")
        return sample.view(-1, 1, 1)

    def _by_row(self, call: CapturedCall, time: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        for labels, what in ((time, "time steps"), (sample, "samples of the batch")):
            flat = labels.flatten(1)
            row = flat.amax(1)
            if bool(((flat >= 0) & (flat != row[:, None])).any()):
                raise self.refuse(call, f"mixes {what}")
            found.append(row.view(-1, *[1] * (len(call.shape) - 1)).expand(call.shape))
        return found[0], found[1]

    # -- blocks ------------------------------------------------------------------------------------------------------

    def rows(self, codes: Tensor, call: CapturedCall) -> dict[int, StepRows]:
        """Which elements belong to which time step, in each of its samples."""
        labels = (self.time[codes], self.sample[codes])
        rest = [d for d in range(codes.dim()) if all(_constant(x, d) for x in labels)]
        batch = [d for d in range(codes.dim()) if d not in rest]
        place = torch.arange(codes.numel()).view(codes.shape).permute(*batch, *rest)
        block = [codes.shape[d] for d in rest]
        count = math.prod(codes.shape[d] for d in batch)
        place = place.reshape(count, -1)
        time, sample = (x.reshape(-1)[place].amax(1) for x in labels)
        found: dict[int, StepRows] = {}
        for t in time.unique().tolist():
            own = torch.nonzero(time == t)[:, 0]
            n = sample[own]
            if len(own) % self.N or not torch.equal(
                n.sort().values, torch.arange(self.N).repeat_interleave(len(own) // self.N)
            ):
                raise self.refuse(call, "does not treat every sample of the batch alike")
            order = own[torch.argsort(n, stable=True)]
            more = len(own) // self.N
            shape = ((more,) if more > 1 else ()) + tuple(block)
            found[t] = StepRows(place[order].view(self.N, -1), shape)
        return found

    def region(self, codes: Tensor, shape: tuple[int, ...], call: CapturedCall) -> Region:
        """The sources that [N, M] codes are gathered from: ("p", (call, t)), or ("k", call) for constants."""
        sample, first = self.sample[codes], codes[0]
        number, time, offset = self.call[codes], self.time[codes], self.offset[codes]
        live = sample[0] >= 0
        wanted = torch.where(live, torch.arange(self.N)[:, None], -1)
        moved = any(bool(((x != x[0]) & live).any()) for x in (number, time, offset))
        if moved or not torch.equal(sample, wanted):
            raise self.refuse(call, "reads other values for one sample of the batch than for another one")
        if not bool(live.all()):
            constant = self.values(codes[:, ~live])
            if not bool((constant == constant[0]).all()):
                raise self.refuse(call, "has constants that differ between samples")
        pairs = torch.stack([number[0], time[0]], 1)
        unique, inverse = torch.unique_consecutive(pairs, dim=0, return_inverse=True)
        sources: list[tuple[str, object]] = []
        places = torch.empty(len(first), dtype=torch.long)
        starts: dict[tuple[int, int], int] = {}
        end = 0
        for i, (who, t) in enumerate(unique.tolist()):
            if (who, t) not in starts:
                constant = self.calls[who].name == "constant"
                starts[who, t] = end
                sources.append(("k", who) if constant else ("p", (who, t)))
                end += math.prod(self.calls[who].shape) if constant else math.prod(self.blocks[who, t])
            own = inverse == i
            places[own] = starts[who, t] + offset[0][own]
        whole = len(sources) == 1 and torch.equal(places, torch.arange(end))
        return Region(shape, sources, None if whole else places)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _step(self, number: int, call: CapturedCall, t: int, own: StepRows) -> None:
        base = call.name.partition(".")[0]
        if call.name == "input":
            self.steps[number, t] = StepFunction("input", [], [], [], own.shape)
        elif base in ELEMENTWISE:
            self.steps[number, t] = self._elementwise(call, own)
        elif base in REDUCTIONS and self._over_time(call):
            self.steps[number, t] = self._time_reduction(call, base, own)
        else:
            self.steps[number, t] = self._structured(call, base, t, own)
        self.steps[number, t].module = call.module

    def _elementwise(self, call: CapturedCall, own: StepRows) -> StepFunction:
        inputs: list[Region] = []
        constants: list[Tensor] = []
        names: list[tuple[str, int]] = []
        for codes in call.inputs:
            expanded = codes.expand(call.shape).reshape(-1)[own.index]
            if bool((self.sample[expanded] >= 0).any()):
                names.append(("i", len(inputs)))
                inputs.append(self.region(expanded, own.shape, call))
            else:
                value = self._constant(expanded, own.shape, call)
                names.append(("c", len(constants)))
                constants.append(value)
        template = [names[a.place] if isinstance(a, Argument) else a for a in call.arguments]
        keywords = {k: v for k, v in call.keywords.items() if k not in ("layout", "device", "pin_memory")}
        if call.name.startswith("_to_copy"):  # a number made whole, as a comparison with 0 or by cutting
            return StepFunction(
                "ne.Scalar" if keywords.get("dtype") == torch.bool else "trunc.default",
                [("i", 0), 0] if keywords.get("dtype") == torch.bool else [("i", 0)],
                inputs,
                [],
                own.shape,
            )
        return StepFunction(call.name, template, inputs, constants, own.shape, keywords=keywords)

    def _constant(self, codes: Tensor, shape: tuple[int, ...], call: CapturedCall) -> Tensor:
        values = self.values(codes)
        if not bool((values == values[0]).all()):
            raise self.refuse(call, "has constants that differ between samples")
        return compressed(values[0].view(shape))

    def values(self, codes: Tensor) -> Tensor:
        """The numbers that these codes stand for in the captured forward."""
        found = torch.empty(codes.shape, dtype=torch.float64)
        for number in self.call[codes].unique().tolist():
            own = self.call[codes] == number
            call = self.calls[number]
            found[own] = call.value.reshape(-1)[codes[own] - call.start].double()
        return found.float()

    def _raw(self, codes: Tensor) -> Tensor:
        return self.values(codes.reshape(-1)).view(codes.shape)

    def _own_region(self, codes: Tensor, t: int, call: CapturedCall) -> Region:
        key = codes.data_ptr(), codes.shape, codes.stride()
        if key not in self._read:
            self._read[key] = self.rows(codes, call)
        rows = self._read[key]
        if t not in rows:
            raise self.refuse(call, "reads another time step in a way that is not known")
        return self.region(codes.reshape(-1)[rows[t].index], rows[t].shape, call)

    def _structured(self, call: CapturedCall, base: str, t: int, own: StepRows) -> StepFunction:
        inputs, arguments = call.inputs, call.arguments
        if base in ("mm", "addmm"):
            if base == "addmm" and call.keywords:
                raise self.refuse(call, "has factors of its own, alpha or beta; let it multiply before or after")
            x, weight = (inputs[0], inputs[1]) if base == "mm" else (inputs[1], inputs[2])
            constants = [self._raw(weight).t().contiguous()]
            if base == "addmm":
                constants.append(self._raw(inputs[0]).expand(call.shape[1]).contiguous())
            return StepFunction("linear", [], [self._own_region(x, t, call)], constants, own.shape)
        if base == "bmm" and self._weighted(call):
            region = self._own_region(inputs[0][0], t, call)
            shape = (*region.shape[:-1], call.shape[-1])
            return StepFunction("linear", [], [region], [self._raw(inputs[1][0]).t().contiguous()], shape)
        if base == "bmm":
            return StepFunction("matmul", [], [self._own_region(x, t, call) for x in inputs], [], own.shape)
        if base == "convolution":
            constants = [self._raw(codes) for codes in inputs[1:]]
            settings = [list(a) if isinstance(a, tuple) else a for a in arguments[3:]]
            return StepFunction("convolution", settings, [self._own_region(inputs[0], t, call)], constants, own.shape)
        if "batch_norm" in base:
            return self._norm(call, base, t, own)
        region = self._own_region(inputs[0], t, call)
        if base in REDUCTIONS:
            dims, _ = _reduced(call)
            rest = [
                d for d in range(inputs[0].dim()) if all(_constant(x[inputs[0]], d) for x in (self.time, self.sample))
            ]
            more = len(region.shape) - len(rest)
            return StepFunction(call.name, [[rest.index(d) + more for d in dims]], [region], [], own.shape)
        settings = [list(a) if isinstance(a, tuple) else a for a in arguments[1:]]
        return StepFunction(call.name, [("i", 0), *settings], [region], [], own.shape)

    def _norm(self, call: CapturedCall, base: str, t: int, own: StepRows) -> StepFunction:
        values = [self._raw(i) for i in call.inputs]
        kinds = [a.place if isinstance(a, Argument) else None for a in call.arguments[:5]]
        weight, bias, mean, variance = (None if k is None else values[k].double() for k in kinds[1:])
        training = base == "native_batch_norm" and bool(call.arguments[5])
        if training or mean is None or variance is None:
            raise self.refuse(call, "takes its statistics from the batch")
        scale = (variance + call.arguments[-1]).rsqrt() * (1.0 if weight is None else weight)
        shift = (0.0 if bias is None else bias) - mean * scale
        region = self._own_region(call.inputs[0], t, call)
        axes = [1] * (len(call.shape) - 2)  # C is the second axis of the call, the first of its block
        constants = [scale.float().view(-1, *axes), shift.float().view(-1, *axes)]
        return StepFunction("affine", [], [region], constants, own.shape)

    def _over_time(self, call: CapturedCall) -> bool:
        dims, _ = _reduced(call)
        time = self.time[call.inputs[0]]
        return not torch.equal(time.amax(dims), time.amin(dims)) or bool((time.amin(dims) < 0).any())

    def _time_reduction(self, call: CapturedCall, base: str, own: StepRows) -> StepFunction:
        """The step function of a reduction over time (sum, mean, ...) that may reduce axes within a step as well.

        Raises: InvalidValue if it reduces over samples too.
        """
        x = call.inputs[0]
        rows = self.rows(x, call)
        dims, _ = _reduced(call)
        constant = [d for d in range(x.dim()) if all(_constant(labels[x], d) for labels in (self.time, self.sample))]
        block = [constant.index(d) for d in dims if d in constant]
        if any(d not in constant and d not in self._time_axes(x) for d in dims):
            raise self.refuse(call, "reduces an axis along which the samples of the batch lie")
        regions = [self.region(x.reshape(-1)[rows[t].index], rows[t].shape, call) for t in sorted(rows)]
        return StepFunction(f"time_{base}", [block, sorted(rows)], regions, [], own.shape)

    def _time_axes(self, codes: Tensor) -> list[int]:
        return [d for d in range(codes.dim()) if _constant(self.sample[codes], d)]


def _constant(labels: Tensor, dim: int) -> bool:
    if labels.shape[dim] == 1:
        return True
    first = labels.narrow(dim, 0, 1).expand_as(labels)
    return bool(((labels == first) | (labels < 0) | (first < 0)).all())


def _reduced(call: CapturedCall) -> tuple[list[int], bool]:
    dims = call.arguments[1] if len(call.arguments) > 1 else None
    keep = bool(call.arguments[2]) if len(call.arguments) > 2 else bool(call.keywords.get("keepdim", False))
    rank = call.inputs[0].dim()
    every: Iterable[int] = range(rank) if dims is None or dims == () else dims if isinstance(dims, tuple) else (dims,)
    return [d % rank for d in every], keep


def compressed(value: Tensor) -> Tensor:
    """The value with every dimension of equal entries cut to 1."""
    for dim in range(value.dim()):
        first = value.narrow(dim, 0, 1)
        if value.shape[dim] > 1 and torch.equal(first.expand_as(value), value):
            value = first
    return value.clone()
