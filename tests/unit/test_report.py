"""The page of a run: true to the folder, whole with parts missing, safe with any name, and refusing damage by name."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeprune.core.errors import UserError
from spikeprune.lab.page import figures, kit, words, write_report
from spikeprune.lab.page.network import network_map
from spikeprune.lab.page.page import render
from spikeprune.lab.page.read import read_run
from spikeprune.lab.recipe import complete, load, settings_hash
from spikeprune.lab.train.folder import RunFolder
from spikeprune.record.epoch import Epoch
from spikeprune.record.run import RunRecord
from spikeprune.record.spikes import SpikesRecord
from spikeprune.record.squeeze import RasterRows
from spikeprune.record.statistics import StatisticsRecord

VOID = {"meta"}


def line(phase: str, epoch: int, accuracy: float | None, sparsity: float = 0.0) -> dict[str, Any]:
    return {
        "phase": phase,
        "epoch": epoch,
        "step": 10 * epoch,
        "lr": 0.1 / epoch,
        "train_loss": 1.0 / epoch,
        "train_accuracy": min(1.0, 0.5 + 0.04 * epoch),
        "val_loss": None if accuracy is None else 0.9 / epoch,
        "val_accuracy": accuracy,
        "sparsity": sparsity,
    }


def neurons(rate: float, quantiles: list[float]) -> dict[str, Any]:
    return {"n1": {"firing_rate": rate, "criticality": quantiles, "peak": 1.0}}


def layer_part(neuron: str | None, acs: float, mac_ops: float) -> dict[str, Any]:
    return {"neuron": neuron, "macs": acs + mac_ops, "acs": acs, "mac_ops": mac_ops}


def side(accuracy: float | None, alive: int, size: int, macs: float, synops: float, energy: float) -> dict[str, Any]:
    return {
        "accuracy": accuracy, "parameters": 1010, "alive": alive, "bytes": size, "macs": macs, "synops": synops,
        "energy_pj": energy, "firing_rate": 0.0625,
    }  # fmt: skip


class Folder:
    """A small run folder, through the writers that real runs use; tests change its parts before `write`."""

    def __init__(self, path: Path, *overrides: str) -> None:
        recipe = load("digits", overrides)
        self.folder = RunFolder(path / "digits-run")
        self.settings = complete(recipe)
        self.masks = {"a.weight": torch.zeros(20, 10, dtype=torch.bool), "b.weight": torch.zeros(80, 10).bool()}
        self.masks["a.weight"].view(-1)[:30] = True
        self.masks["b.weight"].view(-1)[:20] = True
        self.metrics = [line("dense", e, 0.9 + 0.02 * e) for e in (1, 2, 3, 4)]
        self.metrics += [line("pruned", e, 0.9 + 0.015 * e, s) for e, s in ((1, 0.6), (2, 0.95), (3, 0.95), (4, 0.95))]
        self.record: dict[str, Any] = {
            "schema": 1,
            "name": "digits",
            "settings": self.settings,
            "settings_hash": settings_hash(recipe),
            "seed": 0,
            "environment": {
                "versions": {"python": "3.11.7", "spikeprune": "0.1.0", "norse": None},
                "platform": "Linux",
                "device": "a processor",
                "threads": 1,
                "precision": "fp32",
                "git": "0123abc+",
            },
            "data": {
                "name": "digits", "counts": {"train": 1298, "validation": 144, "test": 355}, "notes": [],
                "counted": 355, "checksum": "c0ffee",
            },
            "dense": side(351 / 355, 1000, 4000, 5000.0, 800.0, 900.0),
            "pruned": side(348 / 355, 50, 400, 250.0, 40.0, 150.0),
            "sparsity": 0.95,
            "density": 0.05,
            "rounds": [
                {"step": 10, "target": 0.6, "kept": 400, "regrown": 80, "rescued": 60, "survived": 20},
                {"step": 20, "target": 0.95, "kept": 50, "regrown": 0, "rescued": 0, "survived": None},
            ],
            "best_epoch": 3,
            "cost": {
                "epochs": 4, "seconds": 80.0, "train_macs": 6e9, "train_macs_effective": 1.5e9,
                "pruning_seconds": 0.8, "search_epochs": 2.0, "search_seconds": 40.0, "dense_seconds": 70.0,
            },
            "status": "finished",
        }  # fmt: skip
        spread = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
        self.statistics: dict[str, Any] | None = {
            "schema": 1,
            "quantiles": [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1],
            "dense": {
                "images": 355,
                "layers": {"b": layer_part("n1", 0, 500), "a": layer_part(None, 300, 0)},
                "neurons": neurons(0.1, spread),
            },
            "pruned": {
                "images": 355,
                "layers": {"b": layer_part("n1", 0, 30), "a": layer_part(None, 10, 0)},
                "neurons": neurons(0.05, spread),
            },
        }

    def write(self) -> RunFolder:
        self.folder.open(self.settings)
        for entry in self.metrics:
            self.folder.add_metrics(Epoch.read(entry))
        self.folder.save_tensors(self.folder.masks, self.masks)
        if self.statistics is not None:
            self.folder.save_statistics(StatisticsRecord.read(self.statistics))
        self.folder.save_record(RunRecord.read(self.record))
        return self.folder

    def page(self) -> str:
        return write_report(self.write()).read_text(encoding="utf-8")


@pytest.fixture
def made(tmp_path: Path) -> Folder:
    return Folder(tmp_path, "--epochs=4")


class Structure(HTMLParser):
    """Checks that tags close in order, and keeps every start tag with its attributes and all visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


