"""The short form of tests/fuzz_networks.py: networks of each kind through the doors, and the program's own book."""

import json

import pytest
import torch

pytest.importorskip("norse")
pytest.importorskip("nir")
pytest.importorskip("onnxruntime")

import fuzz_networks
from fuzz_draw import KINDS, network
from fuzz_networks import Differs, Totals, compare, outcome, page, run, write_page


def test_every_kind_is_among_the_first_networks():
    assert {network(number).kind for number in range(len(KINDS))} == set(KINDS)


def test_a_number_gives_the_same_network_each_time():
    one, two = network(3, seed=5), network(3, seed=5)
    assert torch.equal(one.inputs[0], two.inputs[0])
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


@pytest.mark.parametrize("number", range(6))
def test_random_networks_differ_at_no_door(number):
    drawn = network(number)
    doors = ("counted", "fused", "compiled", "shrunk") + (("NIR", "ONNX") if number in (1, 3, 4) else ())
    for door in doors:
        what, words = outcome(drawn, door)
        assert what in ("ok", "refused"), f"{door}: {words}"


def test_as_many_samples_as_steps_do_not_swap_the_axes():
    what, words = outcome(network(1220, seed=2026), "compiled")  # takes [N, T, ...], and its example has N = T
    assert what == "ok", words


def test_a_difference_is_seen():
    drawn = network(0)
    x = drawn.inputs[0]
    found = fuzz_networks.eager(drawn.model, x)
    compare(drawn, drawn.model, x, found)
    with pytest.raises(Differs, match="samples, up to"):
        compare(drawn, drawn.model, x, found + 1 + found.abs().max())


def test_shares_of_a_run_add_up_in_one_file(tmp_path, monkeypatch):
    file = tmp_path / "totals.json"
    monkeypatch.setattr(fuzz_networks, "outcome", lambda drawn, door: ("refused" if door == "NIR" else "ok", "why"))
    for share in ("1/2", "2/2", "1/1"):  # the third has nothing left to do
        monkeypatch.setattr("sys.argv", ["fuzz", "--count", "60", "--seed", "1", "--share", share, "--json", str(file)])
        assert fuzz_networks.main() == 0
    content = json.loads(file.read_text())
    assert list(content["chunks"]) == ["0", "20", "40"]
    assert Totals(file, 1).sums()["fused"] == {"ok": 60}
    assert Totals(file, 1).sums()["NIR"] == {"refused": 10}
    assert "| fused | 60 | 60 | 0 | 0 | 0 |" in page(content)
    with pytest.raises(SystemExit, match="is of seed 1"):
        Totals(file, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["totals.json"]


def test_the_page_keeps_what_stands_before(tmp_path):
    to, totals = tmp_path / "page.md", tmp_path / "totals.json"
    to.write_text("# Before\n\n## Random networks\n\nold\n")
    totals.write_text(json.dumps({"seed": 3, "chunk": 20, "chunks": {"0": {"fused": {"ok": 19, "differs": 1}}}}))
    write_page(to, totals)
    assert to.read_text().startswith("# Before\n\n## Random networks\n\n20 random small networks")
    assert "| fused | 20 | 19 | 0 | 1 | 0 |" in to.read_text()
    assert "old" not in to.read_text()


def test_faults_are_counted_and_printed(monkeypatch, capsys):
    monkeypatch.setattr(fuzz_networks, "outcome", lambda drawn, door: ("differs", "by much"))
    assert run([4], 0, ["fused"], False, {}) == {"fused": {"differs": 1}}
    assert "network 4 fused: differs by much" in capsys.readouterr().out
