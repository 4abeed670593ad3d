"""The options of one audit, as the report repeats them, and the data files that come with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lipaudit.certify.domain import Domain
from lipaudit.validate import Witness, pack, read_arrays

__all__ = ["EFFORTS", "NORMS", "Given", "Options"]

NORMS = ("l2", "l1", "linf")
EFFORTS = ("quick", "normal", "thorough")


@dataclass(frozen=True)
class Options:
    """What the user asked for; everything that changes the result is here."""

    dims: dict[str, int]
    norm: str
    effort: str
    measure: bool
    device: str
    seed: int
    record: dict[str, Any]

    @classmethod
    def of(
        cls, *, domain: Domain, dims: dict[str, int], norm: str, effort: str, measure: bool, device: str, seed: int,
        time_limit: float | None, select: list[str], ignore: list[str], files: dict[str, str],
    ) -> Self:  # fmt: skip
        """Collect the options of one call; ``files`` are digests of the data files, by option."""
        record: dict[str, Any] = {
            "input": {name: f"{box.lo_text}:{box.hi_text}" for name, box in domain.boxes.items()},
            "dim": dims, "norm": norm, "effort": effort, "measure": measure, "device": device, "seed": seed,
            "time_limit": time_limit, "select": select, "ignore": ignore, **files,
        }  # fmt: skip
        return cls(dims, norm, effort, measure, device, seed, record)


@dataclass(frozen=True)
class Given:
    """The data files of one call, read before any work is done."""

    inputs: Mapping[str, NDArray[Any]] | None
    inputs_file: str
    replay: Witness | None

    @classmethod
    def read(cls, inputs: Mapping[str, NDArray[Any]] | str | os.PathLike[str] | None, replay: str | os.PathLike[str] | None) -> Self:
        """Read the files; raises :class:`~lipaudit.errors.UsageError` that names the file."""
        file = os.fspath(inputs) if isinstance(inputs, str | os.PathLike) else "inputs"
        arrays = read_arrays(file) if isinstance(inputs, str | os.PathLike) else inputs
        pair = None if replay is None else Witness(read_arrays(os.fspath(replay)), os.fspath(replay))
        return cls(arrays, file, pair)

    def digests(self) -> dict[str, str]:
        """What the report says of them: contents, not paths."""
        found = {} if self.inputs is None else {"inputs": _digest(self.inputs)}
        return found if self.replay is None else found | {"replay": _digest(self.replay.arrays)}


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    return "sha256 of the arrays " + hashlib.sha256(pack({name: np.asarray(arrays[name]) for name in sorted(arrays)})).hexdigest()
