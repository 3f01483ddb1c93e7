"""Comparisons of records made by hand: groups, references, numbers, and every form that they are printed in."""

import csv
import io
import json
import re
import shutil
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from records import write_run
from spikeprune.cli.main import main
from spikeprune.core.errors import UnknownName, UserError
from spikeprune.lab.page import charts
from spikeprune.lab.page.charts import Difference, Level, Series, forest, front, picture, plot, styles
from spikeprune.lab.page.paper import paper_figure
from spikeprune.lab.study import reviewer, tables
from spikeprune.lab.study.compare import collect, compare, from_dict
from spikeprune.lab.study.conclude import conclusions
from spikeprune.lab.study.tables import main_table, to_text


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three seeds: dense .9, magnitude .80 .82 .84, criticality .81 .84 .84 with a constant share, else .80."""
    out = tmp_path_factory.mktemp("made")
    for seed in range(3):
        write_run(out, 0.9, "method=dense", "sparsity=0", f"seed={seed}")
        write_run(out, 0.80 + 0.02 * seed, "method=magnitude", "sparsity=0.9", f"seed={seed}")
        constant = ("method=criticality", "regrow_schedule=constant", "sparsity=0.9", f"seed={seed}")
        write_run(out, [0.81, 0.84, 0.84][seed], *constant, train_macs_effective=8e8)
        write_run(out, 0.80, "method=criticality", "sparsity=0.9", f"seed={seed}")
    return out


@pytest.fixture
def runs(made, tmp_path):
    """A copy of these, for a test to add to."""
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


def _rows(found):
    return {row.label: row for row in found.rows}


def test_runs_of_another_budget_are_marked_and_joined_by_no_line(tmp_path):
    write_run(tmp_path, 0.9, "method=dense", "sparsity=0", "seed=0")
    write_run(tmp_path, 0.8, "method=magnitude", "sparsity=0.9", "seed=0")
    write_run(
        tmp_path, 0.7, "method=magnitude", "sparsity=0.5", "seed=0", "pattern=channel", "data.test_limit=20", "T=3"
    )
    found = compare(collect([tmp_path])[0])
    assert set(_rows(found)) == {
        "dense",
        "magnitude, pattern=weight, T=4, data.test_limit=None",
        "magnitude, pattern=channel, T=3, data.test_limit=20",
    }
    tex = tables.to_latex(found)
    assert "data.test\\_limit=20$^\\dagger$ & 1" in tex
    assert "data.test\\_limit=None & 1" in tex
    assert r"$^\dagger$ epochs, batch, T or data are not those of dense} \\" in tex
    pytest.importorskip("matplotlib")
    drawn = paper_figure(found, ".svg").decode()
    starts = [float(x) for x in re.findall(r' x="([-\d.]+)"[^>]*>magnitude, ', drawn)]
    assert len(starts) == 2
    assert min(starts) == max(starts) > 0  # long names stand in lines of their own, inside the picture


def test_the_notes_say_that_a_network_came_trained(tmp_path):
    write_run(tmp_path, 0.9, "method=dense", "sparsity=0", "seed=0")
    assert not any("not counted here" in note for note in tables.notes(compare(collect([tmp_path])[0])))
    write_run(tmp_path, 0.8, "method=squeeze", "sparsity=0.9", "seed=0", train_macs=0.0, train_macs_effective=0.0)
    notes = tables.notes(compare(collect([tmp_path])[0]))
    assert "squeeze: 0 epochs, since a trained network was given; its own training is not counted here." in notes


def test_an_arm_that_equals_the_reference_in_each_seed_is_no_test(tmp_path):
    for seed in range(3):
        for method in ("magnitude", "random"):
            write_run(tmp_path, 0.80 + 0.02 * seed, f"method={method}", "sparsity=0.9", f"seed={seed}")
    found = compare(collect([tmp_path])[0], "magnitude")
    assert conclusions(found)[1] == "Nothing is tested here: the differences to magnitude are equal in all seeds."
    for seed in range(3):
        write_run(tmp_path, [0.81, 0.84, 0.84][seed], "method=criticality", "sparsity=0.9", f"seed={seed}")
    found = compare(collect([tmp_path])[0], "magnitude")
    (block,) = found.blocks
    equal, tested = _rows(found)["random"], _rows(found)["criticality"]
    assert tables.cells(equal)[5:8] == ["equal in all 3", "-", "-"]
    assert (equal.tested, tested.tested, block.tests) == (False, True, 1)
    assert tested.versus.holm_p == tested.versus.t_p  # of one test
    said = tables.family(found, block)
    assert "for the 1 test against magnitude in this table. Rows without p: in each of the 3 seeds the accuracy" in said
    assert " & equal in all 3 & - & " in tables.to_latex(found)


def test_runs_that_differ_in_the_seed_alone_are_one_row(runs):
    rows = _rows(compare(collect([runs])[0], "magnitude"))
    assert set(rows) == {
        "dense", "magnitude", "criticality, regrow_schedule=constant", "criticality, regrow_schedule=decay",
    }  # fmt: skip
    assert all(row.seeds == (0, 1, 2) for row in rows.values())
    assert rows["magnitude"].values["accuracy"].mean == pytest.approx(0.82)
    assert rows["magnitude"].values["accuracy"].sd == pytest.approx(0.02)
    assert rows["magnitude"].values["accuracy"].half == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-6)
    assert rows["dense"].target is None


@pytest.fixture
def beside(tmp_path):
    """Two seeds of two methods, each run with a dense network beside it: .90 and .92, 2000 SynOps, 7 seconds."""
    for seed in range(2):
        for method in ("magnitude", "criticality"):
            write_run(tmp_path, 0.80 + 0.03 * seed, f"method={method}", f"seed={seed}", "baseline=true")
    for file in tmp_path.glob("*/record.json"):
        record = json.loads(file.read_text())
        record["dense"] |= {"accuracy": 0.90 + 0.02 * record["seed"], "synops": 2000.0}
        record["cost"]["dense_seconds"] = 7.0
        file.write_text(json.dumps(record))
    return tmp_path


def test_the_dense_network_that_runs_trained_beside_is_a_row_and_the_reference(beside):
    runs, _, _ = collect([beside])
    found = compare(runs)
    dense = _rows(found)["dense"]
    assert (found.reference, dense.target, dense.seeds, dense.accuracies) == ("dense", None, (0, 1), (0.90, 0.92))
    assert {name: dense.values[name].mean for name in ("sparsity", "synops", "seconds", "search_seconds")} == {
        "sparsity": 0.0, "synops": 2000.0, "seconds": 7.0, "search_seconds": 0.0,
    }  # fmt: skip
    assert dense.values["train_macs_effective"] == dense.values["train_macs"]
    assert _rows(found)["magnitude"].versus.difference.mean == pytest.approx(-0.095)
    assert _rows(found)["magnitude"].equal_budget
    ((_, rows),) = reviewer.reviewer_table(found, runs)
    assert rows[1][:2] + rows[1][3:6] == ["dense", "4", "91.00 ± 12.71", "91.00", "2.00 k"]


def test_the_latex_table_has_the_dense_network_that_runs_trained_beside(beside, capsys):
    assert main(["compare", str(beside), "--latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("dense")] == [
        r"dense & 2 & 0 & 91.0 $\pm$ 12.7 & - & - & 2.00 k \\"
    ]


def test_a_dense_run_of_its_own_stands_in_place_of_the_one_beside(beside):
    write_run(beside, 0.5, "method=dense", "sparsity=0", "seed=0")
    assert _rows(compare(collect([beside])[0]))["dense"].accuracies == (0.5, 0.92)


def test_differences_are_paired_by_seed(runs):
    found = compare(collect([runs])[0], "magnitude")
    versus = _rows(found)["criticality, regrow_schedule=constant"].versus
    # .01, .02, .00: mean .01, sd .01, t = .01 / (.01 / sqrt 3) = sqrt 3 with 2 degrees of freedom: p = 1 - sqrt(3/5)
    assert versus.difference.mean == pytest.approx(0.01)
    assert versus.difference.sd == pytest.approx(0.01)
    assert versus.t_p == pytest.approx(1 - (3 / 5) ** 0.5)
    # The other: -.00, -.02, -.04: t = -.02 / (.02 / sqrt 3), the same p; Holm doubles the smallest of two.
    assert [block.tests for block in found.blocks] == [2]
    assert versus.holm_p == pytest.approx(2 * versus.t_p)
    assert _rows(found)["magnitude"].versus is None


def test_what_regrowth_delivered_stands_beside_the_difference(runs):
    counts = {"step": 5, "target": 0.9, "kept": 50, "regrown": 40, "rescued": 0, "survived": None}
    masks = {"a.weight": torch.zeros(3, 2).bool(), "b.weight": torch.zeros(2, 1, 3, 3).bool()}
    masks["a.weight"][0] = True
    masks["b.weight"][1, 0, 0, 0] = True
    for seed in range(3):
        run = write_run(runs, 0.8, "method=random", "sparsity=0.9", f"seed={seed}", rounds=[counts, counts])
        if seed == 0:
            assert _rows(compare(collect([runs])[0], "magnitude"))["random"].delivered is None  # no file tells
        save_file({n: m.to(torch.uint8) for n, m in masks.items()}, runs / f"hand-{run}" / "regrown.safetensors")
    comparison = compare(collect([runs])[0], "magnitude")
    rows = _rows(comparison)
    assert rows["magnitude"].delivered is None
    assert rows["random"].delivered == (3, 80, 2)
    assert "3 of 80 in 2" in "\n".join(to_text(comparison))
    assert from_dict(json.loads(json.dumps(comparison.as_dict()))) == comparison
    for path in runs.glob("hand-*/record.json"):
        record = json.loads(path.read_text())
        record["settings"]["pattern"] = "channel"  # mask updates then count channels, and the file holds weights
        path.write_text(json.dumps(record))
    assert _rows(compare(collect([runs])[0], "magnitude"))["random"].delivered is None


def test_each_table_is_a_family_of_tests_of_its_own(runs):
    """Three tests at 95 % leave Holm's correction at 90 % alone; the reference's own table says how many it has."""
    alone = _rows(compare(collect([runs])[0], "magnitude"))["criticality, regrow_schedule=constant"].versus
    for seed in range(3):
        write_run(runs, 0.7 + 0.01 * seed, "method=magnitude", "sparsity=0.95", f"seed={seed}")
        for number, method in enumerate(("random", "gradient", "set")):
            write_run(runs, 0.7 + 0.02 * seed * number, f"method={method}", "sparsity=0.95", f"seed={seed}")
    found = compare(collect([runs])[0], "magnitude")
    assert [(block.target, block.tests) for block in found.blocks] == [(0.9, 2), (0.95, 3)]
    assert found.blocks[0].rows[0].label == found.blocks[1].rows[0].label == "dense"
    assert _rows(found)["criticality, regrow_schedule=constant"].versus.holm_p == alone.holm_p
    text = "\n".join(to_text(found))
    assert "corrected for the 2 tests against magnitude in this table" in text
    assert "corrected for the 3 tests against magnitude in this table" in text


def test_rows_are_sorted_by_mean_accuracy_below_dense(runs):
    (block,) = compare(collect([runs])[0], "magnitude").blocks
    assert [row.label for row in block.rows] == [
        "dense", "criticality, regrow_schedule=constant", "magnitude", "criticality, regrow_schedule=decay",
    ]  # fmt: skip


def test_what_a_row_tells_beside_its_means(runs):
    """Of 40 regrown the next cut kept 10 in seed 0, 20 in seed 1; the last event's are not judged."""
    for seed, survived in enumerate((10, 20)):
        counts = {"step": 5, "target": 0.9, "kept": 50, "regrown": 40, "rescued": 0}
        rounds = [{**counts, "survived": survived}, {**counts, "survived": None}]
        write_run(runs, 0.8, "method=gradient", "sparsity=0.9", f"seed={seed}", rounds=rounds)
    rows = _rows(compare(collect([runs])[0], "magnitude"))
    assert rows["gradient"].survived.mean == pytest.approx(0.375)
    assert rows["magnitude"].survived is None
    assert rows["magnitude"].accuracies == pytest.approx((0.80, 0.82, 0.84))
    assert rows["magnitude"].settings["epochs"] == 4
    assert "seed" not in rows["magnitude"].settings
    assert rows["magnitude"].images == {"train": 100, "validation": 0, "test": 50}
    assert rows["magnitude"].machines == ("a processor, 1 thread, fp32; spikeprune 0.1.0, torch 2.13.0",)


