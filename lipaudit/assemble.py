"""From what the stages found to the one immutable :class:`lipaudit.records.Audit` that every renderer reads."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lipaudit import records
from lipaudit.bounds.scalar import ONE, Upper
from lipaudit.certify import Bound, Certificate
from lipaudit.certify.domain import Domain
from lipaudit.certify.masks import assumed_masks
from lipaudit.graph.load import Loaded
from lipaudit.operators.catalogue import Catalogue
from lipaudit.options import Options
from lipaudit.resources import rules_dir
from lipaudit.topology import Region, Topology
from lipaudit.validate import Measurement, Measurements, to_record

__all__ = ["assemble", "model_record", "version_of"]

SCHEMA = "lipaudit.audit/1"
_LIBRARIES = ("ml-dtypes", "networkx", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "python-flint", "scipy")


def assemble(
    loaded: Loaded,
    topology: Topology,
    catalogue: Catalogue,
    certificate: Certificate,
    measurements: Measurements | None,
    findings: Sequence[records.Finding],
    domain: Domain,
    options: Options,
    weights: Sequence[records.WeightRow] = (),
) -> records.Audit:
    """One record of everything. Pure: it computes nothing but text and shares."""
    seen = measurements
    return records.Audit(
        schema=SCHEMA,
        model=model_record(loaded, topology),
        domain=domain.record(_notes(topology, domain)),
        norm=options.norm,  # type: ignore[arg-type]
        certified=_certified(certificate.headline),
        measured=_measured(None if seen is None else seen.headline),
        matrix=[
            records.MatrixEntry(
                source=_label(topology, source),
                output=output,
                certified=_certified(bound),
                measured=_measured(None if seen is None else seen.matrix.get((source, output))),
            )
            for (source, output), bound in certificate.matrix.items()
        ],
        regions=_regions(topology, certificate, seen),
        operators=_operators(topology, catalogue, certificate),
        skipped=_skipped(topology, catalogue, certificate),
        findings=list(findings),
        derivation=list(certificate.steps),
        provenance=_provenance(catalogue, options, seen),
        user_rules=[str(path) for path in catalogue.user_files],
        local_gains=_local(seen, certificate.headline),
        weights=list(weights),
        contradictions=[] if seen is None else _contradictions(topology, certificate, seen),
    )


def _contradictions(topology: Topology, certificate: Certificate, seen: Measurements) -> list[records.Contradiction]:
    """Every place where something was measured above what was certified there: never hidden, always a bug."""
    pairs: list[tuple[str, Bound, Measurement | None]] = [("the whole model", certificate.headline, seen.headline)]
    for (source, output), bound in certificate.matrix.items():
        pairs.append((f"{_label(topology, source)} -> {output}", bound, seen.matrix.get((source, output))))
    pairs += [(f"region {path}", bound.joint, seen.regions.get(path)) for path, bound in certificate.regions.items()]
    found: list[records.Contradiction] = []
    for where, bound, measurement in pairs:
        if measurement is None or measurement.lower is None or bound.status != "finite":
            continue
        if measurement.difference is not None and measurement.distance is not None:
            broken = measurement.difference.exceeds(bound.slope * measurement.distance + bound.offset)
        else:
            broken = bound.offset.is_zero and measurement.lower.exceeds(bound.slope)
        if broken:
            offset = "" if bound.offset.is_zero else f" (and an offset of {bound.offset.decimal()})"
            found.append(records.Contradiction(where, bound.slope.decimal(17) + offset, measurement.lower.decimal(17)))
    return found


def _local(seen: Measurements | None, bound: Bound) -> records.LocalGains | None:
    found = None if seen is None else seen.local
    if found is None:
        return None
    estimate = found.estimate
    # An estimate that a certificate refutes is no help.
    if estimate is not None and bound.status == "finite" and bound.offset.is_zero and estimate > float(bound.slope):
        estimate = None
    return records.LocalGains(found.points, found.quantiles, estimate, found.batches)


def _label(topology: Topology, name: str) -> str:
    return next((source.label for source in topology.sources if source.value.name == name), name)


def model_record(loaded: Loaded, topology: Topology) -> records.Model:
    """What was read: path, hash, sizes, inputs and outputs after pinning."""
    graph = topology.simplified
    names = {source.value.name for source in topology.sources}
    inputs = [records.TensorType(v.name, v.dtype, None if v.shape is None else list(v.shape), v.name in names) for v in graph.inputs]
    inputs += [
        records.TensorType(s.label, s.value.dtype, None if s.value.shape is None else list(s.value.shape), True)
        for s in topology.sources
        if s.kind != "input"
    ]
    outputs = [graph.value(name) for name in graph.outputs]
    return records.Model(
        path=loaded.path,
        sha256=loaded.sha256,
        nodes=loaded.nodes,
        parameters=loaded.parameters,
        opset=dict(sorted(graph.opsets.items())),
        inputs=inputs,
        outputs=[records.TensorType(v.name, v.dtype, None if v.shape is None else list(v.shape)) for v in outputs],
        pinned_dims=dict(graph.pinned),
        ir_version=loaded.ir_version,
        producer=loaded.producer,
    )


def _notes(topology: Topology, domain: Domain) -> list[str]:
    notes: list[str] = []
    for source in topology.sources:
        if source.kind == "embedding":
            rows = "its rows are those of the table" if source.table is not None else "its rows range over what the fused operator can give"
            notes.append(f"{source.label}: gains start at the embedding output {source.value.name!r}; {rows}")
    for symbol, size in topology.simplified.pinned.items():
        notes.append(f"dimension {symbol} pinned to {size}")
    masks = [name for name in assumed_masks(topology.graph) if name not in domain.boxes]
    notes += [f"{name}: used as a mask, so it is assumed to hold 0 and 1 only (--input {name}=LO:HI says otherwise)" for name in masks]
    return notes


def _certified(bound: Bound) -> records.Certified:
    finite = bound.status == "finite"
    return records.Certified(
        status=bound.status,  # type: ignore[arg-type]
        upper=bound.slope.decimal() if finite else None,
        log10=_finite(bound.slope.log10()) if finite else None,
        offset=bound.offset.decimal() if finite else None,
        method=bound.method,
        reasons=[] if finite else [records.ReasonRecord(r.node, r.op, r.reason, r.status) for r in bound.reasons],  # type: ignore[arg-type]
        step=bound.step,
    )


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _measured(found: Measurement | None) -> records.Measured:
    if found is None:
        return records.Measured(status="not-measured", reason="not asked for")
    return to_record(found)


def _regions(topology: Topology, certificate: Certificate, seen: Measurements | None) -> list[records.Region]:
    """The tree of records, built from the leaves up (no recursion: trees may be deep)."""
    order: list[Region] = []
    stack = list(reversed(topology.root.children))
    while stack:
        region = stack.pop()
        order.append(region)
        stack.extend(reversed(region.children))
    logs = {region.path: _log(certificate.regions[region.path].joint.slope) for region in order}
    leaves = math.fsum(logs[region.path] for region in order if not region.children)
    made: dict[str, records.Region] = {}
    for region in reversed(order):
        found = certificate.regions[region.path]
        made[region.path] = records.Region(
            path=region.path,
            kind=region.kind,
            nodes=list(region.nodes),
            entries=list(region.entries),
            exit=region.exit,
            certified=_certified(found.joint),
            measured=_measured(None if seen is None else seen.regions.get(region.path)),
            facts=_merged(region.facts, {} if seen is None else seen.facts.get(region.path, {})),
            children=[made[child.path] for child in region.children],
            before_log10=_finite(found.before.log10()),
            after_log10=_finite(found.after.log10()),
            share=logs[region.path] / leaves if leaves > 0 and not region.children else None,
            reason=region.reason,
        )
    return [made[child.path] for child in topology.root.children]


def _merged(stored: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of the graph, and beside them what was measured."""
    return {**stored, **{space: {**stored.get(space, {}), **group} for space, group in measured.items()}}


