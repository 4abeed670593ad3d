"""Operators with a function body of ONNX and nested graphs (the bodies of others are put in place without being asked for here)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import defs

from lipaudit.graph.limits import DEFAULT
from lipaudit.graph.simplify.expand import definition
from lipaudit.graph.simplify.renaming import defines, rename_all
from lipaudit.graph.simplify.types import tensor_type
from lipaudit.operators.base import Site
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS"]


def _defined(e: Emitter, site: Site) -> Sequence[str]:
    types = {value.name: tensor_type(value.dtype, value.shape) for value in site.inputs if value is not None}
    body = definition(site.node, types, DEFAULT)
    if body is None:
        raise NotLowered(f"{site.node.op} whose definition does not fit")
    put = rename_all(body, {name: e.fresh(name) for name in sorted(defines(body))})
    for node in put.nodes:
        version = node.version
        if not node.domain and version > e.opset:
            # Bodies are written in onnx's newest opset; since the model's own these operators have only gained types.
            version = int(defs.get_schema(node.op, e.opset).since_version)
        e.nodes.append(node.renamed(name=e.fresh(node.name), covers=(site.node.name,), version=version))
    e.constants.update(put.constants)
    return list(put.outputs)


LOWERINGS: Mapping[str, Lowering] = {"ai.onnx.preview::FlexAttention": _defined}
