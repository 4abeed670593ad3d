"""One BLAS thread, so that the last bits of a result do not depend on the machine's thread count."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache

import scipy.linalg  # noqa: F401  # pyright: ignore[reportUnusedImport]  # loads the BLAS that the controller must find
from threadpoolctl import ThreadpoolController

__all__ = ["single_threaded"]


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    """Scanning the loaded libraries takes milliseconds: once per process."""
    return ThreadpoolController()


@contextmanager
def single_threaded() -> Generator[None]:
    """Run the body with one BLAS thread (process-wide: enter it once, around the whole computation)."""
    with _controller().limit(limits=1, user_api="blas"):
        yield