def test_columns_without_anything_to_tell_are_left_out(runs):
    (block,) = (found := compare(collect([runs])[0], "magnitude")).blocks
    heads = main_table(found, block.rows)[0]
    assert "p (Wilcoxon)" not in heads
    assert "budget" not in heads
    assert "regrown survive %" not in heads
    write_run(runs, 0.95, "method=random", "sparsity=0.9", "seed=0", "epochs=40", epochs=40)
    (block,) = (found := compare(collect([runs])[0], "magnitude")).blocks
    assert "budget" in main_table(found, block.rows)[0]


def test_the_json_is_the_whole_comparison(runs, capsys):
    assert main(["compare", str(runs), "--reference", "magnitude", "--json"]) == 0
    read = from_dict(json.loads(capsys.readouterr().out))
    assert read == compare(collect([runs])[0], "magnitude")
    for wrong in ({}, {"schema": 1, "rows": []}, {"schema": 2, "reference": None, "unfinished": 0, "rows": [{}]}):
        with pytest.raises(UserError, match="this is no comparison"):
            from_dict(wrong)


def test_dense_is_the_reference_of_every_sparsity_unless_another_is_named(runs):
    write_run(runs, 0.7, "method=magnitude", "sparsity=0.95", "seed=1")
    found = compare(collect([runs])[0])
    assert found.reference == "dense"
    late = next(row for row in found.rows if row.target == 0.95)
    assert late.versus.difference.mean == pytest.approx(-0.2)
    assert late.versus.t_p is None  # one pair
    assert late.equal_budget is True
    assert next(r for r in compare(collect([runs])[0], "magnitude").rows if r.target == 0.95).versus is None