def _log(gain: Upper) -> float:
    """Positive log10 gain; regions that do not amplify, and those without a finite gain, have no share."""
    return gain.log10() if gain.is_finite and gain > ONE else 0.0


def _operators(topology: Topology, catalogue: Catalogue, certificate: Certificate) -> list[records.OperatorUse]:
    counts = Counter(node.kind for node in topology.graph.nodes)
    moving = {node.kind for node in topology.graph.nodes if any(certificate.sites[node.name].moving)}
    uses: list[records.OperatorUse] = []
    for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        entry = catalogue.entry(kind)
        if entry is not None:
            uses.append(records.OperatorUse(kind, count, entry.describe()))
        else:
            cost = "what depends on it is unknown" if kind in moving else "none: it is not on the data path"
            uses.append(records.OperatorUse(kind, count, "none", catalogue.refusal(kind) or cost))
    return uses


def _skipped(topology: Topology, catalogue: Catalogue, certificate: Certificate) -> list[records.Skipped]:
    skipped: list[records.Skipped] = []
    for node in topology.graph.nodes:
        if catalogue.entry(node.kind) is None:
            moves = any(certificate.sites[node.name].moving)
            cost = "gains through it are unknown" if moves else "none: it is not on the data path"
            skipped.append(records.Skipped(node.name, node.kind, catalogue.refusal(node.kind) or "no rule for this operator", cost))
    return skipped


def _provenance(catalogue: Catalogue, options: Options, seen: Measurements | None) -> records.Provenance:
    return records.Provenance(
        lipaudit=version_of("lipaudit") or "0+unknown",
        rules=version_of("lipaudit") or "0+unknown",
        ruleset_sha256=ruleset_sha256(rules_dir(), catalogue.user_files),
        libraries={name: found for name in _LIBRARIES if (found := version_of(name)) is not None},
        device="none" if seen is None else seen.device,
        seed=options.seed,
        options=options.record,
        stopped="" if seen is None else seen.stopped,
    )


def version_of(name: str) -> str | None:
    """Version of an installed distribution, None if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def ruleset_sha256(folder: Path, user_files: Sequence[Path] = ()) -> str:
    """Hash of every rule file, by relative name and content: which rules an audit was made with."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    for path in user_files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
