"""Where a result is written: ``-o FORMAT=PATH``. Everything is rendered first, then written under a temporary name and renamed."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from lipaudit.errors import UsageError
from lipaudit.records import Audit, Weights
from lipaudit.report import FORMATS

__all__ = ["Outputs", "check_path", "parse_outputs", "path_for", "write_file"]


_Result = TypeVar("_Result", Audit, Weights, contravariant=True)


class Render(Protocol[_Result]):
    """From a record to text in one of several formats."""

    def __call__(self, name: str, record: _Result, /, *, colour: bool = False) -> str:
        """The text."""
        ...


@dataclass(frozen=True)
class Outputs:
    """Pairs of format and path; the terminal summary goes to standard output unless something else does."""

    pairs: tuple[tuple[str, str], ...]

    def write(self, model: str, record: _Result, render: Render[_Result]) -> None:
        """Render all formats, then write them. ``{model}`` in a path becomes the model's file name without suffix."""
        pairs = [(name, path_for(path, model)) for name, path in self.pairs]
        if not any(path == "-" for _, path in pairs):
            pairs.insert(0, ("terminal", "-"))
        rendered = [(name, path, render(name, record, colour=path == "-" and _colour())) for name, path in pairs]
        for _, path, text in rendered:
            if path == "-":
                _print(text)
            else:
                write_file(Path(path), text)
        if ("terminal", "-") in pairs:
            for name, path in pairs:
                if path != "-":
                    _print(f"{name} report: {path}")


def path_for(path: str, model: str) -> str:
    """``{model}`` in ``path`` replaced by the model's file name without suffix."""
    stem = Path(model).name.removesuffix(".gz").removesuffix(".onnx") if model != "-" else "stdin"
    return path.replace("{model}", stem)


def _print(text: str) -> None:
    """To standard output; what its encoding cannot hold is escaped, not an error."""
    line = text if text.endswith("\n") else text + "\n"
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, errors="backslashreplace").decode(encoding))
    sys.stdout.flush()


def parse_outputs(texts: Sequence[str], models: Sequence[str], formats: Collection[str] = FORMATS) -> Outputs:
    """Check every ``FORMAT=PATH`` before any work is done; raises :class:`UsageError`."""
    pairs: list[tuple[str, str]] = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UsageError(f"-o {text!r} is not of the form FORMAT=PATH, for example html=report.html.")
        if name not in formats:
            raise UsageError(f"-o {text!r}: {name!r} is not a format; choose one of {', '.join(formats)}.")
        if path != "-":
            check_path(f"-o {text!r}", path, several=len(models) > 1)
        pairs.append((name, path))
    if sum(path == "-" for _, path in pairs) > 1:
        raise UsageError("Only one output can go to standard output.")
    return Outputs(tuple(pairs))


def check_path(option: str, path: str, *, several: bool) -> None:
    """Raise :class:`UsageError`, beginning with ``option``, if no file can be written there."""
    target = Path(path)
    if several and "{model}" not in path:
        raise UsageError(f"{option}: with several models the path needs {{model}}, or the reports overwrite each other.")
    if target.is_dir():
        raise UsageError(f"{option}: {path} is a directory.")
    folder = target.parent
    if not folder.is_dir():
        raise UsageError(f"{option}: the folder {folder} does not exist.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option}: the folder {folder} cannot be written.")


def write_file(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes under a temporary name in the same folder, then rename: a reader never sees half a file."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _colour() -> bool:
    """Colour only on a terminal, and as NO_COLOR / FORCE_COLOR ask."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