def test_an_unequal_budget_is_said(runs):
    write_run(runs, 0.95, "method=random", "sparsity=0.9", "seed=0", "epochs=40", epochs=40)
    row = _rows(compare(collect([runs])[0], "magnitude"))["random"]
    assert row.equal_budget is False


def test_the_file_of_a_sweep_names_arms_targets_and_what_is_missing(runs):
    hash_ = write_run(runs, 0.5, "method=magnitude", "sparsity=0.92", "seed=0")
    listed = {"schema": 1, "name": "x", "reference": "gmp", "runs": []}
    for path in sorted(runs.glob("hand-*/record.json")):
        record = json.loads(path.read_text())
        method, sparsity = record["settings"]["method"], record["settings"]["sparsity"]
        if method == "magnitude" and record["seed"] == 0:
            label = "gmp" if sparsity == 0.9 else "gmp, 80 % kept"
            listed["runs"].append({"hash": record["settings_hash"], "label": label, "target": 0.9, "seed": 0})
    listed["runs"].append({"hash": "0" * 10, "label": "gmp", "target": 0.9, "seed": 1})
    file = runs / "sweep-x-1.json"
    file.write_text(json.dumps(listed))
    found_runs, missing, reference = collect([file])
    assert (len(found_runs), missing, reference) == (2, 1, "gmp")
    found = compare(found_runs, reference, missing)
    rows = _rows(found)
    assert rows["gmp, 80 % kept"].runs == (f"hand-{hash_}",)
    assert rows["gmp, 80 % kept"].versus.difference.mean == pytest.approx(-0.3)
    assert found.unfinished == 1


