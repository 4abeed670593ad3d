"""Runs a measurement in a child process under limits: a model that crashes or hangs onnxruntime costs the measurement, not the audit.

The child is forked where the measurement begins: it has the graph and all libraries already, which costs some ten milliseconds
where a fresh interpreter would cost more than the whole search of a small model. Forking is safe only while no other Python thread
may hold a lock, so it is done on Linux in programs of one thread (the command line is one). onnxruntime's own thread sleeps at that
time, and OpenBLAS restarts its threads in the child.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from lipaudit.errors import InternalError, UsageError
from lipaudit.validate.interrupt import GRACE
from lipaudit.validate.measurement import Measurements, Stopped, not_measured
from lipaudit.validate.session import resolve_device
from lipaudit.validate.wire import receive, send

__all__ = ["can_isolate", "isolated"]

Progress = Callable[[float], None]
Work = Callable[[Progress], Measurements]

# How long after the limit (and a tenth of it) a child that should have ended by itself is killed.
_PATIENCE = 1.0
# Seconds between two messages about progress.
_PAUSE = 0.05
_CRASHES = {getattr(signal, name) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS") if hasattr(signal, name)}


class _Message(msgspec.Struct, frozen=True):
    """One line from the child."""

    kind: str
    fraction: float = 0.0
    text: str = ""
    where: str = ""
    hint: str = ""


def can_isolate() -> bool:
    """True where a child can be forked safely."""
    return sys.platform == "linux" and threading.active_count() == 1 and threading.current_thread() is threading.main_thread()


def isolated(work: Work, *, seconds: float, device: str, progress: Progress | None = None, keep_on_interrupt: bool = False) -> Measurements:
    """``work(progress)`` in a child process; its result, or "not measured" with the reason.

    Parameters
    ----------
    work
        The measurement; it must end by itself within ``seconds`` and treat SIGINT as the wish to end early.
    seconds
        The child is killed a little later than that, with all that it started.
    device
        "cpu", "cuda" or "auto": memory is limited only where the measurement runs on the CPU (CUDA maps far more than it uses).
    progress
        Called with the fraction done.
    keep_on_interrupt
        Ctrl-C is passed on to the child instead of raising KeyboardInterrupt.

    Raises
    ------
    UsageError, InternalError
        As the child raised them.
    """
    with tempfile.TemporaryDirectory(prefix="lipaudit-") as name:
        folder = Path(name)
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python warns of threads that it did not start itself; see the module's docstring.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os.close(read)
            _child(work, write, folder, seconds, device)
        os.close(write)
        parent = _Parent(pid, read, seconds + max(_PATIENCE, 0.1 * seconds), progress)
        return parent.result(folder, keep_on_interrupt)


class _Parent:
    """Waits for the child, within the limit."""

    def __init__(self, pid: int, pipe: int, seconds: float, progress: Progress | None) -> None:
        self._pid = pid
        self._pipe = pipe
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._progress = progress
        self._interrupts = 0
        self._last = _Message("")
        self._late = False

    def result(self, folder: Path, keep_on_interrupt: bool) -> Measurements:
        """What came of it."""
        former: Any = signal.signal(signal.SIGINT, self._forward) if keep_on_interrupt else None
        status = None
        try:
            self._listen()
        finally:
            status = self._reap()
            os.close(self._pipe)
            if former is not None:
                signal.signal(signal.SIGINT, former)
        message = self._last
        if message.kind == "result":
            with contextlib.suppress(OSError, ValueError, EOFError):
                return receive(folder)
        if message.kind == "usage":
            raise UsageError(message.text, where=message.where, hint=message.hint)
        if message.kind == "bug":
            raise InternalError(message.text)
        return self._failed(status)

    def _forward(self, *_: object) -> None:
        self._interrupts += 1
        self._end = min(self._end, time.monotonic() + 2 * GRACE + _PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGINT)

    def _listen(self) -> None:
        """Read lines until the child closes the pipe or the limit is over."""
        pending = b""
        while True:
            left = self._end - time.monotonic()
            if left <= 0:
                self._late = True
                return
            # In small steps: an interrupt moves the end.
            if not select.select([self._pipe], [], [], min(left, 0.5))[0]:
                continue
            data = os.read(self._pipe, 1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._last = msgspec.json.decode(line, type=_Message)
                if self._last.kind == "progress" and self._progress is not None:
                    self._progress(self._last.fraction)

    def _reap(self) -> int:
        """End the child and all that it started; its exit status as :mod:`subprocess` spells it (negative: a signal)."""
        if self._late or self._last.kind not in {"result", "usage", "bug"}:
            # A child that closed the pipe is about to end by itself, and how tells why.
            end = time.monotonic() + (0.0 if self._late else _PATIENCE)
            while True:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                if pid:
                    return os.waitstatus_to_exitcode(status)
                if time.monotonic() >= end:
                    break
                time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        # Before it made a group of its own there is only the child itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _failed(self, status: int) -> Measurements:
        stopped: Stopped = ""
        if self._interrupts:
            reason, stopped = "The measurement was interrupted before it had a result.", "interrupted"
        elif self._late or status == -signal.SIGXCPU:
            reason = f"Time limit: onnxruntime did not come to an end within {self._seconds:g} seconds and was stopped."
            stopped = "time limit"
        elif -status in _CRASHES:
            reason = f"onnxruntime crashed on the model ({signal.Signals(-status).name})."
        elif status == -signal.SIGKILL:
            reason = "Memory limit: the system ended the measurement (SIGKILL), most likely for its use of memory."
        else:
            reason = f"The measuring process ended without a result (status {status})."
        return Measurements(not_measured(reason), device="none", stopped=stopped)


def _child(work: Work, pipe: int, folder: Path, seconds: float, device: str) -> NoReturn:
    """Everything that the child does; never returns into the parent's code."""
    status = 1
    try:
        # A group of its own: Ctrl-C of the terminal reaches it through the parent alone, and one kill ends all of it.
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # What native code prints belongs neither into a report on standard output nor into the log.
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        _limit(seconds, memory=resolve_device(device) == "cpu")
        found = work(_Teller(pipe))
        send(found, folder)
        _tell(pipe, _Message("result"))
        status = 0
    except UsageError as error:
        _tell(pipe, _Message("usage", text=error.message, where=error.where, hint=error.hint))
    except BrokenPipeError:
        pass
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__} while measuring: {error} ({Path(place.filename).name}, line {place.lineno})"
        with contextlib.suppress(OSError):
            _tell(pipe, _Message("bug", text=text))
    finally:
        # No exit handlers, no buffers: they are the parent's.
        os._exit(status)


class _Teller:
    """Tells the parent how far the work is, a few times a second."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._told = 0.0

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._told >= _PAUSE:
            self._told = now
            _tell(self._pipe, _Message("progress", fraction))


def _tell(pipe: int, message: _Message) -> None:
    os.write(pipe, msgspec.json.encode(message) + b"\n")


def _limit(seconds: float, *, memory: bool) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Backstops for a child whose parent is gone; the clock is the parent's.
    _lower(resource.RLIMIT_CPU, int(4 * seconds + 60))
    if memory:
        _lower(resource.RLIMIT_AS, _address_space() + _memory())


def _lower(kind: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, hard))


def _address_space() -> int:
    """Bytes that are mapped already: libraries and weight files count, although they need no memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _memory() -> int:
    """Bytes of memory that this process may hope for: the machine's, or its container's."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return found
