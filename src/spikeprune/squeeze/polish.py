"""After the last cut: all remaining weights together are fitted to the dense network's outputs and spikes.

Each layer was solved on its own, on the inputs of the dense network. The remaining error is the one that layers hand on
to each other. A few passes over the same calibration images, without labels, reduce it:

    minimise  D(z, z_dense) + share * sum over neuron layers  |s - s_dense|^2 / |s_dense|^2

z are the model's outputs and s its spikes, which are differentiated through the neurons' surrogates. D is the
cross-entropy of softmax(z_dense / 2) and softmax(z / 2), averaged over time, less its least value, times 4, where the
output looks like class scores; |z - z_dense|^2 / |z_dense|^2 elsewhere. Zeros stay zeros. The share is 1 for up to
1,000 images and 0 above: the spikes hold more about each image, and the outputs of many images hold more about the task
(decision 23).

BatchNorm normalises by each batch meanwhile, as in training; its running statistics are measured again after the last
step. With running statistics each layer would shift what all later ones were measured on, and in a deep network the
steps would lead away (decision 26). A network without BatchNorm takes larger steps.

The loss is compared before and after; where it has not fallen, the weights go back and smaller steps are tried, and at
last the weights stay as they were (decision 25).

Sources: Hinton et al. 2015, arXiv:1503.02531 (soft targets); Kingma & Ba 2015, arXiv:1412.6980 (the steps).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import pack, unpack
from spikeprune.model.adapter import Adapter
from spikeprune.model.arguments import tensors
from spikeprune.model.examples import undisturbed
from spikeprune.squeeze.network import snapshot
from spikeprune.squeeze.statistics import evaluating, measure_again, normalizing_by_batch, norms

_TEMPERATURE = 2.0
# What is tried in turn: the share of the rate, and whether BatchNorm normalises by each batch meanwhile.
_WAYS = ((1 / 3, True), (1 / 12, True), (1 / 16, False))
_WAYS_WITHOUT_NORMS = ((1.0, False), (1 / 4, False), (1 / 16, False))
_LOOK, _LOST = 20, 2.0  # after so many steps a try whose loss is so many times the first one is given up
_MEASURED = 40  # batches of at most 50 images that BatchNorm's statistics are measured on
_BETAS, _EPS = (0.9, 0.999), 1e-8


@final
@dataclass(frozen=True)
class DenseOutputs:
    """The dense network's outputs on one batch, and the spikes of each call of a neuron as bits."""

    x: Tensor
    outputs: list[Tensor]
    spikes: list[tuple[Tensor, torch.Size]]


@final
@dataclass(frozen=True)
class Polish:
    """Settings of the fit: passes over the images and sizes of steps.

    Attributes:
        epochs: passes over the batches.
        rate: largest size of a step, as a share of the root mean square of a layer's remaining weights; it falls to 0
            in a straight line. Vectors (biases, and BatchNorm's scales and shifts) take steps of 0.2 rate. A network
            with BatchNorm starts at a third of the rate; smaller rates are tried if the loss does not fall.
        share: weight of the difference in spikes, relative to that in outputs.
    """

    epochs: int
    rate: float = 0.06
    share: float = 1.0