def test_a_folder_of_runs_that_are_only_begun_says_how_to_go_on(tmp_path):
    write_run(tmp_path, 0.9)
    next(tmp_path.glob("*/record.json")).unlink()
    with pytest.raises(UserError, match=r"and 1 begun; the command that began a run goes on with it"):
        collect([tmp_path])


def test_what_cannot_be_compared_is_named(runs, tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished run"):
        collect([tmp_path / "empty"])
    entry = {"hash": "0" * 10, "label": "gmp", "target": 0.9}
    whole = {"reference": None, "runs": [entry]}
    for damaged in ({}, {"runs": []}, *({**whole, "runs": [{**entry, key: ["no"]}]} for key in entry)):
        (tmp_path / "sweep-a.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="is not the file of a sweep, or it is damaged; `spikeprune sweep` writes"):
            collect([tmp_path / "sweep-a.json"])
    (tmp_path / "sweep-a.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match="no finished run"):
        collect([tmp_path / "sweep-a.json"])
    (tmp_path / "sweep-a.json").unlink()
    with pytest.raises(UnknownName, match="no reference named 'magnitud'; did you mean 'magnitude'"):
        compare(collect([runs])[0], "magnitud")
    record = next(runs.glob("hand-*/record.json"))
    record.write_text(record.read_text().replace('"firing_rate": 0.1', '"firing_rate": null'))
    with pytest.raises(UserError, match="is damaged"):
        collect([runs])


def test_every_form_is_printed(runs, capsys):
    def printed(*words):
        assert main(["compare", str(runs), "--reference", "magnitude", *words]) == 0
        return capsys.readouterr().out

    text = printed()
    assert "82.00 ± 4.97" in text
    assert re.search(r"criticality, regrow_schedule=constant +3 +0.9000 .* \+1.00 ± 2.48", text)
    assert re.search(r"search epochs +total epochs", text)
    one = json.loads(printed("--json"))
    assert {row["label"] for row in one["rows"]} >= {"dense", "magnitude"}
    assert {(c["numerator"], c["denominator"]) for c in one["claims"]} >= {(2260, 200), (3100, 200)}
    table = list(csv.DictReader(io.StringIO(printed("--csv"))))
    by_label = {row["label"]: row for row in table}
    assert by_label["magnitude"]["seeds"] == "3"
    each = list(csv.DictReader(io.StringIO(printed("--csv-runs"))))
    assert [float(row["accuracy"]) for row in each if row["label"] == "magnitude"] == pytest.approx([0.8, 0.82, 0.84])
    assert float(by_label["magnitude"]["accuracy_mean"]) == pytest.approx(0.82)
    assert float(by_label["criticality, regrow_schedule=constant"]["difference"]) == pytest.approx(0.01)
    assert by_label["dense"]["p_t"] == ""
    latex = printed("--latex")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    assert r"82.0 $\pm$ 5.0" in latex
    assert latex.count("dense &") == 1
    assert r"regrow\_schedule=constant" in latex


def test_the_page_holds_tables_plots_and_named_factors(runs, capsys):
    page = runs / "page.html"
    assert main(["compare", str(runs), "--html", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    text = page.read_text().replace("\u00a0", " ")
    assert text.count("<figure>") == 1  # of one sparsity there is no curve over sparsity
    assert "11.3 = 2260/200" not in text  # only where it is asked for
    assert "<dt>command</dt><dd>spikeprune compare" in text
    assert "At 90 % sparsity criticality, regrow_schedule=constant leads with 83.00 %, 7.00 points below dense" in text
    assert "differences to dense are significant (Holm, p &lt; 0.05)" in text
    assert main(["compare", str(runs), "--html", str(page), "--claims"]) == 0
    assert "11.3 = 2260/200: search epochs of IMP with 8 prunings" in page.read_text()
    assert not re.search(r'(src|href)="|nan', text)


def test_claims_need_no_runs(capsys):
    assert main(["compare", "--claims"]) == 0
    printed = capsys.readouterr().out
    assert "15.5 = 3100/200: search epochs" in printed
    assert "6.8 = 3380/500: total epochs" in printed
    assert main(["compare"]) == 2


def test_the_front_keeps_what_no_other_beats():
    assert front([(3, 5), (1, 2), (2, 2), (4, 5), (2, 4), (5, 6)]) == [(1, 2), (2, 4), (3, 5), (5, 6)]


def test_a_plot_of_nothing_says_so_and_a_point_lies_where_it_should():
    assert "not applicable" in plot([Series("a", ())], "x", "y")
    assert "not applicable" in plot([Series("a", ((0.0, 1.0),))], "x", "y", log=True)
    drawn = plot([Series("<a>", ((1.0, 10.0), (2.0, 20.0), (3.0, 30.0)))], "x", "y")
    at = [tuple(map(float, pair)) for pair in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert at[1] == pytest.approx(((at[0][0] + at[2][0]) / 2, (at[0][1] + at[2][1]) / 2), abs=0.02)
    assert at[0][1] > at[2][1]
    assert "<a>" not in drawn


def test_a_forest_plot_has_a_place_for_every_row_and_arrows_for_those_far_off():
    rows = [
        Difference("a", 1.0, 0.5, (0.5, 1.5)),
        Difference("b & c", -0.5, None, (-0.5,)),
        Difference("d", -30, 1, ()),
    ]
    drawn = xml.etree.ElementTree.fromstring(forest(rows, "points"))
    circles = [e.attrib for e in drawn.iter() if e.tag.endswith("circle")]
    assert [c["class"] for c in circles] == ["seed", "seed", "m", "seed", "m"]  # d is an arrow
    at = [float(c["cx"]) for c in circles]
    assert at[2] == pytest.approx((at[0] + at[1]) / 2, abs=0.1)  # 1.0 lies between 0.5 and 1.5
    assert at[2] - at[4] == pytest.approx(1.5 * (at[1] - at[0]), abs=0.1)  # 1.0 and -0.5; 0.5 and 1.5
    texts = ["".join(e.itertext()) for e in drawn.iter() if e.tag.endswith("text")]
    assert {"b & c", "+1.00 ± 0.50", "-0.50", "-30.00 ± 1.00", "points"} <= set(texts)


def test_a_row_that_fits_beside_the_others_is_no_arrow():
    rows = [Difference(name, mean, 0.5, (mean,)) for name, mean in (("a", 0.0), ("b", -0.1), ("c", -0.1), ("d", -0.9))]
    drawn = xml.etree.ElementTree.fromstring(forest(rows, "points"))
    assert sum(e.tag.endswith("circle") and e.attrib["class"] == "m" for e in drawn.iter()) == 4


def test_a_picture_is_one_file_with_its_own_colours_and_a_mark_for_each_name():
    names = [f"arm {number}" for number in range(20)]
    panel = plot([Series(name, ((10.0 ** (i / 4), 50.0 + i),)) for i, name in enumerate(names)], "x", "y", log=True)
    drawn = xml.etree.ElementTree.fromstring(picture([panel, panel], names))
    space = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f"{space}svg")) == 2
    marks = [mark for mark in drawn if mark.tag.removeprefix(space) in ("circle", "rect", "path")]
    assert len({(mark.tag, mark.get("class")) for mark in marks}) == 20
    assert [text.text for text in drawn.findall(f"{space}text")] == names
    assert "prefers-color-scheme: dark" in drawn.find(f"{space}style").text


def test_the_name_of_a_level_stands_where_fewer_points_lie():
    level = Level("dense 98.00 %", 98.0)
    for points, left in ((((1.0, 90.0), (2.0, 98.2)), True), (((1.0, 98.2), (2.0, 90.0)), False)):
        drawn = plot([Series("a", points)], "x", "y", levels=[level])
        assert ('class="over"' in drawn) == left
        assert ('class="end over"' in drawn) != left


def test_numbers_beside_an_axis_have_as_many_decimals_as_each_other():
    drawn = plot([Series("a", ((1.0, 0.985), (2.0, 0.996)))], "x", "y")
    ticks = re.findall(r'class="end"[^>]*>([\d.]+)<', drawn)
    assert ticks == ["0.985", "0.990", "0.995"]


def test_pictures_have_the_colours_of_the_pages():
    css = (Path(charts.__file__).parent / "templates" / "style.css").read_text()
    names = {"dense": charts.DENSE, "pruned": charts.PRUNED, "ink": charts.INK, "page": charts.PAPER}
    for name, (light, dark) in names.items():
        assert re.findall(rf"--{name}: (#\w+);", css)[:2] == [light, dark]


def test_a_logarithmic_axis_within_a_decade_has_ticks():
    drawn = plot([Series("a", ((250.0, 1.0), (900.0, 2.0)))], "x", "y", log=True)
    assert all(f">{tick}</text>" in drawn for tick in (400, 600, 800))
    assert ">1 k</text>" in plot([Series("a", ((250.0, 1.0), (4e5, 2.0)))], "x", "y", log=True)


def test_tables_leave_columns_out_to_fit_a_terminal(runs):
    comparison = compare(collect([runs])[0], "magnitude")
    lines = tables.to_text(comparison, 80)
    assert max(map(len, lines)) <= 80
    assert any("vs magnitude" in line for line in lines)
    assert len(tables.to_text(comparison)[1]) > 80


def test_a_comparison_concludes_in_sentences(runs):
    said = conclusions(compare(collect([runs])[0], "magnitude"))
    assert said[0] == (
        "At 90 % sparsity criticality, regrow_schedule=constant leads with 83.00 %, 1.00 points above magnitude"
    )
    assert said[1].startswith("None of the 2 differences to magnitude is significant (Holm, p < 0.05)")
    assert said[2] == "Means over 3 seeds. Three or fewer seeds tell large differences only."
    alone = conclusions(compare([run for run in collect([runs])[0] if run.label == "dense"]))
    assert alone[0] == "dense reaches 90.00 %"


def test_the_table_for_reviewers_splits_the_saving(runs, capsys):
    assert main(["compare", str(runs), "--reviewer"]) == 0
    printed = capsys.readouterr().out
    assert "of it weights" in printed
    assert "Logarithms split the saving" in printed
    # ln 20 = 3.00 in all, of which ln 10 = 2.30 by weights: 77 %; the rates halved: 23 %.
    assert reviewer._shares((1000.0, 100.0), (100.0, 5.0)) == ("77%", "23%")
    assert reviewer._shares((1000.0, 100.0), (1000.0, 100.0)) == ("-", "-")


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a.png", b"\x89PNG")])
def test_a_figure_for_a_paper_is_written_and_does_not_change(runs, tmp_path, name, begins):
    pytest.importorskip("matplotlib")
    file = tmp_path / name
    for _ in range(2):
        assert main(["compare", str(runs), "--figure", str(file)]) == 0
        first = file.read_bytes()
    assert first.startswith(begins)
    assert file.read_bytes() == first


def test_a_figure_of_another_kind_is_refused(runs, capsys):
    assert main(["compare", str(runs), "--figure", "a.gif"]) == 2
    assert "--figure takes a file that ends in .svg, .pdf or .png, got '.gif'" in capsys.readouterr().err


def test_a_figure_of_two_networks_is_refused(runs, tmp_path, capsys):
    write_run(runs, 0.9, "model=digits-conv", "method=dense", "sparsity=0")
    assert main(["compare", str(runs), "--figure", str(tmp_path / "a.svg")]) == 2
    said = capsys.readouterr().err
    assert (
        "--figure shows one network on one dataset, got digits-conv on digits; mlp on digits; compare the runs" in said
    )
    assert not (tmp_path / "a.svg").exists()


def test_without_matplotlib_the_install_line_is_told(runs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["compare", str(runs), "--figure", "a.svg"]) == 2
    assert "--figure needs matplotlib; try: pip install 'spikeprune[figure]'" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_named(runs, tmp_path, capsys):
    file = tmp_path / "nowhere" / "a.html"
    assert main(["compare", str(runs), "--html", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"cannot write {file}: No such file or directory; give a file in a folder that exists" in said


def test_an_arm_keeps_its_colour_whatever_stands_beside_it():
    assert styles(["magnitude", "criticality"])["magnitude"] == styles(["magnitude"])["magnitude"]
    assert styles(["criticality", "own"])["criticality"] == styles(["criticality"])["criticality"]
    many = styles([f"arm {n}" for n in range(20)])
    assert len(set(many.values())) == 20


def test_an_axis_of_percentages_never_leaves_0_to_100_and_no_tick_stands_alone():
    drawn = plot([Series("a", ((1.0, 85.0), (2.0, 99.0)), (60.0, 2.0))], "x", "y", within=(0.0, 100.0))
    ticks = [float(text) for text in re.findall(r'class="end"[^>]*>([\d.]+)<', drawn)]
    assert ticks
    assert max(ticks) <= 100
    narrow = plot([Series("a", ((2.08e4, 1.0), (2.11e4, 2.0)))], "x", "y", log=True)
    assert len(re.findall(r'class="middle" x="[\d.]+" y="272.0"', narrow)) >= 2


def _with_classes(runs, right):
    """Gives every run two classes of 25 test images, of which (dense, others) get so many right."""
    for path in runs.glob("*/record.json"):
        record = json.loads(path.read_text())
        own = right[0] if record["settings"]["method"] == "dense" else right[1]
        record["pruned"]["classes"] = [
            {"name": f"class {number}", "images": 25, "right": hits} for number, hits in enumerate(own)
        ]
        path.write_text(json.dumps(record))


def test_the_table_for_reviewers_has_accuracy_by_class(runs, capsys):
    assert reviewer.class_table(compare(collect([runs])[0], "magnitude"), collect([runs])[0]) == []  # of version 0.1
    _with_classes(runs, ([25, 20], [24, 5]))
    assert main(["compare", str(runs), "--reviewer"]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = printed[printed.index(next(line for line in printed if "accuracy by class" in line)) + 1 :]
    assert rows[0].split()[:3] == ["class", "images", "dense"]
    assert rows[1].split() == ["class", "0", "25", "100.0", "96.0", "96.0", "96.0"]
    assert rows[2].split() == ["class", "1", "25", "80.0", "20.0", "20.0", "20.0"]


def test_the_tables_for_reviewers_come_as_latex_and_json_too(runs, capsys):
    _with_classes(runs, ([25, 20], [24, 5]))
    assert main(["compare", str(runs), "--reviewer", "--latex"]) == 0
    tex, text = capsys.readouterr().out, tables.to_latex(compare(collect([runs])[0], "dense"))
    assert tex.startswith(text)
    asked, by_class = tex[len(text) :].strip().split("\n\n")
    assert r"arm & T & seeds & accuracy \% & dense \%" in asked
    assert [line.count(r" & ") for line in asked.splitlines() if line.endswith(r"\\")] == [len(reviewer.HEADS) - 1] * 5
    assert r"class 0 & 25 & 100.0 & 96.0 & 96.0 & 96.0 \\" in by_class
    assert main(["compare", str(runs), "--reviewer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reviewer"][0]["rows"][0] == reviewer.HEADS
    assert found["classes"][0]["rows"][1][:3] == ["class 0", "25", "100.0"]
    assert main(["compare", str(runs), "--reviewer", "--csv"]) == 2
    assert "--reviewer has no CSV" in capsys.readouterr().err


def test_of_many_classes_those_that_lose_most_are_shown(runs):
    _with_classes(runs, ([25] * 30, [25] * 28 + [1, 2]))
    found = collect([runs])[0]
    ((title, rows),) = reviewer.class_table(compare(found, "magnitude"), found)
    assert title.endswith("the 10 of 30 classes that lose most against dense: accuracy by class, %")
    assert [row[0] for row in rows[:3]] == ["class", "class 28", "class 29"]
    assert len(rows) == 11


def test_a_wide_table_is_folded_below_its_first_column():
    rows = [["arm", "first", "second", "third"], ["a", "1", "2", "3"]]
    assert tables.folded(rows, None) == tables.folded(rows, 40) == [rows]
    assert tables.folded(rows, 18) == [
        [["arm", "first", "second"], ["a", "1", "2"]],
        [["arm", "third"], ["a", "3"]],
    ]
