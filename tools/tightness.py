"""How tight the certified bounds of single regions are: against the best gain that an adversarial search finds on the region's own domain.

``python tools/tightness.py TABLE.json [--models FOLDER]`` writes a table for tools/benchmark_table.py. For every recognised attention and
residual region (and MLP and gate) of samples/models, of generated blocks and of the models in FOLDER: the certified bound divided by
the largest spectral norm of a Jacobian that a climb in float64 finds, median and worst by kind; beside it the same for the bound that
the rules of the nodes alone give.

A region that reads what a normalization gives is searched through that normalization: its entry stays where it can be. Jacobians
are central differences in float64, good to about eight digits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lipaudit.certify import Certificate, RegionBound, certify  # noqa: E402
from lipaudit.certify.domain import Domain  # noqa: E402
from lipaudit.graph.export import to_model  # noqa: E402
from lipaudit.graph.ir import Graph  # noqa: E402
from lipaudit.graph.load import load  # noqa: E402
from lipaudit.graph.simplify import simplify  # noqa: E402
from lipaudit.operators.catalogue import Catalogue  # noqa: E402
from lipaudit.topology import Topology, recognise  # noqa: E402
from lipaudit.topology.nodes import NORMALIZATIONS  # noqa: E402
from lipaudit.validate.exact.evaluator import Evaluator  # noqa: E402
from lipaudit.validate.problem import cut  # noqa: E402
from lipaudit.validate.session import Session  # noqa: E402
from tests.certify.blocks import Attention, Gated  # noqa: E402
from tests.certify.kernels import KINDS, Kernel  # noqa: E402
from tests.certify.test_averaged_layers import Layers  # noqa: E402
from tests.pipeline import topology as of_model  # noqa: E402

Floats = NDArray[np.float64]

KINDS_SHOWN = ("attention", "residual", "mlp", "gate")
MOST_ELEMENTS = 512
SIZES = (1e-2, 0.3, 3.0, 100.0)
CLIMB = 10
COLUMNS = ["kind", "regions", "median", "worst", "naive median", "regions without a naive bound"]
NOTE = (
    "Certified bound of each region divided by the largest gain that a search in float64 found on the region's own domain "
    "(1 would be exact). The naive bound composes the rules of the nodes."
)


def generated() -> Iterator[Topology]:
    """Blocks of many shapes, as the tests search them."""
    cases: list[dict[str, Any]] = [
        {}, {"norm": "rms"}, {"rope": True, "width": 8}, {"packed": True, "mask": "causal"}, {"kv_heads": 1}, {"qk_norm": True},
        {"heads": 1}, {"scale": 10.0}, {"tokens": 1}, {"tokens": 8, "width": 16, "heads": 4}, {"project": False}, {"mask": "padded"},
    ]  # fmt: skip
    for case in cases:
        for residual in (False, True):
            yield of_model(Attention(1, residual=residual, **case).model())
    for kind in KINDS:
        yield of_model(Kernel(1, kind).model())
    for act in ("Swish", "Sigmoid", "Relu"):
        yield of_model(Gated(1, act=act).model())
    for shortcut in ("", "identity", "scaled", "projection", "minus"):
        for act in ("Relu", "Tanh", "LeakyRelu"):
            yield of_model(Layers(1, act=act, shortcut=shortcut, size=0.7).model())


def stored(folder: Path) -> Iterator[Topology]:
    """The models of a folder that can be read."""
    operators = Catalogue.load().operators()
    for path in sorted(folder.glob("*.onnx")):
        try:
            yield recognise(simplify(load(str(path)).graph, {}, operators=operators))
        except Exception as error:  # a folder may hold models that are made to be refused
            print(f"{path.name}: left out ({type(error).__name__})", file=sys.stderr)


class Function:
    """A part of a graph from one value to another, in float64: in onnxruntime, or node by node where that lacks an operator."""

    def __init__(self, graph: Graph, start: str, end: str) -> None:
        part = cut(graph, [start], [end])
        if [value.name for value in part.inputs] != [start]:
            raise ValueError("it reads more than its entry")
        self.start, self.end = start, end
        try:
            self._run = Session(to_model(part, double=True)).run
        except RuntimeError:
            self._run = Evaluator(part).run

    def __call__(self, x: Floats) -> Floats:
        """The value at x."""
        return np.asarray(self._run({self.start: x}, [self.end])[self.end], dtype=np.float64)


class Part:
    """One region as a function in float64, and where its entry can be."""

    def __init__(self, found: Topology, certificate: Certificate, bound: RegionBound) -> None:
        graph, region = found.simplified, bound.region
        entry = region.entries[0]
        self.run = Function(graph, entry, region.exit)
        self.shape = graph.value(entry).shape or ()
        self.before: Function | None = None
        self.read_shape = self.shape
        norm = found.graph.producer.get(entry)
        if norm is not None and norm.kind in NORMALIZATIONS and norm.outputs[0] == entry:
            self.read_shape = graph.value(norm.inputs[0]).shape or ()
            self.before = Function(graph, norm.inputs[0], entry)
        reach = certificate.ranges[entry]
        self.lo, self.hi = (np.array(np.broadcast_to(end, self.shape)) for end in (reach.lo, reach.hi))

    def place(self, x: Floats) -> Floats:
        """A point of the domain from any numbers."""
        if self.before is not None:
            return self.before(x)
        return np.clip(x, self.lo, self.hi)

    def gain(self, at: Floats) -> float:
        """Spectral norm of the Jacobian at a point of the domain."""
        step = 1e-6 * max(1e-3, float(np.max(np.abs(at))))
        columns: list[Floats] = []
        for k in range(at.size):
            moved = at.reshape(-1).copy()
            ends: list[Floats] = []
            for sign in (1, -1):
                moved[k] = at.reshape(-1)[k] + sign * step
                ends.append(self.run(moved.reshape(at.shape)).reshape(-1))
            columns.append((ends[0] - ends[1]) / (2 * step))
        jacobian = np.stack(columns, axis=1)
        return float(np.linalg.norm(jacobian, 2)) if np.all(np.isfinite(jacobian)) else 0.0

    def best(self, rng: np.random.Generator) -> float:
        """The largest gain of a few climbs from random points, from nearly constant rows and from two clusters of rows."""
        top = 0.0
        for size in SIZES:
            plain = size * rng.standard_normal(self.read_shape)
            first = plain.reshape(-1, self.read_shape[-1])[:1]
            apart = np.where(rng.random(self.read_shape[:-1])[..., None] < 0.5, first, -first) + 0.01 * plain
            for start in (plain, 1 + 0.05 * plain, apart):
                x, known, width = start, self.gain(self.place(start)), 0.5
                for _ in range(CLIMB):
                    other = x + width * np.max(np.abs(x)) * rng.standard_normal(x.shape) * (rng.random(x.shape) < 0.5)
                    value = self.gain(self.place(other))
                    x, known, width = (other, value, width * 1.5) if value > known else (x, known, width * 0.7)
                top = max(top, known)
        return top


def measured(found: Topology, catalogue: Catalogue) -> Iterator[tuple[str, float, float]]:
    """``(kind, certified / measured, naive / measured)`` of the regions of one model; infinity where there is no naive bound."""
    whole = certify(found, catalogue, Domain({}), "l2")
    if not any(bound.region.kind in KINDS_SHOWN for bound in whole.regions.values()):
        return
    plain = certify(found, catalogue, Domain({}), "l2", wholes=False)
    rng = np.random.default_rng(0)
    for path, bound in whole.regions.items():
        region = bound.region
        if region.kind not in KINDS_SHOWN or len(region.entries) != 1 or bound.joint.status != "finite" or not bound.joint.offset.is_zero:
            continue
        shape = found.graph.value(region.entries[0]).shape
        if not shape or math.prod(shape) > MOST_ELEMENTS or not found.graph.value(region.entries[0]).is_float:
            continue
        try:
            gain = Part(found, whole, bound).best(rng)
        except (RuntimeError, ValueError) as error:
            print(f"{path}: left out ({error})", file=sys.stderr)
            continue
        if gain > 0:
            kind = region.kind
            if kind == "attention":
                kind = f"attention, {region.facts.get('attention', {}).get('kind', 'dot')}"
            naive = plain.regions[path].joint
            yield kind, float(bound.joint.slope) / gain, float(naive.slope) / gain if naive.status == "finite" else math.inf


def table(models: Iterator[Topology]) -> dict[str, Any]:
    """The table, one row a kind."""
    catalogue = Catalogue.load()
    found: dict[str, list[tuple[float, float]]] = {}
    for model in models:
        for kind, own, naive in measured(model, catalogue):
            found.setdefault(kind, []).append((own, naive))
    rows: list[list[object]] = []
    for kind, pairs in sorted(found.items()):
        own, naive = (np.array(values) for values in zip(*pairs, strict=True))
        if float(np.min(own)) < 1 - 1e-6:
            raise SystemExit(f"{kind}: a measured gain lies above the certified bound: {float(np.min(own))}")
        finite = naive[np.isfinite(naive)]
        middle: object = float(np.median(finite)) if finite.size else "-"
        rows.append([kind, len(pairs), float(np.median(own)), float(np.max(own)), middle, int(naive.size - finite.size)])
    return {"table": "tightness", "title": "Tightness of regions", "note": NOTE, "columns": COLUMNS, "rows": rows}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description="Tightness of the certified bounds of regions.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--models", type=Path, default=None)
    options = parser.parse_args()

    def models() -> Iterator[Topology]:
        yield from generated()
        yield from stored(ROOT / "samples" / "models")
        if options.models is not None:
            yield from stored(options.models)

    found = table(models())
    options.table.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in found["rows"]:
        print("  ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))


if __name__ == "__main__":
    main()
