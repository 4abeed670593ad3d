"""ai.onnx.ml: tree ensembles. Piecewise constant: slope 0, and a jump of at most the spread of the sums of leaves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ZERO, Norm, Upper, combine, repeat_factor
from lipaudit.operators.base import Site, Unknown
from lipaudit.operators.ml_linear import Scores, numbers
from lipaudit.operators.range import Range

__all__ = ["TreeEnsemble"]

Floats = NDArray[np.float64]
Vote = tuple[int, int, int, float]
"""Tree, leaf, target, weight."""


class TreeEnsemble(Scores):
    """TreeEnsemble, TreeEnsembleRegressor, TreeEnsembleClassifier.

    Every sample reaches one leaf of each tree: a target moves by at most the sum over trees of (largest - least vote for it), a
    leaf without a vote counting as 0. MIN and MAX: by the spread of all votes.
    """

    def _votes(self, site: Site) -> list[Vote] | Unknown:
        if site.node.op == "TreeEnsemble":
            return _reached(site)
        prefix = "class" if site.node.op.endswith("Classifier") else "target"
        stored = site.attr(f"{prefix}_weights_as_tensor")
        weights = numbers(site, f"{prefix}_weights") if stored is None else stored.float64().ravel()
        parts = [numbers(site, f"{prefix}_{name}").astype(int) for name in ("treeids", "nodeids", "ids")]
        if len({weights.size, *(part.size for part in parts)}) != 1:
            return Unknown("the votes of the leaves do not fit together")
        return [(int(t), int(n), int(k), float(w)) for t, n, k, w in zip(*parts, weights, strict=True)]

    def _targets(self, site: Site) -> int:
        if site.node.op.endswith("Classifier"):
            return max(numbers(site, "classlabels_int64s").size, len(site.attr("classlabels_strings") or ()))
        return int(site.attr("n_targets", 1) or 1)

    def _aggregate(self, site: Site) -> str:
        found = site.attr("aggregate_function", "SUM")
        return {0: "AVERAGE", 1: "SUM", 2: "MIN", 3: "MAX"}.get(found, str(found))

    def _ends(self, site: Site) -> list[tuple[Upper, Upper]] | Unknown:
        """For each target how far its value can lie below and above 0 (both >= 0), without base values."""
        votes = self._votes(site)
        if isinstance(votes, Unknown):
            return votes
        by_tree: dict[tuple[int, int], dict[int, float]] = {}
        for tree, leaf, target, weight in votes:
            own = by_tree.setdefault((tree, target), {})
            own[leaf] = own.get(leaf, 0.0) + weight
        aggregate = self._aggregate(site)
        if aggregate in ("MIN", "MAX") and self._targets(site) > 1:
            return Unknown(f"{aggregate} over trees that do not vote for every target")
        if not all(math.isfinite(weight) for *_, weight in votes):
            return Unknown("a leaf holds a value that is not finite")
        below = [ZERO] * self._targets(site)
        above = list(below)
        for (_, target), found in by_tree.items():
            if not 0 <= target < len(below):
                return Unknown("a leaf votes for a target that does not exist")
            low, high = Upper(max(0.0, -min(found.values()))), Upper(max(0.0, *found.values()))
            if aggregate in ("MIN", "MAX"):
                below[target], above[target] = max(below[target], low), max(above[target], high)
            else:
                below[target], above[target] = below[target] + low, above[target] + high
        return list(zip(below, above, strict=True))

    def raw(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> tuple[Upper, Upper] | Unknown:
        """See the base class."""
        ends = self._spreads(site)
        if isinstance(ends, Unknown):
            return ends
        rows, columns = self._scores(site)
        if columns != len(ends):
            # One score for two classes: given out with both signs (or as 1 - s and s).
            if columns != 2 or len(ends) != 1:
                return Unknown("the scores are combined in a way that has no rule")
            ends = [ends[0], ends[0]]
        elif columns == 2 and site.node.op.endswith("Classifier") and self._binary(site):
            ends = [max(ends), max(ends)]
        return ZERO, combine(ends, norm) * repeat_factor(rows, norm)

    def _binary(self, site: Site) -> bool:
        return len(set(numbers(site, "class_ids").tolist())) == 1

    def _spreads(self, site: Site) -> list[Upper] | Unknown:
        """How much each target can move: the sum over trees of the spread of its votes."""
        votes = self._votes(site)
        if isinstance(votes, Unknown):
            return votes
        aggregate, targets = self._aggregate(site), self._targets(site)
        if aggregate not in ("SUM", "AVERAGE", "MIN", "MAX"):
            return Unknown(f"aggregate_function {aggregate!r} has no rule")
        ends = self._ends(site)
        if isinstance(ends, Unknown):
            return ends
        trees: dict[int, dict[int, dict[int, float]]] = {}
        for tree, leaf, target, weight in votes:
            own = trees.setdefault(tree, {}).setdefault(target, {})
            own[leaf] = own.get(leaf, 0.0) + weight
        count = len(trees)
        leaves = self._leaves(site, votes)
        found = [ZERO] * targets
        if aggregate in ("MIN", "MAX"):
            weights = [weight for *_, weight in votes]
            return [_distance(weights)]
        for tree, by_target in trees.items():
            for target, by_leaf in by_target.items():
                values = list(by_leaf.values()) + ([0.0] if len(by_leaf) < leaves.get(tree, math.inf) else [])
                found[target] = found[target] + _distance(values)
        if aggregate == "AVERAGE":
            return [size * Upper(f"1/{max(1, count)}") for size in found]
        return found

    def _leaves(self, site: Site, votes: Sequence[Vote]) -> dict[int, int]:
        """Leaves of each tree (also those without a vote)."""
        if site.node.op == "TreeEnsemble":
            pairs = {(tree, leaf) for tree, leaf, _, _ in votes}
            return dict(Counter(tree for tree, _ in pairs))
        modes, trees = site.attr("nodes_modes") or (), numbers(site, "nodes_treeids").astype(int)
        return dict(Counter(int(tree) for mode, tree in zip(modes, trees, strict=False) if str(mode) == "LEAF"))

    def value_range(self, site: Site, xs: Sequence[Range | None]) -> tuple[float, float]:
        """See the base class."""
        ends = self._ends(site)
        if isinstance(ends, Unknown) or self._aggregate(site) not in ("SUM", "AVERAGE"):
            return -math.inf, math.inf
        stored = site.attr("base_values_as_tensor")
        base = numbers(site, "base_values") if stored is None else stored.float64().ravel()
        lo = float(max(below for below, _ in ends) + Upper(float(np.max(np.abs(base), initial=0.0))))
        hi = float(max(above for _, above in ends) + Upper(float(np.max(np.abs(base), initial=0.0))))
        if self.classifies(site):
            lo, hi = max(lo, hi + 1.0), max(hi, lo + 1.0)  # 1 - s and s, or -s and s
            lo, hi = math.nextafter(lo, math.inf), math.nextafter(hi, math.inf)
        return -lo, hi


def _distance(values: Iterable[float]) -> Upper:
    """Largest minus least, rounded up (twice: the votes of one leaf were added in floats)."""
    listed = list(values)
    spread = max(listed) - min(listed)
    size = max(abs(value) for value in listed)
    return Upper(math.nextafter(spread, math.inf)) + Upper(size * 2.0**-50) if spread else ZERO


def _reached(site: Site) -> list[Vote] | Unknown:
    """The leaves of each tree of a TreeEnsemble, found from its root."""
    ids = {name: numbers(site, f"nodes_{name}").astype(int) for name in ("trueleafs", "falseleafs", "truenodeids", "falsenodeids")}
    targets, stored = numbers(site, "leaf_targetids").astype(int), site.attr("leaf_weights")
    if stored is None:
        return Unknown("the leaves have no weights")
    weights = stored.float64().ravel()
    votes: list[Vote] = []
    for tree, root in enumerate(numbers(site, "tree_roots").astype(int).tolist()):
        seen: set[int] = set()
        stack = [root]
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            if not 0 <= at < ids["truenodeids"].size:
                return Unknown("a tree refers to a node that does not exist")
            seen.add(at)
            for side in ("true", "false"):
                child = int(ids[f"{side}nodeids"][at])
                if not ids[f"{side}leafs"][at]:
                    stack.append(child)
                elif 0 <= child < weights.size:
                    votes.append((tree, child, int(targets[child]), float(weights[child])))
                else:
                    return Unknown("a tree refers to a leaf that does not exist")
    return list(dict.fromkeys(votes))
