"""The command line as a user meets it: exit codes, one clear sentence, whole files or none, equal bytes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.helper import make_node

from lipaudit.records import Severity
from tests.pipeline import make_model

QUICK = ("--effort", "quick")


def lipaudit(
    *arguments: str, stdin: bytes | None = None, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the installed command in a process of its own."""
    command = [sys.executable, "-m", "lipaudit", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env={**os.environ, **(env or {})}, cwd=cwd, check=False, timeout=120)


def sentence(result: subprocess.CompletedProcess[bytes]) -> str:
    """What the user reads on standard error: one or two lines, no traceback."""
    text = result.stderr.decode()
    assert "Traceback" not in text
    assert 1 <= len(text.strip().splitlines()) <= 2, text
    return text


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    weights = {"w": np.array([[1.0, -2.0], [0.5, 3.0]]), "b": np.array([0.1, 0.2])}
    nodes = [make_node("Gemm", ["x", "w", "b"], ["h"]), make_node("Relu", ["h"], ["y"])]
    path = tmp_path / "mlp.onnx"
    path.write_bytes(make_model(nodes, {"x": [1, 2]}, ["y"], weights).SerializeToString())
    return path


def _cyclic() -> bytes:
    nodes = [make_node("Add", ["x", "b"], ["a"], name="one"), make_node("Relu", ["a"], ["b"], name="two")]
    return make_model(nodes, {"x": [1, 2]}, ["b"]).SerializeToString()


def _external() -> bytes:
    model = make_model([make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 2]}, ["y"], {"w": np.ones((2, 2))})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "gone.bin"
    return model.SerializeToString()


BAD_FILES = {
    "empty": b"",
    "truncated": None,
    "text": b"hello, this is not a model\n" * 20,
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "cyclic": _cyclic(),
    "external": _external(),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_refused_in_one_sentence(kind: str, tmp_path: Path, mlp: Path) -> None:
    data = BAD_FILES[kind]
    bad = tmp_path / f"{kind}.onnx"
    bad.write_bytes(mlp.read_bytes()[:-30] if data is None else data)
    report = tmp_path / "out.html"
    result = lipaudit("audit", str(bad), *QUICK, "-o", f"html={report}")
    assert result.returncode == 3
    text = sentence(result)
    assert bad.name in text
    assert result.stdout == b""
    assert not report.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([bad.name, mlp.name])
    for kind_word, item in (("lfs", "git lfs pull"), ("cyclic", "cycl"), ("external", "gone.bin")):
        if kind == kind_word:
            assert item in text.lower()


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        result = lipaudit("audit", str(path), *QUICK)
        assert result.returncode == 3
        assert path.name in sentence(result)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--norm", "l3"), "l3"),
        (("--effort", "extreme"), "extreme"),
        (("--device", "tpu"), "tpu"),
        (("--fail-on", "sometimes"), "sometimes"),
        (("--input", "nothing=0:1"), "nothing"),
        (("--input", "x=1:0"), "x=1:0"),
        (("--input", "x=a:b"), "a"),
        (("--dim", "n=0"), "n=0"),
        (("--dim", "unheard=3"), "unheard"),
        (("--select", "LIPX"), "LIPX"),
        (("-o", "pdf=x.pdf"), "pdf"),
        (("-o", "html=/nowhere/at/all/x.html"), "/nowhere/at/all"),
        (("--rules", "no-such-folder"), "no-such-folder"),
        (("--bogus",), "bogus"),
    ],
)
def test_usage_errors_are_exit_2(mlp: Path, arguments: tuple[str, ...], word: str) -> None:
    result = lipaudit("audit", str(mlp), *arguments)
    assert result.returncode == 2, result.stderr
    text = result.stderr.decode()
    assert word in text
    assert "Traceback" not in text
    assert result.stdout == b""