# ---- numbers into words ------------------------------------------------------------------------------------------


def test_times_and_words_say_which_way():
    assert words.times(28_960, 1_448) == "20.0×"  # 28960 / 1448 = 20 exactly
    assert words.times(4.78e6, 31_544) == "152×"  # 151.5...
    assert words.times(3, 4) == "0.75×"
    assert words.compared(100, 50) == "2.00× less"
    assert words.compared(50, 100) == "2.00× more"
    assert words.compared(7, 7) == "the same"
    assert words.compared(7, 0) == "nothing left"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (999.6, "1.00 k"), (10_220, "10.2 k"), (116_648, "117 k"), (4_777_984, "4.78 M")],
)
def test_short_has_three_digits_and_a_prefix(value: float, text: str):
    assert words.short(value) == text.replace(" ", "\u00a0")  # no line ends between a number and its unit


def test_energy_is_given_in_picojoule_and_read_in_larger_units():
    assert words.energy(45_232.2) == "45.2\u00a0nJ"  # 45,232 pJ / 1000
    assert words.energy(0.5) == "0.50\u00a0pJ"
    assert words.energy(3.2e6) == "3.20\u00a0µJ"


def test_no_line_ends_between_a_number_and_its_unit():
    for said, tied in (
        ("At 90 % sparsity: 1.00 points above 24.6 kB", "At 90_% sparsity: 1.00_points above 24.6_kB"),
        ("3 min, 2 seeds, 1 k, 4 s of 5 models, 3 Mice", "3_min, 2 seeds, 1_k, 4_s of 5 models, 3 Mice"),
        ("12.9% ± 0.7% (n = 3), ±0.3 points", "12.9_%_±_0.7_% (n_=_3), ±0.3_points"),
    ):
        assert words.bound(said).replace("\u00a0", "_") == tied
    table = kit.Section("A table", tables=([["arm", "accuracy %"], ["a", "90%"]],))
    page = kit.render("At 90 % a leads", ["It has 12 %."], [table], [])
    assert "<h1>At 90\u00a0% a leads</h1>" in page
    assert "It has 12\u00a0%." in page
    assert '<th scope="col" class="num">accuracy %</th>' in page  # above its numbers, which are flush right
    assert '<td class="num">90\u00a0%</td>' in page


def test_points_and_standard_error():
    assert words.points(348 / 355 - 351 / 355) == "0.85\u00a0points below"  # 3 / 355 = 0.845 %
    assert words.points(0.01) == "1.00\u00a0points above"
    assert words.points(0.0) == "exactly as"
    # sqrt(.9 * .1 / 900) = .01
    assert words.standard_error(0.9, 900) == pytest.approx(0.01)


# ---- the page ----------------------------------------------------------------------------------------------------


def test_first_screen_states_each_factor_with_its_two_numbers(made: Folder):
    text = Structure(made.page()).text
    assert "95.0 % sparse, 0.85 points below dense" in text
    assert "right on 348 of 355 test images, the dense one on 351" in text
    for factor, numbers in (
        ("20.0× fewer", "50 of 1,000"),  # weights
        ("10.0× less", "400 B of 4.00 kB"),  # size
        ("20.0× fewer", "250 of 5.00 k"),  # MACs
        ("20.0× fewer", "40 of 800"),  # SynOps
        ("6.00× less", "150 pJ of 900 pJ"),  # energy
    ):
        assert re.search(rf"{re.escape(factor)} {re.escape(numbers)}", text), (factor, numbers)
    # sqrt(.9803 * .0197 / 355) = .0074
    assert "by about 0.74 points (one standard error)" in text


