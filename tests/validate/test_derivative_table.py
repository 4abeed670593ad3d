"""Both derivatives of every real model that onnxruntime runs: how many have them, and that they are right (`make soak` prints them)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lipaudit.topology.sources import find_sources
from lipaudit.validate import engine
from lipaudit.validate.engine import Engine
from lipaudit.validate.exact import Evaluator, evaluated
from lipaudit.validate.lowering import lower
from lipaudit.validate.problem import Problem, prepare
from lipaudit.validate.session import Deadline
from lipaudit.validate.starts import typical
from tests.validate.small import real_graph

# Below this gain along a random direction the derivative is the rounding of zero.
NEGLIGIBLE = 1e-5
# All weights are equal, so all outputs are: the exact derivative is zero, what is computed is what rounding leaves of large terms.
UNIFORM = {f"light_{name}" for name in ("alexnet", "densenet121", "inception_v1", "resnet50", "squeezenet", "vgg19")}
# Steps: the slope is that of the staircase's middle line, which differences of float64 do not see.
STEPS = {"exports/bert_dynint8", "exports/resnet18_qdq_perch", "exports/resnet18_qoperator", "micro_kws_qdq", "micro_kws_qoperator",
         "tashkeel_bilstm_int8", "traffic_qconv_30"}  # fmt: skip


def _row(problem: Problem) -> tuple[float, float, float] | str:
    """Gain along a random direction, disagreement of J t with J' c, and of J t with central differences in float64."""
    made = Engine(problem, "cpu", Deadline(None))
    if not made.differentiable:
        return made.why_no_derivative
    rng = np.random.default_rng(1)
    (point,) = typical(problem, np.random.default_rng(0), 1)
    state = made.state(point)
    cotangent, tangent = rng.standard_normal((1, made.outputs)), rng.standard_normal((1, problem.size))
    pulled, pushed = made.pull(state, cotangent), made.push(state, tangent)
    size = float(np.linalg.norm(pushed) * np.linalg.norm(cotangent))
    dot = abs(float((pulled * tangent).sum() - (cotangent * pushed).sum())) / (size or 1.0)
    exact = Evaluator(lower(problem.graph, evaluated).graph)

    def value(x: np.ndarray) -> np.ndarray:
        found = exact.run(problem.feeds(x, double=True), problem.outputs)
        return np.concatenate([np.asarray(found[name], dtype=np.float64).reshape(-1) for name in problem.outputs])

    slope = (value(point + 1e-6 * tangent[0]) - value(point - 1e-6 * tangent[0])) / 2e-6
    off = float(np.linalg.norm(slope - pushed[0]) / (float(np.linalg.norm(slope)) or 1.0))
    return float(np.linalg.norm(pushed) / np.linalg.norm(tangent)), dot, off


@pytest.mark.soak
@pytest.mark.models
def test_all_real_models(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SMALL", -1)
    rows: dict[str, tuple[float, float, float] | str] = {}
    for path in sorted([*models.glob("*.onnx"), *models.glob("exports/*.onnx")]):
        name = str(path.relative_to(models)).removesuffix(".onnx")
        graph = real_graph(path)
        problem = prepare(graph, find_sources(graph), {}, None, 0, None)
        if not isinstance(problem, Problem):
            continue  # no floating-point output moves with an input
        try:
            rows[name] = _row(problem)
        except RuntimeError:
            continue  # onnxruntime does not run it
    for name, row in rows.items():
        print(f"{name:34}", row if isinstance(row, str) else "gain {:.1e}  dot {:.1e}  differences {:.1e}".format(*row))
    with_both = {name: row for name, row in rows.items() if not isinstance(row, str)}
    print(f"{len(with_both)} of {len(rows)} models have both derivatives")
    assert len(with_both) >= 0.95 * len(rows)
    smooth = {name: row for name, row in with_both.items() if row[0] > NEGLIGIBLE and name not in UNIFORM}
    assert {name: dot for name, (_, dot, _) in smooth.items() if dot > 1e-5} == {}
    # A kink between the two points of a difference costs some digits.
    assert {name: off for name, (_, _, off) in smooth.items() if name not in STEPS and off > 1e-2} == {}
    assert np.median([off for name, (_, _, off) in smooth.items() if name not in STEPS]) < 1e-6
