"""`squeeze`: a trained spiking network made small without labels and without training."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeprune.model.adapter import find_adapter
from spikeprune.model.axes import check_time
from spikeprune.model.discover import Discovered
from spikeprune.model.prunable import Names
from spikeprune.model.wrappers import eager
from spikeprune.squeeze.channel_masks import with_channels
from spikeprune.squeeze.network import unharmed
from spikeprune.squeeze.progress import progress_bar
from spikeprune.squeeze.run import Squeezing
from spikeprune.squeeze.settings import SqueezeSettings
from spikeprune.squeeze.table import Squeezed


def squeeze(
    model: nn.Module,
    data: Iterable[Any],
    sparsity: float = 0.95,
    *,
    masks: Mapping[str, Tensor] | None = None,
    tolerance: float | None = None,
    images: int = 500,
    budget: str = "weights",
    pattern: str = "weight",
    allocate: str = "lamp",
    rounds: int = 8,
    weighting: Literal["criticality", "none", "membrane"] = "criticality",
    saliency: str | None = None,
    solve: bool = True,
    surrogate: str | None = None,
    rows: int = 4000,
    oversample: int = 1,
    power: float = 1.0,
    eps: float = 0.02,
    ridge: float = 1e-2,
    iterations: int = 24,
    early_iterations: int = 4,
    shift: bool = False,
    statistics: bool = True,
    polish: int = 0,
    include: Names = None,
    exclude: Names = None,
    floor: float = 1,
    seed: int = 0,
    progress: bool = False,
    time: str | None = None,
) -> Squeezed:
    """Prunes a trained network in place and re-solves what is left of each layer: no labels, no training.

    In `rounds` rounds the weights with the lowest scores are cut, and the remaining weights w of every neuron o are
    solved again, so that they reproduce the dense layer's input current y on the calibration images:

        sum_r c[o, r] (w . x_r - y[o, r])^2 + lam |w - w_dense|^2,   c = surrogate'(v_pre - v_threshold) / mean + eps

    A row r is one time step, image and position. c is the criticality of the neuron at that moment: an error of the
    input current counts as much as it can flip a spike. The score of a weight is w^2 sum_r c x_r^2, its part in the
    same sum, divided by the sum of all scores of its layer that are not smaller (the form of LAMP). Then BatchNorm's
    running statistics are measured again on the same images.

    The model's class, keys and forward stay. A second call with the same sparsity and data changes nothing, and weights
    that are exactly 0 are never revived. If it is interrupted or refused, the model is bit for bit as before.

    Args:
        model: SpikingJelly, snnTorch, Norse, neurons with an adapter of your own, or spike functions, which are found.
            It runs in eval mode, its modes come back.
        data: an iterable of inputs or (input, target) pairs, such as a DataLoader, or one tensor, which is one batch.
            Fed as they are; the membrane state is reset before each batch. Targets are never used, unless `tolerance`
            asks for accuracy. Give training images, never test images.
        sparsity: share of the prunable weights (of the budget) that is cut, in [0, 1).
        masks: parameter name -> bool; solves the dense model for these masks instead of choosing some.
        tolerance: search the highest sparsity at which the accuracy on the calibration images, or without labels the
            mean agreement of spikes, falls by at most this much; `sparsity` is then ignored. Densities in steps of 4 %
            of themselves are tried, 7 of them. One of 500 images is 0.002, so take more images for a fine tolerance.
        images: how many calibration images are used, the first ones of the data.
        budget: the quantity that sparsity is a share of: "weights", "parameters", "macs" or "synops".
        pattern: "weight", n:m such as "2:4", or "channel": whole channels, ranked by the norm of their filters; the
            layers that read them are solved again to make up for them. Afterwards
            `sp.shrink(model, squeezed.masks, example)` removes them.
        allocate: how layers share the cut: "lamp", "global" (scores as they are), "energy" (over the layer's output
            energy), "neuron" (equal shares per neuron), "uniform", "erk".
        rounds: number of cuts. The number of kept weights falls by the same ratio in each of them.
        weighting: "criticality"; "none" for plain least squares and the plain output energy in the score; "membrane"
            for the rival SBC: plain least squares of potentials without reset, and their "obs" in the score.
        saliency: the score, if not the one that goes with the weighting ("critical", "energy" or "obs"): "magnitude",
            "obs", "wanda", "random".
        solve: whether remaining weights are solved again; False only cuts (and measures statistics again).
        surrogate: name of the curve whose derivative weighs the rows; the neuron's own if not given.
        rows: rows drawn of each layer. All rows have the same chance, so the drawn sums are unbiased up to a factor
            that no solution depends on.
        oversample: rows looked at for each row that is kept. Above 1, rows near the threshold are kept more often; each
            one then counts for 1 / its chance rows, so the sums stay unbiased.
        power: exponent of the derivative in c.
        eps: weight that rows far from the threshold keep. Take 1 to cut a deep network beyond 95 %, where potentials
            move farther than the derivative tells (docs/decisions/0019-squeeze-defaults.md).
        ridge: pull towards the dense weights, as a share of the mean diagonal of a neuron's Gram matrix. A layer with
            fewer rows than inputs is pulled more, times (inputs / rows)^2, because it would fit the images too well.
        iterations: of conjugate gradients in the last round, used where factoring one matrix per neuron costs more.
            They end before that once the residual is small.
        early_iterations: the same in the rounds before, which only prepare the next cut.
        shift: whether a constant per channel is solved too. It goes into the layer's bias, or into the running mean of
            the BatchNorm behind it.
        statistics: whether BatchNorm's running statistics are measured again.
        polish: passes over the calibration images at the end, in which all remaining weights and BatchNorm's scale and
            shift follow the dense network's outputs by their gradients, without labels; with at most 1,000 images its
            spikes too. It gains most with many images, such as images=5000, polish=2. A pass costs about four forward
            passes. Images are taken 50 at a time where their axis can be told. Steps that lead away from the dense
            outputs are taken back and smaller ones tried; the result's `notes` say if none helped.
        include, exclude: names or patterns (`*`) of parameters or modules; the others stay dense.
        floor: the least that every layer keeps: a count, or a share of the layer if below 1.
        seed: of the drawn rows and of "random".
        progress: whether a bar with the time left is shown.
        time: where the time steps of an input are: "first" [T, N, ...], "batch-first" [N, T, ...] or "last"
            [N, ..., T]. By default N is read from the targets, the neurons or the output, as in `sp.count`.
    Returns: masks, agreement of spikes, a table and the seconds.
    Raises: InvalidValue, UnknownName (both ValueError or LookupError) for settings and data that cannot be used.

    Examples:
        >>> squeezed = sp.squeeze(model, data, 0.75)
        >>> int((model[4].weight == 0).sum()) == int((~squeezed.masks["4.weight"]).sum())
        True
    """
    given = dict(locals())
    settings = SqueezeSettings(**{k: v for k, v in given.items() if k not in ("model", "data", "time")})
    check_time(time, ("first", "batch-first", "last"))
    inner = eager(model)
    devices = {p.device for p in inner.parameters() if p.device.type == "cuda"}
    adapter = find_adapter(inner) or Discovered()
    with torch.random.fork_rng(devices=list(devices)), unharmed(inner, adapter), progress_bar(progress) as bar:
        torch.manual_seed(seed)
        if settings.pattern == "channel" and settings.masks is None:
            data, settings = with_channels(inner, adapter, data, settings, time)
        return Squeezing(inner, adapter, data, settings, bar, time).run()