def test_page_is_one_file_without_scripts_and_the_same_every_time(made: Folder):
    page = made.page()
    assert not re.search(r"<script|<link|<iframe|@import|url\(|https?:|\ssrc=", page)
    assert write_report(made.folder.path).read_text(encoding="utf-8") == page


def test_page_is_well_formed_and_readable_without_seeing(made: Folder):
    structure = Structure(made.page())
    names = [tag for tag, _ in structure.tags]
    assert names.count("h1") == names.count("title") == 1
    assert all(attrs.get("scope") for tag, attrs in structure.tags if tag == "th")
    pictures = [attrs for _, attrs in structure.tags if attrs.get("role") == "img"]
    assert len(pictures) == 2  # the time line and the columns
    assert all(picture.get("aria-label") for picture in pictures)
    assert all(attrs.get("aria-hidden") for tag, attrs in structure.tags if tag == "svg")


def test_writing_touches_nothing_else_in_the_folder(made: Folder):
    folder = made.write()
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.path.iterdir()}
    write_report(folder)
    after = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.path.iterdir()}
    assert after.pop("report.html")
    assert after == before


def test_layers_stand_in_the_models_order_and_are_named(made: Folder):
    # The statistics know the order: b is first, and a feeds no neuron.
    bars = figures.layer_bars(read_run(made.write()))
    assert [(bar.name, bar.note) for bar in bars] == [("b", "first layer"), ("a", "classifier")]
    assert [bar.cells for bar in bars] == [
        ("20", "800", "97.50\u00a0%"),  # 1 - 20/800
        ("30", "200", "85.00\u00a0%"),  # 1 - 30/200
    ]


def test_regrowth_is_shown_by_event_and_where_known_by_layer(made: Folder):
    made.record["rounds"][0]["layers"] = {
        "a.weight": {"kept": 40, "regrown": 0},
        "b.weight": {"kept": 360, "regrown": 80},
    }
    text = Structure(made.page()).text
    assert "Regrowth happened in 1 of 2 mask updates" in text
    assert "20 of 80 (25.0 %) survived the next cut" in text
    run = read_run(made.folder)
    first, last = figures.columns(run)
    assert (first.regrown, first.survived, first.rescued) == (100, 25, 75)  # 80, 20 and 60 of 80
    assert (last.regrown, last.survived) == (0, 0)
    assert [(strip.name, strip.total) for strip in figures.regrowth_strips(run)] == [("b", "80"), ("a", "0")]


def test_sparsity_rises_as_stairs_at_the_events(made: Folder):
    chart = figures.timeline(read_run(made.write()))
    assert chart.events == (25, 50)  # steps 10 and 20 of 40
    assert chart.recovery == 50
    # y = 100 - sparsity: dense to epoch 1, then .6, then .95 to the end
    stairs = "M0.00 100.00L25.00 100.00L25.00 40.00L50.00 40.00L50.00 5.00L100.00 5.00"
    assert chart.panels[1].curves[0].path == stairs


def test_accuracy_axis_holds_every_value_after_the_first_tenth(made: Folder):
    made.metrics = [line("pruned", e, 0.1 if e == 1 else 0.9 + 0.001 * e) for e in range(1, 31)]
    chart = figures.timeline(read_run(made.write()))
    heights = [float(y) for y in re.findall(r" (-?[\d.]+)(?:L|$)", chart.panels[0].curves[0].path)]
    assert heights[0] > 100  # epoch 1 runs below the axis
    assert all(0 <= y <= 100 for y in heights[3:])
    assert 0.89 <= chart.low <= 0.903


def test_the_command_is_short_and_makes_the_same_run(made: Folder, tmp_path: Path):
    assert "<code>spikeprune run digits --epochs 4</code>" in made.page()
    other = Folder(tmp_path / "other", "--epochs=6", "--seed=3", "--lr=0.05", "--unit=synapse")
    found = re.search(r"<code>spikeprune run digits (.*)</code>", other.page())
    assert found
    assert settings_hash(load("digits", found[1].split())) == other.record["settings_hash"]
    changed = Folder(tmp_path / "changed")
    changed.record["settings_hash"] = "of another version"
    assert "<code>spikeprune run recipe.yaml --out again</code>" in changed.page()


