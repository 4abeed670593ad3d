"""Ctrl-C during the search: the outputs are written, marked, and the exit code is 130."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lipaudit.bounds.scalar import Lower, Upper
from lipaudit.validate import BUDGETS, Measurements
from tests.validate.small import measure, mlp
from tests.validate.test_run import _endless


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """A job in the background starts with SIGINT ignored, and so would Python: these tests need its usual handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_once(begun: threading.Event, *, times: int = 1, after: float = 0.3) -> threading.Thread:
    """A thread that sends SIGINT to this process once the event is set."""

    def send() -> None:
        begun.wait(30)
        for _ in range(times):
            time.sleep(after)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def interrupted(run: Callable[[Callable[[float], None]], Measurements], **options: float) -> tuple[Measurements, float]:
    """What ``run`` (given a progress callback) returns when it is interrupted, and how long that took."""
    begun = threading.Event()
    thread = interrupt_once(begun, **options)  # type: ignore[arg-type]
    begin = time.monotonic()
    former = signal.getsignal(signal.SIGINT)
    try:
        found = run(lambda fraction: begun.set())
    finally:
        thread.join()
    assert signal.getsignal(signal.SIGINT) is former
    return found, time.monotonic() - begin


def test_what_is_known_is_kept() -> None:
    rng = np.random.default_rng(7)
    weights = [rng.standard_normal((300, 400)), rng.standard_normal((400, 300))]
    graph = mlp(weights)
    regions = [("all", ("x",), "m1"), ("first", ("x",), "m0")]
    found, seconds = interrupted(
        lambda tell: measure(graph, budget=BUDGETS["thorough"], progress=tell, keep_on_interrupt=True, regions=regions)
    )
    assert seconds < 20
    assert found.stopped == "interrupted"
    assert found.headline.status == "measured"
    assert ", interrupted; " in found.headline.method
    truth = np.prod([np.linalg.norm(w.astype(np.float32).astype(np.float64), 2) for w in weights])
    assert isinstance(found.headline.lower, Lower)
    assert not found.headline.lower.exceeds(Upper(float(truth)))
    assert found.regions["first"].status == "measured"


def test_a_run_inside_onnxruntime_is_interrupted_too() -> None:
    begun = threading.Event()
    begun.set()
    thread = interrupt_once(begun, after=1.0)
    begin = time.monotonic()
    try:
        found = measure(_endless(10**12), keep_on_interrupt=True)
    finally:
        thread.join()
    assert time.monotonic() - begin < 15
    assert found.stopped == "interrupted"
    assert found.headline.status == "not-measured"
    assert "interrupted" in found.headline.reason


def test_without_the_option_the_exception_is_the_callers() -> None:
    rng = np.random.default_rng(7)
    graph = mlp([rng.standard_normal((300, 400)), rng.standard_normal((400, 300))])
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda tell: measure(graph, budget=BUDGETS["thorough"], progress=tell))


def test_the_time_limit_is_a_mark_as_well() -> None:
    rng = np.random.default_rng(7)
    graph = mlp([rng.standard_normal((300, 400)), rng.standard_normal((400, 300))])
    assert measure(graph, budget=BUDGETS["thorough"], time_limit=1.0).stopped == "time limit"
    assert measure(mlp([np.eye(2)])).stopped == ""


# The command, which says on standard output when the search begins.
COMMAND = """
import os, sys
from lipaudit.validate.search import Search
run = Search.run
out = os.dup(1)
def begin(self):
    os.write(out, b"searching")
    run(self)
Search.run = begin
from lipaudit.cli import main
main()
"""


def test_the_command_writes_its_outputs_and_exits_130(samples: Path, tmp_path: Path) -> None:
    models = [str(samples / f"{name}.onnx") for name in ("prenorm_transformer", "digits_mlp")]
    outputs = [f"{name}={tmp_path}/{{model}}.{name}" for name in ("json", "html", "markdown", "terminal")]
    written = [part for output in outputs for part in ("-o", output)]
    command = [sys.executable, "-c", COMMAND, "audit", *models, *written, "--effort", "thorough"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(9) == b"searching"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert b"interrupted" in err
    found = json.loads((tmp_path / "prenorm_transformer.json").read_text(encoding="utf-8"))
    assert found["provenance"]["stopped"] == "interrupted"
    assert found["certified"]["status"] in {"finite", "unbounded"}
    assert found["measured"]["status"] == "measured"
    for name in ("html", "markdown", "terminal"):
        assert "interrupted" in (tmp_path / f"prenorm_transformer.{name}").read_text(encoding="utf-8"), name
    assert "stopped early" in (tmp_path / "prenorm_transformer.html").read_text(encoding="utf-8")
    assert not (tmp_path / "digits_mlp.json").exists()