@final
class Polisher:
    """Keeps what the dense network does, and fits a squeezed one to it.

    Args:
        batches: inputs as they are fed, each one a step.
        match_spikes: whether the spikes are kept beside the outputs.
        statistics: whether BatchNorm's running statistics may be measured again.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
        batches: Iterable[Tensor],
        *,
        match_spikes: bool = True,
        statistics: bool = True,
    ) -> None:
        self.model, self.adapter = model, adapter
        self.statistics = statistics and bool(norms(model))
        self.neurons = [] if adapter is None or not match_spikes else list(adapter.neurons(model).values())
        self.targets: list[DenseOutputs] = []
        with torch.no_grad():
            for x in batches:
                spikes, outputs = self._run(x)
                self.targets.append(DenseOutputs(x, outputs, [(pack(s != 0), s.shape) for s in spikes]))

    def _run(self, x: Tensor, by_batch: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """(spikes of each call of a neuron, outputs of the model)."""
        spikes: list[Tensor] = []

        def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            spikes.append(output[0] if isinstance(output, tuple) else output)

        handles = [neuron.register_forward_hook(keep) for neuron in self.neurons]
        try:
            mode = normalizing_by_batch if by_batch else evaluating
            with mode(self.model), undisturbed(self.model, self.adapter):
                return spikes, [z for z in tensors(self.model(x)) if z.is_floating_point()]
        finally:
            for handle in handles:
                handle.remove()

    def fit(
        self,
        masks: Mapping[str, Tensor],
        how: Polish,
        seed: int,
        over: Callable[[Sequence[int], str], Iterable[int]] = lambda order, _: order,
    ) -> float | None:
        """Fits the model in place, or leaves it as it was.

        Args:
            masks: parameter name -> True where a weight may change.

        Returns: the rate that lowered the loss; 0 if none did; None where outputs do not depend on the weights.
        """
        named = dict(self.model.named_parameters())
        pairs: list[tuple[nn.Parameter, Tensor | None]] = [(named[n], m) for n, m in masks.items()]
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.affine]
        known = {id(p) for p, _ in pairs}
        pairs += [(p, None) for m in norms for p in (m.weight, m.bias) if id(p) not in known]
        generator = torch.Generator().manual_seed(seed)
        order = [i for _ in range(how.epochs) for i in torch.randperm(len(self.targets), generator=generator).tolist()]
        first, put_back = self.loss(how.share), snapshot(self.model)
        for size, by_batch in _WAYS if self.statistics and self._has_statistics() else _WAYS_WITHOUT_NORMS:
            rate = how.rate * size
            done = self._try(pairs, order, dataclasses.replace(how, rate=rate), first, over, by_batch)
            if done is None:
                return None
            if done and by_batch:
                measure_again(self.model, self.adapter, (target.x for target in self.targets[:_MEASURED]))
            if done and self.loss(how.share) < first:
                return rate
            put_back()
        return 0.0

    def _has_statistics(self) -> bool:
        """Whether the smallest batch gives BatchNorm the two values per channel that a variance needs."""
        put_back = snapshot(self.model)
        try:
            measure_again(self.model, self.adapter, [min((target.x for target in self.targets), key=Tensor.numel)])
        except InvalidValue:
            return False
        finally:
            put_back()
        return True

    def _try(
        self,
        pairs: Sequence[tuple[nn.Parameter, Tensor | None]],
        order: Sequence[int],
        how: Polish,
        first: float,
        over: Callable[[Sequence[int], str], Iterable[int]],
        by_batch: bool = False,
    ) -> bool | None:
        """Takes all steps at one rate. False if the loss grows too far, None if it does not depend on the weights."""
        steps, recent = _AdamSteps([p for p, _ in pairs], [_size(p, m) for p, m in pairs]), list[float]()
        with _differentiable([p for p, _ in pairs]):
            for step, index in enumerate(over(order, "polishing")):
                loss = self._loss(self.targets[index], how.share, by_batch)
                if not loss.requires_grad:
                    return None
                recent = [*recent[1 - _LOOK :], float(loss.detach())]
                if not math.isfinite(recent[-1]) or (step >= _LOOK and sum(recent) > _LOST * first * len(recent)):
                    return False
                found = torch.autograd.grad(loss, [p for p, _ in pairs], allow_unused=True)
                grads = cast(Sequence[Tensor | None], found)  # None for what the loss does not read
                with torch.no_grad():
                    held = [g if m is None or g is None else g * m for g, (_, m) in zip(grads, pairs, strict=True)]
                    steps.take(held, how.rate * (1 - step / len(order)))
                    for p, mask in pairs:
                        if mask is not None:
                            p.mul_(mask)
        return True

    def loss(self, share: float) -> float:
        """The mean loss over the first batches."""
        found = [float(self._loss(target, share).detach()) for target in self.targets[:_LOOK]]
        return sum(found) / len(found)

    def _loss(self, target: DenseOutputs, share: float, by_batch: bool = False) -> Tensor:
        with torch.enable_grad():
            spikes, outputs = self._run(target.x, by_batch)
            loss = sum((_difference(z, d) for z, d in zip(outputs, target.outputs, strict=True)), torch.zeros(()))
            if share:
                for s, (bits, shape) in zip(spikes, target.spikes, strict=True):
                    wanted = unpack(bits, tuple(shape)).to(s.dtype)
                    loss = loss + share * (s - wanted).square().sum() / wanted.sum().clamp_min(1)
            return loss


@final
class _AdamSteps:
    """Adam, for gradients that are not kept on the parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter], sizes: Sequence[float]) -> None:
        self.parameters, self.sizes, self.count = parameters, sizes, 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def take(self, grads: Sequence[Tensor | None], rate: float) -> None:
        """Makes one step. Parameters without a gradient stay as they are."""
        self.count += 1
        a, b = _BETAS
        for p, own, g, m, v in zip(self.parameters, self.sizes, grads, self.first, self.second, strict=True):
            if g is None:
                continue
            m.mul_(a).add_(g, alpha=1 - a)
            v.mul_(b).addcmul_(g, g, value=1 - b)
            size = (v / (1 - b**self.count)).sqrt_().add_(_EPS)
            p.addcdiv_(m, size, value=-rate * own / (1 - a**self.count))


def _size(parameter: nn.Parameter, mask: Tensor | None) -> float:
    """The size that steps are relative to: the root mean square of the weights that remain, or 0.2 for vectors."""
    if mask is None or parameter.ndim < 2 or not bool(mask.any()):
        return 0.2
    return float(parameter.detach()[mask].square().mean().sqrt())


@contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Any:
    """Context in which every parameter requires a gradient."""
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, flag in zip(parameters, before, strict=True):
            p.requires_grad_(flag)


def _difference(z: Tensor, dense: Tensor) -> Tensor:
    """The distance D of outputs from the dense ones; 0 if they are equal."""
    if z.ndim not in (2, 3) or z.shape[-1] < 2:
        return (z - dense).square().sum() / dense.square().sum().clamp_min(1e-12)
    if z.ndim == 3:
        z, dense = z.mean(0), dense.mean(0)
    z, dense = z / _TEMPERATURE, dense / _TEMPERATURE
    soft = F.log_softmax(dense, 1)
    return _TEMPERATURE**2 * F.kl_div(F.log_softmax(z, 1), soft, reduction="batchmean", log_target=True)
