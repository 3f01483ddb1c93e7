"""Statistics of a network's layers on a few images: operations, firing rates, and how near neurons are to firing."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprune.core.errors import UserError
from spikeprune.count.counts import Counts
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.methods.criticality import Criticality
from spikeprune.model.observer import Observer
from spikeprune.model.prunable import prunable
from spikeprune.record.statistics import QUANTILES, LayerOperations, NetworkStatistics, NeuronStatistics


def layer_statistics(network: TimedNetwork, inputs: Sequence[Tensor], counts: Counts) -> NetworkStatistics:
    """One network's part of `statistics.json`: the numbers of each layer.

    Each channel of a neuron layer gets a criticality, as in `Criticality()`: the surrogate's derivative at
    v_pre - v_threshold, mean over T, max over space, mean over images; in eval mode.

    Args:
        inputs: the batches that `counts` was made on, as the model takes them.
        counts: of this network.

    Returns: the layers in the order of the model; neurons that no layer feeds have no criticality.
    """
    neurons = {name: NeuronStatistics(firing_rate=rate) for name, rate in counts.firing_rates.items()}
    feeds, criticality = channel_criticality(network, inputs)
    modules = network.adapter.neurons(network.model)
    for name, score in criticality.items():
        if name not in modules:  # found by its spike function, which is not kept
            neurons[name] = dataclasses.replace(neurons[name], criticality=_quantiles(score))
            continue
        peak = float(network.adapter.derivative(modules[name], torch.zeros(1, device=score.device)))
        neurons[name] = dataclasses.replace(neurons[name], criticality=_quantiles(score), peak=peak)
    layers = {
        name: LayerOperations(
            neuron=feeds.get(name), macs=sides.pruned.macs, acs=sides.pruned.acs, mac_ops=sides.pruned.mac_ops
        )
        for name, sides in counts.layers.items()
    }
    return NetworkStatistics(images=counts.samples, layers=layers, neurons=neurons)


def channel_criticality(
    network: TimedNetwork, inputs: Sequence[Tensor]
) -> tuple[dict[str, str | None], dict[str, Tensor]]:
    """Layer -> the neuron it feeds, and neuron -> score of each channel; both empty where they cannot be told."""
    model = network.model
    modes = [(module, module.training) for module in model.modules()]
    try:
        recorder = Observer(model, model, network.adapter, Criticality(), prunable(model))
        model.eval()
        recorder.observe(inputs, None, membrane=True, rates=False, graph=True)
        scores = recorder.statistics(lambda total: total)
        recorder.remove()
    except UserError:
        # Methods that look at weights alone work on models that criticality refuses; their runs must not fail here.
        return {}, {}
    finally:
        for module, training in modes:
            module.training = training
    pairs = recorder.pairs or {}
    feeds = {pair.layer: pair.neuron for pair in pairs.values()}
    return feeds, {pairs[name].neuron or "": score for name, score in scores.items()}


def _quantiles(score: Tensor) -> tuple[float, ...]:
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    return tuple(float(value) for value in torch.quantile(score.double().cpu().flatten(), levels))
