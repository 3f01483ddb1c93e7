"""Running statistics of one layer: fed one time step at a time, they never hold more than one map.

Shapes: T time steps, N batch, C channels, *space positions. `u` is v_pre - v_threshold.
"""

import abc
from collections.abc import Callable
from typing import ClassVar, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from spikeprune.core.errors import InvalidValue, MissingEvidence


class Statistic(abc.ABC):
    """A streaming mean over sequences. The result has shape [C] or the shape of a weight.

    Feed `begin()` at the start of every sequence and `step(...)` for each time step; `result()` may be asked at any
    time. `total` and `count` are all there is: sum them over ranks and the result is that of all ranks together.
    """

    total: Tensor | None = None
    count: float = 0.0
    reads_input: ClassVar[bool] = False  # whether it is of a weight, whose input it reads, and not of a neuron alone

    @abc.abstractmethod
    def begin(self) -> None:
        """A new sequence starts; the last one is complete."""

    @abc.abstractmethod
    def step(self, value: Float[Tensor, "N C *space"], presynaptic: Shaped[Tensor, "N *input"] | None = None) -> None:
        """One time step, [N, C, *space]; `presynaptic` is the layer's input at that step, where it is needed."""

    def result(self) -> Tensor:
        """The mean over all complete sequences and the current one.

        Raises: MissingEvidence if nothing was recorded.
        """
        self.begin()
        if self.total is None or self.count == 0:
            raise MissingEvidence(
                "no membrane potential was recorded before this mask update; run a forward pass with gradient in the "
                "step, through the model that was given to the Pruner"
            )
        return (self.total / self.count).float()

    def add(self, total: Tensor, count: float) -> None:
        """Adds a finished part. Raises: InvalidValue if what was added before, or loaded, is of another layer."""
        if self.total is not None and self.total.shape != total.shape:
            raise InvalidValue(
                f"statistics of shape {tuple(self.total.shape)} do not go on with {tuple(total.shape)}: the saved "
                "pruner state is of another network, or damaged; load one of this network"
            )
        self.total = total.double() if self.total is None else self.total + total.double()
        self.count += count


@final
class ChannelMean(Statistic):
    """One number per channel: mean over T, then max (or mean) over space, then mean over N, of `curve(value)`.

        S[c] = mean_n max_p mean_t curve(value[t, n, c, p])

    Source: Chen et al. 2023, arXiv:2311.16141; order of the reductions as in the authors' code.
    """

    def __init__(self, curve: Callable[[Tensor], Tensor], space: str = "max") -> None:
        self.curve = curve
        self.space = space
        self.over_time: Tensor | None = None
        self.steps = 0

    def begin(self) -> None:
        if self.over_time is None:
            return
        mean = self.over_time / self.steps
        if mean.ndim > 2:
            flat = mean.flatten(2)
            mean = flat.amax(2) if self.space == "max" else flat.mean(2)
        self.add(mean.sum(0), mean.shape[0])
        self.over_time, self.steps = None, 0

    def step(self, value: Float[Tensor, "N C *space"], presynaptic: Shaped[Tensor, "N *input"] | None = None) -> None:
        curved = self.curve(value)
        self.over_time = curved if self.over_time is None else self.over_time.add_(curved)
        self.steps += 1