def test_missing_images_are_said_on_the_first_screen(made: Folder):
    made.record["data"]["notes"] = ["9,980 of 10,000 test images"]
    page = made.page()
    assert page.index("9,980 of 10,000 test images") < page.index("<section>")


# ---- runs of other kinds -----------------------------------------------------------------------------------------


def test_dense_run_is_not_called_pruned(tmp_path: Path):
    made = Folder(tmp_path, "--method=dense")
    made.record |= {"rounds": [], "sparsity": 0.0, "density": 1.0, "dense": made.record["pruned"]}
    made.masks = {name: mask[mask].view(1, -1) for name, mask in made.masks.items()}
    made.metrics = made.metrics[4:]
    text = Structure(made.page()).text.replace("sparse_kernels", "")  # a setting
    assert "98.03 % accuracy, nothing pruned" in text
    for absent in ("sparse", "What grew back", "What is left of each layer", "fewer"):
        assert absent not in text


def test_without_a_dense_run_nothing_is_compared_with_one(made: Folder):
    made.record["dense"]["accuracy"] = made.record["cost"]["dense_seconds"] = None
    assert made.statistics is not None
    made.statistics["dense"] = None
    made.metrics = made.metrics[4:]
    text = Structure(made.page()).text
    assert "95.0 % sparse, 98.03 % accuracy" in text
    assert "No dense network was trained beside it" in text
    assert "counts every connection on the pruned network's spikes" in text
    assert "below dense" not in text
    assert "Training of the dense network" not in text


def test_without_validation_split_the_training_accuracy_is_named_so(made: Folder):
    for entry in made.metrics:
        entry |= {"val_loss": None, "val_accuracy": None}
    text = Structure(made.page()).text
    assert "Accuracy on the training images" in text
    assert "The last epoch is reported" in text
    assert "chosen on the validation split" not in text


def test_without_statistics_the_sections_are_left_out(made: Folder):
    made.statistics = None
    text = Structure(made.page()).text
    assert "How near neurons are to firing" not in text
    assert "How often they fire" not in text
    assert "All figures" in text
    assert "classifier" not in text


def test_without_regrowth_the_page_says_so(made: Folder):
    made.record["rounds"][0] |= {"regrown": 0, "rescued": 0, "survived": 0}
    assert "Nothing grew back" in Structure(made.page()).text


def test_a_worse_pruned_network_is_not_called_less(made: Folder):
    made.record["pruned"]["energy_pj"] = 1800.0
    assert "2.00× more 1.80 nJ of 900 pJ" in Structure(made.page()).text


def test_shrunken_run_shows_its_channels(made: Folder):
    from spikeprune.shrink.plan import ChannelPlan

    made.write()
    ChannelPlan((), layers={"a": (64, 16), "b": (10, 10)}).save(made.folder.plan)
    bars = figures.channel_bars(read_run(made.folder))
    assert [(bar.name, bar.note, bar.parts) for bar in bars] == [
        ("a", "", (("dense", 100.0), ("pruned", 25.0))),
        ("b", "unchanged", (("dense", 15.625), ("pruned", 15.625))),
    ]
    assert "Channels before and after" in write_report(made.folder).read_text(encoding="utf-8")


def test_regrown_channels_are_called_channels(made: Folder):
    made.record["settings"] = {**made.settings, "pattern": "channel"}
    made.record["rounds"] = [
        {
            **made.record["rounds"][0],
            "survived": None,
            "kept": 6,
            "regrown": 2,
            "layers": {"b": {"kept": 6, "regrown": 2}},
        },
    ]
    text = Structure(made.page()).text
    assert "fewer channels" in text
    assert "which cuts channels" in text
    assert "No later cut has judged them." in text
    [strip] = figures.regrowth_strips(read_run(made.folder))
    assert (strip.name, strip.total, strip.shades[0][0]) == ("b", "2", 1.0)


# ---- names and damage --------------------------------------------------------------------------------------------


