"""Recipes: what is refused and in which words, how phases scale, and what the hash of the settings stands for."""

import dataclasses

import pytest
import torch
import yaml

from spikeprune.core.errors import InvalidValue, UnknownName, UserError
from spikeprune.data import batches
from spikeprune.lab.recipe import DataSettings, Recipe, complete, load, settings_hash, shipped
from spikeprune.lab.recipe.timetable import lay_out, learning_rate
from spikeprune.lab.train.parts import load_data

PAPER = [f"paper-{net}-{data}" for net in ("resnet19", "vgg16") for data in ("cifar10", "cifar100", "tiny")]


def test_the_shipped_recipes():
    assert {"digits", "fashion", *PAPER} <= set(shipped())
    assert shipped() == sorted(shipped())
    for name in shipped():
        assert load(name).name == name


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_follow_the_authors_code(name):
    recipe = load(name)
    assert (recipe.T, recipe.batch, recipe.lr, recipe.epochs, recipe.seed) == (5, 128, 0.3, 500, 1234)
    assert (recipe.optim.name, recipe.optim.momentum, recipe.optim.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (recipe.optim.decay, recipe.optim.stepping) == ("cosine", "epoch")
    assert (recipe.regrow, recipe.regrow_schedule, recipe.settings["curve"]) == (0.2, "constant", "value")
    assert (recipe.loss, recipe.data.validation, recipe.data.flip) == ("mean-over-T", 0, True)
    # Their score curve is not clamped, their dead weights keep momentum, and their thresholds let ties through.
    settings = {"surrogate": "dspike", "momentum": "warm", "rule": "authors"}
    assert {key: recipe.settings[key] for key in settings} == settings
    assert recipe.model == ("vgg16-weights" if "vgg16" in name else "resnet19-weights-authors")
    std = {"cifar10": [0.2023, 0.1994, 0.2010], "cifar100": [0.2673, 0.2564, 0.2762], "tiny": [0.229, 0.224, 0.225]}
    mean = {"cifar10": [0.4913, 0.4821, 0.4465], "cifar100": [0.5071, 0.4867, 0.4408], "tiny": [0.485, 0.456, 0.406]}
    data = name.rpartition("-")[2]
    assert (recipe.data.std, recipe.data.mean) == (std[data], mean[data])
    # 50,000 / 128 = 390.6: 391 steps, and 200 * 391 / 2000 = 39.1; Tiny: 100,000 / 128 = 781.25 and 78.2.
    images, per_epoch, events = (100_000, 782, 78) if name.endswith("tiny") else (50_000, 391, 39)
    laid_out = lay_out(recipe, images)
    assert laid_out.steps_per_epoch == per_epoch
    assert laid_out.schedule.steps() == tuple(2000 * n for n in range(1, events + 1))


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize("net", ["vgg16", "resnet19"])
def test_channel_recipes_divide_by_cifar10s_std_as_the_authors_do(net, data):
    recipe = load(f"paper-{net}-{data}-channels")
    assert (recipe.data.mean, recipe.data.std) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])


def test_inputs_are_normalised_as_the_recipe_says():
    recipe = load("digits", ["--data.mean", "[0.25]", "--data.std", "[0.5]"])
    x = next(batches(load_data(recipe), "train", 4))[0]
    own = load("digits")
    plain = load_data(own)
    y = next(batches(plain, "train", 4))[0]
    torch.testing.assert_close((y * plain.std[0] + plain.mean[0] - 0.25) / 0.5, x)
    assert settings_hash(recipe) != settings_hash(own)
    with pytest.raises(UserError, match=r"data\.std has 3 numbers; digits has 1 channels"):
        load_data(load("digits", ["--data.std", "[0.2, 0.2, 0.2]"]))
    with pytest.raises(InvalidValue, match=r"data\.std must be numbers above 0"):
        load("digits", ["--data.std", "[0]"])


def test_the_cosine_is_stepped_by_epoch_as_in_the_paper():
    recipe = load("paper-vgg16-cifar100")
    laid_out = lay_out(recipe, 50_000)
    # cos(200 pi / 500) = 0.30902: 0.3 * 1.30902 / 2 = 0.19635 when pruning ends.
    assert learning_rate(recipe, 200 * 391, laid_out) == pytest.approx(0.19635, abs=1e-5)
    assert learning_rate(recipe, 200 * 391 + 390, laid_out) == learning_rate(recipe, 200 * 391, laid_out)
    assert learning_rate(recipe, 0, laid_out) == 0.3


