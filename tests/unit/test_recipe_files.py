"""Recipe files from strangers: nothing grows while it is read, and each refusal is one short line."""

import json
import time
from pathlib import Path

import pytest
import yaml

from spikeprune.cli.main import main
from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.lab.recipe import DataSettings, Recipe, complete, describe_keys, load, settings_hash
from spikeprune.lab.recipe.document import read_yaml
from spikeprune.lab.recipe.validate import fits, from_text, shown
from spikeprune.methods import names
from spikeprune.methods.registry import make_method, settings_of


def levels(count: int, key: str) -> str:
    """A value that holds 9^count others by aliases: 400 bytes that become gigabytes once they are printed."""
    lines = [f"{key}: [&a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"&a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, count)]
    return ", ".join(lines) + "]\n"


HOSTILE = {
    "a list of aliases": (levels(6, "exclude"), "has an alias"),
    "a longer one": (levels(9, "lr"), "has an alias"),
    "in a setting of a method": (levels(7, "unit"), "has an alias"),
    "in a group": ("data: &d\n  name: digits\nprune: *d\n", "has an alias"),
    "a document that holds itself": ("&a [*a]\n", "has an alias"),
    "a mapping that holds itself": ("settings: &s\n  x: *s\n", "has an alias"),
    "a merge": ("a: &a {T: 4}\n<<: *a\n", "has an alias"),
    "depth": ("lr: " + "[" * 5000 + "]" * 5000, "nested deeper"),
    "depth of mappings": ("lr: " + "{a: " * 300 + "1" + "}" * 300, "nested deeper"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000, "value of 5,000 characters"),
    "a number of 900 digits": ("epochs: " + "9" * 900, "epochs must be a whole number, got"),
    "a float of 900 digits": ("lr: " + "9" * 900, "lr must be a number, got"),
    "a base 60 number": ("seed: " + ":".join(["59"] * 3000), "characters"),
    "a large file": ("# " + "x" * 200_000 + "\nT: 4\n", "200,"),
    "a long name": ("name: " + "a" * 300, "name must be letters"),
    "a NUL in a name": ('name: "a\\0b"', "name must be text"),
    "a NUL in a path": ('data:\n  root: "/x\\0y"', "data.root must be text or null"),
    "an escape in a path": ('weights: "\\e[2J"', "weights must be text or null"),
    "a path as a name": ("name: ../../etc/passwd", "name must be letters"),
    "a huge crop": ("data:\n  crop: 1000000", "data.crop must be 0 or more pixels, at most 256"),
    "a huge cutout": ("data:\n  cutout: 1000000", "data.cutout must be"),
    "very many epochs": ("epochs: 10000000000", "epochs must be a whole number of at least 1"),
    "a key twice": ("lr: 0.1\nlr: 0.2\n", "'lr' stands twice"),
    "a tag": ("lr: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    "no such date": ("lr: 2024-99-99\n", "not valid YAML"),
    "a list for a method": ("unit: [neuron, synapse]\n", "unit must be one plain value"),
    "a number as a key": ("1: 2\n", "no setting named '1'"),
    "a long key": ("k" * 900 + ": 2\n", "no setting named 'kkk"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_refused_shortly_and_at_once(tmp_path: Path, name: str) -> None:
    text, words = HOSTILE[name]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert time.process_time() - began < 1
    message = str(caught.value)
    assert words in message
    assert 20 <= len(message) < 400 + len(str(tmp_path))
    assert "\n" not in message


def test_a_value_on_the_command_line_is_read_as_carefully() -> None:
    for value in (levels(6, "x"), "[" * 500 + "]" * 500, "9" * 5000):
        for key in ("unit", "lr", "optim.milestones", "name"):
            with pytest.raises(UserError) as caught:
                load("digits", [f"--{key}={value}"])
            assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a\0b.yaml", "x" * 5000 + ".yaml"])
def test_a_recipe_by_an_impossible_name(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load(name)
    assert len(str(caught.value)) < 400


def test_ordinary_yaml_is_read_as_before() -> None:
    text = yaml.safe_dump(complete(load("digits")))
    assert read_yaml(text, "it") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("5", int, 5),
        ("+5", int, 5),
        ("5.0", int, "5.0"),
        ("1e-3", float, 0.001),
        (1, float, 1.0),
        ("nan", float, "nan"),
        ("null", float | None, None),
        ("0.5", float | None, 0.5),
        ("null", str, "null"),
        ("true", bool, True),
        ("1", bool, "1"),
        ("[0.5, 1]", list[float], [0.5, 1.0]),
        ([1, 0.5], list[float], [1.0, 0.5]),
        ("[]", list[float], []),
        ("[a]", list[float], "[a]"),
        (True, int, True),
    ],
)
def test_texts_become_the_type_of_their_key(value: object, kind: object, expected: object) -> None:
    read = from_text(value, kind)
    assert (read, type(read)) == (expected, type(expected))
    assert fits(read, kind) == (type(expected) is not str or kind is str) or expected is True


def test_one_number_written_in_two_ways_is_one_setting() -> None:
    assert settings_hash(load("digits", ["--lr", "1"])) == settings_hash(load("digits", ["--lr", "1.0"]))


def test_a_message_shows_any_value_shortly() -> None:
    assert shown("9" * 10_000) == shown("9" * 20_000)
    assert shown(10**6000) == "a int that is too long to print" or len(shown(10**6000)) < 100


def test_every_key_is_explained() -> None:
    rows = describe_keys()
    assert all(meaning for _, _, meaning in rows)
    assert ("allocate", "global or uniform or erk or lamp", "how the sparsity is spread over layers") in rows
    assert {"data.crop", "optim.slim", "prune.every", "curve"} <= {key for key, _, _ in rows}


def test_the_validator_checks_objects_made_in_python() -> None:
    with pytest.raises(InvalidValue, match=r"data\.crop must be 0 or more pixels"):
        DataSettings(crop=10**6)
    with pytest.raises(InvalidValue, match="allocate must be global or uniform or erk or lamp, got 'al'"):
        Recipe(allocate="al")


@pytest.mark.parametrize("method", names())
def test_a_method_has_a_share_to_regrow_exactly_if_it_is_a_setting(method: str) -> None:
    """The hash leaves `regrow` out for the others, as version 0.1 did, which asked the object."""
    assert ("regrow" in settings_of(method)) == hasattr(make_method(method), "regrow")


def test_the_hashes_of_version_0_1_still_stand() -> None:
    """Made by version 0.1.0: {"recipe --key value ...": settings_hash}.

    The paper-* recipes have the authors' settings only since 0.2, so each of them stands for other runs now.
    """
    path = Path(__file__).parents[1] / "fixtures" / "hashes-0.1.0.json"
    expected = json.loads(path.read_text())
    assert len(expected) > 30
    found = {words: settings_hash(load(words.split()[0], words.split()[1:])) for words in expected}
    changed = [words for words in expected if found[words] != expected[words]]
    assert changed == [words for words in expected if words.startswith("paper-")]
    assert len(changed) == 11


def test_config_prints_a_recipe_that_leads_to_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "rigl", "--epochs", "7", "--lr", "1e-3"]
    assert main(["config", "digits", *words]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert load(str(path)) == load("digits", words)
    assert settings_hash(load(str(path))) == settings_hash(load("digits", words))
    assert {"name", "method", "data", "optim", "prune"} <= set(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("words", "text"), [(["config"], "config needs a recipe"), (["config", "digts"], "did you mean 'digits'")]
)
def test_config_names_what_is_wrong(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("number", ["1:30:00", "010", "-0_17", "1:30.5"])
def test_a_number_of_another_base_is_refused(number: str) -> None:
    """YAML 1.1 reads 1:30:00 as 5400 and 010 as 8."""
    with pytest.raises(UserError, match="a number of base 60 or 8 in YAML"):
        read_yaml(f"model: mlp\nepochs: {number}\n", "the recipe")
    assert read_yaml("a: 0\nb: 0.5\nc: 10\nd: 1e-3\ne: '010'\nf: a:b\n", "the recipe")["b"] == 0.5
