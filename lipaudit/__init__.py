"""Certified Lipschitz bounds, measured gains and stability findings for exported ONNX models.

>>> import lipaudit
>>> result = lipaudit.audit("model.onnx", boxes={"x": (0, 1)})  # doctest: +SKIP
>>> result.certified.upper, result.measured.lower  # doctest: +SKIP
('7.2501e+03', '3.1e+01')

Names are resolved on first use (PEP 562), so that ``import lipaudit`` and ``lipaudit --help`` stay fast.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipaudit.audit import audit as audit
    from lipaudit.explain import explain as explain
    from lipaudit.records import Audit as Audit
    from lipaudit.records import Weights as Weights
    from lipaudit.weights import weights as weights

    __version__: str

__all__ = ["Audit", "Weights", "__version__", "audit", "explain", "weights"]

_HOMES = {
    "audit": "lipaudit.audit", "explain": "lipaudit.explain", "weights": "lipaudit.weights", "Audit": "lipaudit.records",
    "Weights": "lipaudit.records",
}  # fmt: skip


class _Package(ModuleType):
    """The package's own module type: ``lipaudit.audit`` is always the function.

    The function and the module it lives in share a name, and an import of the module binds it to the package. Without
    this, ``lipaudit.audit(path)`` would work or fail depending on what was imported before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("lipaudit")
        except PackageNotFoundError:  # a source folder on the path, not installed
            return "0+unknown"
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        setattr(sys.modules[__name__], name, value)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
