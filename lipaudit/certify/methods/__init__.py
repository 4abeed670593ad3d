"""Methods that certify a region as a whole; the traversal takes the least of them and of the partition calculus.

Each proves its bound on its own: they are asked in turn and none replaces another.
"""

from __future__ import annotations

from collections.abc import Callable

from lipaudit.certify.methods.attention import attention_block
from lipaudit.certify.methods.averaged import averaged_layers
from lipaudit.certify.methods.chain import normalized_chain
from lipaudit.certify.methods.gated import gated_product
from lipaudit.certify.methods.workspace import Proposal, Workspace
from lipaudit.topology import Region

__all__ = ["Proposal", "Workspace", "proposals"]

_METHODS: tuple[Callable[..., Proposal | None], ...] = (attention_block, normalized_chain, gated_product, averaged_layers)


def proposals(work: Workspace, region: Region, *, behind: bool = False) -> list[Proposal]:
    """What the methods say about a region: from its entry, or (``behind``) from what the normalization before its entry reads."""

    def asked() -> list[Proposal]:
        found = [method(work, region, behind=behind) for method in _METHODS] if work.wholes else []
        return [item for item in found if item is not None and item.slope.is_finite]

    return work.once(("proposals", region.path, behind), asked)
