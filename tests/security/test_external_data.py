"""External data: read only where it may be, mapped, never copied, and refused in one sentence otherwise."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lipaudit.errors import ModelError
from lipaudit.graph.load import load
from tests.graph.running import model, write

N = helper.make_node
W = np.random.default_rng(5).standard_normal((3, 4)).astype(np.float32)


def linked(entries: dict[str, str], *, attribute: bool = False, shape: tuple[int, ...] = (3, 4)) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    if attribute:
        return model([N("Constant", [], ["w"], value=tensor), N("MatMul", ["x", "w"], ["y"])], {"x": [1, 3]}, ["y"])
    proto = model([N("MatMul", ["x", "w"], ["y"])], {"x": [1, 3]}, ["y"])
    proto.graph.initializer.append(tensor)
    return proto


def refused(path: str, match: str) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        load(path)
    assert caught.value.where == path
    assert "'w'" in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("attribute", [False, True], ids=["initializer", "attribute"])
@pytest.mark.parametrize("entries", [{}, {"offset": "8"}, {"offset": "8", "length": "48", "checksum": "x"}], ids=str)
def test_weights_are_mapped(tmp_path: Path, entries: dict[str, str], attribute: bool) -> None:
    (tmp_path / "sub").mkdir()
    offset = int(entries.get("offset", 0))
    (tmp_path / "sub" / "w.bin").write_bytes(b"\1" * offset + W.tobytes() + b"tail")
    path = write(linked({"location": "sub/w.bin", **entries}, attribute=attribute), tmp_path)
    array = load(path).graph.constants["w"].array()
    np.testing.assert_array_equal(array, W)
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, memoryview)
    assert isinstance(base.obj, mmap.mmap)
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"location": "missing.bin"}, "missing"),
        ({"location": "/etc/passwd"}, "absolute path"),
        ({"location": "C:\\w.bin"}, "absolute path"),
        ({"location": "../w.bin"}, r"leads out .*'\.\.'"),
        ({"location": "sub/../../w.bin"}, r"leads out .*'\.\.'"),
        ({"location": "..\\w.bin"}, r"leads out .*'\.\.'"),
        ({"location": ""}, "names no file"),
        ({}, "names no file"),
        ({"location": "."}, "names no file"),
        ({"location": "sub"}, "not a regular file"),
        ({"location": "a\0b"}, "not a file name"),
        ({"location": "w.bin/x"}, "cannot be opened"),
        ({"location": "w.bin", "offset": "1"}, "too short"),
        ({"location": "w.bin", "offset": str(2**62)}, "too short"),
        ({"location": "w.bin", "offset": str(2**70)}, "offset"),
        ({"location": "w.bin", "offset": "-1"}, "offset"),
        ({"location": "w.bin", "offset": "1e3"}, "offset"),
        ({"location": "w.bin", "offset": "٣"}, "offset"),
        ({"location": "w.bin", "length": str(2**40)}, "length"),
        ({"location": "w.bin", "length": "47"}, "length of 47"),
        ({"location": "w.bin", "length": "-48"}, "length"),
        ({"location": "empty.bin"}, "too short"),
        ({"location": "link.bin"}, "symbolic link"),
        ({"location": "linked/w.bin"}, "symbolic link"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": "\x1b[31mred"}, "missing"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_refusals(tmp_path: Path, entries: dict[str, str], match: str) -> None:
    outside = tmp_path / "w.bin"
    outside.write_bytes(W.tobytes())
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.bin").write_bytes(W.tobytes())
    (folder / "empty.bin").write_bytes(b"")
    (folder / "link.bin").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    error = refused(write(linked(entries), folder), match)
    assert "\x1b" not in error.message


def test_devices_behind_links(tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    path = write(linked({"location": "zero"}), tmp_path)
    refused(path, "symbolic link")
    with pytest.raises(ModelError, match="not a regular file"):
        load(path, allow_linked_weights=True)


def test_links_can_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(W.tobytes())
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w.bin").symlink_to(tmp_path / "blob")
    path = write(linked({"location": "w.bin"}), tmp_path / "m")
    assert "--allow-linked-weights" in refused(path, "symbolic link").hint
    np.testing.assert_array_equal(load(path, allow_linked_weights=True).graph.constants["w"].array(), W)


def test_standard_input_has_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    raw = linked({"location": "w.bin"}).SerializeToString()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    refused("-", "standard input")


def test_a_shape_that_overflows(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    refused(write(linked({"location": "w.bin"}, shape=(2**40, 2**40)), tmp_path), "impossible dimensions")
    refused(write(linked({"location": "w.bin"}, shape=(2**40,)), tmp_path), "too short")


def test_a_large_sparse_file_is_not_read(tmp_path: Path) -> None:
    # 8 GiB that occupy no disk: loading must not touch them.
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(8 << 30)
    path = write(linked({"location": "w.bin"}, shape=(1 << 16, 1 << 15)), tmp_path)
    constant = load(path).graph.constants["w"]
    assert constant.array()[65535, 32767] == 0.0
