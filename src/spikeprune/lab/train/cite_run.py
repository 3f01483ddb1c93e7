"""The sources of what a finished run used: its method, its other parts, its data and its tools."""

from collections.abc import Mapping

from spikeprune.core.errors import UnknownName
from spikeprune.data.registry import known_dataset
from spikeprune.host.references import TOOLS
from spikeprune.lab.recipe.squeeze_settings import SQUEEZE
from spikeprune.methods.registry import names, source_of
from spikeprune.record.run import RunRecord
from spikeprune.zoo.registry import names as models


def sources_of(record: RunRecord) -> dict[str, str]:
    """Name of a part of the run -> its source, in words. No code that the run folder names is executed."""
    return {**_method(record), **_parts(record), **_data(record), **_tools(record)}


def _method(record: RunRecord) -> dict[str, str]:
    method = record.settings.method
    if method == SQUEEZE:
        return {SQUEEZE: TOOLS[SQUEEZE]}
    return {method: source_of(method) if method in names() else "a method that is not registered here"}


def _parts(record: RunRecord) -> dict[str, str]:
    """The sources of the run's schedule, allocation and pattern."""
    settings, used = record.settings, list[str]()
    group = settings.extra.get(SQUEEZE if settings.method == SQUEEZE else "prune")
    options = group if isinstance(group, Mapping) else {}
    allocate = options.get("allocate", settings.allocate) if settings.method == SQUEEZE else settings.allocate
    used += [name for name in ("erk", "lamp") if allocate == name]
    if settings.method != SQUEEZE and options.get("schedule") == "cubic" and record.rounds:
        used.append("cubic")
    if ":" in settings.pattern:
        used.append("n:m")
    return {name: TOOLS[name] for name in used}


def _data(record: RunRecord) -> dict[str, str]:
    name = record.data.name
    try:
        return {name: known_dataset(name).cite}
    except UnknownName:
        return {name: "data of the user's own; cite the publication that describes it"}


def _tools(record: RunRecord) -> dict[str, str]:
    used = {name: TOOLS[name] for name in ("energy", "torch")}
    if record.data.name == "digits":
        used["scikit-learn"] = TOOLS["scikit-learn"]
    if record.settings.model in models():
        return {**used, "spikingjelly": TOOLS["spikingjelly"]}
    return {**used, record.settings.model: "a model of the user's own; cite the framework that it is written in"}
