"""The result of an audit: frozen records, the JSON contract ``lipaudit.audit/1``.

Numbers are plain Python. Certified numbers are decimal strings rounded up, measured ones rounded down, each with its
log10 (null where there is none: JSON has no infinity). No record holds clock time: two runs give equal bytes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = [
    "Audit", "Certified", "Cited", "Contradiction", "Domain", "Finding", "InputBox", "LocalGains", "MatrixEntry",
    "Measured", "Model", "OperatorUse", "Provenance", "ReasonRecord", "Record", "Region", "Severity", "Skipped", "Step",
    "TensorType", "WeightNorm", "WeightRank", "WeightRow", "Weights",
]  # fmt: skip

Status = Literal["finite", "unbounded", "unknown"]
Severity = Literal["error", "warning", "note"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records: immutable, and unknown fields are an error when read back."""


class TensorType(Record, frozen=True):
    """A graph input or output after pinning; ``source`` says whether a gain is measured from it."""

    name: str
    dtype: str
    shape: list[int] | None
    source: bool = False


class Model(Record, frozen=True):
    """What was audited. ``nodes`` counts the file's nodes, ``parameters`` the elements of its float tensors."""

    path: str
    sha256: str
    nodes: int
    parameters: int
    opset: dict[str, int]
    inputs: list[TensorType]
    outputs: list[TensorType]
    pinned_dims: dict[str, int]
    ir_version: int = 0
    producer: str = ""


class InputBox(Record, frozen=True):
    """A box on one source: every element lies in [lo, hi] (decimal text as the user gave it)."""

    name: str
    lo: str
    hi: str


class Domain(Record, frozen=True):
    """Where the certified numbers hold. ``notes`` name what else they depend on (embedding tables, pinned sizes)."""

    kind: Literal["reals", "box", "ball"]
    boxes: list[InputBox] = []
    radius: str | None = None
    notes: list[str] = []


class ReasonRecord(Record, frozen=True):
    """Why a bound is not finite."""

    node: str
    op: str
    reason: str
    status: Status = "unknown"


class Certified(Record, frozen=True):
    """A certified bound ``|f(x)-f(y)| <= upper * |x-y| + offset``; ``step`` is its place in the derivation."""

    status: Status
    upper: str | None = None
    log10: float | None = None
    offset: str | None = None
    method: str = ""
    reasons: list[ReasonRecord] = []
    step: int | None = None


class Measured(Record, frozen=True):
    """A gain that was seen: a true lower bound, or the reason why there is none.

    ``witness`` describes the pair of inputs (seed, family, distance), so that the run can be repeated.
    """

    status: Literal["measured", "not-measured"]
    lower: str | None = None
    log10: float | None = None
    device: str = ""
    method: str = ""
    witness: dict[str, Any] = {}
    reason: str = ""


class LocalGains(Record, frozen=True):
    """How much small changes of typical inputs are amplified: norms of the Jacobian at ``points`` of them, as float32 gives them.

    ``quantiles`` by share of the points ("0.1", "0.5", "0.9", "1"). ``estimate`` is where an extreme value distribution, fitted to the
    largest gains of ``batches`` batches, ends: an estimate of the largest local gain, not a bound; null where the fit has no end, or
    one above what is certified.
    """

    points: int
    quantiles: dict[str, float]
    estimate: float | None = None
    batches: int = 0


class MatrixEntry(Record, frozen=True):
    """Gain from one source to one output, the other sources held."""

    source: str
    output: str
    certified: Certified
    measured: Measured


class Region(Record, frozen=True):
    """A part of the network with one exit.

    ``certified`` is its own gain from its entries on its own range; ``before`` the certified gain from the sources to its
    entry, ``after`` from its exit to the outputs (log10, null if not finite); ``share`` its positive log gain over the sum
    of all leaves. ``reason`` says why it is nothing more specific.
    """

    path: str
    kind: str
    nodes: list[str]
    entries: list[str]
    exit: str
    certified: Certified
    measured: Measured
    facts: dict[str, Any]
    children: list[Region]
    before_log10: float | None = None
    after_log10: float | None = None
    share: float | None = None
    reason: str = ""


class OperatorUse(Record, frozen=True):
    """An operator of the simplified graph: how often, by which rule, and what it costs the result (words)."""

    op: str
    count: int
    rule: str
    cost: str = ""


