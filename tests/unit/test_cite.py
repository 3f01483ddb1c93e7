"""BibTeX of methods, data and runs."""

import re
from pathlib import Path

import pytest

import spikeprune as sp
from spikeprune.cli.main import main
from spikeprune.core.errors import UnknownName
from spikeprune.data.registry import known_dataset
from spikeprune.host.references import TOOLS, known_references, references_of
from spikeprune.methods.registry import source_of

RUN = next((Path(__file__).parents[1] / "fixtures/0.1.0/finished").glob("tiny-*"))
# A source that names no year and no arXiv number is a control or a method of our own.
PUBLISHED = re.compile(r"\b(19|20)\d\d\b|\b\d{4}\.\d{4,5}\b")


def keys(text):
    return re.findall(r"^@\w+\{([^,]+),$", text, re.MULTILINE)


def test_the_file_parses_whole():
    text = Path(sp.__file__).with_name("references.bib").read_text()
    entries = known_references()
    assert len(entries) == text.count("\n@") > 40
    assert len({entry.key for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.bibtex.count("{") == entry.bibtex.count("}"), entry.key
        assert entry.field("title"), entry.key
        assert entry.field("author"), entry.key
        assert re.fullmatch(r"(19|20)\d\d", entry.field("year") or ""), entry.key
        # A key begins with the first author's surname and the year, as _named looks entries up.
        surname = re.sub(r"\W", "", (entry.field("author") or "").partition(",")[0])
        assert entry.key.startswith(surname.lower() + (entry.field("year") or "")), entry.key


@pytest.mark.parametrize("name", sp.methods())
def test_every_method_yields_bibtex(name):
    found = references_of(source_of(name))
    assert bool(found) == bool(PUBLISHED.search(source_of(name))), f"{name}: source= begins with an author and a year"
    assert keys(sp.cite(name)) == ["spikeprune", *(entry.key for entry in found)]
    numbers = set(re.findall(r"\d{4}\.\d{4,5}", source_of(name)))
    assert numbers <= {entry.field("eprint") for entry in found}


@pytest.mark.parametrize("name", [name for name in sp.datasets() if name != "image-folder"])
def test_every_dataset_and_tool_has_an_entry_with_a_title(name):
    (entry,) = references_of(known_dataset(name).cite)
    assert entry.field("title")


def test_a_name_and_a_year_name_one_entry():
    # "Li et al. 2017" is CIFAR10-DVS, and "Li et al. 2017, arXiv:1608.08710" another paper.
    unnumbered = [entry for entry in known_references() if entry.field("eprint") is None]
    named = [((entry.field("author") or "").partition(",")[0], entry.field("year")) for entry in unnumbered]
    assert len(set(named)) == len(named)
    assert [entry.key for entry in references_of("Li et al. 2017, Frontiers in Neuroscience")] == ["li2017cifar10dvs"]
    assert [entry.key for entry in references_of("Li et al. 2017, arXiv:1608.08710")] == ["li2017filters"]


def test_every_tool_has_entries_with_a_title():
    for name, source in TOOLS.items():
        found = references_of(source)
        assert found, name
        assert len(found) == len(source.split(";")), name
        assert all(entry.field("title") for entry in found), name


def test_names_objects_and_classes_are_the_same_and_nothing_appears_twice():
    text = sp.cite("magnitude")
    assert text == sp.cite(sp.Magnitude()) == sp.cite(sp.Magnitude)
    assert keys(sp.cite("gradient", "rigl", "granet", "erk")).count("evci2020rigl") == 1
    assert keys(sp.cite()) == ["spikeprune"]
    assert sp.__version__ in sp.cite()


def test_a_publication_that_the_file_does_not_hold():
    (entry,) = references_of("Doe et al. 2031, arXiv:3101.00001 (a new score)")
    assert entry.key == "doe2031"
    assert entry.bibtex.splitlines() == [
        "@misc{doe2031,",
        "  author = {Doe and others},",
        "  year = {2031},",
        "  eprint = {3101.00001},",
        "  archivePrefix = {arXiv}",
        "}",
    ]
    assert [e.key for e in references_of("upside down: arXiv:3101.00001 and arXiv:3101.00002")] == [
        "arxiv3101.00001",
        "arxiv3101.00002",
    ]
    assert references_of("a control of ours, of 2026") == []


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'criticality'") as caught:
        sp.cite("criticalty")
    assert 20 <= len(str(caught.value)) <= 300


def test_cite_a_run(capsys):
    assert main(["cite", str(RUN)]) == 0
    text = capsys.readouterr().out
    used = {"chen2023criticality", "zhu2017prune", "alpaydin1998digits", "pedregosa2011sklearn"}
    assert set(keys(text)) == used | {"spikeprune", "horowitz2014energy", "paszke2019pytorch", "fang2023spikingjelly"}
    assert "% cubic: Zhu and Gupta 2017" in text


def test_cite_methods_by_name_and_refusals(capsys, tmp_path):
    assert main(["cite", "set", "lamp"]) == 0
    assert keys(capsys.readouterr().out) == ["spikeprune", "mocanu2018set", "lee2021lamp"]
    assert main(["cite", "no-such-thing"]) == 2
    assert "spikeprune list methods" in capsys.readouterr().err
    assert main(["cite", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