@final
class SynapseMean(Statistic):
    """One number per synapse: mean over T, space and N of `curve(u)` of the neuron after it times its own input.

        S[o, i, k] = mean_{t, n, p} curve(u[t, n, o, p]) * x[t, n, i, p * stride + k - padding]

    "A spike that arrives while its neuron is near threshold": the eligibility of e-prop without its learning signal
    (Bellec et al. 2020, arXiv:1901.09049). BatchNorm's scale is left out. Computed as the weight gradient of the
    layer for the given output "gradient", so it costs one backward-to-weight of this layer.
    """

    reads_input: ClassVar[bool] = True

    def __init__(
        self,
        curve: Callable[[Tensor], Tensor],
        correlate: Callable[[Tensor, Tensor], Tensor],
        output_shape: Callable[[Tensor], tuple[int, ...]],
    ) -> None:
        """`correlate(d, x)` sums d * x over N and space into the weight's shape; `output_shape(x)` is the layer's."""
        self.curve = curve
        self.correlate = correlate
        self.output_shape = output_shape

    def squared(self) -> "SynapseMean":
        """A SynapseMean with the square of the input: S = mean curve(u) * x^2."""
        return SynapseMean(self.curve, lambda d, x: self.correlate(d, x.square()), self.output_shape)

    def begin(self) -> None:
        pass

    def step(self, value: Float[Tensor, "N C *space"], presynaptic: Tensor | None = None) -> None:
        # The input lies as the product takes it, which for a matrix from the left is [I, N].
        if presynaptic is None:
            raise MissingEvidence("the synapse unit needs the layer's input; it was not seen in this forward pass")
        curved = spread(self.curve(value), self.output_shape(presynaptic))
        positions = curved.shape[0] * max(1, curved[0, 0].numel())
        self.add(self.correlate(curved, presynaptic), positions)


@final
class TraceProducts(Statistic):
    """Products of the traces of spikes before and behind a layer, by a rule with a sliding threshold (BCM).

        trace[t] = decay * trace[t - 1] + spike[t],  r = sum over space of trace[T] / T, of inputs and of outputs
        S[o, i] = mean_n r_out[n, o] (r_out[n, o] - mean of r_out[:, o] so far) * r_in[n, i],   S[o, -1] = mean_n r_out

    Source: Han et al. 2022, arXiv:2211.12714; Bienenstock, Cooper and Munro 1982.
    """

    reads_input: ClassVar[bool] = True

    def __init__(self, curve: Callable[[Tensor], Tensor], decay: float, *, last: bool) -> None:
        """`curve` makes spikes of u; `last`: whether the input has its channels last, [N, *tokens, I]."""
        self.curve, self.decay, self.last = curve, decay, last
        self.traces: tuple[Tensor, Tensor] | None = None
        self.steps = 0

    def step(self, value: Float[Tensor, "N C *space"], presynaptic: Shaped[Tensor, "N *input"] | None = None) -> None:
        if presynaptic is None:
            raise MissingEvidence("the rule needs the layer's input; it was not seen in this forward pass")
        x = presynaptic.movedim(-1, 1) if self.last else presynaptic
        now = (x.double(), self.curve(value).double())
        then = self.traces
        self.traces = now if then is None else (then[0] * self.decay + now[0], then[1] * self.decay + now[1])
        self.steps += 1

    def begin(self) -> None:
        if self.traces is None:
            return
        into, out = (trace.flatten(2).sum(2) / self.steps for trace in map(_with_space, self.traces))
        threshold = 0 if self.total is None else self.total[:, -1] / self.count
        products = (out * (out - threshold)).T @ into
        self.add(torch.cat([products, out.sum(0).unsqueeze(1)], 1), out.shape[0])
        self.traces, self.steps = None, 0

    def result(self) -> Float[Tensor, "C inputs"]:
        """[C, inputs + 1], in float64."""
        self.begin()
        if self.total is None or self.count == 0:
            raise MissingEvidence("no spike was recorded before this mask update; run a forward in the step")
        return self.total / self.count


def _with_space(value: Tensor) -> Tensor:
    return value if value.dim() > 2 else value.unsqueeze(2)


