"""The dense network's outputs as soft targets: training that needs no labels.

Source: Hinton et al. 2015, arXiv:1503.02531.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spikeprune.lab.train.network import TimedNetwork

# Both outputs are divided by it, so that small probabilities count.
_TEMPERATURE = 2.0


def distillation(logits: Float[Tensor, "T N K"], teacher: Float[Tensor, "S N K"]) -> Float[Tensor, ""]:
    """t^2 times the cross-entropy of softmax(teacher / t) and softmax(logits / t), t = 2, mean over images.

    Both are means over time. The factor keeps the size of the gradients what it is for labels.
    """
    soft = F.softmax(teacher.mean(0) / _TEMPERATURE, dim=1)
    return _TEMPERATURE**2 * F.cross_entropy(logits.mean(0) / _TEMPERATURE, soft)


def outputs_of(teacher: TimedNetwork, x: Tensor, recorded: bool) -> Tensor:
    """The logits of a network that does not learn. Its membrane state is fresh before and after."""
    with torch.no_grad():
        logits = teacher(x, recorded).float()
    teacher.adapter.reset(teacher.model)
    return logits
