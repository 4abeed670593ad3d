"""One BLAS thread for all tests of the bounds, as in an audit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lipaudit.bounds.threads import single_threaded


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield
