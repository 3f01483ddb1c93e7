"""Two processes with different data: scores are summed over ranks before selection, so the masks are identical."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from spikingjelly.activation_based import functional
from torch.nn.parallel import DistributedDataParallel

import spikeprune as sp
from forked import ranks
from nets import batch, conv_net, loss_of, sgd
from spikeprune.core.errors import InvalidValue
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
    torch.save({"seeds": other_seeds(rank), "steps": uneven_steps(rank)}, f"{folder}/refused-{rank}.pt")
    dist.destroy_process_group()


def other_seeds(rank):
    """What a rank says of a seed that differs, and whether its Pruner left the optimizer alone after that."""
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "random", sp.Cubic(to=0.8, end=6, every=3), seed=rank)
    try:
        pruner.attach(optimizer)
    except InvalidValue as error:
        loss_of(model, *batch(1)).backward()
        optimizer.step()
        return str(error), len(pruner.rounds), not optimizer._optimizer_step_post_hooks
    return "", 0, False


def uneven_steps(rank):
    """Rank 0 comes to the mask update of step 3; rank 1 ends its training after two steps."""
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "magnitude", sp.Cubic(to=0.8, end=6, every=3)).attach(optimizer)
    try:
        for step in range(1, 4 - rank):
            loss_of(model, *batch(step)).backward()
            optimizer.step()
            functional.reset_net(model)
        pruner.finish()
    except InvalidValue as error:
        return str(error), all(bool(mask.all()) for mask in pruner.masks.values())
    return "", False


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two processes leave; one start for all tests."""
    if not dist.is_available():
        pytest.skip("needs gloo")
    found = tmp_path_factory.mktemp("ranks")
    for ended in ranks(lambda rank: worker(rank, str(found))):
        assert ended.status == 0, ended.stderr[-2000:]
    return found


def test_a_seed_that_differs_between_ranks_is_refused_on_both(folder: Path):
    for rank in (0, 1):
        said, rounds, free = torch.load(folder / f"refused-{rank}.pt")["seeds"]
        assert "the Pruner of rank 1 has another seed than that of rank 0" in said
        assert f"(here seed is {rank})" in said
        assert 20 <= len(said) <= 300
        assert rounds == 0
        assert free, "hooks of a refused Pruner are left on the optimizer"


def test_ranks_with_an_uneven_number_of_steps_are_refused_on_both(folder: Path):
    for rank in (0, 1):
        said, untouched = torch.load(folder / f"refused-{rank}.pt")["steps"]
        assert "uneven number of steps (rank 0 updates at step 3, rank 1 ends at step 2)" in said
        assert 20 <= len(said) <= 300
        assert untouched, "a mask update was made although the ranks do not agree"


def test_ranks_hold_identical_masks_with_different_data(folder: Path):
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
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
