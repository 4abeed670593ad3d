"""Files that are no legal model: each is refused with one sentence that names the file and the item."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipaudit.errors import ModelError
from lipaudit.graph.limits import Limits
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from tests.graph.running import model, write

N = helper.make_node
W = np.ones((3, 4), np.float32)


def refused(path: str, match: str, **options: Any) -> ModelError:
    """The error of loading (or simplifying) the file: exit 3, one line, the file named."""
    with pytest.raises(ModelError, match=match) as caught:
        simplify(load(path, **options).graph)
    error = caught.value
    assert error.exit_code == 3
    assert error.where == path
    text = str(error)
    assert text.startswith(path)
    assert "\n" not in error.message
    assert "\x1b" not in error.message
    return error


def mlp() -> onnx.ModelProto:
    return model([N("MatMul", ["x", "w"], ["h"], name="mm"), N("Relu", ["h"], ["y"], name="act")], {"x": [1, 3]}, ["y"], {"w": W})


# ---- not a model at all


def test_missing_file(tmp_path: Path) -> None:
    refused(str(tmp_path / "nowhere.onnx"), "no such file")
    refused(str(tmp_path / "nul\0name"), "cannot be opened")


def test_directory(tmp_path: Path) -> None:
    refused(str(tmp_path), "directory")


def test_fifo_as_model_does_not_hang(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    refused(path, "not a regular file")


def test_device_as_model(tmp_path: Path) -> None:
    refused("/dev/zero", "not a regular file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (b"this is not a model\n" * 40, "text file"),
        (b'{"graph": {}}', "text file"),
        (b"PK\x03\x04" + b"\0" * 100, "ZIP"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x00\x01\x02\x03" * 100, "not an ONNX model"),
        (b"\x08\x08", "holds no graph"),
        (gzip.compress(b"", mtime=0), "empty after decompression"),
        (gzip.compress(b"hello" * 100, mtime=0)[:-20], "truncated"),
        (gzip.compress(b"hello" * 100, mtime=0)[:-8] + b"\xff" * 8, "gzip stream is damaged"),
    ],
)
def test_other_content(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(str(path), match)


def test_lfs_pointer_has_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "git lfs pull" in refused(str(path), "LFS").hint


def test_every_truncation_is_refused_or_a_smaller_model(tmp_path: Path) -> None:
    raw = mlp().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(1, len(raw)):
        path.write_bytes(raw[:length])
        try:
            load(str(path))
        except ModelError as error:
            named = error.where == str(path)
        else:  # cut between two fields behind the graph: protobuf cannot tell
            named = True
        assert named


def test_every_flipped_byte_is_refused_or_loads(tmp_path: Path) -> None:
    raw = mlp().SerializeToString()
    path = tmp_path / "m.onnx"
    for index in range(len(raw)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(raw[:index] + bytes([raw[index] ^ mask]) + raw[index + 1 :])
            message = ""
            try:
                simplify(load(str(path)).graph)
            except ModelError as error:
                message = error.message
            assert "\n" not in message


# ---- illegal graphs


def edited(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = mlp()
    change(proto)
    return proto


def _input_dims(*dims: int) -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        shape = proto.graph.input[0].type.tensor_type.shape
        del shape.dim[:]
        for dim in dims:
            shape.dim.add().dim_value = dim

    return change


def _tensor(**fields: Any) -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                tensor.dims[:] = value
            else:
                setattr(tensor, name, value)

    return change


def _node(**fields: Any) -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        node = proto.graph.node[0]
        for name, value in fields.items():
            if name in ("input", "output"):
                getattr(node, name)[:] = value
            else:
                setattr(node, name, value)

    return change


ILLEGAL: list[tuple[str, Callable[[onnx.ModelProto], object], str]] = [
    ("cycle", _node(input=["y", "w"]), "cycle.*'mm'"),
    ("self-cycle", _node(input=["h", "w"]), "cycle: 'mm' -> 'mm'"),
    ("undefined input", _node(input=["nowhere", "w"]), "'mm'.*'nowhere'"),
    ("undefined output", lambda p: p.graph.output.append(onnx.ValueInfoProto(name="lost")), "output 'lost'"),
    ("output twice", _node(output=["y"]), "'y' is defined twice"),
    ("input redefined", _node(output=["x"]), "'x' is defined twice"),
    ("initializer redefined", _node(output=["w"]), "'w' is defined twice"),
    ("two initializers", lambda p: p.graph.initializer.append(p.graph.initializer[0]), "'w' is defined twice"),
    ("two inputs", lambda p: p.graph.input.append(p.graph.input[0]), "two inputs.*'x'"),
    ("no operator", _node(op_type=""), "'mm'.*no operator type"),
    ("no name", lambda p: setattr(p.graph.initializer[0], "name", ""), "initializer has no name"),
    ("too few inputs", _node(input=["x"]), "'mm' .MatMul. has 1 inputs"),
    ("too many inputs", _node(input=["x", "w", "w"]), "'mm' .MatMul. has 3 inputs"),
    ("required input left out", _node(input=["x", ""]), "'mm' .MatMul. leaves out input 1"),
    ("too many outputs", _node(output=["h", "h2"]), "'mm' .MatMul. has 2 outputs"),
    ("negative dim", _tensor(dims=[-3, 4]), "'w' has a negative dimension"),
    ("dims 2^62", _tensor(dims=[2**62, 4]), "'w' has impossible dimensions"),
    ("dims overflow", _tensor(dims=[2**40, 2**40]), "'w' has impossible dimensions"),
    ("short raw data", _tensor(raw_data=b"\0" * 47), "'w' .* needs 48 bytes but 47"),
    ("long raw data", _tensor(raw_data=b"\0" * 49), "'w' .* needs 48 bytes but 49"),
    ("no data", lambda p: p.graph.initializer[0].ClearField("raw_data"), "'w'.*needs 12 elements but 0"),
    ("unknown type", _tensor(data_type=77), "'w' has the unknown element type 77"),
    ("undefined type", _tensor(data_type=0), "'w' has the unknown element type 0"),
    ("strings as raw data", _tensor(data_type=TensorProto.STRING), "'w': strings"),
    ("negative input dim", _input_dims(1, -3), "input 'x' has a negative dimension"),
    ("huge input dim", _input_dims(2**62, 3), "input 'x' has impossible dimensions"),
    ("product of input dims", _input_dims(2**30, 2**30), "input 'x' has impossible dimensions"),
    ("input without shape", lambda p: p.graph.input[0].type.tensor_type.ClearField("shape"), "input 'x' declares no shape"),
    ("input without type", lambda p: p.graph.input[0].ClearField("type"), "input 'x' has no type"),
    ("input of unknown type", lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", 99), "input 'x'.*99"),
    ("opset 999", lambda p: setattr(p.opset_import[0], "version", 999), "opset 999 is unknown"),
    ("opset 0", lambda p: setattr(p.opset_import[0], "version", 0), "opset 0 is unknown"),
    ("no opset", lambda p: p.ClearField("opset_import"), "does not say which opset"),
    ("shapes that do not fit", _input_dims(1, 5), "'mm' .MatMul. does not fit"),
    ("segment", lambda p: p.graph.initializer[0].segment.SetInParent(), "'w' is stored in segments"),
    ("reference outside a function", lambda p: p.graph.node[0].attribute.add(name="a", ref_attr_name="b", type=1), "'mm' refers"),
]


@pytest.mark.parametrize(("change", "match"), [case[1:] for case in ILLEGAL], ids=[case[0] for case in ILLEGAL])
def test_illegal_graphs(tmp_path: Path, change: Callable[[onnx.ModelProto], object], match: str) -> None:
    refused(write(edited(change), tmp_path), match)


def test_sequence_inputs_are_refused(tmp_path: Path) -> None:
    proto = mlp()
    proto.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    refused(write(proto, tmp_path), "input 's' is a sequence")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    raw = mlp().SerializeToString().replace(b"mm", b"\xed\xa0")
    path = tmp_path / "m.onnx"
    path.write_bytes(raw)
    refused(str(path), "not valid UTF-8|cannot decode")


@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        ({"group": 0}, "group = 0"),
        ({"group": -1}, "group = -1"),
        ({"group": 3}, "group = 3"),
        ({"strides": [0, 1]}, "strides"),
        ({"strides": [1]}, "strides"),
        ({"dilations": [1, 0]}, "dilations"),
        ({"dilations": [1, 2**40]}, "dilations"),
        ({"kernel_shape": [0, 3]}, "kernel_shape"),
        ({"kernel_shape": [2, 3]}, "kernel_shape"),
        ({"pads": [1, 1, 1]}, "pads"),
        ({"pads": [1, 1]}, "pads"),
        ({"group": 1.5}, "'group' of type float"),
        ({"strides": 2}, "'strides' of another type"),
    ],
    ids=str,
)
def test_nonsense_in_a_convolution(tmp_path: Path, attributes: dict[str, Any], match: str) -> None:
    node = N("Conv", ["x", "w"], ["y"], name="conv", **attributes)
    proto = model([node], {"x": [1, 2, 8, 8]}, ["y"], {"w": np.ones((4, 2, 3, 3), np.float32)})
    refused(write(proto, tmp_path), f"'conv' .Conv. .*{match}")


@pytest.mark.parametrize(
    ("node", "match"),
    [
        (N("Transpose", ["x"], ["y"], name="n", perm=[0, 0]), "perm"),
        (N("Transpose", ["x"], ["y"], name="n", perm=[0, 1, 2]), "perm"),
        (N("Transpose", ["x"], ["y"], name="n", perm=[0, 5]), "perm"),
        (N("Softmax", ["x"], ["y"], name="n", axis=7), "axis = 7"),
        (N("Concat", ["x", "x"], ["y"], name="n"), "lacks the attribute 'axis'"),
        (N("Concat", ["x", "x"], ["y"], name="n", axis=-3), "axis = -3"),
        (N("Cast", ["x"], ["y"], name="n", to=99), "99"),
        (N("DepthToSpace", ["x"], ["y"], name="n", blocksize=0), "blocksize = 0"),
        (N("MaxPool", ["x"], ["y"], name="n", kernel_shape=[0]), "kernel_shape"),
        (N("Elu", ["x"], ["y"], name="n", alpha=float("nan")), "alpha = nan"),
        (N("Elu", ["x"], ["y"], name="n", alpha=float("inf")), "alpha = inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.op_type,
)
def test_nonsense_attributes(tmp_path: Path, node: onnx.NodeProto, match: str) -> None:
    refused(write(model([node], {"x": [2, 3]}, ["y"]), tmp_path), f"'n' .*{match}")


# ---- memory and time


def test_gzip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx.gz"
    path.write_bytes(gzip.compress(b"\0" * 5_000_000, mtime=0))
    refused(str(path), "decompresses to more than", limits=Limits(file_bytes=1_000_000))


def test_too_large_a_file(tmp_path: Path) -> None:
    refused(write(mlp(), tmp_path), "larger than the limit", limits=Limits(file_bytes=100))


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\x0a\x00" * 2000, "2,000 nodes"),
        (b"\x2a\x00" * 2000, "2,000 tensors"),
        (b"\x5a\x00" * 2000, "fields"),
        (_message(1, b"\x2a\x00" * 2000), "fields"),
        (_message(5, b"\x6a\x00" * 2000), "fields"),
    ],
    ids=["nodes", "tensors", "inputs", "attributes", "external data"],
)
def test_empty_messages_that_grow_in_memory(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08" + _message(7, content))
    refused(str(path), match, limits=Limits(fields=1000, nodes=1000, tensors=1000))


@pytest.mark.parametrize("depth", [20, 31, 60, 200])
def test_nested_graphs(tmp_path: Path, depth: int) -> None:
    # Written byte by byte: protobuf itself refuses to build more than 33 levels.
    def info(name: str) -> bytes:
        return onnx.ValueInfoProto(name=name, type=helper.make_tensor_type_proto(TensorProto.FLOAT, None)).SerializeToString()

    def branch(name: str, graph: bytes) -> bytes:
        return _message(5, _message(1, name.encode()) + _message(6, graph) + b"\xa0\x01\x05")

    other = _message(1, N("Neg", ["x"], ["e"]).SerializeToString()) + _message(12, info("e"))
    graph = _message(1, N("Relu", ["x"], ["y0"]).SerializeToString()) + _message(12, info("y0"))
    for level in range(1, depth):
        node = N("If", ["c"], [f"y{level}"]).SerializeToString() + branch("then_branch", graph) + branch("else_branch", other)
        graph = _message(1, node) + _message(12, info(f"y{level}"))
    for name, kind, shape in (("x", TensorProto.FLOAT, [3]), ("c", TensorProto.BOOL, [])):
        graph += _message(11, helper.make_tensor_value_info(name, kind, shape).SerializeToString())
    opset = _message(8, helper.make_opsetid("", 17).SerializeToString())
    file = tmp_path / "m.onnx"
    file.write_bytes(b"\x08\x08" + _message(7, graph) + opset)
    if depth <= 30:
        assert simplify(load(str(file)).graph).value(f"y{depth - 1}").shape == (3,)
    else:
        refused(str(file), "nested more than 30 deep")


def _functions(count: int, last_calls: str | None = None) -> onnx.ModelProto:
    functions = []
    for level in range(count):
        inner = f"F{level + 1}" if level + 1 < count else last_calls
        nodes = [N("Relu", ["a"], ["m"]), N("Relu", ["m"], ["b"])]
        if inner:
            nodes = [N(inner, ["a"], ["m"], domain="f"), N(inner, ["m"], ["b"], domain="f")]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        functions.append(helper.make_function("f", f"F{level}", ["a"], ["b"], nodes, opsets))
    return model([N("F0", ["x"], ["y"], domain="f")], {"x": [3]}, ["y"], functions=functions)


@pytest.mark.parametrize("count", [40, 3000])
def test_functions_that_double(tmp_path: Path, count: int) -> None:
    refused(write(_functions(count), tmp_path), "local functions expand to")


def test_functions_that_call_themselves(tmp_path: Path) -> None:
    refused(write(_functions(5, last_calls="F2"), tmp_path), "'F2' calls itself")


def test_functions_that_double_a_few_times_are_inlined(tmp_path: Path) -> None:
    assert len(load(write(_functions(6), tmp_path)).graph.nodes) == 64


BOMBS = {
    "ConstantOfShape": ([N("ConstantOfShape", ["s"], ["c"], name="bomb"), N("Add", ["x", "c"], ["y"])], {"s": np.array([10**6, 10**6])}),
    "Expand": ([N("Expand", ["x", "s"], ["y"], name="bomb")], {"s": np.array([10**12, 1, 3])}),
    "Tile": ([N("Tile", ["x", "s"], ["y"], name="bomb")], {"s": np.array([10**12, 1])}),
    "Pad": ([N("Pad", ["x", "s"], ["y"], name="bomb")], {"s": np.array([0, 0, 0, 10**12])}),
    "Range": ([N("Range", ["a", "b", "c"], ["r"], name="bomb"), N("Cast", ["r"], ["y"], to=1)],
              {"a": np.array(0), "b": np.array(10**12), "c": np.array(1)}),
    "Range chain": ([N("Mul", ["m", "m"], ["b"]), N("Range", ["a", "b", "c"], ["r"], name="bomb"), N("Cast", ["r"], ["y"], to=1)],
                    {"a": np.array(0), "m": np.array(10**6), "c": np.array(1)}),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "constants"), BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_before_they_go_off(tmp_path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> None:
    refused(write(model(nodes, {"x": [1, 3]}, ["y"], constants), tmp_path), "'bomb' .* would compute")


def test_a_bomb_below_the_value_limit_is_not_folded(tmp_path: Path) -> None:
    nodes = [N("Tile", ["w", "s"], ["t"]), N("ReduceSum", ["t"], ["r"]), N("Add", ["x", "r"], ["y"])]
    proto = model(nodes, {"x": [1, 1]}, ["y"], {"w": np.ones((1, 3), np.float32), "s": np.array([10**8, 1])})
    graph = simplify(load(write(proto, tmp_path)).graph)
    assert [node.op for node in graph.nodes] == ["Tile", "ReduceSum", "Add"]


def test_a_loop_without_end_loads(tmp_path: Path) -> None:
    body = helper.make_graph(
        [N("Identity", ["c"], ["d"]), N("Tanh", ["s"], ["t"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    proto = model([N("Loop", ["m", "", "w"], ["l"], body=body), N("Add", ["x", "l"], ["y"])], {"x": [3]}, ["y"],
                  {"m": np.array(10**12), "w": np.ones(3, np.float32)})  # fmt: skip
    assert [node.op for node in simplify(load(write(proto, tmp_path)).graph).nodes] == ["Loop", "Add"]


def test_sparse_bomb(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.0], np.float32), "s"), numpy_helper.from_array(np.array([0])), [10**6, 10**6]
    )
    proto = model([N("Relu", ["x"], ["y"])], {"x": [1]}, ["y"])
    proto.graph.sparse_initializer.append(sparse)
    refused(write(proto, tmp_path), "'s' .* too large")


def test_a_long_chain_and_a_wide_concat_are_quick(tmp_path: Path) -> None:
    chain = [N("Relu", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(5_000)]
    assert len(simplify(load(write(model(chain, {"x": [1, 3]}, ["v5000"]), tmp_path)).graph).nodes) == 5_000
    wide = [N("Concat", ["x"] * 5_000, ["y"], axis=0)]
    assert simplify(load(write(model(wide, {"x": [1, 3]}, ["y"]), tmp_path)).graph).value("y").shape == (5_000, 3)
