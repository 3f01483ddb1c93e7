"""Early-Time: how few time steps a search for a mask can do with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeprune.lab.train.network import TimedNetwork
from spikeprune.model.examples import undisturbed


def fewer_steps(network: TimedNetwork, x: Tensor, recorded: bool, threshold: float = 0.6) -> int:
    """The smallest number of time steps whose answers are near those of all T; T if none are.

        kl[t] = mean KL(softmax(mean logits over T) || softmax(mean logits over t)),  t = 2 .. T - 1
        the first t with kl[t] < threshold * max(kl)

    Args:
        network: with its full T; nothing of it changes.
        x: one batch, as the network takes it.
    Source: Kim et al. 2022, arXiv:2207.01382, section on Early-Time, and their code: 0.6, after two epochs.
    """
    T = network.T
    apart: dict[int, float] = {}
    with undisturbed(network.model, network.adapter), torch.no_grad():
        full = F.softmax(network(x, recorded).float().mean(0), dim=1)
        for t in range(2, T):
            few = F.log_softmax(network.at(t)(x, recorded).float().mean(0), dim=1)
            apart[t] = float(F.kl_div(few, full, reduction="batchmean"))
    largest = max(apart.values(), default=0.0)
    return next((t for t, distance in apart.items() if distance < threshold * largest), T)
