"""Losses and decisions from logits per step: plain functions of [T, N, classes], one loss for each kind of network.

T time steps, N batch. A zoo network says by its attribute `readout` which entry of `LOSSES` it was designed for.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def mean_loss(logits: Float[Tensor, "T N classes"], target: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """CE(mean_t logits_t, target): cross-entropy of the mean over time."""
    return F.cross_entropy(logits.mean(0), target)


def paper_unstructured_loss(logits: Float[Tensor, "T N classes"], target: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """CE(mean_t logits_t, target) / T, as in the authors' unstructured code.

    The division makes gradients T times smaller than plain cross-entropy: at T = 5 their learning rate of 0.3 acts
    like 0.06, and weight decay weighs five times as much against the data.

    Source: arXiv:2311.16141, the authors' public code.
    """
    return mean_loss(logits, target) / logits.shape[0]


def per_step_loss(logits: Float[Tensor, "T N classes"], target: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """mean_t CE(logits_t, target): every step is asked to be right, as in the authors' structured code.

    Source: arXiv:2311.16141, the authors' public code.
    """
    T = logits.shape[0]
    return F.cross_entropy(logits.flatten(0, 1), target.repeat(T))


def predict(logits: Float[Tensor, "T N classes"]) -> Int[Tensor, " N"]:
    """The class with the largest logit, summed over time (the mean over time decides alike)."""
    return logits.sum(0).argmax(-1)


LOSSES: dict[str, Loss] = {
    "mean": mean_loss,
    "mean-over-T": paper_unstructured_loss,
    "per-step": per_step_loss,
}
