"""An analysis in words and figures: the lines that `spikeprune analyze` prints, and analysis.html."""

from collections.abc import Mapping
from typing import Any

from spikeprune.study.page import Section, render
from spikeprune.study.plots import Series, legend, plot

NONE = "not applicable"


def lines(found: Mapping[str, Any]) -> list[str]:
    """A line each for survival, feature cosine, importance, and the gap of train and validation loss."""
    said = [f"{name}: {_said(name, found)}" for name in ("survival", "feature cosine", "importance", "loss gap")]
    for other in found["against"]:
        said += [
            f"{name}, {other['method']} seed {other['seed']}: {_said(name, other)}"
            for name in ("survival", "feature cosine", "importance", "loss gap")
        ]
        said.append(f"importance of what only one kept: {_between(other['importance_of_difference'])}")
    return said


def _said(name: str, part: Mapping[str, Any]) -> str:
    return {"survival": _survival, "feature cosine": _cosine, "importance": _importance, "loss gap": _gap}[name](part)


def _survival(part: Mapping[str, Any]) -> str:
    s = part["survival"]
    if s is None or not s["regrown"]:
        return NONE
    rescued = sum(event["rescued"] for event in s["events"])
    return (
        f"{s['regrown']:,} regrown, {_share(s['survived_share'])} outlived the next cut, {_share(s['to_end'])} are "
        f"alive at the end; {rescued:,} rescued from a cut"
    )


def _cosine(part: Mapping[str, Any]) -> str:
    c = part["consistency"]
    if c["mean_cosine"] is None:
        return NONE
    centred = _number(c["mean_cosine_centred"])
    return f"{_number(c['mean_cosine'])} train to test, mean over classes and layers; centred {centred}"


def _importance(part: Mapping[str, Any]) -> str:
    i = part["importance"]
    if i is None or i["regrown"] is None or i["others"] is None:
        return NONE
    return (
        f"{_number(i['regrown'])} of {i['regrown_count']:,} regrown weights alive at the end, {_number(i['others'])} "
        f"of the {i['others_count']:,} others (|w| over the layer's largest)"
    )


def _gap(part: Mapping[str, Any]) -> str:
    o = part["overfitting"]
    if o["final_gap"] is None:
        return NONE
    recovery = _signed(o["recovery_gap"])
    return f"{o['final_gap']:+.4f} at the end (validation less train), {recovery} mean after the last event"


def _between(i: Mapping[str, Any]) -> str:
    if i["only_this"] is None or i["only_other"] is None:
        return NONE
    symbol = "gamma" if i["of"] == "gamma" else "w"
    return (
        f"{_number(i['only_this'])} of {i['only_this_count']:,} kept only here, {_number(i['only_other'])} of "
        f"{i['only_other_count']:,} kept only there (|{symbol}| over the layer's largest)"
    )


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.4f}"


def page(found: Mapping[str, Any]) -> str:
    """analysis.html: tables and figures with captions, this run beside those it was analysed against."""
    parts = [("this run", found)] + [(f"{o['method']}, seed {o['seed']}", o) for o in found["against"]]
    names = [name for name, _ in parts]
    sections = [_survival_section(parts), _consistency_section(parts), _importance_section(parts, found)]
    sections += [_overfitting_section(parts, names), _criticality_section(parts)]
    notes = [
        f"Features: {found['features']}; the first {found['images']:,} images of each split, not augmented.",
        found["criticality"]["limits"],
        *(f"{name.replace('_', ' ')}: {meaning}." for name, meaning in found["criticality"]["states"].items()),
    ]
    return render(f"Analysis of {found['run']}", lines(found), sections, notes)


def _survival_section(parts: list[tuple[str, Mapping[str, Any]]]) -> Section:
    heads = ["run", "event", "step", "regrown", "rescued", "of what was newly cut", "outlived the next cut"]
    rows = [
        [
            name,
            str(n),
            str(e["step"]),
            f"{e['regrown']:,}",
            f"{e['rescued']:,}",
            _share(e["rescued_share"]),
            _share(e["survived_share"]),
        ]
        for name, part in parts
        if part["survival"]
        for n, e in enumerate(part["survival"]["events"], 1)
    ]
    return Section("Potential structures: what growth rescued, and what of it survived", tables=([heads, *rows],))


def _consistency_section(parts: list[tuple[str, Mapping[str, Any]]]) -> Section:
    heads = ["run", "neuron layer", "variance, train", "variance, test", "cosine", "cosine, centred"]
    keys = ("mean_variance_train", "mean_variance_test", "mean_cosine", "mean_cosine_centred")
    rows = [
        [name, layer["neuron"], *(f"{layer[k]:.4g}" if layer.get(k) is not None else NONE for k in keys)]
        for name, part in parts
        for layer in part["consistency"]["layers"]
    ]
    say = "Mean over classes: variance within a class, and cosine of its mean feature on training and on test images."
    return Section("Feature consistency", (say,), ([heads, *rows],))


def _importance_section(parts: list[tuple[str, Mapping[str, Any]]], found: Mapping[str, Any]) -> Section:
    said = [f"{name}: {_importance(part)}" for name, part in parts]
    said += [
        f"against {o['method']}, seed {o['seed']}: {_between(o['importance_of_difference'])}" for o in found["against"]
    ]
    return Section("Importance after recovery", tuple(said))


def _overfitting_section(parts: list[tuple[str, Mapping[str, Any]]], names: list[str]) -> Section:
    series = [
        Series(
            name, tuple((float(e["epoch"]), e["gap"]) for e in part["overfitting"]["epochs"] if e["gap"] is not None)
        )
        for name, part in parts
    ]
    caption = (
        "Mean cross-entropy per image on validation less that on training images, both in eval mode, after each epoch."
    )
    figure = (plot(series, "epoch", "validation less train loss"), caption)
    return Section("Overfitting in recovery", figures=(figure,), legend=legend(names))


def _criticality_section(parts: list[tuple[str, Mapping[str, Any]]]) -> Section:
    heads = [
        "run",
        "network",
        "branching, pooled",
        "within images",
        "ratio",
        "avalanches",
        "mean size",
        "size exponent",
    ]
    rows, layers = [], []
    for name, part in parts:
        for state in part["criticality"]["states"]:
            c = part["criticality"][state]
            if c is None:
                rows.append([name, state.replace("_", " "), *[NONE] * 6])
                continue
            b, a = c["branching"], c["avalanches"]
            values = (b["pooled"], b["within"], b["ratio"], a["count"], a["mean_size"], a["size_exponent"])
            rows.append([name, state.replace("_", " "), *(NONE if v is None else f"{v:.4g}" for v in values)])
            for layer in c["layers"]:
                cells = (layer["entropy"], layer["criticality"], layer["correlation"])
                layers.append(
                    [
                        name,
                        state.replace("_", " "),
                        layer["neuron"],
                        *(NONE if v is None else f"{v:.4g}" for v in cells),
                    ]
                )
    more = ["run", "network", "neuron layer", "entropy, bits", "criticality", "correlation over channels"]
    return Section("Is the network critical?", tables=([heads, *rows], [more, *layers]))
