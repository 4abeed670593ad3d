"""Arrays that the user hands over in .npz files: read without trust, checked against the model, every complaint with its item."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.errors import UsageError
from lipaudit.graph.dtypes import numpy_dtype
from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph, Value
from lipaudit.validate.problem import cut
from lipaudit.validate.session import Session

if TYPE_CHECKING:
    from lipaudit.topology.sources import Source

__all__ = ["MOST_BYTES", "MOST_EXAMPLES", "Box", "check_inputs", "embedded", "pack", "read_arrays"]

Array = NDArray[Any]
Box = tuple[NDArray[Any], NDArray[Any]]

# Unpacked size of all arrays of one file: a zip may claim anything.
MOST_BYTES = 1 << 32
# Examples that are looked at; a search visits no more points at `quick`.
MOST_EXAMPLES = 1024


def read_arrays(path: str) -> dict[str, Array]:
    """All arrays of an .npz file by name.

    Raises
    ------
    UsageError
        If it is not such a file, holds pickled objects, or unpacks to more than :data:`MOST_BYTES`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MOST_BYTES:
                raise UsageError(f"it unpacks to more than {MOST_BYTES >> 30} GiB.", where=path)
    except zipfile.BadZipFile:
        raise UsageError("it is not an .npz file (numpy.savez writes them).", where=path) from None
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}.", where=path) from None
    found: dict[str, Array] = {}
    name = ""
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                found[name] = np.asarray(file[name])
    except (ValueError, KeyError, EOFError, OSError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, MemoryError):
        raise UsageError(f"item {name!r} is not an array of numbers." if name else "it cannot be read.", where=path) from None
    for name, array in found.items():
        if array.dtype.kind not in "biuf":
            raise UsageError(f"item {name!r} holds {array.dtype}, not numbers.", where=path)
    return found


def pack(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of an .npz file; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            item = io.BytesIO()
            np.lib.format.write_array(item, np.asarray(array), allow_pickle=False)
            # A fixed time stamp (ZipInfo's own default), so that two runs write the same file.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), item.getvalue())
    return buffer.getvalue()


@dataclass(frozen=True)
class _Complaint:
    """Raises with the file and the item named."""

    where: str

    def __call__(self, text: str) -> UsageError:
        return UsageError(text, where=self.where)


def check_inputs(
    graph: Graph, sources: Sequence[Source], domain: Mapping[str, Box], arrays: Mapping[str, Array], where: str
) -> dict[str, Array]:
    """Examples by input name, each ``[examples, *shape]`` in the input's own dtype.

    Parameters
    ----------
    graph
        Simplified; its inputs have static shapes.
    sources
        Where gains start; every input that a source needs must be there, other inputs may be.
    domain
        Box by value name; examples outside are refused.
    arrays
        Leading axis = examples. Where the model's own first axis is the batch of one, it may be that axis.
    where
        File name for messages.

    Raises
    ------
    UsageError
        A name, shape, dtype or element that does not fit, named.
    """
    complain = _Complaint(where)
    inputs = {value.name: value for value in graph.inputs}
    for name in arrays:
        if name not in inputs:
            known = ", ".join(repr(item) for item in inputs) or "none"
            raise complain(f"{name!r} is not an input of the model (inputs: {known}).")
    needed = _needed(graph, sources)
    for name in needed:
        if name not in arrays:
            raise complain(f"it holds no array for input {name!r}.")
    found = {name: _fitted(inputs[name], array, complain) for name, array in arrays.items()}
    counts = {name: len(array) for name, array in found.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise complain(f"it holds different numbers of examples: {listed}.")
    for name, array in found.items():
        if name in domain:
            _inside(name, array, domain[name], complain)
    return found


def _needed(graph: Graph, sources: Sequence[Source]) -> list[str]:
    """The inputs that the sources are, or are computed from."""
    wanted = {source.value.name for source in sources}
    for node in reversed(graph.nodes):
        if any(name in wanted for name in node.outputs):
            wanted.update(name for name in (*node.inputs, *graph.captured_by(node)) if name)
    return [value.name for value in graph.inputs if value.name in wanted]


def _fitted(value: Value, array: Array, complain: _Complaint) -> Array:
    shape = value.shape
    if shape is None or not value.dtype or value.dtype == "string":
        raise complain(f"input {value.name!r} has no static shape and numeric type.")
    if array.shape[1:] == shape and array.ndim == len(shape) + 1:
        stacked = array
    elif shape[:1] == (1,) and array.ndim == len(shape) and array.shape[1:] == shape[1:]:
        stacked = array[:, None]
    else:
        also = f" or {['examples', *shape[1:]]}" if shape[:1] == (1,) else ""
        text = f"{value.name!r} has shape {list(array.shape)}; the model takes {['examples', *shape]}{also}.".replace(
            "'examples'", "examples"
        )
        raise complain(text)
    stacked = stacked[:MOST_EXAMPLES]
    if not len(stacked):
        raise complain(f"{value.name!r} holds no examples.")
    dtype = numpy_dtype(value.dtype)
    # numpy's casting rules do not know ml_dtypes: any number may become a float.
    if not value.is_float and not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise complain(f"{value.name!r} holds {array.dtype}; the model takes {value.dtype}.")
    with np.errstate(all="ignore"):
        cast = stacked.astype(dtype)
    exact = np.isfinite(cast.astype(np.float64)).all() if value.is_float else np.array_equal(cast, stacked)
    if not exact:
        raise complain(f"{value.name!r} holds elements that are not finite or do not fit into {value.dtype}.")
    return cast


def _inside(name: str, array: Array, box: Box, complain: _Complaint) -> None:
    """The search moves examples to the box; here only those are refused for which that is more than a rounding error."""
    values = array.astype(np.float64)
    lo, hi = (np.asarray(end, dtype=np.float64) for end in box)
    outside = (values < lo - 1e-6 * np.abs(lo)) | (values > hi + 1e-6 * np.abs(hi))
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise complain(f"example {place[0]} of {name!r} leaves the domain of --input: it holds {values[place]:g}.")


def embedded(graph: Graph, sources: Sequence[Source], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """``inputs`` with the values of the sources that are computed from them (token ids to their embeddings), example by example.

    Raises
    ------
    UsageError
        If onnxruntime cannot compute them (an id beyond its table).
    """
    found = dict(inputs)
    for source in sources:
        name = source.value.name
        if name in found or name not in graph.producer:
            continue
        part = cut(graph, [], [name])
        if not part.inputs or any(value.name not in inputs for value in part.inputs):
            continue
        try:
            session = Session(to_model(part))
            count = min(len(inputs[value.name]) for value in part.inputs)
            rows = [session.run({v.name: inputs[v.name][i] for v in part.inputs}, [name])[name] for i in range(count)]
        except RuntimeError as error:
            names = ", ".join(repr(value.name) for value in part.inputs)
            raise UsageError(f"{source.label} cannot be computed from the given {names}: {error}.") from None
        found[name] = np.stack(rows)
    return found