def test_step_decay_drops_at_the_milestones():
    recipe = load("digits", ["--optim.decay", "step", "--optim.milestones", "[0.5, 0.75]", "--epochs", "4"])
    laid_out = lay_out(recipe, 64 * 10)
    rates = [learning_rate(recipe, step, laid_out) for step in (0, 19, 20, 29, 30, 39)]
    assert rates == pytest.approx([recipe.lr * f for f in (1, 1, 0.1, 0.1, 0.01, 0.01)])


def test_phases_scale_with_epochs():
    recipe = load("paper-vgg16-cifar100", ["--epochs", "50"])
    assert (recipe.prune.begin, recipe.prune.end, recipe.prune.every) == ("0ep", "20ep", "200it")
    assert len(lay_out(recipe, 50_000).schedule.steps()) == 39


def test_a_phase_that_is_given_is_taken_as_it_is():
    recipe = load("paper-vgg16-cifar100", ["--epochs", "50", "--prune.end", "30ep"])
    assert (recipe.prune.end, recipe.prune.every) == ("30ep", "200it")


@pytest.mark.parametrize("name", ["digits", "fashion"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_small_recipes_keep_five_events_at_any_length(name, epochs):
    recipe = load(name, ["--epochs", str(epochs)])
    images = {"digits": 1298, "fashion": 57_000}[name] if recipe.data.limit is None else recipe.data.limit
    steps = lay_out(recipe, images).schedule.steps()
    assert len(steps) >= 5
    assert steps[-1] <= lay_out(recipe, images).steps


def test_events_may_be_spaced_by_the_turnover_of_a_weight():
    words = ["--lr", "0.5", "--optim.weight_decay", "0.0005", "--prune.begin", "0ep", "--prune.end", "300it"]
    recipe = load("digits", [*words, "--prune.every", "0.5turnover", "--prune.events", "1"])
    assert lay_out(recipe, 1298).schedule.steps() == (100, 200, 300)  # (1 - 0.9) / (2 * 0.5 * 0.0005) = 200 steps
    longer = load("digits", [*words, "--prune.every", "0.5turnover", "--epochs", "100"])
    assert longer.prune.every == "0.5turnover"  # the time does not depend on the length of training
    with pytest.raises(InvalidValue, match="without weight decay"):
        lay_out(load("digits", [*words, "--prune.every", "1turnover", "--optim.weight_decay", "0"]), 1298)


def test_pruning_cannot_outlast_the_run():
    with pytest.raises(InvalidValue, match=r"prune\.end 50ep is step 1050, after the run's last"):
        lay_out(load("digits", ["--prune.end", "50ep"]), 1298)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits", "--sparsity", "95"], r"sparsity must be in \[0, 1\), got 95; for 95 % pass 0.95"),
        (["digits", "--sparsity", "1"], r"sparsity must be in \[0, 1\)"),
        (["digits", "--sparcity", "0.5"], "no setting named 'sparcity'; did you mean 'sparsity'"),
        (["digits", "--data.lmit", "5"], "did you mean 'data.limit'"),
        (["digits", "--method", "magnitud"], "no method named 'magnitud'; did you mean 'magnitude'"),
        (["digits", "--model", "digits-con"], "did you mean 'digits-conv'"),
        (["digits", "--data.name", "cifr10"], "no dataset named 'cifr10'; did you mean 'cifar10'"),
        (["digts"], "no recipe named 'digts'; did you mean 'digits'"),
        (["nowhere.yaml"], "no recipe file nowhere.yaml"),
        (["digits", "--epochs", "0"], "epochs must be a whole number of at least 1, got 0"),
        (["digits", "--epochs", "ten"], "epochs must be a whole number, got 'ten'"),
        (["digits", "--epochs"], "--epochs needs a value"),
        (["digits", "--precision", "fp8"], "precision must be auto or fp32 or bf16 or fp16, got 'fp8'"),
        (["digits", "--lr", "nan"], "lr must be a number, got 'nan'"),
        (["digits", "--unit", "synaps"], "unit must be one of 'neuron', 'synapse', got 'synaps'"),
        (["digits", "--batches", "many"], "batches must be a whole number, got 'many'"),
        (["digits", "--prune.end", "20"], "prune.end: a duration reads like '200ep'"),
        (["digits", "--optim.milestones", "[2]"], "optim.milestones must be shares of the training"),
        (["digits", "0.9"], "expected --key value, got '0.9'"),
        (["digits", "--weights", "nowhere.pt"], "cannot read .*nowhere.pt"),
    ],
)
def test_wrong_input_is_named_in_one_line(arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        settings_hash(load(arguments[0], arguments[1:]))
    assert 20 <= len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sparsity: 0.5\nsparcity: 0.5\n", "no setting named 'sparcity'"),
        ("data:\n  nam: digits\n", "no setting named 'data.nam'"),
        ("epochs: null\n", "epochs must be a whole number, got None"),
        ("- 1\n- 2\n", "holds no `key: value` lines"),
        ("a: [1\n", "not valid YAML"),
        ("data: digits\n", "no setting named 'data'"),
    ],
)
def test_a_wrong_recipe_file_is_refused(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        load(str(path))


def test_a_recipe_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("sparsity: 0.5\n".encode("utf-16"))
    with pytest.raises(
        UserError, match=r"cannot read the recipe .*mine\.yaml: 'utf-8' codec .*; a recipe is a YAML text"
    ):
        load(str(path))


def test_python_use_is_checked_as_well():
    with pytest.raises(InvalidValue, match=r"data\.limit must be a whole number or null, got '5'"):
        DataSettings(limit="5")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="baseline must be true or false, got 1"):
        Recipe(baseline=1)  # type: ignore[arg-type]