def test_every_name_is_escaped(made: Folder):
    evil = "<img onerror=x>&\"'"
    made.record |= {"name": evil}
    made.record["settings"] = {**made.settings, "model": evil, "weights": evil}
    made.record["data"] |= {"name": evil, "notes": [evil], "checksum": evil}
    made.record["environment"] |= {"device": evil, "platform": evil, "git": evil}
    made.record["environment"]["versions"][evil] = evil
    made.masks[f"{evil}.weight"] = made.masks.pop("a.weight")
    made.record["rounds"][0]["layers"] = {f"{evil}.weight": {"kept": 400, "regrown": 80}}
    assert made.statistics is not None
    for part in (made.statistics["dense"], made.statistics["pruned"]):
        part["layers"] = {evil: layer_part(evil, 1, 1)}
        part["neurons"] = {evil: part["neurons"]["n1"]}
    page = made.page()
    assert "<img" not in page
    structure = Structure(page)
    assert structure.text.count(evil) >= 12
    assert not any("onerror" in attrs for _, attrs in structure.tags)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(*keys: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        record = json.loads(path.read_text())
        part = record
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        path.write_text(json.dumps(record))

    return remove


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return replace


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("record.json", cut),
        ("record.json", without("dense", "macs")),
        ("record.json", without("cost", "search_epochs")),
        ("record.json", without("environment", "versions")),
        ("record.json", replaced('"synops": 40.0', '"synops": NaN')),
        ("record.json", replaced('"rounds": [', '"rounds": [7, ')),
        ("metrics.jsonl", Path.unlink),
        ("metrics.jsonl", lambda path: path.write_text("")),
        ("metrics.jsonl", cut),
        ("metrics.jsonl", replaced('"pruned"', '"other"')),
        ("masks.safetensors", Path.unlink),
        ("masks.safetensors", cut),
        ("statistics.json", cut),
        ("statistics.json", replaced('"firing_rate": 0.05', '"firing_rate": "often"')),
        ("plan.json", lambda path: path.write_text("{}")),
    ],
)
def test_damage_is_refused_by_the_files_name_and_an_older_page_stays(
    made: Folder, name: str, damage: Callable[[Path], None]
):
    made.record["name"] = "own"  # of no shipped recipe, so that none has to be read for the command
    folder = made.write()
    before = write_report(folder).read_bytes()
    damage(folder.path / name)
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        write_report(folder)
    assert 20 <= len(str(caught.value)) - len(str(folder.path)) <= 300
    assert folder.report.read_bytes() == before


def leaves(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The place of every value inside nested mappings and lists, those of mappings and lists included."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, *path, key)


@pytest.mark.parametrize("wrong", [None, "?", "gone"], ids=repr)
def test_a_wrong_value_anywhere_gives_a_page_or_an_error_that_names_the_file(
    made: Folder, wrong: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("spikeprune.lab.page.page._command", lambda run: "")  # it reads recipes, which takes long
    made.write()
    for path in (made.folder.record, made.folder.statistics):
        whole = path.read_text()
        outcomes = set()
        for place in leaves(json.loads(whole)):
            content = json.loads(whole)
            part = content
            for key in place[:-1]:
                part = part[key]
            if wrong == "gone":
                del part[place[-1]]
            else:
                part[place[-1]] = wrong
            path.write_text(json.dumps(content))
            outcomes.add(refusal(made.folder))
        path.write_text(whole)
        assert all(path.name in message for message in outcomes - {""})
        assert len(outcomes) >= 3  # different errors, and pages that do not need the value


def refusal(folder: RunFolder) -> str:
    """The error that stands in the way of a page; empty if there is none."""
    try:
        render(read_run(folder))
    except UserError as error:
        return str(error)
    return ""


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path, made: Folder):
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path / "nothing")
    made.write().record.unlink()
    with pytest.raises(UserError, match="not finished"):
        write_report(made.folder.path)


# ---- measured speed ----------------------------------------------------------------------------------------------


def measured() -> dict[str, Any]:
    def row(engine: str, ms: float, over: str | None) -> dict[str, Any]:
        return {
            "batch": 32, "engine": engine, "median_ms": ms, "low_ms": ms, "high_ms": ms, "images_per_s": 32e3 / ms,
            "speedup": None if over is None else 6.0, "opponent": over,
        }  # fmt: skip

    rows = [row("dense", 20.0, None), row("onnxruntime", 16.0, None), row("compiled fp32", 2.5, "onnxruntime")]
    return {
        "schema": 1, "name": "digits", "model": "mlp", "T": 4, "sparsity": 0.95, "flags": ["avx2"], "load": 0.5,
        "inputs": {"kind": "test images", "count": 2, "shape": [1, 8, 8], "why_random": None}, "versions": {},
        "same_class": {"compiled fp32": 1.0}, "not_shrunk": "no channel is dead as a whole",
        "cpu": "A <processor>", "isa": "avx2", "multiplies_kept": 0.05, "repeats": 5, "int16_flipped": 1e-4,
        "accuracy": {"model": 0.98, "compiled int16": 0.975}, "timings": [{"threads": 1, "clock": "cpu", "rows": rows}],
    }  # fmt: skip


