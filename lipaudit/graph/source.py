"""The bytes of a model file: plain, gzipped or from standard input, always read under a limit."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import sys
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from lipaudit.errors import ModelError
from lipaudit.graph.limits import Limits

__all__ = ["STDIN", "Source", "complaint", "read"]

STDIN = "-"

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Source:
    """A file as read.

    Attributes
    ----------
    path
        As given; "-" for standard input.
    data
        The serialised model, decompressed.
    sha256
        Of the bytes on disk (before decompression), in hex.
    folder
        Where relative external data is looked up; None for standard input.
    """

    path: str
    data: bytes
    sha256: str
    folder: str | None


def read(path: str, limits: Limits) -> Source:
    """Read a model file.

    Parameters
    ----------
    path
        A file, or "-" for standard input. Gzip is recognised by its first bytes, not by the suffix.
    limits
        ``limits.file_bytes`` bounds the bytes on disk and the decompressed bytes.

    Raises
    ------
    ModelError
        If the file is missing, not a regular file, empty, unreadable or too large.
    """
    if path == STDIN:
        stored = _bounded(sys.stdin.buffer, limits, path)
        folder = None
    else:
        stored = _stored(path, limits)
        folder = os.path.dirname(path) or "."
    if not stored:
        raise ModelError("the file is empty", where=path)
    digest = hashlib.sha256(stored).hexdigest()
    data = _decompressed(stored, limits, path) if stored[:2] == _GZIP else stored
    if not data:
        raise ModelError("the file is empty after decompression", where=path)
    return Source(path, data, digest, folder)


def _stored(path: str, limits: Limits) -> bytes:
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise ModelError("there is no such file", where=path) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"the file cannot be opened: {reason}", where=path) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise ModelError("this is a directory, not a model file", where=path)
        if not stat.S_ISREG(mode):
            raise ModelError("this is not a regular file", where=path, hint='Use "-" to read from standard input.')
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return _bounded(file, limits, path)
    finally:
        os.close(descriptor)


def _bounded(file: BinaryIO, limits: Limits, path: str) -> bytes:
    try:
        data = file.read(limits.file_bytes + 1)
    except OSError as error:
        raise ModelError(f"the file cannot be read: {error.strerror or error}", where=path) from None
    if len(data) > limits.file_bytes:
        raise ModelError(f"the file is larger than the limit of {limits.file_bytes:,} bytes", where=path)
    return data


def _decompressed(stored: bytes, limits: Limits, path: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(stored)) as file:
            data = file.read(limits.file_bytes + 1)
    except EOFError:
        raise ModelError("the gzip stream is truncated", where=path) from None
    except (OSError, zlib.error) as error:
        raise ModelError(f"the gzip stream is damaged: {error}", where=path) from None
    if len(data) > limits.file_bytes:
        raise ModelError(f"the file decompresses to more than the limit of {limits.file_bytes:,} bytes", where=path)
    return data


def complaint(data: bytes, path: str) -> ModelError | None:
    """What a file that is no model looks like instead, or None if nothing obvious.

    Cases: (1) a Git LFS pointer; (2) a web page; (3) a ZIP archive, HDF5, pickle or TFLite file; (4) other text.
    """
    start = data[:512].lstrip()
    if start.startswith(b"version https://git-lfs"):
        return ModelError("this is a Git LFS pointer, not the model itself", where=path, hint="Run: git lfs pull")
    if start[:1] == b"<" and any(mark in start.lower() for mark in (b"<!doctype", b"<html", b"<head", b"<?xml")):
        return ModelError("this is a web page (HTML or XML), not an ONNX model; the download went wrong", where=path)
    for mark, what in (
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x80\x02", "a pickle"),
        (b"\x80\x04", "a pickle"),
    ):
        if data.startswith(mark):
            return ModelError(f"this is {what}, not an ONNX model", where=path)
    if data[4:8] == b"TFL3":
        return ModelError("this is a TensorFlow Lite file, not an ONNX model", where=path)
    if data and all(byte in b"\t\n\r\f" or byte >= 0x20 for byte in data[:512]):
        return ModelError("this is a text file, not an ONNX model", where=path)
    return None
