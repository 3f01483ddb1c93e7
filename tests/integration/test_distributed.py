"""Two processes with different data: scores are summed over ranks before selection, so the masks are identical."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from spikingjelly.activation_based import functional
from torch.nn.parallel import DistributedDataParallel

import spikeprune as sp
from nets import batch, conv_net, loss_of, sgd
from spikeprune.methods.base import MagnitudeRegrowth, Observation


@dataclass(frozen=True)
class GradientAfter(MagnitudeRegrowth):
    """Regrows by gradient, and asks for a statistic after the cut: one mask update looks at the gradients twice."""

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads", "membrane"})

    def observation(self):
        return Observation(measure="after")

    def regrow_score(self, evidence):
        return {name: evidence.gradients()[name].abs() for name in evidence.per_weight()}

    def statistic(self, layer):
        return layer.per_channel(layer.derivative, "max")


METHODS = {
    "neuron": sp.Criticality(),
    "synapse drawn": sp.Criticality(unit="synapse", pick="sample", batches=2),
    "after": sp.Criticality(measure="after"),
    "gradient": sp.Gradient(),
    "gradient after": GradientAfter(),
    "random": sp.Random(),
}


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {}
    for name, method in METHODS.items():
        for budget in ("weights", "synops"):
            model = DistributedDataParallel(conv_net(), broadcast_buffers=False)
            optimizer = sgd(model)
            schedule = sp.Cubic(to=0.8, end=6, every=3)
            pruner = sp.Pruner(model, method, schedule, budget=budget).attach(optimizer)
            seen, gradients = {}, []
            original = pruner._updater.evidence

            def spy(event, original=original, seen=seen, gradients=gradients, **keywords):
                evidence = original(event, **keywords)
                seen.update(evidence.statistics or {})
                gradients.append({n: g.clone() for n, g in (evidence.grads or {}).items()})
                return evidence

            pruner._updater.evidence = spy
            for step in range(1, 8):
                x, y = batch(100 * rank + step)  # every rank its own
                optimizer.zero_grad()
                loss_of(model, x, y).backward()
                optimizer.step()
                functional.reset_net(model)
            results[f"{name} {budget}"] = {
                "masks": dict(pruner.masks), "weights": {n: p.detach() for n, p in model.module.named_parameters()},
                "statistics": dict(seen), "rounds": [r.as_dict() for r in pruner.rounds], "gradients": gradients,
            }  # fmt: skip
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="needs gloo")
def test_ranks_hold_identical_masks_with_different_data(tmp_path: Path):
    mp.start_processes(worker, (str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for case in first:
        a, b = first[case], second[case]
        assert a["rounds"] == b["rounds"]
        for part in ("masks", "weights", "statistics"):
            assert a[part].keys() == b[part].keys()
            assert all(torch.equal(a[part][n], b[part][n]) for n in a[part]), (case, part)
        assert sum(r["regrown"] for r in a["rounds"]) > 0
        if case.startswith("gradient after"):  # both looks of the first mask update show the same sum over ranks
            once, again = a["gradients"][:2]
            assert all(torch.equal(once[n], again[n]) and bool(once[n].any()) for n in again)
            assert all(torch.equal(once[n], b["gradients"][0][n]) for n in once)
        if case.endswith("weights"):
            assert sum(int(m.sum()) for m in a["masks"].values()) == 153
