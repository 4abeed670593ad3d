"""A measurement that crashes, hangs or eats all memory is "not measured: reason"; the audit goes on, and sound ones give equal bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lipaudit.bounds.scalar import Lower
from lipaudit.validate import Measurements, witness_bytes
from lipaudit.validate.wire import receive, send
from tests.validate.small import measure, mlp

linux = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux only")

# The command with a search that goes wrong as {wrong} says; "searching" tells that it began.
COMMAND = """
import ctypes, os, signal, sys, time
from lipaudit.validate.search import Search
out = os.dup(1)
parent = os.getpid()
def wrong(self):
    assert os.getpid() != parent
    os.write(out, b"searching")
    {wrong}
Search.run = wrong
from lipaudit.cli import main
main()
"""


def run(wrong: str, folder: Path, samples: Path, *options: str) -> tuple[int, dict[str, object], str, float]:
    """Exit code, report, standard error and seconds."""
    report = folder / "report.json"
    command = [sys.executable, "-c", COMMAND.format(wrong=wrong), "audit", str(samples / "untrained.onnx"), "-o", f"json={report}"]
    begin = time.monotonic()
    done = subprocess.run([*command, "--exit-zero", *options], capture_output=True, text=True, timeout=120, check=False)
    seconds = time.monotonic() - begin
    assert done.stdout.startswith("searching"), done.stderr
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return done.returncode, found, done.stderr, seconds


@linux
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "onnxruntime crashed on the model (SIGSEGV)."),
        ("ctypes.string_at(8)", "onnxruntime crashed on the model (SIGSEGV)."),
        ("os.abort()", "onnxruntime crashed on the model (SIGABRT)."),
        ("os.kill(os.getpid(), signal.SIGKILL)", "Memory limit"),
        ("x = bytearray(1 << 46)", "The model does not fit into memory."),
        ("os._exit(3)", "ended without a result (status 3)"),
    ],
)
def test_a_crash_costs_the_measurement_alone(wrong: str, reason: str, tmp_path: Path, samples: Path) -> None:
    code, found, err, _ = run(wrong, tmp_path, samples)
    assert code == 0
    assert err == ""
    assert found["certified"]["status"] == "finite"  # type: ignore[index]
    assert found["measured"]["status"] == "not-measured"  # type: ignore[index]
    assert reason in found["measured"]["reason"]  # type: ignore[index]
    assert found["provenance"]["stopped"] == ""  # type: ignore[index]


@linux
def test_the_memory_limit_is_real(tmp_path: Path, samples: Path) -> None:
    # Four terabytes of address space that is never touched: granted where there is no limit.
    ask = "mmap.mmap(-1, 1 << 42, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)"
    wrong = f"import mmap\n    try: {ask}\n    except OSError: raise MemoryError from None\n    os._exit(7)"
    _, found, _, _ = run(wrong, tmp_path, samples)
    assert found["measured"]["reason"] == "The model does not fit into memory."  # type: ignore[index]


@linux
@pytest.mark.parametrize("wrong", ["time.sleep(1000)", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); ctypes.CDLL(None).pause()"])
def test_a_hang_ends_at_the_limit(wrong: str, tmp_path: Path, samples: Path) -> None:
    code, found, _, seconds = run(wrong, tmp_path, samples, "--time-limit", "1")
    assert seconds < 30
    assert code == 0
    assert found["measured"]["status"] == "not-measured"  # type: ignore[index]
    assert "Time limit" in found["measured"]["reason"]  # type: ignore[index]
    assert found["provenance"]["stopped"] == "time limit"  # type: ignore[index]


@linux
def test_a_bug_in_the_search_is_still_an_internal_error(tmp_path: Path, samples: Path) -> None:
    code, found, err, _ = run("raise AssertionError('impossible')", tmp_path, samples)
    assert code == 4
    assert found == {}
    assert "impossible" in err
    assert "Traceback" not in err


@linux
@pytest.mark.parametrize("deaf", [False, True])
def test_an_interrupt_reaches_the_child(deaf: bool, samples: Path) -> None:
    patient = "while True: self.view.engine.deadline.check()"
    wrong = "signal.pthread_sigmask(signal.SIG_BLOCK, [2]); time.sleep(1000)" if deaf else patient
    command = [sys.executable, "-c", COMMAND.format(wrong=wrong)]
    arguments = ["audit", str(samples / "untrained.onnx"), "--effort", "thorough"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(9) == b"searching"
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert time.monotonic() - begin < 25
    assert process.returncode == 130, err
    assert b"interrupted" in err
    assert b"Traceback" not in err
    assert b"Certified" in out


@linux
def test_no_child_outlives_its_parent(tmp_path: Path, samples: Path) -> None:
    busy = "[(self.progress(0.5), time.sleep(0.2)) for _ in range(200)]"
    wrong = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(1.5); {busy}"
    command = [sys.executable, "-c", COMMAND.format(wrong=wrong), "audit", str(samples / "untrained.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(9) == b"searching"
        time.sleep(0.5)
        process.kill()
    pid = int((tmp_path / "pid").read_text(encoding="ascii"))
    for _ in range(150):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if "Z" in Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the child went on")


@linux
def test_equal_bytes_with_and_without_a_child(samples: Path, tmp_path: Path) -> None:
    outputs = []
    for i, options in enumerate([(), ("--no-isolate",)]):
        report = tmp_path / f"{i}.json"
        command = [sys.executable, "-m", "lipaudit", "audit", str(samples / "prenorm_transformer.onnx"), "-o", f"json={report}"]
        subprocess.run(
            [*command, "--exit-zero", "--witness", str(tmp_path / f"{i}.npz"), *options], check=True, capture_output=True, timeout=120
        )
        outputs.append((report.read_bytes(), (tmp_path / f"{i}.npz").read_bytes()))
    assert outputs[0] == outputs[1]


def test_the_wire_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = mlp([rng.standard_normal((5, 30)), rng.standard_normal((30, 4))])
    found = measure(graph, (0.1, 0.7), regions=[("a", ("x",), "a0"), ("none", ("x",), "nowhere")])
    send(found, tmp_path)
    again = receive(tmp_path)
    assert isinstance(again, Measurements)
    assert (again.headline, again.matrix, again.regions) == (found.headline, found.matrix, found.regions)
    assert again.headline.lower is not None
    assert isinstance(again.headline.lower, Lower)
    assert witness_bytes(again, "l2") == witness_bytes(found, "l2")
    assert (again.device, again.stopped) == (found.device, found.stopped)
    (tmp_path / "result.json").write_bytes(b"{}")
    with pytest.raises(ValueError):
        receive(tmp_path)