class Skipped(Record, frozen=True):
    """Something that was left out, and what that costs the result."""

    node: str
    op: str
    what: str
    cost: str


class Cited(Record, frozen=True):
    """A source by its key in rules/sources.bib, with the text to print."""

    key: str
    text: str


class Finding(Record, frozen=True):
    """A guideline that the model breaks. ``facts`` are the numbers that the condition looked at."""

    code: str
    name: str
    severity: Severity
    region: str
    node: str
    message: str
    why: str
    fix: str
    facts: dict[str, Any]
    state: Literal["new", "baseline", "suppressed"] = "new"
    cite: list[Cited] = []


class Step(Record, frozen=True):
    """One step of a derivation: ``quantity`` of ``target`` by ``rule`` from earlier steps.

    ``value`` is the certified decimal (rounded up), ``exact`` the dyadic ``[mantissa, exponent]`` that was computed with
    (mantissa as text: it may exceed 64 bits; null for infinity), ``evidence`` what a checker needs.
    """

    id: int
    quantity: str
    target: str
    rule: str
    operands: list[int]
    value: str
    exact: list[str] | None
    offset: str = "0"
    evidence: dict[str, Any] = {}


class Provenance(Record, frozen=True):
    """What an audit can be repeated from.

    ``stopped`` says what ended the measurement early: it holds what was known by then, and a repetition may find something else.
    """

    lipaudit: str
    rules: str
    ruleset_sha256: str
    libraries: dict[str, str]
    device: str
    seed: int
    options: dict[str, Any]
    stopped: Literal["", "interrupted", "time limit"] = ""


class Contradiction(Record, frozen=True):
    """A measured gain above a certified bound: one of the two is wrong, and lipaudit has a bug (exit 4)."""

    where: str
    certified: str
    measured: str


class WeightNorm(Record, frozen=True):
    """The l2 norm of a linear part from both sides; ``slack`` is at least ``upper / lower - 1`` (null where ``lower`` is 0)."""

    upper: str | None
    lower: str | None
    slack: float | None
    method: str


class WeightRank(Record, frozen=True):
    """The stable rank ``fro^2 / l2^2``, from both sides."""

    lower: str
    upper: str


class WeightRow(Record, frozen=True):
    """One linear part: what a stored weight does to the data at one node.

    ``shape`` is that of the stored weight, ``operator_shape`` (outputs, inputs) that of the smallest block of which the operator is
    copies: one sample of a convolution at its image size, one row of a product. ``l1``, ``linf`` and ``fro`` are rounded up.
    ``sigma_min`` is a verified lower bound of the smallest singular value of the smaller side, null where none was proved.
    ``reason`` says why there are no numbers, ``nonfinite`` how many values of the weight are NaN or infinite.
    """

    name: str
    node: str
    op: str
    kind: str
    shape: list[int]
    operator_shape: list[int] | None
    norm: WeightNorm
    l1: str | None
    linf: str | None
    fro: str | None
    stable_rank: WeightRank | None
    sigma_min: str | None
    reason: str = ""
    nonfinite: int = 0


class Audit(Record, frozen=True):
    """Everything that one audit found; renderers only format it.

    ``derivation`` is the proof of the certified numbers as data, ``user_rules`` the files that ``--rules`` added. ``weights`` are the
    linear parts, as in ``lipaudit.weights/1`` (of audits in l2; a smallest singular value only where it costs little).
    """

    schema: str
    model: Model
    domain: Domain
    norm: Literal["l1", "l2", "linf"]
    certified: Certified
    measured: Measured
    matrix: list[MatrixEntry]
    regions: list[Region]
    operators: list[OperatorUse]
    skipped: list[Skipped]
    findings: list[Finding]
    derivation: list[Step]
    provenance: Provenance
    user_rules: list[str] = []
    contradictions: list[Contradiction] = []
    local_gains: LocalGains | None = None
    weights: list[WeightRow] = []


class Weights(Record, frozen=True):
    """The contract ``lipaudit.weights/1``: every linear part of a model, in the order of the graph.

    Bounds are decimal texts, upper ones rounded up and lower ones rounded down.
    """

    schema: str
    model: Model
    weights: list[WeightRow]
    lipaudit: str
