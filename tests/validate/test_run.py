"""Runs as a whole: repeatable, honest about the device, within their limits."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from lipaudit.bounds.scalar import Norm
from lipaudit.errors import UsageError
from lipaudit.graph.ir import Graph
from lipaudit.validate import BUDGETS, Measurements, run, session, to_record
from lipaudit.validate.adjoints import derive
from lipaudit.validate.budget import QUICK, flops
from tests.validate.small import graph_of, measure, mlp, real_graph


def _bytes(found: Measurements) -> bytes:
    parts = [found.headline, *found.matrix.values(), *found.regions.values()]
    exact = [None if part.lower is None else part.lower.dyadic() for part in parts]
    arrays = [(name, array.tobytes()) for name, array in sorted(found.witness_arrays.items())]
    return msgspec.json.encode([to_record(part) for part in parts]) + repr(exact).encode() + repr(arrays).encode()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_two_runs_give_equal_bytes(norm: Norm) -> None:
    rng = np.random.default_rng(5)
    graph = mlp([rng.standard_normal((8, 40)), rng.standard_normal((40, 30))], biases=[rng.standard_normal(40), np.zeros(30)])
    regions = [("all", ("x",), "s1"), ("second", ("a0",), "s1")]
    first, second = (measure(graph, (-1.0, 1.0), regions=regions, norm=norm) for _ in range(2))
    assert _bytes(first) == _bytes(second)
    other = measure(graph, (-1.0, 1.0), regions=regions, norm=norm, seed=1)
    assert other.headline.witness["seed"] == 1


def test_blas_threads_do_not_matter() -> None:
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(6)
    graph = mlp([rng.standard_normal((200, 300)), rng.standard_normal((300, 60))])
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(_bytes(measure(graph, (0.0, 1.0))))
    assert found[0] == found[1]


def test_the_device_that_ran_is_reported() -> None:
    found = measure(mlp([np.eye(2)]), device="auto")
    assert found.device == found.headline.device == session.resolve_device("auto")
    assert measure(mlp([np.eye(2)]), device="cpu").device == "cpu"


def test_cuda_without_a_driver_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LIBRARIES", ("libno-such-driver.so.1", "libcudnn.so.9", "libcublasLt.so.13"))
    session._cuda_problem.cache_clear()
    try:
        assert session.resolve_device("auto") == "cpu"
        with pytest.raises(UsageError, match=r"CUDA does not work here: .*"):
            measure(mlp([np.eye(2)]), device="cuda")
        texts = " ".join(text for _, text in session.probe())
        assert "cuda: not usable" in texts
    finally:
        session._cuda_problem.cache_clear()


def test_unknown_device_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'tpu'"):
        measure(mlp([np.eye(2)]), device="tpu")


def test_sessions_are_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    session.device_reason()
    measure(mlp([np.eye(2)]), device="auto")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def _endless(trips: int) -> Graph:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Tanh", ["s"], ["t"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("t", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    return graph_of([node], {"x": [2]}, ["y"], {"n": np.array(trips)})


def test_an_endless_loop_ends_at_the_limit() -> None:
    graph = _endless(10**12)
    begin = time.monotonic()
    found = measure(graph, time_limit=1.5)
    assert time.monotonic() - begin < 8
    assert found.headline.status == "not-measured"
    assert "within 1.5 seconds" in found.headline.reason


def test_a_search_that_is_cut_short_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_SEARCH_TIME", 0.2)
    rng = np.random.default_rng(7)
    graph = mlp([rng.standard_normal((300, 400)), rng.standard_normal((400, 300))])
    found = measure(graph, budget=BUDGETS["thorough"], time_limit=4.0).headline
    assert found.status == "measured"
    assert "stopped by the time limit" in found.method


def test_a_model_that_onnxruntime_refuses_is_not_measured() -> None:
    graph = graph_of([helper.make_node("Mystery", ["x"], ["y"], domain="nowhere")], {"x": [1]}, ["y"], domains=["nowhere"])
    found = measure(graph).headline
    assert found.status == "not-measured"
    assert found.reason


def test_without_derivative_the_search_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "RULES", {op: rule for op, rule in derive.RULES.items() if op != "Acos"})
    graph = graph_of([helper.make_node("Acos", ["x"], ["y"], name="arc")], {"x": [3]}, ["y"])
    found = measure(graph, (-0.5, 0.5)).headline
    assert found.status == "measured"
    assert "Acos 'arc'" in found.method
    assert found.lower is not None
    assert 0.9 / np.sqrt(0.75) <= float(found.lower) <= 1 / np.sqrt(0.75)


def test_progress_goes_from_start_to_end() -> None:
    seen: list[float] = []
    measure(mlp([np.eye(3)]), progress=seen.append)
    assert seen[-1] == 1.0
    assert all(0 <= fraction <= 1 for fraction in seen)


def test_the_budget_depends_on_the_graph_alone() -> None:
    small, large = mlp([np.eye(4)]), mlp([np.ones((2000, 4000))])
    assert flops(small) < flops(large)
    assert QUICK.for_graph(large) <= QUICK.for_graph(small) == QUICK.evaluations


MEASURED = [
    "acasxu_1_1", "cgan_32_1", "cifar10_resnet_2b", "cntk_mnist", "collins_rul_full40", "dist_shift_generator", "linearizenn_allinone",
    "mnist_fc_256x2", "rl_lunarlander", "safenlp_medical", "test_nano", "verivital_avgpool", "exports/mobilenetv2.dyn18",
    "exports/resnet18.dyn18", "exports/gpt2.dyn23", "exports/lstm_torch.dyn18",
]  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_real_models_are_measured(models: Path, name: str) -> None:
    graph = real_graph(models / f"{name}.onnx")
    found = measure(graph, budget=replace(QUICK, evaluations=300)).headline
    assert found.status == "measured", found.reason
    assert found.lower is not None
    assert not found.lower.is_zero


@pytest.mark.parametrize(
    ("name", "box", "least"),
    [
        ("mnist_fc_256x2", (0.0, 1.0), 20.0),
        ("cifar10_resnet_2b", (0.0, 1.0), 3.0),
        ("acasxu_1_1", (-0.5, 0.5), 60.0),
        ("eran_sigmoid_6x200", (0.0, 1.0), 500.0),
    ],
)
def test_the_search_finds_large_gains(models: Path, name: str, box: tuple[float, float], least: float) -> None:
    found = measure(real_graph(models / f"{name}.onnx"), box).headline
    assert found.lower is not None
    assert float(found.lower) >= least
