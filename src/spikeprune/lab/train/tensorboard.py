"""TensorBoard events of a run: what metrics.jsonl has, and of each layer its sparsity, weights, rates and mask updates.

Weights & Biases takes them by its own sync: `wandb.init(sync_tensorboard=True)` before the run begins.
"""

from typing import Any, final

import torch
from torch import Tensor

from spikeprune.data.batches import batches
from spikeprune.lab.train.folder import RunFolder
from spikeprune.lab.train.loop import Phase, Setting
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.record.epoch import Epoch

_IMAGES = 64


@final
class TensorBoard:
    """Writes an epoch at a time, so that a kill loses at most one; a continued run overwrites what it does again."""

    def __init__(self, folder: RunFolder, setting: Setting) -> None:
        self.folder = folder
        self.setting = setting

    def write(self, line: Epoch, phase: Phase) -> None:
        """One epoch: scalars of the network, then those of its layers."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.folder.path / "tensorboard" / line.phase), purge_step=line.epoch) as writer:
            for key, value in line.items():
                if isinstance(value, float):
                    writer.add_scalar(key, value, line.epoch)
            for name, rate in self._rates(phase.network).items():
                writer.add_scalar(f"firing rate/{name}", rate, line.epoch)
            if phase.pruner is None:
                return
            parameters = dict(phase.network.model.named_parameters())
            for name, mask in phase.pruner.masks.items():
                short = name.removesuffix(".weight")
                writer.add_scalar(f"sparsity/{short}", 1 - float(mask.float().mean()), line.epoch)
                alive = parameters[name].detach()[mask] if name in parameters else torch.empty(0)
                if alive.numel():
                    writer.add_histogram(f"alive weights/{short}", alive.float(), line.epoch)
        before = line.step - self.setting.plan.steps_per_epoch  # the step at which this epoch began
        updates = [update for update in phase.pruner.rounds if before < update.step <= line.step]
        # They count optimizer steps and lie in a folder of their own, as a purge there goes by steps.
        with SummaryWriter(str(self.folder.path / "tensorboard" / "mask updates"), purge_step=before + 1) as writer:
            for update in updates:
                for name, layer in (update.layers or {}).items():
                    short = name.removesuffix(".weight")
                    writer.add_scalar(f"mask update, kept/{short}", layer.kept, update.step)
                    writer.add_scalar(f"mask update, regrown/{short}", layer.regrown, update.step)

    def _rates(self, network: TimedNetwork) -> dict[str, float]:
        """Neuron -> spikes per neuron and time step on the first images; nothing of the training is touched."""
        data = self.setting.data
        split = "validation" if len(data.validation) else "test"
        images, _ = next(batches(data, split, _IMAGES, device=self.setting.device))
        found: dict[str, list[float]] = {}

        def hear(name: str) -> Any:
            def keep(_: object, __: object, output: Any) -> None:
                spikes: Tensor = output[0] if isinstance(output, tuple) else output
                found.setdefault(name, []).append(float((spikes.detach() != 0).float().mean()))

            return keep

        training = network.model.training
        neurons = network.adapter.neurons(network.model)
        hooks = [neuron.register_forward_hook(hear(name)) for name, neuron in neurons.items()]
        network.model.eval()
        try:
            with torch.no_grad():
                network(images, data.time_first)
        finally:
            for hook in hooks:
                hook.remove()
            network.adapter.reset(network.model)
            network.model.train(training)
        return {name: sum(values) / len(values) for name, values in found.items()}