def test_settings_of_other_methods_are_ignored():
    plain = load("digits", ["--method", "magnitude"])
    assert settings_hash(plain) == settings_hash(load("digits", ["--method", "magnitude", "--unit", "synapse"]))
    assert settings_hash(plain) == settings_hash(load("digits", ["--method", "magnitude", "--regrow", "0.5"]))
    assert settings_hash(load("digits")) != settings_hash(load("digits", ["--unit", "synapse"]))
    assert settings_hash(load("digits")) != settings_hash(load("digits", ["--regrow", "0.5"]))


def test_the_hash_ignores_places_and_sees_settings(tmp_path, monkeypatch):
    here = settings_hash(load("digits"))
    monkeypatch.chdir(tmp_path)
    elsewhere = ["--out", str(tmp_path / "x"), "--data.root", str(tmp_path), "--device", "cpu"]
    assert settings_hash(load("digits", elsewhere)) == here
    assert settings_hash(load("digits", ["--sparsity", "0.950"])) == here
    changed = (["--seed", "1"], ["--epochs", "31"], ["--data.limit", "900"], ["--optim.momentum", "0.8"])
    assert len({here, *(settings_hash(load("digits", words)) for words in changed)}) == 1 + len(changed)


def test_weights_count_by_content(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"one")
    (tmp_path / "b.pt").write_bytes(b"one")
    (tmp_path / "c.pt").write_bytes(b"two")
    a, b, c = (settings_hash(load("digits", ["--weights", str(tmp_path / f"{name}.pt")])) for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("words", [[], ["--epochs", "7", "--unit", "synapse", "--data.limit", "500"]])
def test_the_complete_recipe_reads_back_as_the_same_run(tmp_path, words):
    recipe = load("digits", words)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(complete(recipe)))
    again = load(str(path))
    assert again == recipe
    assert settings_hash(again) == settings_hash(recipe)


def test_the_complete_recipe_names_every_setting():
    settings = complete(load("digits"))
    names = {entry.name for entry in dataclasses.fields(Recipe)} - {"settings", "squeeze"}
    assert names | {"unit", "curve", "pick", "batches"} <= set(settings)
    assert "squeeze" in complete(load("digits-squeeze"))


def test_an_unknown_name_is_a_lookup_error():
    with pytest.raises(LookupError) as caught:
        load("digitz")
    assert isinstance(caught.value, UnknownName)
