"""Weights in separate files, opened so that a hostile model reads nothing else.

A location must be relative, stay inside the model's folder, and name a regular file that is no symbolic link (unless the
caller allows links, as model caches use them). Each file is opened once, checked on the open descriptor and mapped from
that same descriptor; tensors are views of the map, so nothing is copied whatever the size.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass, field

from lipaudit.errors import ModelError

__all__ = ["ExternalFiles"]

_MAX_OFFSET = 1 << 62


@dataclass
class ExternalFiles:
    """Maps the external data files of one model.

    Parameters
    ----------
    path
        The model file, for messages.
    folder
        Where locations are looked up; None if the model came from standard input.
    allow_links
        Follow symbolic links (``--allow-linked-weights``).
    """

    path: str
    folder: str | None
    allow_links: bool = False
    _maps: dict[str, mmap.mmap | None] = field(default_factory=dict)

    def view(self, entries: dict[str, str], expected: int, tensor: str) -> memoryview:
        """The bytes of one tensor.

        Parameters
        ----------
        entries
            ``TensorProto.external_data``: location, and optionally offset and length in bytes (decimal).
        expected
            Bytes that shape and element type ask for.
        tensor
            Name, for messages.

        Raises
        ------
        ModelError
            If the location is not allowed, the file is missing or too short, or a number makes no sense.
        """
        location = entries.get("location", "")
        offset = self._number(entries.get("offset", "0") or "0", "offset", tensor)
        length = self._number(entries.get("length", "") or str(expected), "length", tensor)
        if length != expected:
            raise self._error(tensor, f"external data gives a length of {length} bytes but type and shape need {expected}")
        if location not in self._maps:
            self._maps[location] = self._open(location, tensor)
        mapped = self._maps[location]
        size = 0 if mapped is None else len(mapped)
        if offset + length > size:
            raise self._error(
                tensor,
                f"external data {location!r} is too short: bytes {offset} to {offset + length} are needed, it has {size}",
            )
        return memoryview(b"") if mapped is None else memoryview(mapped)[offset : offset + length]

    def _error(self, tensor: str, message: str, hint: str = "") -> ModelError:
        return ModelError(f"tensor {tensor!r}: {message}", where=self.path, hint=hint)

    def _number(self, text: str, what: str, tensor: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > 20 or int(text) > _MAX_OFFSET:
            raise self._error(tensor, f"external data has the {what} {text[:40]!r}, which is not a sensible number of bytes")
        return int(text)

    def _parts(self, location: str, tensor: str) -> list[str]:
        """The components of an allowed location."""
        if self.folder is None:
            raise self._error(tensor, "the model comes from standard input, so its external data cannot be found")
        if not location:
            raise self._error(tensor, "external data names no file")
        plain = location.replace("\\", "/")
        if plain.startswith("/") or os.path.isabs(location) or (len(plain) > 1 and plain[1] == ":"):
            raise self._error(tensor, f"external data {location!r} is an absolute path; only files beside the model are read")
        if "\0" in plain:
            raise self._error(tensor, f"external data {location!r} is not a file name")
        parts = [part for part in (plain if os.sep == "\\" else location).split("/") if part not in ("", ".")]
        if ".." in parts or ".." in plain.split("/"):
            raise self._error(tensor, f"external data {location!r} leads out of the model's folder ('..')")
        if not parts:
            raise self._error(tensor, f"external data {location!r} names no file")
        return parts

    def _open(self, location: str, tensor: str) -> mmap.mmap | None:
        """Map one file; None if it is empty (an empty file cannot be mapped)."""
        parts = self._parts(location, tensor)
        no_follow = 0 if self.allow_links else getattr(os, "O_NOFOLLOW", 0)
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | no_follow
        opened: list[int] = []
        try:
            # Component by component, so that no folder on the way is a link either.
            if os.open in os.supports_dir_fd:
                directory = os.open(self.folder or ".", os.O_RDONLY | os.O_DIRECTORY)
                opened.append(directory)
                for part in parts[:-1]:
                    directory = os.open(part, os.O_RDONLY | os.O_DIRECTORY | no_follow, dir_fd=directory)
                    opened.append(directory)
                descriptor = os.open(parts[-1], flags, dir_fd=directory)
            else:
                descriptor = os.open(os.path.join(self.folder or ".", *parts), flags)
            opened.append(descriptor)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self._error(tensor, f"external data {location!r} is not a regular file")
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if status.st_size else None
        except FileNotFoundError:
            raise self._error(
                tensor, f"external data {location!r} is missing", "Put the data file beside the model, under the name it was saved with."
            ) from None
        except OSError as error:
            if self._is_link(parts):
                hint = "Allow it with --allow-linked-weights if you trust the file."
                raise self._error(tensor, f"external data {location!r} is reached through a symbolic link", hint) from None
            raise self._error(tensor, f"external data {location!r} cannot be opened: {error.strerror or error}") from None
        finally:
            for handle in opened:
                os.close(handle)

    def _is_link(self, parts: list[str]) -> bool:
        here = self.folder or "."
        for part in parts:
            here = os.path.join(here, part)
            if os.path.islink(here):
                return True
        return False
