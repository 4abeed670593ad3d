"""Shared by the generic tests over the catalogue: entries, samples of their attributes, sites of their ``[[check]]`` blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.defs
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lipaudit.bounds.ball import Ball
from lipaudit.graph.dtypes import elem_type
from lipaudit.graph.ir import Constant, Node, Value
from lipaudit.operators.base import Site
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.entry import Argument, Check, Entry
from lipaudit.operators.formula import parse
from lipaudit.operators.law import Law, attribute_names, law_of
from lipaudit.operators.range import Range, exact

CATALOGUE = Catalogue.load()
KINDS = sorted(CATALOGUE.entries)
SCALAR = [kind for kind in KINDS if not CATALOGUE.entries[kind].rule and not CATALOGUE.entries[kind].function]
CUSTOM = ("lipaudit", "com.microsoft")


def number(text: str) -> Ball:
    """The ball of a number of the catalogue."""
    return parse(text).ball({})


def schema_domain(kind: str) -> tuple[str, str]:
    """onnx's spelling of the domain, and the operator."""
    domain, op = kind.split("::")
    return ("" if domain == "ai.onnx" else domain), op


@cache
def versions(kind: str) -> tuple[int, ...]:
    """since_versions of an operator's schemas, oldest first; empty where onnx has none."""
    domain, op = schema_domain(kind)
    found = {schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if (schema.domain, schema.name) == (domain, op)}
    return tuple(sorted(found))


def defaults(kind: str, version: int) -> dict[str, Any]:
    """Attribute defaults of one schema."""
    domain, op = schema_domain(kind)
    if not versions(kind):
        return {}
    found: dict[str, Any] = {}
    for name, attribute in onnx.defs.get_schema(op, version, domain).attributes.items():
        if attribute.default_value.name:
            value = helper.get_attribute_value(attribute.default_value)
            found[name] = value.decode() if isinstance(value, bytes) else value
    return found


def as_attributes(sample: Mapping[str, str]) -> dict[str, Any]:
    """Numbers as float32 stores them, words as they are."""
    found: dict[str, Any] = {}
    for name, text in sample.items():
        found[name] = text if text.isalpha() else float(np.float32(float(text)))
    return found


def settings_of(kind: str) -> list[dict[str, Any]]:
    """Attributes to test an entry at: its samples, and the defaults of the newest schema."""
    entry = CATALOGUE.entries[kind]
    found = [as_attributes(sample) for sample in entry.samples]
    newest = defaults(kind, versions(kind)[-1]) if versions(kind) else {}
    asked = attribute_names(entry) | {name for case in entry.case for name in case.attrs}
    if not found or (asked and asked <= newest.keys()):
        found.append({name: value for name, value in newest.items() if name in asked})
    return found


def laws() -> Iterator[tuple[str, dict[str, Any], Law]]:
    """(kind, attributes, law) of every scalar entry with a formula."""
    for kind in SCALAR:
        for attributes in settings_of(kind):
            law = law_of(CATALOGUE.entries[kind], attributes, versions(kind)[-1] if versions(kind) else 0)
            assert isinstance(law, Law), (kind, attributes, law)
            if law.formula is not None:
                yield kind, attributes, law


def is_step(law: Law) -> bool:
    """True for functions of whole numbers, whose derivative says nothing."""
    assert law.formula is not None
    return any(name in law.formula.text for name in ("floor(", "ceil(", "round(", "sign("))


def named(kind: str, attributes: Mapping[str, Any]) -> str:
    """Test id."""
    short = ",".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in attributes.items())
    return f"{kind}({short})"


def _array(argument: Argument) -> NDArray[Any]:
    array = np.asarray(argument.value, dtype=np.dtype(_numpy_name(argument.dtype)))
    return array.reshape(argument.shape) if argument.shape else array


def _numpy_name(dtype: str) -> Any:
    import ml_dtypes

    return getattr(ml_dtypes, dtype, None) or dtype


def _range(argument: Argument) -> Range:
    if argument.value is not None:
        return exact(_array(argument))
    lo, hi = number(argument.lo).floats()[0], number(argument.hi).floats()[1]
    return Range(argument.shape, np.asarray(lo), np.asarray(hi), integral="float" not in argument.dtype)


def site_of(entry: Entry, check: Check) -> tuple[Site, list[Range | None]]:
    """The node of a check with its ranges; arguments of dtype "" are omitted, those without a value move."""
    domain, op = schema_domain(entry.op)
    arguments = list(check.inputs) or [Argument(shape=(1,), lo=check.on[0], hi=check.on[1])] if check.on or check.inputs else []
    names = tuple(f"x{i}" if argument.dtype else "" for i, argument in enumerate(arguments))
    given = [argument if argument.dtype else None for argument in arguments]
    stored = [Constant.of(name, _array(a)) if a and a.value is not None else None for name, a in zip(names, given, strict=True)]
    inputs = tuple(
        None if a is None else (c.value if c else Value(n, a.dtype, a.shape)) for n, a, c in zip(names, given, stored, strict=True)
    )
    version = check.version or (versions(entry.op)[-1] if versions(entry.op) else 0)
    version = max((v for v in versions(entry.op) if v <= version), default=version)
    attrs = {name: tuple(value) if isinstance(value, list) else value for name, value in check.attrs.items()}
    shapes = [tuple(shape) for shape in check.outputs] or _inferred(op, domain, version, inputs, stored, attrs) or [(1,)]
    outputs = tuple(Value(f"y{i}", "float32", shape) for i, shape in enumerate(shapes))
    node = Node("node", op, names, tuple(value.name for value in outputs), domain, version, attrs, ("node",))
    moving = tuple(a is not None and a.value is None and not a.still for a in given)
    return Site(node, inputs, outputs, tuple(stored), moving), [None if a is None else _range(a) for a in given]


def _inferred(
    op: str, domain: str, version: int, inputs: tuple[Value | None, ...], stored: list[Constant | None], attrs: Mapping[str, Any]
) -> list[tuple[int, ...]]:
    """Output shapes by onnx's own inference; empty where it cannot tell."""
    if not any(inputs):
        return []
    names = [value.name if value is not None else "" for value in inputs]
    node = helper.make_node(op, names, ["y0"], domain=domain, **{k: list(v) if isinstance(v, tuple) else v for k, v in attrs.items()})
    infos = [helper.make_tensor_value_info(v.name, elem_type(v.dtype), v.shape) for v, c in zip(inputs, stored, strict=True) if v and not c]
    constants = [onnx.numpy_helper.from_array(c.array(), c.name) for c in stored if c is not None]
    graph = helper.make_graph([node], "check", infos, [helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)], constants)
    del graph.output[:]
    graph.output.append(onnx.ValueInfoProto(name="y0"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, max(version, 1))])
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    except Exception:
        return []
    return [tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in inferred if value.type.tensor_type.HasField("shape")]