@final
class Components(Statistic):
    """One number per channel: how much of it lies in the leading principal components of the layer's potentials.

        a[n, p] = mean_t curve(value[t, n, :, p]) in R^C;  S = pca_score(cov(a), share)

    `total` holds the sums of a a^T, of a and of 1, as one matrix [C + 1, C + 1].
    Source: Chowdhury et al. 2021, arXiv:2104.12528 (PCA of the average accumulated membrane potential).
    """

    def __init__(self, curve: Callable[[Tensor], Tensor], share: float) -> None:
        self.curve = curve
        self.share = share
        self.over_time: Tensor | None = None
        self.steps = 0

    def begin(self) -> None:
        if self.over_time is None:
            return
        rows = (self.over_time / self.steps).double().movedim(1, -1).flatten(0, -2)
        rows = torch.nn.functional.pad(rows, (0, 1), value=1.0)
        self.add(rows.T @ rows, rows.shape[0])
        self.over_time, self.steps = None, 0

    def step(self, value: Float[Tensor, "N C *space"], presynaptic: Shaped[Tensor, "N *input"] | None = None) -> None:
        curved = self.curve(value)
        self.over_time = curved if self.over_time is None else self.over_time + curved
        self.steps += 1

    def result(self) -> Tensor:
        self.begin()
        if self.total is None or self.count == 0:
            raise MissingEvidence(
                "no membrane potential was recorded before this mask update; run a forward pass in the step, through "
                "the model that was given to the Pruner"
            )
        moments = self.total / self.count
        mean = moments[-1, :-1]
        return pca_score(moments[:-1, :-1] - mean.outer(mean), self.share).float()


def pca_score(covariance: Float[Tensor, "C C"], share: float = 0.999) -> Float[Tensor, "C"]:
    """How much of each channel lies in the principal components that hold `share` of the variance. [C]

        score[c] = sum_k lambda_k * V[c, k]^2,  k over the leading components

    Args: covariance: of the channels' potentials or rates, [C, C].
    Source: the number of components as in Chowdhury et al. 2021, arXiv:2104.12528, which prunes to a width without
        naming the channels; the sharing out over channels is ours.
    Raises: InvalidValue if `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise InvalidValue(f"share must be in (0, 1], the variance that the kept components hold, got {share}")
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(0).flip(0)
    vectors = vectors.flip(1)
    total = values.sum().clamp_min(1e-300)
    count = int((values.cumsum(0) / total < share - 1e-12).sum()) + 1
    return (vectors[:, :count].square() * values[:count]).sum(1)


class LaidOver(InvalidValue):
    """A neuron's input does not fit over the output of a layer. The error has both shapes."""

    def __init__(self, neuron: tuple[int, ...], layer: tuple[int, ...]) -> None:
        super().__init__(f"a neuron of shape {neuron} cannot be laid over a layer of shape {layer}")
        self.neuron, self.layer = neuron, layer


def spread(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values at the neuron, [N, C, *space], laid out over the layer's output of `shape`.

    Where average pooling stands in between, every position of a window reaches the neuron with weight 1 / window, so
    each gets the window's value times that; for max pooling, where one position reaches it, this is its average.
    """
    if tuple(values.shape) == tuple(shape):
        return values
    if values.ndim != len(shape) or values.ndim < 3:
        raise LaidOver(tuple(values.shape), tuple(shape))
    wide = torch.nn.functional.interpolate(values, size=tuple(shape[2:]), mode="nearest")
    return wide * (values[0, 0].numel() / wide[0, 0].numel())


def as_channels(value: Tensor, channels: int, *, last: bool) -> Shaped[Tensor, "N C *space"]:
    """Brings one time step to [N, C, *space] with C = channels.

    Args:
        value: [N, C, *space], [N, C * positions] (flattened before the neuron), or [N, *tokens, C] if `last`.
        last: whether the channels come last, as behind a Linear layer.
    Raises: InvalidValue if there is no such axis.
    """
    if last and value.shape[-1] == channels:
        return value.movedim(-1, 1)
    if value.ndim > 1 and value.shape[1] == channels:
        return value
    if not last and value.ndim == 2 and value.shape[1] % channels == 0:
        return value.view(value.shape[0], channels, -1)
    raise InvalidValue(f"a neuron of shape {tuple(value.shape)} does not match a layer with {channels} outputs")