def test_measured_speed_stands_beside_what_was_divided(made: Folder):
    folder = made.write()
    assert "How fast it runs" not in write_report(folder).read_text()
    folder.bench.write_text(json.dumps(measured()))
    structure = Structure(write_report(folder).read_text())
    # The record's factor, which the terminal shows; 16 / 2.5 = 6.4 is the ratio of medians.
    assert "6.00× faster: compiled fp32 takes 2.50 ms where the fastest dense engine, onnxruntime, takes 16.0 ms." in (
        structure.text
    )
    assert "A <processor> (avx2 kernels): medians of 5 interleaved rounds; 5.0 % of the multiplies" in structure.text
    assert "model 98.00 %, compiled int16 97.50 %." in structure.text
    widths = [
        attrs["style"] for tag, attrs in structure.tags if tag == "i" and "width:12.50%" in (attrs.get("style") or "")
    ]
    assert widths  # 2.5 of 20 ms: an eighth of the bar


def test_a_slower_network_is_called_slower(made: Folder):
    result = measured()
    result["timings"][0]["rows"][2]["median_ms"] = 32.0  # twice as long as the 16 ms of the fastest
    result["timings"][0]["rows"][2]["speedup"] = 0.5
    made.write().bench.write_text(json.dumps(result))
    assert "2.00× slower: compiled fp32 takes 32.0 ms" in Structure(write_report(made.folder).read_text()).text


@pytest.mark.parametrize(
    "damage", ["{", '{"timings": []}', '{"timings": [{"threads": 1, "clock": "sun", "rows": []}]}']
)
def test_damaged_timings_are_named(made: Folder, damage: str):
    made.write().bench.write_text(damage)
    with pytest.raises(UserError, match=r"bench\.json is damaged"):
        write_report(made.folder)


def test_the_map_fills_layers_by_their_alive_weights_and_marks_what_is_dead(made: Folder):
    made.record["rounds"] = [
        entry
        | {"kept": 40 + kept, "regrown": 0, "rescued": 0, "survived": 0}
        | {"layers": {"a.weight": {"kept": 40, "regrown": 0}, "b.weight": {"kept": kept, "regrown": 0}}}
        for entry, kept in zip(made.record["rounds"], (360, 20), strict=True)
    ]
    run = read_run(made.write())
    masks = {"b.weight": torch.zeros(40, 20, dtype=torch.bool)}
    masks["b.weight"][:2, :10] = True
    first, second = network_map(run, masks)
    assert (first.name, first.width, first.fill, first.dead) == (
        "b",
        800,
        2.5,
        "starved",
    )  # 20 weights, 2 of 40 outputs
    assert first.frames == (100.0, 45.0, 2.5)
    assert (second.name, second.dead) == ("a", "")
    page = made.page()
    assert "@keyframes mask1 { 0.00% { width: 100.00% } 40.00% { width: 45.00% }" in page


def test_the_page_has_contents_that_lead_to_its_sections(made: Folder):
    page = made.page()
    links = re.findall(r'<li><a href="#(s\d+)">([^<]+)</a>', page)
    assert len(links) >= 5
    assert all(f'<h2 id="{anchor}">' in page for anchor, _ in links)


def test_the_page_says_why_this_epoch(made: Folder):
    text = Structure(made.page()).text
    assert re.search(r"The network is that of epoch \d+, the best on the validation split", text)


def test_one_images_spikes_stand_dense_above_pruned(made: Folder):
    folder = made.write()
    rows = RasterRows(T=2, neurons=4, shown=4, dense="f0", pruned="30")  # bits 1111 0000 and 0011 0000, in some order
    folder.save_spikes(SpikesRecord(schema=1, rows={"n1": rows}))
    text = Structure(write_report(folder).read_text()).text
    assert "Of 4 dense spikes shown, the pruned network fires 2 too." in text
