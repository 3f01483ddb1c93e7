"""Networks that come trained: what their cards say is what they do."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import spikeprune as sp
from spikeprune.core.errors import InvalidValue, UnknownName, UserError
from spikeprune.data import batches
from spikeprune.lab.train.pretrained import data_of, score_pretrained
from spikeprune.zoo.pretrained import FOLDER, card, file_of, names, pretrained, read_card


def test_digits_reproduces_the_accuracy_on_its_card():
    result = score_pretrained("digits")
    assert result.same_data
    assert result.images == 355
    assert result.accuracy == result.recorded == card("digits").accuracy > 0.98


@pytest.mark.parametrize("name", names())
def test_every_file_fits_its_card(name):
    found, model = card(name), sp.pretrained(name)
    assert found.name == name
    assert not model.training
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in model.state_dict().values())
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    with torch.no_grad():
        logits = model(torch.zeros(2, found.in_channels, found.size, found.size))
    assert logits.shape == (found.T, 2, found.classes)
    assert found.counts["test"] > 0
    assert 0.3 < found.accuracy < 1
    assert found.data in sp.datasets()


def test_the_files_are_small():
    sizes = [file_of(name).stat().st_size for name in names()]
    assert max(sizes) <= 4_000_000
    assert sum(sizes) <= 12_000_000


def test_each_call_gives_a_network_of_its_own():
    first, second = pretrained("digits"), pretrained("digits")
    before = second.head.weight.clone()
    with torch.no_grad():
        first.head.weight.zero_()
    assert torch.equal(second.head.weight, before)


def test_data_of_a_network_is_normalised_as_on_its_card():
    found, data = card("digits"), data_of("digits")
    x, _ = next(batches(data, "train", 50))
    pixels = data.train.inputs[:50].float()
    torch.testing.assert_close(x, (pixels / found.scale - found.mean[0]) / found.std[0])
    assert data.counts == found.counts


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="no pretrained network named 'fashion-smal'; did you mean 'fashion-small'"):
        sp.pretrained("fashion-smal")
    with pytest.raises(UnknownName, match="did you mean 'digits'"):
        card("../digits")


def test_damaged_and_foreign_files_are_refused(tmp_path, monkeypatch):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((FOLDER / "digits.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.safetensors is missing or damaged"):
        read_card(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(FOLDER / "digits.safetensors"), foreign)
    with pytest.raises(InvalidValue, match="has no model card in its header"):
        read_card(foreign)
    shutil.copy(cut, tmp_path / "digits.safetensors")
    monkeypatch.setattr("spikeprune.zoo.pretrained.FOLDER", tmp_path)
    with pytest.raises(UserError, match="install spikeprune again"):
        pretrained("digits")


def test_weights_that_are_damaged_after_the_card_was_read_are_refused(tmp_path, monkeypatch):
    file = Path(shutil.copy(FOLDER / "digits.safetensors", tmp_path))
    monkeypatch.setattr("spikeprune.zoo.pretrained.FOLDER", tmp_path)
    pretrained("digits")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"digits\.safetensors is missing or damaged; install spikeprune again"):
        pretrained("digits")


def test_list_and_eval_on_the_command_line(capsys):
    from spikeprune.cli.main import main

    assert main(["list", "pretrained"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line for line in listed if not line.startswith(" ")] == names()
    assert f"{card('digits').accuracy:.2%} on the 355 test images of digits" in "\n".join(listed)
    assert main(["eval", "digits"]) == 0
    percent = f"{card('digits').accuracy:.2%}"
    assert capsys.readouterr().out.strip() == f"accuracy {percent} on 355 test images (recorded: {percent})"


def test_the_page_tells_what_the_cards_say():
    import hashlib
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    for name in names():
        assert hashlib.sha256(file_of(name).read_bytes()).hexdigest() in page
        assert f"{card(name).accuracy:.2%} of {card(name).counts['test']:,}" in page
        assert card(name).licence in page
