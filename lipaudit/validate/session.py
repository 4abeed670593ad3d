"""onnxruntime sessions: quiet, one thread, and honest about the device that ran."""

from __future__ import annotations

import contextlib
import ctypes
import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from lipaudit.errors import UsageError

__all__ = ["Deadline", "OutOfTime", "Session", "device_reason", "probe", "resolve_device"]

Array = NDArray[Any]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_LIBRARIES = ("libcuda.so.1", "libcudnn.so.9", "libcublasLt.so.13")


class OutOfTime(Exception):
    """The time limit struck during a run; what is known so far stays valid."""


class Deadline:
    """A wall-clock limit (the safety net behind the counted budget). Close it, or use it in a ``with``.

    One timer serves all runs: when it strikes, the run under way is terminated (this stops even an endless Loop).
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + max(0.0, seconds)
        self._running: list[Any] = []
        self._timer: threading.Timer | None = None
        self._start(seconds)

    def _start(self, seconds: float | None) -> None:
        if seconds is not None:
            self._timer = threading.Timer(max(0.0, seconds), self._strike)
            self._timer.daemon = True
            self._timer.start()

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def shorten(self, seconds: float) -> None:
        """Let the limit strike in ``seconds`` from now, unless it strikes earlier anyway."""
        end = time.monotonic() + seconds
        if self._end is None or end < self._end:
            self.close()
            self._end = end
            self._start(seconds)

    def strike(self) -> None:
        """End now."""
        self._end = time.monotonic()
        self._strike()

    def _strike(self) -> None:
        for options in tuple(self._running):
            options.terminate = True

    @property
    def passed(self) -> bool:
        """True once the limit is over."""
        return self._end is not None and time.monotonic() >= self._end

    def check(self) -> None:
        """Raise :class:`OutOfTime` once the limit is over."""
        if self.passed:
            raise OutOfTime

    def guard(self, options: Any, run: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """``run``, terminated through its ``options`` when the limit strikes."""
        self._running.append(options)
        try:
            # After the append: either this check or the timer sees a limit that strikes right now.
            self.check()
            return run()
        finally:
            self._running.remove(options)


@lru_cache(maxsize=1)
def _quiet() -> None:
    # SessionOptions.log_severity_level does not silence provider loading; the default logger's level does.
    ort.set_default_logger_severity(4)


@lru_cache(maxsize=1)
def _cuda_problem() -> str:
    """Why CUDA cannot run here, as a sentence; empty if it can."""
    if _CUDA not in ort.get_available_providers():
        return "this onnxruntime was built without CUDA (the package is onnxruntime, not onnxruntime-gpu)."
    preload: Callable[[], None] | None = getattr(ort, "preload_dlls", None)
    try:
        ctypes.CDLL(_LIBRARIES[0])
    except OSError as error:
        return f"the driver library cannot be loaded: {error}."
    if preload is not None:
        # It reports failures on stdout, which would break JSON on stdout.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            preload()
    for library in _LIBRARIES[1:]:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            return f"{library} cannot be loaded: {error}."
    return _smoke_test()


def _smoke_test() -> str:
    """Run one MatMul on CUDA without the CPU to fall back on; the reason why that failed, or ""."""
    helper = onnx.helper
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "a"], ["b"])], "smoke", value[:1], value[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    options = _options()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    _quiet()
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[_CUDA])
        result = np.asarray(session.run(None, {"a": np.eye(2, dtype=np.float32)})[0])
    except Exception as error:  # onnxruntime raises many types; the text is what the user needs
        return f"a test on CUDA failed: {_first_line(error)}."
    if _CUDA not in session.get_providers() or not np.array_equal(result, np.eye(2)):
        return "onnxruntime fell back to the CPU in a test."
    return ""


def resolve_device(device: str) -> str:
    """The device, "cpu" or "cuda", for the flag value "auto", "cpu" or "cuda".

    Raises
    ------
    UsageError
        For an unknown value, or for "cuda" where CUDA does not really run.
    """
    if device == "cpu":
        return "cpu"
    if device not in {"auto", "cuda"}:
        raise UsageError(f"Device {device!r} is unknown; it is one of auto, cpu, cuda.")
    problem = _cuda_problem()
    if not problem:
        return "cuda"
    if device == "cuda":
        raise UsageError(f"CUDA does not work here: {problem}", hint="`lipaudit doctor` says what to install; --device cpu always works.")
    return "cpu"


def device_reason() -> str:
    """Why CUDA does not run here, or "" if it does."""
    return _cuda_problem()


def probe() -> list[tuple[bool, str]]:
    """What `lipaudit doctor` prints about onnxruntime: ``(works, sentence)`` each. A machine without CUDA is not a problem.

    Never raises.
    """
    _quiet()
    found = [(True, f"onnxruntime {ort.__version__}, compiled for {', '.join(ort.get_available_providers())}")]
    helper = onnx.helper
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "smoke", value[:1], value[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    try:
        right = float(Session(model).run({"a": np.ones(1, dtype=np.float32)})["b"][0]) == -1.0
        found.append((right, "cpu: a test model runs" if right else "cpu: a test model gave a wrong result"))
    except RuntimeError as error:
        found.append((False, f"cpu: a test model failed: {error}"))
    problem = _cuda_problem()
    advice = "measurements run on the CPU; for a GPU install the driver and `lipaudit[cuda]` (CUDA 13, cuDNN 9)"
    found.append((True, f"cuda: not usable: {problem} {advice}" if problem else "cuda: a test model really ran on the GPU"))
    return found


def _options(*, optimise: bool = True) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    return options


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


class Session:
    """One model in onnxruntime on one thread.

    Parameters
    ----------
    model
        Serialised or as a message.
    device
        "cpu" or "cuda" (already resolved).
    optimise
        All graph optimisations, or none: none keeps the operators as they are, for comparisons.

    Raises
    ------
    RuntimeError
        With onnxruntime's first line, if it refuses the model.
    """

    def __init__(self, model: onnx.ModelProto | bytes, *, device: str = "cpu", optimise: bool = True) -> None:
        _quiet()
        providers = [_CUDA, _CPU] if device == "cuda" else [_CPU]
        options = _options(optimise=optimise)
        try:
            data = model if isinstance(model, bytes) else model.SerializeToString()
            if len(data) > 1 << 28:
                options.add_session_config_entry("session.disable_prepacking", "1")
            self._session = ort.InferenceSession(data, options, providers=providers)
        except Exception as error:  # onnxruntime's own exception types share no base class
            raise RuntimeError(_first_line(error)) from None
        self.device = "cuda" if _CUDA in self._session.get_providers() else "cpu"
        self.inputs = {item.name: item.type for item in self._session.get_inputs()}
        self.outputs = [item.name for item in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array], names: Sequence[str] | None = None, deadline: Deadline | None = None) -> dict[str, Array]:
        """Outputs by name.

        Raises
        ------
        OutOfTime
            If the limit struck during the run.
        RuntimeError
            If onnxruntime failed, with its first line.
        """
        wanted = self.outputs if names is None else list(dict.fromkeys(names))
        options = ort.RunOptions()
        try:
            if deadline is None:
                results = self._session.run(wanted, feeds, options)
            else:
                results = deadline.guard(options, lambda: self._session.run(wanted, feeds, options))
        except OutOfTime:
            raise
        except Exception as error:  # as above
            if options.terminate:
                raise OutOfTime from None
            raise RuntimeError(_first_line(error)) from None
        return {name: np.asarray(result) for name, result in zip(wanted, results, strict=True)}
