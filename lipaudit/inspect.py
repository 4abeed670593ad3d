"""What ``lipaudit inspect`` prints: the tree of regions that was recognised, and why something was not."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from lipaudit.errors import UsageError
from lipaudit.graph.ir import Graph, Node
from lipaudit.graph.load import Loaded, load
from lipaudit.graph.simplify import simplify
from lipaudit.operators.catalogue import Catalogue
from lipaudit.report.text import count, facts, printable, shorten
from lipaudit.topology import Region, Topology, recognise
from lipaudit.topology.laws import walk

__all__ = ["inspect_text"]

_WIDTH = 100
_NAME = 100
# A run of equal siblings at least this long is shown as its first one and a count.
_RUN = 3
_OPS = 6
_SHOWN = (
    "layers", "shortcut", "residual.norm_position", "attention.kind", "attention.heads", "attention.head_dim", "attention.causal",
    "norm.kind", "norm.width", "norm.epsilon", "gated",
)  # fmt: skip
_COLUMN = 40


def inspect_text(path: str, *, dims: Mapping[str, int], why: str | None = None, rules: Sequence[str] = ()) -> str:
    """The region tree of a model as indented text, or what is known about one node.

    Parameters
    ----------
    path
        ``.onnx`` or ``.onnx.gz`` file; ``"-"`` reads standard input.
    dims
        Sizes of symbolic dimensions.
    why
        Name of a node (of the file, or of the simplified graph) or path of a region: say where it is and why it was not
        recognised as something more specific, instead of printing the tree.
    rules
        Folders with further rules; operators that they define by other nodes are shown as those nodes.

    Raises
    ------
    UsageError
        ``why`` names nothing; the message names the nearest.
    ModelError
        The model cannot be read.
    """
    loaded = load(path)
    operators = Catalogue.load([Path(folder) for folder in rules]).operators()
    topology = recognise(simplify(loaded.graph, dims, operators=operators))
    lines = _tree(loaded, topology) if why is None else _why(loaded, topology, why)
    return "\n".join(lines)


# ---------------------------------------------------------------------- the tree


def _tree(loaded: Loaded, topology: Topology) -> Iterator[str]:
    regions = len(walk(topology.root))
    graph = topology.simplified
    sizes = f"{count(loaded.nodes, 'node')}, {len(graph.nodes):,} after simplification, {count(regions, 'region')}"
    yield f"{shorten(loaded.path, _NAME)}: {sizes}"
    for source in topology.sources:
        shape = "unknown shape" if source.value.shape is None else str(list(source.value.shape))
        yield f"source {shorten(source.label, _NAME)}: {source.kind}, {source.value.dtype} {shape}"
    if not topology.sources:
        yield "no source: no float input and no embedding reaches the graph"
    for symbol, size in graph.pinned.items():
        yield f"pinned {shorten(symbol, _NAME)} = {size}"
    yield ""
    yield from _regions(topology)
    fused = [node for node in topology.graph.nodes if len(node.covers) > 1]
    if fused:
        kinds = Counter(node.kind for node in fused)
        yield ""
        yield f"recognised as one operator: {', '.join(f'{number} x {printable(kind)}' for kind, number in kinds.items())}"
    if topology.refusals:
        yield f"began like a pattern and were none: {count(len(topology.refusals), 'node')}, for example {_example(topology)}"


def _example(topology: Topology) -> str:
    refusal = topology.refusals[0]
    return f"--why {shorten(refusal.node, _NAME)!r}"


def _regions(topology: Topology) -> Iterator[str]:
    signature = _signatures(topology)
    nodes = {node.name: node for node in topology.graph.nodes}
    stack: list[tuple[int, Region, Sequence[Region]]] = [(0, topology.root, (topology.root,))]
    while stack:
        depth, region, run = stack.pop()
        yield _line(depth, region, run, nodes)
        children = region.children
        groups: list[list[Region]] = []
        for child in children:
            if groups and signature[id(groups[-1][0])] == signature[id(child)]:
                groups[-1].append(child)
            else:
                groups.append([child])
        shown: list[tuple[int, Region, Sequence[Region]]] = []
        for group in groups:
            if len(group) >= _RUN:
                shown.append((depth + 1, group[0], group))
            else:
                shown += [(depth + 1, child, (child,)) for child in group]
        stack.extend(reversed(shown))


def _line(depth: int, region: Region, run: Sequence[Region], nodes: Mapping[str, Node]) -> str:
    name = shorten(_last(region), 60)
    if len(run) > 1:
        name = f"{name} .. {shorten(_last(run[-1]), 60)}"
    head = f"{'  ' * depth}{name}"
    times = f"{len(run)} x " if len(run) > 1 else ""
    details = [f"{times}{printable(region.kind)}", count(len(region.nodes), "node")]
    if not region.children:
        details.append(_operators([nodes[name] for name in region.nodes if name in nodes]))
    details += _facts(region)
    if region.reason:
        details.append(f"({printable(region.reason)})")
    return f"{head:<{_COLUMN}}  {'  '.join(part for part in details if part)}".rstrip()


def _last(region: Region) -> str:
    return region.path.rpartition("/")[2] or region.path


def _operators(nodes: Sequence[Node]) -> str:
    """Operators of a leaf: "2 Conv, Relu"."""
    kinds = Counter(node.op if node.domain in ("", "ai.onnx", "lipaudit") else node.kind for node in nodes)
    parts = [f"{number} {printable(kind)}" if number > 1 else printable(kind) for kind, number in kinds.items()]
    return ", ".join(parts[:_OPS]) + (f", ... {len(parts) - _OPS} more" if len(parts) > _OPS else "")


def _facts(region: Region) -> list[str]:
    """The facts that tell regions of one kind apart: "kind=layer width=64"."""
    found = dict(facts(region.facts))
    pairs = [f"{name.rpartition('.')[2]}={found[name]}" for name in _SHOWN if name in found]
    return [" ".join(pairs)] if pairs else []


def _signatures(topology: Topology) -> dict[int, int]:
    """Equal numbers for regions that look the same: same kinds and operators, all the way down (no recursion)."""
    ops = {node.name: node.kind for node in topology.graph.nodes}
    known: dict[tuple[object, ...], int] = {}
    found: dict[int, int] = {}
    for region in reversed(walk(topology.root)):
        parts = tuple(found[id(child)] for child in region.children) or tuple(ops.get(name, "") for name in region.nodes)
        found[id(region)] = known.setdefault((region.kind, bool(region.children), parts), len(known))
    return found


def _why(loaded: Loaded, topology: Topology, subject: str) -> Iterator[str]:
    abstract = {node.name: node for node in topology.graph.nodes}
    simplified = {node.name: node for node in topology.simplified.nodes}
    original = {node.name: node for node in loaded.graph.nodes}
    regions = {region.path: region for region in walk(topology.root)}
    node = simplified.get(subject) or abstract.get(subject) or original.get(subject) or _producer(topology, loaded, subject)
    if node is None:
        if subject in regions:
            yield from _region_chain(topology, regions[subject])
            return
        raise UsageError(
            f"{shorten(subject, _NAME)!r} is neither a node nor a region of the model.",
            where=loaded.path, hint=_nearest(subject, [*original, *simplified, *abstract, *regions]),
        )  # fmt: skip
    yield f"node {shorten(node.name, _NAME)}: {printable(node.kind)}"
    if node.name not in simplified and node.name not in abstract:
        yield "  is not in the simplified graph: its result is a constant, it passes its input on, or no output needs it"
        return
    holder = next((fused for fused in topology.graph.nodes if node.name in fused.covers), abstract.get(node.name))
    if holder is None:
        yield "  does not depend on any source: for the gains it is a constant"
        return
    if holder.name != node.name or len(holder.covers) > 1:
        yield from _wrapped(f"was recognised as part of {holder.kind} {holder.name} ({count(len(holder.covers), 'node')})")
    names = {node.name, *holder.covers}
    for refusal in topology.refusals:
        if refusal.node == node.name or (refusal.node in names and len(holder.covers) == 1):
            yield from _wrapped(f"is not the pattern {refusal.pattern}: {refusal.reason}")
    chain = [region for region in regions.values() if holder.name in region.nodes]
    if not chain:
        yield "  is in no region: no source reaches it"
        return
    yield from _region_chain(topology, chain[-1])


def _producer(topology: Topology, loaded: Loaded, value: str) -> Node | None:
    """The node that computes ``value``, for those who know values by name."""
    for graph in (topology.simplified, topology.graph, loaded.graph):
        found = _made_by(graph, value)
        if found is not None:
            return found
    return None


def _made_by(graph: Graph, value: str) -> Node | None:
    return graph.producer.get(value)


def _region_chain(topology: Topology, region: Region) -> Iterator[str]:
    """A region and those around it, outermost first, each with its reason."""
    around = [found for found in walk(topology.root) if region.path == found.path or region.path.startswith(f"{found.path}/")]
    yield "  is in" if len(around) > 1 else "  is"
    for found in around:
        yield f"    {shorten(found.path, 160)}  {printable(found.kind)}, {count(len(found.nodes), 'node')}"
        if found.reason:
            yield from _wrapped(f"why nothing more specific: {found.reason}", 6)
        own = set(found.nodes)
        refused = [refusal for refusal in topology.refusals if refusal.node in own] if found.path == region.path and len(own) > 1 else []
        for refusal in refused[:10]:
            yield from _wrapped(f"node {shorten(refusal.node, _NAME)} is not the pattern {refusal.pattern}: {refusal.reason}", 6)


def _wrapped(text: str, indent: int = 2) -> list[str]:
    space = " " * indent
    return textwrap.wrap(
        printable(text), _WIDTH, initial_indent=space, subsequent_indent=space + "  ", break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def _nearest(subject: str, names: Sequence[str]) -> str:
    containing = [name for name in dict.fromkeys(names) if subject and subject in name][:3]
    near = containing or get_close_matches(subject[:200], list(dict.fromkeys(names))[:5000], n=3, cutoff=0.4)
    return f"The nearest: {', '.join(shorten(name, _NAME) for name in near)}." if near else "`lipaudit inspect MODEL` prints the regions."
