"""Stages of a search: counted in evaluations, each a whole search."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from onnx import helper

from lipaudit.topology.sources import find_sources
from lipaudit.validate.direction import View
from lipaudit.validate.engine import Engine
from lipaudit.validate.problem import Problem, prepare
from lipaudit.validate.search import Search, shares
from lipaudit.validate.session import Deadline, OutOfTime, Session
from tests.validate.small import graph_of, mlp


def test_stages_grow_and_share_the_whole_budget() -> None:
    parts = shares(100_000, 3)
    assert len(parts) == 3
    assert sum(parts) == pytest.approx(1.0, abs=1e-12)
    assert all(b > 2 * a for a, b in pairwise(parts))
    assert shares(100, 3) == [1.0]
    assert shares(1e9, 1) == [1.0]


def _search(stages: int) -> Search:
    rng = np.random.default_rng(0)
    graph = mlp([rng.standard_normal((30, 40)), rng.standard_normal((40, 30))], biases=[rng.standard_normal(40), np.zeros(30)])
    sources = find_sources(graph)
    problem = prepare(graph, sources, {source.value.name: (np.array(-1.0), np.array(1.0)) for source in sources}, None, 0, None)
    assert isinstance(problem, Problem)
    return Search(View(Engine(problem, "cpu", Deadline(None))), "l2", (0,), 8000.0, stages)


def test_a_search_in_stages_keeps_to_its_budget_and_repeats() -> None:
    found = [_search(3) for _ in range(2)]
    for search in found:
        search.run()
        assert search.view.engine.spent <= 1.05 * search.budget
    one, two = (search.best()[0] for search in found)
    assert one.gain == two.gain
    assert np.array_equal(one.point, two.point)


def test_a_search_that_is_cut_has_climbed_already() -> None:
    """After a tenth of the budget one search has looked around; in stages it has ascended."""
    seen: list[str] = []
    for stages in (1, 3):
        search = _search(stages)

        def cut(_: float, search: Search = search) -> None:
            if search.view.engine.spent > 0.1 * search.budget:
                raise OutOfTime

        search.progress = cut
        with pytest.raises(OutOfTime):
            search.run()
        seen.append(" ".join(candidate.family for candidate in search.found))
    assert "ascent" not in seen[0]
    assert "ascent" in seen[1]


def test_values_do_not_depend_on_where_the_inputs_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's ReduceMean adds in another order where its operand begins elsewhere: all that it is given begins at 64 bytes."""
    graph = graph_of([helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1])], {"x": [3, 7, 37]}, ["y"], opset=13)
    problem = prepare(graph, find_sources(graph), {}, None, 0, None)
    assert isinstance(problem, Problem)
    seen: set[int] = set()
    run = Session.run

    def watched(self: Session, feeds: Mapping[str, Any], *more: Any) -> dict[str, Any]:
        seen.update(array.ctypes.data % 64 for array in feeds.values())
        return run(self, feeds, *more)

    monkeypatch.setattr(Session, "run", watched)
    engine = Engine(problem, "cpu", Deadline(None))
    rng = np.random.default_rng(0)
    # Blocks of many sizes in between, so that the allocator has no reason to be tidy.
    held = []
    for size in range(1, 200, 7):
        held.append(np.empty(size))
        state = engine.state(problem.clip(rng.standard_normal(problem.size)))
        engine.pull(state, rng.standard_normal((3, engine.outputs)))
    assert seen == {0}
