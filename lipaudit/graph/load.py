"""Load: a path becomes a checked graph, or one clear sentence.

The bytes are read under a limit and parsed as protobuf whatever the suffix says (``onnx.load`` picks a parser by suffix).
Weights stay where they are: in the bytes of the file, or mapped from external data.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from onnx import ModelProto, defs

from lipaudit.errors import ModelError
from lipaudit.graph import spec, wire
from lipaudit.graph.convert import Converter, checked, default_domain
from lipaudit.graph.external import ExternalFiles
from lipaudit.graph.functions import inlined
from lipaudit.graph.ir import Graph
from lipaudit.graph.limits import DEFAULT, Limits
from lipaudit.graph.source import Source, complaint, read
from lipaudit.graph.tensors import TensorReader

__all__ = ["Loaded", "load"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model file as loaded.

    Attributes
    ----------
    graph
        Checked, not yet simplified: dims may be symbolic (``Graph.symbols``).
    path
        As given.
    sha256
        Of the file's bytes, in hex (external data not included).
    ir_version, producer
        As the file says.
    nodes
        Nodes in the file, subgraphs and Constant nodes included, local functions expanded.
    parameters
        Elements of all stored tensors of floating-point or 8-bit and narrower integer type.
    """

    graph: Graph
    path: str
    sha256: str
    ir_version: int
    producer: str
    nodes: int
    parameters: int


def load(path: str, *, limits: Limits = DEFAULT, allow_linked_weights: bool = False) -> Loaded:
    """Read a model.

    Parameters
    ----------
    path
        ``.onnx`` or gzipped ``.onnx``; "-" reads standard input.
    limits
        Ceilings; beyond them the file is refused.
    allow_linked_weights
        Follow symbolic links to external data (model caches link their files).

    Raises
    ------
    ModelError
        If the file cannot be read or is not a legal model; the sentence names the file and the item.
    """
    source = read(path, limits)
    try:
        return _loaded(source, limits, allow_linked_weights)
    except UnicodeDecodeError:
        raise ModelError("a name in the file is not valid UTF-8", where=path) from None


def _loaded(source: Source, limits: Limits, allow_links: bool) -> Loaded:
    where = source.path
    model, payloads = _parsed(source, limits)
    opsets = _opsets(model, where)
    names = [tensor.name for tensor in model.graph.initializer]
    model = inlined(model, limits, where)
    if [tensor.name for tensor in model.graph.initializer] != names:
        raise ModelError("inlining its local functions changed its initializers", where=where)
    reader = TensorReader(where, source.data, ExternalFiles(where, source.folder, allow_links))
    converter = Converter(reader, opsets, limits, payloads)
    graph = converter.main(model.graph)
    spec.check(graph)
    producer = " ".join(checked(part) for part in (model.producer_name, model.producer_version) if part)
    return Loaded(graph, where, source.sha256, int(model.ir_version), producer, converter.nodes, _parameters(graph))


def _parsed(source: Source, limits: Limits) -> tuple[ModelProto, dict[int, tuple[int, int]]]:
    """The model without large payloads, and where these are."""
    where = source.path
    try:
        layout = wire.scan(source.data, limits, where)
    except wire.WireError as error:
        known = complaint(source.data, where)
        if known is not None:
            raise known from None
        what = "the file is truncated or damaged" if error.truncated else "this is not an ONNX model"
        raise ModelError(f"{what}: {error}", where=where) from None
    model = ModelProto()
    try:
        model.ParseFromString(layout.skeleton)
    except DecodeError:
        known = complaint(source.data, where)
        if known is None:
            known = _undecodable(layout.skeleton, limits, where)
        raise known from None
    if not model.HasField("graph"):
        known = complaint(source.data, where)
        raise known or ModelError("this is not an ONNX model: it holds no graph", where=where)
    return model, layout.payloads


def _undecodable(skeleton: bytes, limits: Limits, where: str) -> ModelError:
    try:
        if wire.measure_depth(skeleton) > limits.depth:
            return ModelError(f"graphs are nested more than {limits.depth} deep", where=where)
    except wire.WireError as error:
        return ModelError(f"the file is damaged: {error}", where=where)
    return ModelError("this is not an ONNX model, or it is damaged: protobuf cannot decode it", where=where)


def _opsets(model: ModelProto, where: str) -> dict[str, int]:
    """Version by domain.

    Raises
    ------
    ModelError
        If a version of a standard domain is one that the installed onnx does not know.
    """
    opsets: dict[str, int] = {}
    for entry in model.opset_import:
        domain = default_domain(checked(entry.domain))
        opsets[domain] = max(int(entry.version), opsets.get(domain, 0))
    if not opsets and model.ir_version < 3:
        # IR versions 1 and 2 had no opset_import: opset 1 (docs/IR.md, "Operator Sets").
        opsets[""] = 1
    known = defs.onnx_opset_version()
    version = opsets.get("")
    if version is None:
        if any(not default_domain(node.domain) for node in model.graph.node):
            raise ModelError("the file does not say which opset it uses (no opset_import for ai.onnx)", where=where)
    elif not 1 <= version <= known:
        raise ModelError(
            f"opset {version} is unknown; the installed onnx knows 1 to {known}", where=where, hint="Upgrade onnx if the opset is newer."
        )
    return opsets


def _parameters(graph: Graph) -> int:
    stored = {"int8", "uint8", "int4", "uint4", "int2", "uint2"}
    return sum(
        constant.size
        for part in (graph, *graph.subgraphs())
        for constant in part.constants.values()
        if constant.value.is_float or constant.dtype in stored
    )
