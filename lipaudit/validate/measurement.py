"""What a search returns: gains that were seen and confirmed, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from lipaudit import records
from lipaudit.bounds.scalar import Lower, Upper
from lipaudit.validate.local import LocalGains

__all__ = ["Measurement", "Measurements", "Stopped", "not_measured", "to_record"]

Stopped = Literal["", "interrupted", "time limit"]
"""What ended a search before its budget was spent."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured gain.

    Attributes
    ----------
    status
        "measured" if a pair of inputs proves a positive gain.
    lower
        Certain lower bound of ``|f(x)-f(y)| / |x-y|`` for that pair, in exact arithmetic; None if not measured.
    device
        Where the search ran ("cpu", "cuda").
    method
        How it was searched and confirmed.
    witness
        Describes the pair: seed, start, norms of the two differences (decimal text); the arrays are in
        :attr:`Measurements.witness_arrays`.
    reason
        Why there is no measurement.
    difference, distance
        The quotient's two parts, for bounds that have an offset: ``difference <= upper * distance + offset`` must hold.
    """

    status: Literal["measured", "not-measured"]
    lower: Lower | None = None
    device: str = ""
    method: str = ""
    witness: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    difference: Lower | None = None
    distance: Upper | None = None


@dataclass(frozen=True, slots=True)
class Measurements:
    """Everything that one validation measured.

    ``matrix`` is keyed by (source value, output), the other sources held; ``regions`` by path. ``witness_arrays`` holds
    the headline pair as ``"x:NAME"`` and ``"y:NAME"`` for every source, and the fixed inputs as ``"fixed:NAME"``;
    ``witness_errors`` what the confirmation had seen of each output when it came to that pair. ``stopped`` says what ended the search
    early, if anything did. ``facts`` are those of regions at typical inputs, by path and namespace ("" is the whole model); ``local``
    are the local gains there.
    """

    headline: Measurement
    matrix: Mapping[tuple[str, str], Measurement] = field(default_factory=dict)
    regions: Mapping[str, Measurement] = field(default_factory=dict)
    device: str = ""
    witness_arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    stopped: Stopped = ""
    witness_errors: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    local: LocalGains | None = None


def not_measured(reason: str, *, device: str = "", method: str = "") -> Measurement:
    """A measurement that could not be made, with one sentence why."""
    return Measurement("not-measured", device=device, method=method, reason=reason)


def to_record(measurement: Measurement) -> records.Measured:
    """The JSON record: the lower bound as text rounded down."""
    lower = measurement.lower
    known = lower is not None and not lower.is_zero
    return records.Measured(
        status=measurement.status,
        lower=lower.decimal() if lower is not None else None,
        log10=lower.log10() if lower is not None and known else None,
        device=measurement.device,
        method=measurement.method,
        witness=dict(measurement.witness),
        reason=measurement.reason,
    )
