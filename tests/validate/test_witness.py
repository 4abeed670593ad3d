"""The headline pair as a file and back, and real inputs from a file: same number, or one sentence that names file and item."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import lipaudit
from lipaudit.bounds.scalar import Norm
from lipaudit.errors import UsageError
from lipaudit.graph.ir import Graph
from lipaudit.topology.sources import find_sources
from lipaudit.validate import Witness, arrays, check_inputs, pack, read_arrays, witness_bytes
from tests.validate.small import graph_of, measure, mlp, real_graph

BOX = (-1.0, 1.0)


def weights(seed: int, *shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def reread(data: bytes | None, folder: Path) -> Witness:
    assert data is not None
    path = folder / "pair.npz"
    path.write_bytes(data)
    return Witness(read_arrays(str(path)), "pair.npz")


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
def test_a_replay_gives_the_same_number(norm: Norm, tmp_path: Path) -> None:
    graph = mlp(weights(1, (9, 40), (40, 30), (30, 5)), activation="Tanh")
    regions = [("last", ("a1",), "m2")]
    found = measure(graph, BOX, norm=norm, regions=regions)
    witness = reread(witness_bytes(found, norm), tmp_path)
    again = measure(graph, BOX, norm=norm, regions=regions, replay=witness)
    assert found.headline.lower is not None
    assert again.headline.lower is not None
    assert again.headline.lower.dyadic() == found.headline.lower.dyadic()
    assert "nothing searched" in again.headline.method
    assert again.regions["last"].status == "measured"
    assert found.regions["last"].lower is not None
    assert again.regions["last"].lower is not None
    assert not found.regions["last"].lower < again.regions["last"].lower
    # And the replay's own witness is the same file.
    assert witness_bytes(again, norm) == witness_bytes(found, norm)
    # In another norm the pair is evaluated too.
    other: Norm = "l1" if norm == "l2" else "l2"
    assert measure(graph, BOX, norm=other, replay=witness).headline.status == "measured"


@pytest.mark.parametrize("name", ["exports/vit.dyn18", "exports/gpt2.dyn18", "cifar10_resnet_2b", "exports/lstm_torch.dyn18"])
def test_a_replay_of_a_real_model_gives_the_same_number(models: Path, name: str, tmp_path: Path) -> None:
    from dataclasses import replace

    from lipaudit.validate import QUICK

    graph = real_graph(models / f"{name}.onnx")
    found = measure(graph, budget=replace(QUICK, evaluations=100))
    again = measure(graph, replay=reread(witness_bytes(found, "l2"), tmp_path))
    assert found.headline.lower is not None
    assert again.headline.lower is not None
    assert again.headline.lower.dyadic() == found.headline.lower.dyadic()


def two_inputs() -> Graph:
    """x and the held mask m: y = (x * m) w."""
    nodes = [
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["y"]),
    ]
    return graph_of(nodes, {"x": [1, 3], "m": [1, 3]}, ["y"], {"w": np.diag([1.0, 5.0, 3.0])}, types={"m": TensorProto.INT64})


GOOD: Mapping[str, Any] = {"x:x": np.zeros((1, 3)), "y:x": np.ones((1, 3)), "fixed:m": np.array([[1, 0, 1]])}


def test_a_pair_by_hand_with_a_held_input() -> None:
    found = measure(two_inputs(), BOX, replay=Witness(GOOD, "p.npz")).headline
    assert found.lower is not None
    truth = np.sqrt(10 / 3)
    assert truth * (1 - 1e-9) <= float(found.lower) <= truth * (1 + 1e-15)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x:x": None}, ("'x:x'", "missing")),
        ({"fixed:m": None}, ("'fixed:m'", "missing")),
        ({"x:x": np.zeros(3)}, ("'x:x'", "[3]", "[1, 3]")),
        ({"y:x": np.full((1, 3), np.nan)}, ("'y:x'", "finite")),
        ({"y:x": np.full((1, 3), 1.5)}, ("'y:x'", "domain")),
        ({"y:x": np.zeros((1, 3))}, ("equal",)),
        ({"x:z": np.zeros((1, 3))}, ("'x:z'",)),
        ({"fixed:k": np.zeros((1, 3))}, ("'fixed:k'",)),
        ({"fixed:m": np.full((1, 3), 0.5)}, ("'fixed:m'", "int64")),
        ({"fixed:m": np.zeros((2, 3), dtype=np.int64)}, ("'fixed:m'", "[2, 3]")),
        ({"hello": np.zeros(1)}, ("'hello'",)),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(change: dict[str, Any], words: tuple[str, ...]) -> None:
    merged = {name: array for name, array in {**GOOD, **change}.items() if array is not None}
    with pytest.raises(UsageError) as error:
        measure(two_inputs(), BOX, replay=Witness(merged, "p.npz"))
    text = str(error.value)
    assert text.startswith("p.npz: ")
    assert all(word in text for word in words), text


def test_a_careless_error_record_cannot_raise_the_number() -> None:
    graph = mlp(weights(2, (6, 6)))
    pair = {"x:x": np.zeros((1, 6)), "y:x": np.ones((1, 6))}
    plain = measure(graph, BOX, replay=Witness(pair, "p")).headline.lower
    for value in (0.0, np.nan, np.inf, -1.0):
        told = measure(graph, BOX, replay=Witness({**pair, "error:l2:m0": np.array(value)}, "p")).headline.lower
        assert plain is not None
        assert told is not None
        assert told.dyadic() == plain.dyadic()


def npz(**items: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **items)
    return buffer.getvalue()


def _pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{}], dtype=object))
    return buffer.getvalue()


def _other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", "hello")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", ".npz"),
        (b"hello", ".npz"),
        (npz(x=np.zeros((1, 3)))[:-40], ".npz"),
        (_pickled(), "'x'"),
        (_other_zip(), "'x'"),
        (npz(x=np.array(["a"])), "'x'"),
        (npz(x=np.zeros(2, dtype=complex)), "'x'"),
    ],
)
def test_bad_files(data: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(data)
    with pytest.raises(UsageError) as error:
        read_arrays(str(path))
    assert str(path) in str(error.value)
    assert word in str(error.value)


def test_missing_files_and_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_arrays(str(tmp_path / "none.npz"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_arrays(str(tmp_path))
    path = tmp_path / "large.npz"
    np.savez_compressed(path, x=np.zeros(100_000))
    monkeypatch.setattr(arrays, "MOST_BYTES", 50_000)
    with pytest.raises(UsageError, match="unpacks to more"):
        read_arrays(str(path))


def test_packing_is_repeatable_and_read_by_numpy(tmp_path: Path) -> None:
    items = {"x:a/b": np.arange(3.0), "y:../c": np.array(2)}
    assert pack(items) == pack(items)
    (tmp_path / "p.npz").write_bytes(pack(items))
    with np.load(tmp_path / "p.npz") as file:
        assert {name: file[name].tolist() for name in file.files} == {"x:a/b": [0.0, 1.0, 2.0], "y:../c": 2}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"z": np.zeros((1, 3))}, ("'z'", "'x', 'm'")),
        ({"m": np.zeros((1, 3), dtype=int)}, ("'x'", "no array")),
        ({"x": np.zeros((2, 4))}, ("'x'", "[2, 4]", "[examples, 1, 3]")),
        ({"x": np.zeros(3)}, ("'x'", "[3]")),
        ({"x": np.zeros((0, 3))}, ("'x'", "no examples")),
        ({"x": np.full((2, 3), np.inf)}, ("'x'", "finite")),
        ({"x": np.full((2, 3), 2.0)}, ("example 0", "'x'", "2")),
        ({"x": np.zeros((2, 3)), "m": np.zeros((2, 3))}, ("'m'", "float64", "int64")),
        ({"x": np.zeros((2, 3)), "m": np.zeros((3, 3), dtype=int)}, ("2 of 'x'", "3 of 'm'")),
    ],
)
def test_inputs_that_do_not_fit_are_refused(given: dict[str, Any], words: tuple[str, ...]) -> None:
    graph = two_inputs()
    box = {"x": (np.array(-1.0), np.array(1.0))}
    with pytest.raises(UsageError) as error:
        check_inputs(graph, find_sources(graph), box, given, "data.npz")
    text = str(error.value)
    assert text.startswith("data.npz: ")
    assert all(word in text for word in words), text


@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 3)])
def test_inputs_that_fit(shape: tuple[int, ...]) -> None:
    graph = two_inputs()
    given = {"x": np.linspace(0, 1, 12).reshape(shape), "m": np.ones(shape, dtype=np.int8)}
    found = check_inputs(graph, find_sources(graph), {}, given, "data.npz")
    assert {name: (array.shape, str(array.dtype)) for name, array in found.items()} == {
        "x": ((4, 1, 3), "float32"),
        "m": ((4, 1, 3), "int64"),
    }
    # The mask of the first example is held.
    found["m"][0, 0, 1] = 0
    seen = measure(graph, (0.0, 1.0), inputs=found)
    assert seen.headline.lower is not None
    assert 3 * (1 - 1e-6) <= float(seen.headline.lower) <= 3
    assert seen.witness_arrays["fixed:m"].tolist() == [[1, 0, 1]]


def test_token_ids_become_points() -> None:
    table = np.random.default_rng(3).standard_normal((7, 4))
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("Tanh", ["e"], ["y"])]
    graph = graph_of(nodes, {"ids": [1, 2]}, ["y"], {"table": table}, types={"ids": TensorProto.INT64})
    sources = find_sources(graph)
    inputs = check_inputs(graph, sources, {}, {"ids": np.array([[1, 2], [6, 0], [3, 3]])}, "data.npz")
    made = arrays.embedded(graph, sources, inputs)
    assert np.array_equal(made["e"], table.astype(np.float32)[np.array([[[1, 2]], [[6, 0]], [[3, 3]]])])
    assert measure(graph, inputs=inputs).headline.status == "measured"
    with pytest.raises(UsageError, match="'ids'"):
        arrays.embedded(graph, sources, {"ids": np.array([[[7, 0]]])})


def test_a_given_spot_is_found_from_a_file(tmp_path: Path, samples: Path) -> None:
    model = samples / "digits_mlp.onnx"
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((20, 64)))
    found = lipaudit.audit(
        model, boxes={"x": (0, 1)}, inputs=tmp_path / "data.npz", witness=tmp_path / "w.npz", device="cpu"
    )  # fmt: skip
    same = lipaudit.audit(
        model, boxes={"x": (0, 1)}, inputs={"x": np.random.default_rng(0).random((20, 1, 64))}, device="cpu"
    )  # fmt: skip
    assert found.measured == same.measured
    again = lipaudit.audit(model, boxes={"x": (0, 1)}, replay=tmp_path / "w.npz", device="cpu")
    assert again.measured.lower == found.measured.lower
    assert "inputs" in found.provenance.options
    assert "replay" in again.provenance.options
    for options in ({"measure": False, "witness": "w.npz"}, {"inputs": {}, "replay": tmp_path / "w.npz"}):
        with pytest.raises(UsageError):
            lipaudit.audit(model, **options)  # type: ignore[arg-type]


def test_the_options_of_the_command(tmp_path: Path, samples: Path) -> None:
    from tests.e2e.test_cli import lipaudit as run
    from tests.e2e.test_cli import sentence

    model = str(samples / "digits_mlp.onnx")
    pair = str(tmp_path / "digits_mlp.npz")
    first = run("audit", model, "--input", "x=0:1", "--witness", f"{tmp_path}/{{model}}.npz", "-o", "json=-")
    again = run("audit", model, "--input", "x=0:1", "--replay", pair, "-o", "json=-")
    assert json.loads(again.stdout)["measured"]["lower"] == json.loads(first.stdout)["measured"]["lower"]
    bad = tmp_path / "bad.npz"
    bad.write_bytes(npz(**{"x:x": np.zeros((1, 64))}))
    refused = run("audit", model, "--replay", str(bad))
    assert refused.returncode == 2
    assert "bad.npz" in sentence(refused)
    assert "'y:x'" in sentence(refused)
    for arguments in (("--inputs", str(tmp_path / "no.npz")), ("--witness", "/nowhere/at/all/w.npz"), ("--inputs", pair, model)):
        refused = run("audit", model, *arguments)
        assert refused.returncode == 2
        sentence(refused)
