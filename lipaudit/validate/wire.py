"""Measurements between processes: JSON with exact dyadic numbers, arrays as .npy files beside it.

No pickles: the sender ran a stranger's model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from lipaudit.bounds.scalar import Lower, Upper
from lipaudit.validate.local import LocalGains
from lipaudit.validate.measurement import Measurement, Measurements, Stopped

__all__ = ["receive", "send"]

_RESULT = "result.json"
Dyadic = tuple[str, int]
BoundT = TypeVar("BoundT", Lower, Upper)


class _Gain(msgspec.Struct, frozen=True):
    status: Literal["measured", "not-measured"]
    lower: Dyadic | None
    difference: Dyadic | None
    distance: Dyadic | None
    device: str
    method: str
    witness: dict[str, Any]
    reason: str


class _Seen(msgspec.Struct, frozen=True):
    headline: _Gain
    matrix: list[tuple[str, str, _Gain]]
    regions: dict[str, _Gain]
    device: str
    arrays: list[str]
    stopped: Stopped
    errors: dict[str, float]
    facts: dict[str, dict[str, dict[str, float | int | None]]]
    local: LocalGains | None


def send(found: Measurements, folder: Path) -> None:
    """Write ``found`` into ``folder``."""
    for i, array in enumerate(found.witness_arrays.values()):
        np.save(folder / f"{i}.npy", array, allow_pickle=False)
    seen = _Seen(
        _packed(found.headline),
        [(source, output, _packed(gain)) for (source, output), gain in found.matrix.items()],
        {path: _packed(gain) for path, gain in found.regions.items()},
        found.device,
        list(found.witness_arrays),
        found.stopped,
        dict(found.witness_errors),
        {path: {space: dict(group) for space, group in spaces.items()} for path, spaces in found.facts.items()},
        found.local,
    )
    (folder / _RESULT).write_bytes(msgspec.json.encode(seen))


def receive(folder: Path) -> Measurements:
    """Read what :func:`send` wrote.

    Raises
    ------
    ValueError, OSError
        If it is not whole.
    """
    seen = msgspec.json.decode((folder / _RESULT).read_bytes(), type=_Seen)
    arrays = {name: np.load(folder / f"{i}.npy", allow_pickle=False) for i, name in enumerate(seen.arrays)}
    return Measurements(
        _unpacked(seen.headline),
        {(source, output): _unpacked(gain) for source, output, gain in seen.matrix},
        {path: _unpacked(gain) for path, gain in seen.regions.items()},
        seen.device,
        arrays,
        seen.stopped,
        seen.errors,
        seen.facts,
        seen.local,
    )


def _packed(gain: Measurement) -> _Gain:
    lower, difference, distance = _dyadic(gain.lower), _dyadic(gain.difference), _dyadic(gain.distance)
    return _Gain(gain.status, lower, difference, distance, gain.device, gain.method, dict(gain.witness), gain.reason)


def _unpacked(gain: _Gain) -> Measurement:
    lower, difference, distance = _bound(Lower, gain.lower), _bound(Lower, gain.difference), _bound(Upper, gain.distance)
    return Measurement(gain.status, lower, gain.device, gain.method, gain.witness, gain.reason, difference, distance)


def _dyadic(bound: Lower | Upper | None) -> Dyadic | None:
    """Mantissa as text: it may exceed 64 bits."""
    found = None if bound is None else bound.dyadic()
    return None if found is None else (str(found[0]), found[1])


def _bound(kind: type[BoundT], found: Dyadic | None) -> BoundT | None:
    return None if found is None else kind.from_dyadic(int(found[0]), found[1])
