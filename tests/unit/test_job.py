"""A recipe is resolved once: the job holds the objects that the run uses."""

import dataclasses

import pytest
import torch

from spikeprune.core.schedule import OneShot
from spikeprune.lab.recipe import job as job_module
from spikeprune.lab.recipe import load, settings_hash
from spikeprune.lab.recipe.job import DataFacts, Job, resolve
from spikeprune.lab.recipe.timetable import lay_out
from spikeprune.lab.train.run import run

FACTS = DataFacts((1, 8, 8), 10, 1298)


def resolved(*words: str) -> Job:
    return resolve(load("digits", words), FACTS, torch.device("cpu"), "fp32")


def test_a_job_holds_what_the_recipe_says() -> None:
    job = resolved("--method", "rigl", "--T", "3")
    assert job.hash == settings_hash(job.recipe)
    assert job.timetable == lay_out(job.recipe, 1298)
    assert job.method.regrow == 0.3  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.precision = "bf16"  # type: ignore[misc]


def test_phases_of_a_job() -> None:
    assert resolved("--baseline", "false").phases == ["pruned"]
    assert resolved("--baseline", "true").phases == ["dense", "pruned"]
    assert resolved("--baseline", "true", "--method", "dense").phases == ["pruned"]
    two = resolved("--pattern", "channel", "--prune.finetune", "5ep", "--epochs", "20", "--baseline", "false")
    assert two.phases == ["pretrain", "pruned"]
    assert isinstance(two.timetable.schedule, OneShot)
    assert two.of("pruned").timetable.epochs + two.of("pretrain").timetable.epochs == 20


def test_a_run_makes_its_method_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = job_module.make_method
    monkeypatch.setattr(job_module, "make_method", lambda recipe: made.append(recipe.method) or make(recipe))
    words = "--epochs 1 --model mlp --data.limit 64 --batch 32 --T 2 --precision fp32 --baseline false --method rigl"
    run(load("digits", [*words.split(), "--out", str(tmp_path)]))
    assert made == ["rigl"]
