"""An ``If`` whose condition is a constant is replaced by the branch that is taken.

Law: same function; the other branch is never computed.

Cases: (1) a value of the branch may have the name of an outer one: it gets a new name, with the If's as a prefix;
(2) the branch's outputs become the If's outputs through Identity nodes, which a later pass removes.
"""

from __future__ import annotations

from collections.abc import Mapping

from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.graph.simplify.renaming import defines, rename_all

__all__ = ["spliced", "taken_branch"]


def taken_branch(
    node: Node, constants: Mapping[str, Constant], names: set[str], node_names: set[str]
) -> tuple[list[Node], dict[str, Constant]] | None:
    """Nodes and constants to put in place of the If, or None if the condition is open.

    Parameters
    ----------
    node
        An If.
    constants
        The constants that it can see.
    names, node_names
        Value and node names in use around it; the new ones are added.
    """
    condition = constants.get(node.inputs[0])
    if condition is None or condition.size != 1:
        return None
    branch = node.attrs["then_branch" if bool(condition.array().reshape(-1)[0]) else "else_branch"]
    if not isinstance(branch, Graph) or branch.inputs or len(branch.outputs) < len(node.outputs):
        return None
    return spliced(node, branch, names, node_names)


def spliced(
    node: Node, body: Graph, names: set[str], node_names: set[str], covers: tuple[str, ...] = ()
) -> tuple[list[Node], dict[str, Constant]]:
    """Nodes and constants of ``body`` (without inputs) to put in place of ``node``; ``covers`` overrides those of the new nodes."""
    own = defines(body)
    fresh: dict[str, str] = {}
    for name in sorted(own & names):
        new = f"{node.name}/{name}"
        while new in names or new in own:
            new += "_"
        fresh[name] = new
    if fresh:
        body = rename_all(body, fresh)
    names |= defines(body)
    nodes: list[Node] = []
    for inner in body.nodes:
        name = inner.name
        if name in node_names:
            name = f"{node.name}/{name}"
            while name in node_names:
                name += "_"
        node_names.add(name)
        nodes.append(inner.renamed(name=name, covers=covers or ((name,) if name != inner.name else inner.covers)))
    for index, (source, target) in enumerate(zip(body.outputs, node.outputs, strict=False)):
        if target:
            nodes.append(Node(f"{node.name}/output_{index}", "Identity", (source,), (target,), "", 1, {}, (node.name,)))
    return nodes, dict(body.constants)
