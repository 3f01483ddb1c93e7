"""Checks a sparse network against its certificate: after a copy, a compilation or an export."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from spikeprune.core.errors import UserError
from spikeprune.data import facts_of
from spikeprune.lab.recipe import load
from spikeprune.lab.train.code import vouch_for
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.network import TimedNetwork, build, connect
from spikeprune.record.packed import FORMAT as PACKED
from spikeprune.record.packed import read_packed
from spikeprune.runtime.compile import store
from spikeprune.runtime.compile.compiled import load as load_compiled
from spikeprune.squeeze.certificate import (
    Certificate,
    differing,
    disobeyed,
    fingerprint,
    flips,
    only_ties,
    read_certificate,
)

_NAME = "certificate.safetensors"


@final
@dataclass(frozen=True)
class Check:
    """One comparison, and its result in a few words."""

    what: str
    ok: bool
    found: str


@final
@dataclass(frozen=True)
class Verification:
    """The comparisons of a file with its certificate. `ok` is True if all of them agree."""

    path: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def verify(path: str | Path, against: str | Path | None = None, trust: bool = False) -> Verification:
    """Compares a run folder, or a file that was made from it, with a certificate.

    Args:
        path: a run folder, a compiled network, a packed network or the weights or masks of a run.
        against: a run folder or a certificate; by default the folder's or the file's own.
        trust: build the user's own `package.module:build` that a run folder names, to see its spikes.
    Raises: UserError if there is nothing to compare, or no certificate.
    """
    place = Path(path)
    if not place.exists():
        raise UserError(f"no run folder or file {str(path)[-120:]}; give a folder that `spikeprune squeeze` made")
    if place.is_dir():
        certificate = _read(place / _NAME) if against is None else _given(Path(against))
        return Verification(str(path), tuple(_of_folder(RunFolder.existing(place), certificate, trust)))
    content = place.read_bytes()
    try:
        metadata = _metadata(content)
        certificate = _given(Path(against)) if against is not None else _own(place, metadata)
        return Verification(str(path), tuple(_of_file(place, metadata, certificate)))
    except _Unreadable as error:
        return Verification(str(path), (Check("file", False, str(error)),))


class _Unreadable(Exception):
    """A file that exists and is not what it was."""


def _of_folder(folder: RunFolder, certificate: Certificate, trust: bool) -> list[Check]:
    try:
        state, masks = read_safetensors(folder.model), read_safetensors(folder.masks)
    except UserError as error:
        return [Check("file", False, str(error))]
    checks = [_weights(certificate, state), _masks(certificate, masks, state)]
    checks.append(_spikes_of_run(folder, certificate, state, trust))
    for name in ("model.compiled", "export.safetensors"):
        file = folder.path / name
        if file.is_file():
            try:
                found = _of_file(file, _metadata(file.read_bytes()), certificate)
            except _Unreadable as error:
                found = [Check("file", False, str(error))]
            checks += [Check(f"{name}: {check.what}", check.ok, check.found) for check in found]
    return checks


def _of_file(path: Path, metadata: Mapping[str, str], certificate: Certificate) -> list[Check]:
    if "network" in metadata:
        return [_spikes_of_compiled(path, certificate)]
    try:
        if metadata.get("format") == PACKED:
            state, masks = read_packed(path)
            return [_weights(certificate, state), _masks(certificate, masks, state)]
        tensors = read_safetensors(path)
    except UserError as error:
        raise _Unreadable(str(error)) from error
    if path.name == _NAME:
        return [Check("certificate", True, "whole")]
    if all(tensor.dtype is torch.bool for tensor in tensors.values()):
        return [_masks(certificate, tensors, {})]
    return [_weights(certificate, tensors)]


def _weights(certificate: Certificate, state: Mapping[str, Tensor]) -> Check:
    lines = differing(certificate.tensors, state, "tensor")
    return Check("weights", not lines, _first(lines) or f"{len(state)} tensors, each with its SHA-256")


def _masks(certificate: Certificate, masks: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Check:
    lines = differing(certificate.masks, masks, "mask") + disobeyed(state, masks)
    alive = sum(int(mask.sum()) for mask in masks.values())
    return Check("masks", not lines, _first(lines) or f"{len(masks)} masks, {alive:,} weights alive, the others 0")


def _spikes_of_run(folder: RunFolder, certificate: Certificate, state: Mapping[str, Tensor], trust: bool) -> Check:
    recipe, record = load(str(folder.recipe)), folder.read_record()
    if ":" in recipe.model and not trust:
        return Check("spikes", True, f"not run: the folder names code, {recipe.model}; --trust runs it")
    vouch_for(folder.path, {"model": recipe.model}, trust)
    shape, classes = record.data.shape, record.data.classes
    if shape is None or classes is None:
        return Check("spikes", False, "record.json does not tell the shape of the data")
    model = build(recipe.model, classes, recipe.T, shape, recipe.seed)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError:
        return Check("spikes", False, f"model.safetensors does not fit the network {recipe.model}")
    facts = facts_of(recipe.data.name)
    recorded = facts is not None and facts.time_first
    few = torch.randn([recipe.T] * recorded + [2 * recipe.T + 2, *shape], generator=torch.Generator().manual_seed(0))
    network: TimedNetwork = connect(model, few, recipe.T, classes, recipe.loss, recorded)
    with network.one_call(recorded) as whole:
        found = fingerprint(whole, certificate.example, network.adapter)
    return _compared(certificate, found.spikes, rounded=False)


def _spikes_of_compiled(path: Path, certificate: Certificate) -> Check:
    try:
        compiled = load_compiled(path)
        found = compiled.trace(certificate.example)
    except UserError as error:
        raise _Unreadable(str(error)) from error
    return _compared(certificate, found, rounded=compiled.precision != "fp32")


def _compared(certificate: Certificate, found: Mapping[str, Tensor], rounded: bool) -> Check:
    expected = certificate.fingerprint
    try:
        counts = flips(expected, found)
    except UserError as error:
        return Check("spikes", False, str(error))
    flipped, values = sum(counts.values()), expected.values
    where = f"{values:,} values of {len(counts)} neuron layers on the stored input"
    if not flipped:
        return Check("spikes", True, f"{where}, all equal")
    first = next(name for name, count in counts.items() if count)
    if rounded:
        share = f"{flipped / values:.3%} flipped by rounded weights (tolerance {certificate.tolerance:.1%})"
        return Check("spikes", flipped <= certificate.tolerance * values, f"{where}, {share}")
    ties = only_ties(expected, counts)
    return Check(
        "spikes",
        ties,
        f"{where}, {flipped:,} differ, first {counts[first]:,} in {first!r}: "
        + ("ties at the threshold" if ties else "more than ties at the threshold explain"),
    )


def _given(path: Path) -> Certificate:
    if path.is_dir():
        return _read(path / _NAME)
    if not path.is_file():
        raise UserError(
            f"no run folder or file {str(path)[-120:]} to compare with; --against takes a run that "
            f"`spikeprune squeeze` made, or its {_NAME}"
        )
    try:
        return _read(path) if path.name == _NAME else _own(path, _metadata(path.read_bytes()))
    except _Unreadable as error:
        raise UserError(f"{str(path)[-120:]} is nothing to compare with: {error}; check --against") from error


def _own(path: Path, metadata: Mapping[str, str]) -> Certificate:
    """The certificate that a file carries, or the one beside it."""
    if "certificate" in metadata:
        try:
            return read_certificate(metadata["certificate"], path.name)
        except UserError as error:
            raise _Unreadable(str(error)) from error
    beside = path if path.name == _NAME else path.with_name(_NAME)
    if not beside.is_file():
        raise UserError(
            f"{path.name} carries no certificate and none lies beside it; pass --against RUN, the run it was made from"
        )
    return _read(beside)


def _read(path: Path) -> Certificate:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {_NAME}; `spikeprune squeeze` writes one into its run folder")
    return read_certificate(path.read_bytes(), str(path))


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, also inside a compiled one."""
    if store.is_compiled(content):
        content = content[len(store.MAGIC) + 32 :]
    try:
        length = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + length])
        return dict(head.get("__metadata__") or {})
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise _Unreadable(
            "it is damaged, or neither a run folder, a compiled network nor a safetensors file"
        ) from error


def _first(lines: list[str]) -> str:
    return "" if not lines else lines[0] + (f" (and {len(lines) - 1} more)" if lines[1:] else "")