def test_equal_bytes_whatever_the_number_of_threads(samples: Path) -> None:
    model = str(samples / "prenorm_transformer.onnx")
    runs = [
        lipaudit("audit", model, *QUICK, "-o", "json=-", "--fail-on", "never", env={"OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n}).stdout
        for n in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert json.loads(runs[0])["schema"] == "lipaudit.audit/1"


def test_gzip_and_standard_input_give_the_same_numbers(mlp: Path, tmp_path: Path) -> None:
    packed = tmp_path / "mlp.onnx.gz"
    packed.write_bytes(gzip.compress(mlp.read_bytes()))
    outputs = [
        lipaudit("audit", str(mlp), *QUICK, "-o", "json=-"),
        lipaudit("audit", str(packed), *QUICK, "-o", "json=-"),
        lipaudit("audit", "-", *QUICK, "-o", "json=-", stdin=mlp.read_bytes()),
    ]
    assert [run.returncode for run in outputs] == [0, 0, 0], [run.stderr for run in outputs]
    found = [json.loads(run.stdout) for run in outputs]
    assert len({json.dumps([item["certified"], item["measured"]]) for item in found}) == 1
    upper = float(found[0]["certified"]["upper"])
    assert upper >= np.linalg.norm(np.array([[1.0, -2.0], [0.5, 3.0]]), 2)


@pytest.mark.parametrize("fail_on", ["error", "warning", "note", "never"])
@pytest.mark.parametrize("severity", ["error", "warning", "note", None])
def test_severity_times_fail_on(severity: Severity | None, fail_on: str, mlp: Path, tmp_path: Path) -> None:
    """The whole table, with a guideline of our own that fires with the wanted severity."""
    folder = tmp_path / "rules" / "guidelines"
    folder.mkdir(parents=True)
    when = "model.nodes > 0" if severity else "model.nodes < 0"
    (folder / "T.toml").write_text(
        f'code="TST001"\nname="always"\nstatus="stable"\nsince="0.1"\nseverity="{severity or "error"}"\non="model"\nwhen="{when}"\n'
        'message="m"\nwhy="w"\nfix="f"\ncite=[]\nexample=[{facts={model={nodes=1}},fires=true}]\n'
    )
    order = ["note", "warning", "error"]
    expected = int(severity is not None and fail_on != "never" and order.index(severity) >= order.index(fail_on))
    arguments = ("audit", str(mlp), "--no-validate", "--rules", str(tmp_path / "rules"), "--select", "TST", "--fail-on", fail_on)
    assert lipaudit(*arguments).returncode == expected
    if expected:
        assert lipaudit(*arguments, "--exit-zero").returncode == 0


def _with_half_of_gemm(model: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
    """The audit with a wrong rule: half the constant of Gemm."""
    script = (
        "import dataclasses, sys\n"
        "from lipaudit.bounds.scalar import Upper\n"
        "from lipaudit.operators.matmul import Gemm\n"
        "whole = Gemm.gain\n"
        "def half(self, *a):\n"
        "    found = whole(self, *a)\n"
        "    return dataclasses.replace(found, slope=found.slope * Upper('1/2'))\n"
        "Gemm.gain = half\n"
        f"sys.argv = ['lipaudit', 'audit', {str(model)!r}, '--effort', 'quick', *{more!r}]\n"
        "from lipaudit.cli import main\n"
        "main()\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=120)


def test_injected_unsoundness_is_exit_4(mlp: Path) -> None:
    """The measured gain lies above the certified one, and both are printed."""
    result = _with_half_of_gemm(mlp)
    assert result.returncode == 4, result.stderr
    text = result.stderr.decode()
    assert "above its certified bound" in text
    assert "the whole model" in text
    assert result.stdout  # the report is written all the same


def test_injected_unsoundness_names_the_region(tmp_path: Path) -> None:
    """Of two residual blocks, one has the wrong rule: that region is named on stderr and in the report, the other is not."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 4)), "b": np.zeros(4), "v": rng.standard_normal((4, 4)) / 4}
    nodes = [
        make_node("MatMul", ["x", "v"], ["m"]), make_node("Relu", ["m"], ["n"]), make_node("Add", ["x", "n"], ["p"]),
        make_node("Gemm", ["p", "w", "b"], ["h"]), make_node("Relu", ["h"], ["r"]), make_node("Add", ["p", "r"], ["y"]),
    ]  # fmt: skip
    path, report = tmp_path / "blocks.onnx", tmp_path / "blocks.json"
    path.write_bytes(make_model(nodes, {"x": [1, 4]}, ["y"], weights).SerializeToString())
    result = _with_half_of_gemm(path, "-o", f"json={report}")
    assert result.returncode == 4, result.stderr
    named = {item["where"] for item in json.loads(report.read_bytes())["contradictions"]}
    assert named
    for where in named:
        assert f"of {where} lies above its certified bound" in result.stderr.decode()
    regions = {where for where in named if where.startswith("region ")}
    assert any(where.endswith("block-2:residual") for where in regions)
    assert not any("block-1" in where for where in named)


def test_reports_do_not_overwrite_each_other(mlp: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(mlp.read_bytes())
    result = lipaudit("audit", str(mlp), str(other), "-o", f"json={tmp_path}/report.json")
    assert result.returncode == 2
    result = lipaudit("audit", str(mlp), str(other), *QUICK, "-o", f"json={tmp_path}/{{model}}.json")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "mlp.json").exists()
    assert (tmp_path / "other.json").exists()


def test_explain_rules_doctor_inspect(mlp: Path) -> None:
    assert b"epsilon" in lipaudit("explain", "LIP202").stdout
    assert b"Softmax" in lipaudit("explain", "Softmax").stdout
    assert lipaudit("explain", "LIP9999").returncode == 2
    assert b"LIP601" in lipaudit("rules").stdout
    doctor = lipaudit("doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert b"verified Cholesky works" in doctor.stdout
    assert b"Gemm" in lipaudit("inspect", str(mlp)).stdout
