"""Shrink a finished run: its small network beside what is there, and what the cut saves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from spikeprune.core.errors import UserError
from spikeprune.count.counts import Figures
from spikeprune.lab.train.code import NO_CODE, Code, recipe_of
from spikeprune.lab.train.device import choose_device, repeatable
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.measure import counted
from spikeprune.lab.train.parts import load_data, make_network, restore
from spikeprune.lab.train.structured import cut_out, example_of, latencies
from spikeprune.record.run import NetworkRecord
from spikeprune.shrink.plan import ChannelPlan


@final
@dataclass(frozen=True)
class ShrunkSize:
    """The size of a network: its cost for one image, and the milliseconds of a batch."""

    parameters: int
    macs: float
    synops: float
    latency_ms: float


@final
@dataclass(frozen=True)
class ShrunkRun:
    """The savings of a cut.

    `layers`: channels before and after. `blocked`: the reason why a layer kept its channels.
    """

    before: ShrunkSize
    after: ShrunkSize
    batch: int
    layers: Mapping[str, tuple[int, int]]
    blocked: tuple[str, ...]
    plan: str
    weights: str


def shrink_run(path: str | Path, root: str | None = None, device: str | None = None, code: Code = NO_CODE) -> ShrunkRun:
    """Cuts the dead channels out of a run's network: `plan.json` and `small.safetensors` are written into its folder.

    A run of a channel pattern is small already: its plan.json and model.safetensors stand, and nothing is written.
    Latency is the time of one batch in plain PyTorch, the median of interleaved calls of both networks. `code`: what
    the user says about the code that the folder names.

    Returns: parameters, MACs, SynOps and latency before and after, channels of each layer, and the files.
    Raises: UserError if the folder is no finished run, or no channel of its network can go.
    """
    folder = RunFolder.existing(path)
    record = folder.read_record()
    recipe = recipe_of(folder.path, root, code)
    where = choose_device(device or recipe.device)
    data = load_data(recipe).to(where)
    with repeatable(record.environment.threads):
        network = restore(folder, recipe, data, where)
        if record.channels is not None:
            plan, small, weights = ChannelPlan.load(folder.plan), network, folder.model
            network = make_network(recipe, data, where)
            before = _sizes(record.dense)
        else:
            masks = {name: mask.to(where) for name, mask in read_safetensors(folder.masks).items()}
            small, plan = cut_out(network, masks, example_of(network, data, where))
            if not plan.cuts:
                raise UserError(
                    f"no channel of the network in {path} is dead as a whole, so nothing can be cut out; "
                    "prune with --pattern channel for a physically smaller network"
                )
            weights = folder.small
            folder.save_plan(plan.to_json())
            folder.save_tensors(weights, small.model.state_dict())
            before = _sizes(counted(network, data, recipe, where, masks)[0].dense)
        after = _sizes(counted(small, data, recipe, where, None)[0].dense)
        images, times = latencies([network, small], data, where)
    return ShrunkRun(
        before=ShrunkSize(*before, times[0]),
        after=ShrunkSize(*after, times[1]),
        batch=images,
        layers=plan.layers,
        blocked=tuple(plan.blocked),
        plan=str(folder.plan),
        weights=str(weights),
    )


def _sizes(side: NetworkRecord | Figures) -> tuple[int, float, float]:
    return side.parameters, side.macs, side.synops
