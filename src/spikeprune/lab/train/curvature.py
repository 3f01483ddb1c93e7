"""The loss's curvature at a mask update, for methods that rank by it: the training loop shows the step's own batch."""

from torch import Tensor

from spikeprune.lab.train.network import TimedNetwork
from spikeprune.model.examples import undisturbed
from spikeprune.prune.pruner import Pruner
from spikeprune.runtime.fuse import fuse, unfuse
from spikeprune.zoo.readout import LOSSES


def show_curvature(
    pruner: Pruner, network: TimedNetwork, x: Tensor, target: Tensor, *, time_first: bool, step: int, fused: bool
) -> None:
    """Before `step`, lets the Pruner observe a batch if the step ends with a mask update that ranks by curvature.

    A fused network has no second derivative, so it is unfused meanwhile. Then it sees a batch again before it trains,
    as at the begin of each process, because its first forward decides roundings.
    """
    if "curvature" not in pruner.method.needs or all(update.step != step for update in pruner.preview()):
        return

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return LOSSES[network.loss](output if output.dim() == 3 else output.unsqueeze(0), target)

    unfuse(network.model)
    network.adapter.reset(network.model)
    with network.one_call(time_first):
        pruner.observe([(network.fed(x, time_first), target)], loss)
    if fused:
        fuse(network.model)
        with undisturbed(network.model, network.adapter):
            network(x, time_first)
