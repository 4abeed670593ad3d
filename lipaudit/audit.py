"""The straight line from a model file to an audit: one call a stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lipaudit.assemble import assemble
from lipaudit.assemble_weights import weight_row
from lipaudit.bounds.scalar import Norm
from lipaudit.certify import certify
from lipaudit.certify.domain import Domain, parse_boxes
from lipaudit.certify.masks import assumed_masks
from lipaudit.certify.parts import linear_parts, measure_all
from lipaudit.errors import UsageError
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.judge import judge
from lipaudit.operators.catalogue import Catalogue
from lipaudit.options import EFFORTS, NORMS, Given, Options
from lipaudit.records import Audit, WeightRow
from lipaudit.topology import Topology, recognise
from lipaudit.validate import BUDGETS, Measurements, can_isolate, check_inputs, isolated, validate, witness_bytes

__all__ = ["audit"]

Progress = Callable[[str, float], None]

CHEAP = 2.0**28
"""Operations up to which the smallest singular value of a linear part is asked (a side of 640, squared and times the other)."""


def audit(
    path: str | os.PathLike[str],
    *,
    boxes: Mapping[str, tuple[float | str, float | str]] | Sequence[str] = (),
    dims: Mapping[str, int] | None = None,
    norm: Norm = "l2",
    effort: str = "quick",
    measure: bool = True,
    device: str = "auto",
    seed: int = 0,
    time_limit: float | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    rules: Sequence[str | os.PathLike[str]] = (),
    inputs: Mapping[str, NDArray[Any]] | str | os.PathLike[str] | None = None,
    replay: str | os.PathLike[str] | None = None,
    witness: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    keep_on_interrupt: bool = False,
    isolate: bool = False,
) -> Audit:
    """Audit an exported ONNX model.

    Parameters
    ----------
    path
        ``.onnx`` or ``.onnx.gz`` file; ``"-"`` reads standard input.
    boxes
        Domain of float inputs, ``{name: (lo, hi)}`` (same units as the input; decimals as text are taken exactly) or
        texts ``"name=lo:hi"``. Inputs without a box range over all reals.
    dims
        Sizes of symbolic dimensions by symbol, or ``"input[axis]"``.
    norm
        "l2", "l1" or "linf", on flattened inputs and outputs alike.
    effort
        "quick", "normal" or "thorough": how long the search for a large measured gain goes on, counted in evaluations (about a
        second, ten seconds, minutes on a small network). The certified half does not depend on it.
    measure
        False skips the search: the certified half alone.
    device
        "auto", "cpu" or "cuda" for the measured half.
    seed
        Seed of the search; equal seeds give equal audits.
    time_limit
        Seconds after which the search stops early (a safety net; results then depend on the machine).
    select, ignore
        Codes or prefixes of guidelines ("LIP2") to report or to leave out.
    rules
        Folders with further rules (``operators/``, ``guidelines/``), later ones override earlier ones.
    inputs
        Real inputs, ``{name: array}`` or an .npz file of them, leading axis = examples: where the search starts. Integer inputs of an
        embedding as they are (token ids); inputs that are no source keep the values of the first example.
    replay
        An .npz file that ``witness`` wrote: its pair is evaluated again, nothing is searched.
    witness
        Where to write the pair of the headline as an .npz file (nothing is written if nothing was measured).
    progress
        Called as ``progress(stage, fraction)``.
    keep_on_interrupt
        Ctrl-C during the search ends the search instead of raising KeyboardInterrupt; the audit then holds what is known so far, and
        ``provenance.stopped`` is "interrupted".
    isolate
        Measure in a child process under limits, so that a model that crashes or hangs onnxruntime is "not measured" instead of the end
        of the program. Only on Linux and in programs of one thread; elsewhere it has no effect. The numbers are the same.

    Returns
    -------
    Audit
        Certified numbers are decimal strings rounded up, measured ones rounded down; gains are output units per input unit.

    Raises
    ------
    UsageError
        An option makes no sense (exit code 2).
    ModelError
        The model cannot be read or audited (exit code 3).
    """
    tell = progress or (lambda stage, fraction: None)
    domain = _domain(boxes)
    if not measure and (inputs is not None or replay is not None or witness is not None):
        raise UsageError("--inputs, --replay and --witness are for the measured half, which --no-validate leaves out.")
    if replay is not None and inputs is not None:
        raise UsageError("--replay evaluates its own pair: --inputs has no place beside it.")
    given = Given.read(inputs, replay)
    options = Options.of(
        domain=domain, dims=dict(dims or {}), norm=_choice("norm", norm, NORMS), effort=_choice("effort", effort, EFFORTS),
        measure=measure, device=device, seed=seed, time_limit=time_limit, select=list(select), ignore=list(ignore),
        files=given.digests(),
    )  # fmt: skip
    catalogue = Catalogue.load([Path(folder) for folder in rules])
    tell("load", 0.0)
    loaded = load(os.fspath(path))
    tell("simplify", 0.0)
    graph = simplify(loaded.graph, options.dims, operators=catalogue.operators())
    tell("recognise", 0.0)
    topology = recognise(graph)
    domain.check(topology.sources, loaded.path, graph.inputs)
    search_box = domain.inner(topology.sources, graph.inputs, assumed_masks(topology.graph))
    examples = None if given.inputs is None else check_inputs(graph, topology.sources, search_box, given.inputs, given.inputs_file)
    tell("certify", 0.0)
    certificate = certify(topology, catalogue, domain, norm, lambda fraction: tell("certify", fraction))
    measurements = None
    if measure:
        tell("measure", 0.0)
        budget = BUDGETS[effort]

        def work(tell_fraction: Callable[[float], None], *, keep: bool = True) -> Measurements:
            return validate(
                graph, topology.sources, search_box, regions=certificate.borders(), outputs=certificate.outputs, norm=norm, budget=budget,
                device=device, seed=seed, time_limit=time_limit, inputs=examples, replay=given.replay, progress=tell_fraction,
                keep_on_interrupt=keep,
            )  # fmt: skip

        def show(fraction: float) -> None:
            tell("measure", fraction)

        if isolate and can_isolate():
            seconds = budget.seconds if time_limit is None else time_limit
            measurements = isolated(work, seconds=seconds, device=device, progress=show, keep_on_interrupt=keep_on_interrupt)
        else:
            measurements = work(show, keep=keep_on_interrupt)
        packed = None if witness is None else witness_bytes(measurements, norm)
        if witness is not None and packed is not None:
            from lipaudit.outputs import write_file

            write_file(Path(witness), packed)
    tell("judge", 0.0)
    findings = judge(
        topology, certificate, catalogue, rules=[Path(folder) for folder in rules], select=select, ignore=ignore,
        measured=None if measurements is None else measurements.facts,
    )  # fmt: skip
    rows = _linear_parts(topology, catalogue) if norm == "l2" else []
    return assemble(loaded, topology, catalogue, certificate, measurements, findings, domain, options, rows)


def _linear_parts(topology: Topology, catalogue: Catalogue) -> list[WeightRow]:
    """The linear parts by the numbers that the certificate used; smallest singular values where they cost little beside those."""
    parts = linear_parts(topology.simplified, catalogue)
    found = measure_all(parts, most_work=CHEAP)
    return [weight_row(node, part, measures) for (node, part), measures in zip(parts, found, strict=True)]


def _domain(boxes: Mapping[str, tuple[float | str, float | str]] | Sequence[str]) -> Domain:
    if isinstance(boxes, Mapping):
        return parse_boxes([f"{name}={_text(lo)}:{_text(hi)}" for name, (lo, hi) in boxes.items()])
    return parse_boxes(boxes)


def _text(end: float | str) -> str:
    return end if isinstance(end, str) else repr(float(end))


def _choice(flag: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise UsageError(f"{value!r} is not a value of {flag}; choose one of {', '.join(known)}.")
    return value
