"""Is a cell an integrate-and-fire neuron in normal form? Measured on its answers to chosen currents, then verified.

With u = v_pre - v_threshold, the cell must answer as

    u_t = decay * w_{t-1} + gain * x_t + k,     spike_t = u_t >= 0  (> if strict)
    w_t = r where spike, else u_t               (u_t - a * spike for a soft reset)

which is decay, gain, k and the start from the answers to nothing and to a small current, r or a from those to two
currents that make it fire. The origin of v is chosen so that it starts at 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprune.core.neuron import charge, reset_after
from spikeprune.runtime.steps.cell import Cell, double, run_cell
from spikeprune.runtime.steps.steps import ELEMENTWISE, StepFunction, gathered

_STRICT = {"gt": True, "lt": True, "ge": False, "le": False}
STEPS, SAMPLES = 12, 6
SCALES = (0.4, 1.0, 3.0)


@dataclass(frozen=True)
class Normal:
    """A neuron's numbers in normal form; each has the shape of a block."""

    decay: Tensor
    gain: Tensor
    shift: Tensor
    threshold: Tensor
    reset: Tensor
    soft: bool
    strict: bool


def normal_form(cell: Cell, shape: tuple[int, ...]) -> Normal | None:
    """The cell's numbers, None if it is another kind of neuron."""
    compared = [step for step in cell.steps if step.base in (*_STRICT, "heaviside")]
    if len(compared) != 1 or any(step.base not in ELEMENTWISE | {"affine"} for step in cell.steps):
        return None
    if any(s[0] == "x" and s[1:] != (0, 0) for step in cell.steps for r in step.inputs for s in r.sources):
        return None
    step = compared[0]
    if any(r.index is not None or r.sources[0][2] for r in step.inputs) or not _usual(step):
        return None
    if tuple(cell.steps[cell.output].shape) != shape or tuple(step.shape) != shape:
        return None
    strict = _STRICT.get(step.base, True)
    exact = double(cell)
    excess = _excess(exact, exact.steps[cell.steps.index(step)])

    def answers(*currents: Tensor | float) -> list[Tensor]:
        xs = [torch.as_tensor(c, dtype=torch.float64).expand(1, *shape) for c in currents]
        return [excess(now) for now in run_cell(exact, [xs], everything=True)]

    with torch.no_grad():
        found = _measure(answers, strict)
        return found if found is not None and _verified(exact, found, excess, shape) else None


def _usual(step: StepFunction) -> bool:
    """False for a Heaviside step that does not return 0 at 0; True for all other steps."""
    if step.base != "heaviside":
        return True
    item = step.template[1]
    return isinstance(item, (tuple, list)) and item[0] == "c" and bool((step.constants[item[1]] == 0).all())


def _excess(cell: Cell, step: StepFunction) -> Callable[[dict[tuple[str, int], Tensor]], Tensor]:
    """How far a neuron is above its threshold, from the values of a step."""

    def side(item: object, now: dict[tuple[str, int], Tensor]) -> Tensor | float:
        if isinstance(item, (tuple, list)):
            if item[0] == "c":
                return step.constants[item[1]].double()
            region = step.inputs[item[1]]
            return gathered(region, [now[s[0], s[1]] for s in region.sources])
        return float(item)  # pyright: ignore[reportArgumentType]

    def excess(now: dict[tuple[str, int], Tensor]) -> Tensor:
        left = side(step.template[0], now)
        right = side(step.template[1], now) if step.base != "heaviside" else 0.0
        result = right - left if step.base in ("lt", "le") else left - right
        assert isinstance(result, Tensor)
        return result.expand(len(result), *step.shape)

    return excess


def _measure(answers: Callable[..., list[Tensor]], strict: bool) -> Normal | None:
    u0, u1 = answers(0.0, 0.0)
    if not bool((u0 < 0).all()) or not bool((u1 < 0).all()):
        return None  # it fires by itself
    small = float(u0.abs().min()) * 1e-3
    a0, a1 = answers(small, 0.0)
    gain = (a0 - u0) / small
    if not bool((gain.abs() > 1e-9).all()) or bool((a0 >= 0).any()) or bool((a1 >= 0).any()):
        return None
    decay = (a1 - u1) / (gain * small)
    k = u1 - decay * u0
    leaks = decay.abs() > 1e-9
    start = torch.where(leaks, (u0 - k) / torch.where(leaks, decay, 1.0), u0)
    after: list[Tensor] = []
    aims = (0.5 * u0.abs(), 1.5 * u0.abs())
    for aim in aims:
        b0, b1 = answers((aim - u0) / gain, 0.0)
        if not torch.allclose(b0, aim, rtol=1e-6):
            return None
        after.append(torch.where(leaks, (b1 - k) / torch.where(leaks, decay, 1.0), start))
    hard = torch.allclose(after[0], after[1], rtol=1e-6, atol=1e-9)
    soft = torch.allclose(aims[0] - after[0], aims[1] - after[1], rtol=1e-6, atol=1e-9)
    if not hard and not soft:
        return None
    threshold = -start
    shift = k + (1 - decay) * threshold
    # A soft reset takes away threshold - reset, so that 0 stands for the usual threshold.
    reset = after[0] + threshold if hard else threshold - (aims[0] - after[0])
    values = [torch.where(v.abs() < 1e-9, 0.0, v)[0].float() for v in (decay, gain, shift, threshold, reset)]
    return Normal(*values, soft=not hard, strict=strict)


def simulate(n: Normal, xs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(v_pre - threshold, spikes) of the normal form at each step."""
    v = torch.zeros_like(xs[0])
    found: list[tuple[Tensor, Tensor]] = []
    p = {name: getattr(n, name).to(v) for name in ("decay", "gain", "shift", "threshold", "reset")}
    for x in xs:
        v_pre = charge(x, v, p["decay"], p["gain"], p["shift"])
        u = v_pre - p["threshold"]
        fired = u > 0 if n.strict else u >= 0
        v = reset_after(v_pre, fired, p["threshold"] - p["reset"], None if n.soft else p["reset"])
        found.append((u, fired))
    return found


def _verified(
    cell: Cell, n: Normal, excess: Callable[[dict[tuple[str, int], Tensor]], Tensor], shape: tuple[int, ...]
) -> bool:
    generator = torch.Generator().manual_seed(0)
    size = (n.threshold.double().abs() / n.gain.double().abs()).clamp(1e-3, 1e3)
    xs = [
        (3 * torch.rand((SAMPLES, *shape), generator=generator, dtype=torch.float64) - 0.6)
        * size * SCALES[t % len(SCALES)]
        for t in range(STEPS)
    ]  # fmt: skip
    expected = simulate(n, xs)
    clear = torch.ones(
        (SAMPLES, *shape), dtype=torch.bool
    )  # until it was so near to its threshold that rounding decides
    fires = False
    for (u, fired), now in zip(expected, run_cell(cell, [xs], everything=True), strict=True):
        seen = excess(now)
        clear &= seen.abs() > 1e-4 * size.clamp(min=1e-2)
        far = (seen - u).abs() > 1e-4 * (1 + seen.abs())
        spikes = now["s", cell.output]
        if bool((far & clear).any()) or bool((clear & ((spikes - fired.to(spikes)).abs() > 1e-4)).any()):
            return False
        fires = fires or bool((fired & clear).any())
    return fires and float(clear.double().mean()) > 0.5
