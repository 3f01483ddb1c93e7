"""`spikeprune squeeze`: a run folder like any other, from a network that comes trained; one squeeze for all tests."""

import dataclasses
import json
import shutil

import pytest
import torch

from records import write_run
from spikeprune.cli.main import main
from spikeprune.lab.recipe import load
from spikeprune.lab.recipe.squeeze import squeeze_settings
from spikeprune.lab.recipe.squeeze_settings import SqueezeOptions
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.record.epoch import read_epochs
from spikeprune.runtime import native
from spikeprune.squeeze.settings import SqueezeSettings
from spikeprune.zoo.pretrained import card

WORDS = ["squeeze", "digits", "--sparsity", "0.8", "--images", "60", "--rounds", "2", "--rows", "500"]


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory):
    out = tmp_path_factory.mktemp("squeezed")
    assert main([*WORDS, "--out", str(out)]) == 0
    (folder,) = out.iterdir()
    return RunFolder(folder)


def test_the_last_line_is_the_folder_and_the_same_call_prints_it_again(squeezed, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in squeezed.path.iterdir() if path.name != ".lock"}
    assert main([*WORDS, "--out", str(squeezed.path.parent)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(squeezed.path)
    after = {path.name: path.stat().st_mtime_ns for path in squeezed.path.iterdir() if path.name != ".lock"}
    assert after == before


def test_the_record_has_what_the_contract_asks_for(squeezed):
    record = squeezed.read_record()
    masks, model = read_safetensors(squeezed.masks), read_safetensors(squeezed.model)
    alive = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    assert alive == record.pruned.alive == int(total * 0.2 + 1e-6)
    assert record.sparsity == 1 - alive / total
    assert record.settings.method == "squeeze"
    assert all(not bool(model[name][~mask].any()) for name, mask in masks.items())
    entry = record.squeeze
    assert entry is not None
    assert entry.images == 60
    assert sum(entry.phases.values()) <= entry.seconds < 2 * sum(entry.phases.values()) + 1  # nothing else is in it
    assert sum(layer.alive for layer in entry.layers.values()) == alive
    assert sum(c.images for c in entry.classes) == record.data.counts["test"]
    assert sum(c.pruned for c in entry.classes) / record.data.counts["test"] == record.accuracy
    assert sum(c.dense for c in entry.classes) / record.data.counts["test"] == record.dense.accuracy


def test_another_seed_draws_other_images_and_has_another_folder(squeezed):
    from spikeprune.lab.train.calibration import calibration
    from spikeprune.lab.train.pretrained import data_of

    data = data_of("digits")
    one, again, two = (torch.cat([y for _, y in calibration(data, 60, 25, seed, "cpu")]) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    sizes = [len(y) for _, y in calibration(data, 51, 25, 0)]
    assert sizes == [17, 17, 17]  # no last batch of one image, which BatchNorm could not use


def test_the_page_shows_dense_beside_squeezed(squeezed, tuned):
    page, record = squeezed.report.read_text(), squeezed.read_record()
    entry = record.squeeze
    assert entry is not None
    assert "without labels and without training" in page
    for title in ("Layer by layer", "Spikes that stayed", "One image, spike by spike", "Class by class"):
        assert title in page
    assert "Through training" not in page
    for name, neuron in entry.neurons.items():
        assert name in page
        assert f"{neuron.rate_before:.4f}" in page
    rows = next(iter(entry.raster.values()))
    fired = bin(int(rows.dense, 16)).count("1")
    figure = page[page.index('<figure class="raster">') :]
    path = figure[figure.index('class="dense" d="') :].split('"')[3]
    assert path.count("M") == fired > 0
    trained = tuned.report.read_text()
    assert "Through training" in trained
    assert "after 1 epochs of training with its zeros held" in trained
    assert 'class="dense" d="M' in trained  # its dense epochs are drawn too


def test_compare_names_the_method(squeezed, capsys):
    assert main(["compare", str(squeezed.path), "--json"]) == 0
    assert "squeeze" in capsys.readouterr().out


def test_an_analysis_needs_epochs_and_says_so(squeezed, capsys):
    assert main(["analyze", str(squeezed.path)]) == 2
    assert "trained no epoch" in capsys.readouterr().err


def test_eval_repeats_the_score(squeezed, capsys):
    assert main(["eval", str(squeezed.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == found["recorded"] == squeezed.read_record().accuracy


def test_a_run_is_squeezed_further_and_revives_nothing(squeezed, tmp_path, capsys):
    words = ["squeeze", str(squeezed.path), "--sparsity", "0.9", "--rounds", "1", "--rows", "300"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    further = RunFolder(next(tmp_path.iterdir()))
    assert further.read_record().name == "digits-squeezed"
    before, after = read_safetensors(squeezed.masks), read_safetensors(further.masks)
    assert all(bool((after[name] <= before[name]).all()) for name in before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a run folder, or --model"),
        (["digits", "--sparsty", "0.9"], "did you mean 'sparsity'"),
        (["digits", "--sparsity", "95"], "for 95 % pass 0.95"),
        (["digits", "--images", "0"], "squeeze.images must be"),
        (["digits", "--pattern", "channels"], "did you mean"),
        (["digits", "--network", "small"], "--network must be pruned or dense"),
        (["digits", "--model", "digits-conv"], "give a run folder or --model"),
        (["nowhere"], "no run folder nowhere"),
        (["--model", "digits-conv"], "needs --weights FILE"),
        (["--model", "digits-conv", "--weights", "none.safetensors"], "needs --data.name"),
        (["--model", "digits-conv", "--weights", "none.safetensors", "--data.name", "digits"], "cannot read"),
        (["digits", "--masks", "none.safetensors"], "cannot read"),
        (["digits", "extra"], "expected --key value"),
        (["digits", "--sparsity"], "--sparsity needs a value"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["squeeze", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("method=dense", "sparsity=0"), "is itself dense; leave --network dense out"),
        (("method=magnitude", "sparsity=0.9"), "a run with --baseline true keeps its dense network"),
    ],
)
def test_a_run_without_a_dense_network_says_what_to_do(settings, message, tmp_path, capsys):
    write_run(tmp_path, 0.9, *settings)
    (folder,) = tmp_path.iterdir()
    assert main(["squeeze", str(folder), "--network", "dense"]) == 2
    assert message in capsys.readouterr().err


def test_a_network_of_the_users_own_is_squeezed_from_its_weights(tmp_path, monkeypatch, capsys):
    import spikeprune as sp

    found = card("digits")
    (tmp_path / "thesis_nets.py").write_text(
        f"import spikeprune as sp\n\ndef build(classes, T):\n    return sp.model({found.model!r}, classes, T, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"model": sp.pretrained("digits").state_dict()}, tmp_path / "trained.pt")
    words = ["--model", "thesis_nets:build", "--weights", "trained.pt", "--data.name", "digits", "--T", str(found.T)]
    words += ["--sparsity", "0.8", "--images", "40", "--rounds", "1", "--rows", "300"]
    assert main(["squeeze", *words]) == 0
    folder = RunFolder(next((tmp_path / "runs").iterdir()))
    record = folder.read_record()
    assert folder.path.name.startswith("thesis_nets.build-squeezed-")
    assert record.dense.accuracy == pytest.approx(0.99, abs=0.02)
    assert 0 < record.sparsity < 1
    assert record.pruned.alive == sum(int(mask.sum()) for mask in read_safetensors(folder.masks).values())
    assert main(["verify", str(folder.path), "--trust"]) == 0
    assert "all equal" in capsys.readouterr().out


def test_other_data_than_the_card_names_is_said(squeezed):
    from spikeprune.cli.squeeze import _other_data

    record = squeezed.read_record()
    assert _other_data(record) == []
    changed = dataclasses.replace(record, data=dataclasses.replace(record.data, checksum="0" * 64))
    assert "not the data" in _other_data(changed)[0]


def test_the_masks_of_a_file_are_kept_and_only_solved_for(squeezed, tmp_path):
    words = ["squeeze", "digits", "--masks", str(squeezed.masks), "--images", "40", "--rows", "300"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    other = RunFolder(next(tmp_path.iterdir()))
    assert other.masks.read_bytes() == squeezed.masks.read_bytes()
    assert other.model.read_bytes() != squeezed.model.read_bytes()


def test_a_dry_run_names_the_one_cut(capsys):
    assert main(["run", "digits-squeeze", "--dry-run"]) == 0
    assert "event 1: step 273 target 0.9500 kept 3971" in capsys.readouterr().out


def test_nothing_to_cut_is_refused(squeezed, tmp_path, capsys):
    assert main(["squeeze", str(squeezed.path), "--sparsity", "0.5", "--out", str(tmp_path)]) == 2
    assert "zeros already" in capsys.readouterr().err


def test_every_setting_of_the_library_is_a_key_with_the_same_default():
    own = {field.name: field.default for field in dataclasses.fields(SqueezeOptions)}
    shared = {"sparsity", "budget", "pattern", "exclude", "floor", "progress", "seed"}
    for field in dataclasses.fields(SqueezeSettings):
        if field.name not in shared:
            assert own[field.name] == field.default, field.name
    given = ["--squeeze.tolerance", "0.02", "--squeeze.include", "body* head", "--floor", "0.01"]
    settings = squeeze_settings(load("digits-squeeze", given))
    assert (settings.tolerance, settings.include, settings.floor) == (0.02, ["body*", "head"], 0.01)


TUNED = ["run", "digits-squeeze", "--model", "digits-conv", "--epochs", "2", "--squeeze.tune", "1ep"]
TUNED += ["--data.limit", "200", "--T", "2", "--squeeze.images", "40", "--squeeze.rounds", "1"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    assert main([*TUNED, "--out", str(out)]) == 0
    return RunFolder(next(out.iterdir()))


def test_a_recipe_trains_squeezes_and_tunes_with_the_zeros_held(tuned):
    record = tuned.read_record()
    assert [epoch.phase for epoch in read_epochs(tuned.metrics)] == ["pretrain", "pruned"]
    masks, model = read_safetensors(tuned.masks), read_safetensors(tuned.model)
    assert all(not bool(model[name][~mask].any()) for name, mask in masks.items())
    assert record.sparsity == pytest.approx(0.95, abs=1e-3)
    assert record.stages is not None
    assert record.stages.pretrained == record.dense.accuracy
    assert record.stages.finetuned == record.accuracy
    assert record.squeeze is not None
    assert record.squeeze.tuned_epochs == 1
    assert record.cost.epochs == 2
    assert 0 < record.cost.train_macs_effective < record.cost.train_macs


def test_training_behind_the_last_mask_update_leaves_dead_weights_out(tuned, tmp_path, monkeypatch):
    """The same network but for rounding, by the sparse kernels in the tuned phase alone."""
    from spikeprune.lab.train.loop import Phase

    seen = []
    own = Phase.train_epoch
    monkeypatch.setattr(
        Phase, "train_epoch", lambda phase: seen.append((phase.name, phase.sparse_layers)) or own(phase)
    )
    assert main([*TUNED, "--sparse-kernels", "false", "--out", str(tmp_path)]) == 0
    assert seen == [("pretrain", []), ("pruned", [])]
    without = read_safetensors(RunFolder(next(tmp_path.iterdir())).model)
    seen.clear()
    assert main([*TUNED, "--out", str(tmp_path / "again")]) == 0
    (_, before), (_, report) = seen
    assert not before
    assert any(layer.sparse for layer in report) == (native.library("sparse_train") is not None)
    for name, value in read_safetensors(tuned.model).items():
        torch.testing.assert_close(value, without[name], rtol=1e-3, atol=1e-3)


def test_kernels_come_with_the_last_mask_update_of_a_training(tmp_path, monkeypatch):
    from spikeprune.lab.train.loop import Phase

    seen = []
    own = Phase._account
    monkeypatch.setattr(Phase, "_account", lambda p, n: (own(p, n), seen.append((p.pruner.searching, p.sparse_layers))))
    words = ["run", "digits", "--model", "digits-conv", "--epochs", "2", "--prune.end", "1ep", "--prune.every", "1it"]
    words += ["--data.limit", "256", "--T", "2", "--baseline", "false", "--sparse-kernels", "true"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert {searching for searching, _ in seen} == {True, False}
    for searching, report in seen:
        assert bool(report) is not searching
    model = RunFolder(next(tmp_path.iterdir()))
    masks = read_safetensors(model.masks)
    assert all(not bool(read_safetensors(model.model)[name][~mask].any()) for name, mask in masks.items())


@pytest.mark.parametrize("dies_in", ["squeeze", "tune"])
def test_a_killed_run_ends_with_the_same_bits(tuned, tmp_path, monkeypatch, dies_in):
    from spikeprune.lab.train import squeeze_run
    from spikeprune.lab.train.loop import Phase

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if dies_in == "squeeze":
            patch.setattr(squeeze_run, "squeeze", die)
        else:
            own = Phase.end_epoch
            patch.setattr(Phase, "end_epoch", lambda phase: die() if phase.name == "pruned" else own(phase))
        assert main([*TUNED, "--out", str(tmp_path)]) == 1
    (folder,) = map(RunFolder, tmp_path.iterdir())
    assert not folder.record.exists()
    assert not folder.model.exists()
    assert main([*TUNED, "--out", str(tmp_path)]) == 0
    assert folder.masks.read_bytes() == tuned.masks.read_bytes()
    one, two = (read_safetensors(f.model) for f in (folder, tuned))
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert len(read_epochs(folder.metrics)) == 2


def test_the_soft_loss_is_least_at_the_dense_networks_outputs():
    from spikeprune.lab.train import distill

    logits, teacher = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    own = distill.distillation(teacher.mean(0, keepdim=True), teacher)
    other = distill.distillation(logits, teacher)
    p = torch.softmax(teacher.mean(0) / 2, 1)
    entropy = -(p * p.log()).sum(1).mean() * 4
    assert own == pytest.approx(float(entropy), rel=1e-5)  # the least that a cross-entropy can be
    assert other > own


def test_tuning_on_outputs_chooses_no_epoch_by_labels(squeezed, tmp_path):
    words = ["squeeze", "digits", "--sparsity", "0.8", "--images", "60", "--rounds", "1", "--tune", "1ep"]
    assert main([*words, "--targets", "dense", "--out", str(tmp_path)]) == 0
    record = RunFolder(next(tmp_path.iterdir())).read_record()
    assert record.best_epoch is None
    assert record.sparsity == squeezed.read_record().sparsity


def test_tuning_longer_than_the_run_is_refused(tmp_path, capsys):
    assert main(["run", "digits-squeeze", "--squeeze.tune", "16ep", "--out", str(tmp_path)]) == 2
    assert "leaves no epoch" in capsys.readouterr().err


# ---- the certificate ----------------------------------------------------------------------------------------------


def flipped_bit(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def says(capsys, *words):
    status = main(["verify", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.fixture
def copied(squeezed, tmp_path):
    """The run folder somewhere else, with its exports."""
    shutil.copytree(squeezed.path, tmp_path / "moved")
    moved = RunFolder(tmp_path / "moved")
    assert main(["export", str(moved.path), "--to", "compiled"]) == 0
    assert main(["export", str(moved.path), "--to", "safetensors"]) == 0
    return moved


def test_a_moved_folder_its_exports_and_each_file_alone_are_as_certified(copied, tmp_path, capsys):
    status, said = says(capsys, copied.path)
    assert status == 0, said
    assert said.count("all equal") == 2  # the network itself, and the compiled one
    for name in ("model.compiled", "export.safetensors", "model.safetensors"):
        alone = tmp_path / f"alone-{name}"
        shutil.copy(copied.path / name, alone)
        assert says(capsys, alone)[0] == 0
    assert says(capsys, copied.masks)[0] == 0


@pytest.mark.parametrize("name", ["model.safetensors", "masks.safetensors", "export.safetensors", "model.compiled"])
def test_one_changed_bit_is_found(copied, name, capsys):
    file = copied.path / name
    file.write_bytes(flipped_bit(file.read_bytes(), file.stat().st_size - 1))
    status, said = says(capsys, copied.path)
    assert status == 1
    assert "DIFFERS" in said
    assert says(capsys, file)[0] == 1


def test_a_changed_certificate_is_refused(copied, capsys):
    file = copied.certificate
    file.write_bytes(flipped_bit(file.read_bytes(), file.stat().st_size - 1))
    status, said = says(capsys, copied.path)
    assert status == 2
    assert "damaged" in said


def test_a_compiled_network_of_other_weights_differs(copied, tuned, tmp_path, capsys):
    status, said = says(capsys, copied.path / "model.compiled", "--against", tuned.path)
    assert status == 1
    assert "another network" in said  # its T is another one


def test_rounded_weights_are_held_to_the_tolerance(copied, monkeypatch, capsys):
    from spikeprune.squeeze import certificate

    file = copied.path / "int16"
    assert main(["export", str(copied.path), "--to", "compiled", "--precision", "int16", "--file", str(file)]) == 0
    status, said = says(capsys, file)
    assert status == 0, said
    network = certificate.read_certificate(copied.certificate.read_bytes(), "it")
    spikes = {name: ~fired for name, fired in network.fingerprint.spikes.items()}
    assert not certificate.only_ties(network.fingerprint, certificate.flips(network.fingerprint, spikes))


def test_code_that_a_folder_names_is_not_run_unless_trusted(copied, capsys):
    text = copied.recipe.read_text()
    copied.recipe.write_text(text.replace("model: digits-conv", "model: no_such_module:build"))
    status, said = says(capsys, copied.path)
    assert (status, "--trust" in said) == (0, True)
    assert says(capsys, copied.path, "--trust")[0] == 2


def test_nothing_to_compare_with_is_status_2(tmp_path, squeezed, capsys):
    assert says(capsys, tmp_path / "nothing")[0] == 2
    assert says(capsys, tmp_path)[0] == 2
    bare = tmp_path / "bare.safetensors"
    squeezed.save_tensors(bare, {"w": torch.ones(2)})
    status, said = says(capsys, bare)
    assert (status, "--against" in said) == (2, True)


def test_ties_are_told_from_other_spikes():
    from spikeprune.squeeze.certificate import Fingerprint, flips, only_ties

    expected = Fingerprint({"a": torch.zeros(100, dtype=torch.bool), "b": torch.zeros(10, dtype=torch.bool)})
    found = {"a": torch.zeros(100), "b": torch.ones(10)}
    assert flips(expected, found) == {"a": 0, "b": 10}
    assert not only_ties(expected, flips(expected, found))  # the first layer that differs has more than 2
    found["a"][:2] = 1
    assert only_ties(expected, flips(expected, found))  # what follows from two ties may differ at will
    found["a"][2] = 1
    assert not only_ties(expected, flips(expected, found))


def test_a_misspelt_pretrained_name_is_refused_with_the_nearest(capsys):
    assert main(["squeeze", "digitz"]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err
