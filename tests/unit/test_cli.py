"""The command line without training: help, lists, what a dry run says, and how errors end."""

import json

import pytest

from spikeprune.cli import main as cli
from spikeprune.core.errors import RunFailed


def ends(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    """Exit status, lines of stdout, and stderr."""
    status = cli.main(words)
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_help_names_every_command(capsys):
    status, out, _ = ends(capsys, "--help")
    assert status == 0
    for command in ("run", "eval", "report", "list", "doctor", "demo"):
        assert any(line.split()[:1] == [command] for line in out)
    assert cli.commands() == sorted(cli.commands())


def test_every_command_explains_itself(capsys):
    for command in cli.commands():
        status, out, _ = ends(capsys, command, "--help")
        assert status == 0
        assert f"spikeprune {command}" in out[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "no command named 'rum'; did you mean 'run'"),
        (["run"], "run needs a recipe"),
        (["run", "digits", "--sparsity", "95"], "sparsity must be in [0, 1), got 95; for 95 % pass 0.95"),
        (["list", "method"], "no list named 'method'; did you mean 'methods'"),
        (["sweep"], "sweep needs a recipe: `spikeprune sweep digits --seeds 0,1,2`, or a YAML file with lists"),
        (["squeeze", "--sparsity", "0.8"], "squeeze needs a run folder, or --model with --weights; see `sp"),
        (["eval"], "the following arguments are required: RUN"),
        (["eval", "nowhere"], "no run folder nowhere"),
        (["report", "nowhere"], "no run folder nowhere"),
        (["doctor", "--jsn"], "unrecognized arguments: --jsn"),
    ],
)
def test_wrong_words_end_with_status_2_and_one_line(words, message, capsys):
    status, out, err = ends(capsys, *words)
    assert status == 2
    assert message in err
    assert err.startswith("spikeprune: ")
    assert len(err.splitlines()) == 1
    assert out == [] or words in (["run"], ["sweep"])  # their help


def test_a_failed_run_ends_with_status_1(monkeypatch, capsys):
    def fail(_):
        raise RunFailed("the loss is not a number at step 3;\n lower --lr")

    monkeypatch.setattr("spikeprune.cli.list.main", fail)
    assert ends(capsys, "list") == (1, [], "spikeprune: the loss is not a number at step 3; lower --lr\n")


def test_a_crash_shows_its_traceback_only_on_demand(monkeypatch, capsys):
    def crash(_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("spikeprune.cli.list.main", crash)
    status, _, err = ends(capsys, "list")
    assert (status, len(err.splitlines())) == (1, 2)
    assert "Traceback" not in err
    status, _, err = ends(capsys, "list", "--debug")
    assert status == 1
    assert "Traceback" in err


def test_list_prints_names_and_json(capsys):
    status, out, _ = ends(capsys, "list", "methods")
    assert status == 0
    assert {"criticality", "magnitude", "random", "gradient", "dense"} <= set(out)
    status, out, _ = ends(capsys, "list", "--json")
    listed = json.loads("\n".join(out))
    assert set(listed) == {"methods", "models", "datasets", "recipes", "pretrained"}
    assert {"digits", "fashion", "paper-vgg16-cifar100", "paper-resnet19-tiny"} <= set(listed["recipes"])
    assert all(names == sorted(names) for names in listed.values())


def test_doctor_finds_a_working_core(capsys):
    status, out, _ = ends(capsys, "doctor", "--json")
    found = json.loads("\n".join(out))
    assert (status, found["core"]) == (0, "works")
    assert found["packages"]["spikingjelly"]
    assert {"spikingjelly", "torch"} <= set(found["frameworks"])
    for framework in found["frameworks"].values():
        assert framework["version"]
        assert framework["works"]
    own = found["frameworks"]["torch"]  # neurons of the user's own
    assert "compile, exports" in own["works"]
    assert own["missing"].startswith("fuse of own neurons")


def test_doctor_fails_only_without_a_core(monkeypatch, capsys):
    monkeypatch.setattr("spikeprune.cli.doctor._try_core", lambda: "ImportError: no torch")
    status, out, err = ends(capsys, "doctor")
    assert status == 1
    assert "the core does not work here: ImportError: no torch" in err
    assert any(line.startswith("compiler") for line in out)


def test_the_dry_run_of_the_papers_vgg16(capsys):
    status, out, err = ends(capsys, "run", "paper-vgg16-cifar100", "--dry-run")
    assert (status, err) == (0, "")
    assert "prunable weights: 14761664" in out
    events = [line for line in out if line.startswith("event ")]
    # s_n = 0.9 (1 - (1 - n/39)^3): .0675, .1315, ..., .9; 14,761,664 * (1 - .06747...) = 13,765,682.9
    assert len(events) == 39
    assert events[0] == "event 1: step 2000 target 0.0675 kept 13765682"
    assert events[1].startswith("event 2: step 4000 target 0.1315 kept ")
    assert events[-1] == "event 39: step 78000 target 0.9000 kept 1476166"
    quotas = [line.split() for line in out if line.startswith("quota ")]
    assert len(quotas) == 14
    assert sum(int(words[2]) for words in quotas) == 1476166
    assert sum(int(words[4]) for words in quotas) == 14761664
    assert any(line.startswith("note: rule authors keeps all that tie") for line in out)


def test_a_dry_run_scales_with_epochs(capsys):
    _, out, _ = ends(capsys, "run", "digits", "--dry-run", "--epochs", "1")
    assert sum(line.startswith("event ") for line in out) >= 5
    assert "steps: 21" in out
