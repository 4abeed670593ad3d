"""``lipaudit doctor``: is this installation able to do what it promises?"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from lipaudit.bounds.dense import dense_norm, factors
from lipaudit.bounds.scalar import Lower
from lipaudit.bounds.sweep import accepts_single
from lipaudit.operators.catalogue import Catalogue
from lipaudit.resources import rules_dir
from lipaudit.validate.session import probe

__all__ = ["report"]

_LIBRARIES = ("onnx", "onnxruntime-gpu", "onnxruntime", "numpy", "scipy", "networkx", "python-flint", "msgspec", "typer", "jinja2")


def report() -> tuple[str, bool]:
    """The text to print, and whether everything needed works."""
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    healthy = True
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
            lines.append(f"{name} {found[name]}")
        except PackageNotFoundError:
            continue
    if "onnxruntime" in found and "onnxruntime-gpu" in found:
        healthy = False
        lines.append("PROBLEM onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, install one.")
    if "onnxruntime" not in found and "onnxruntime-gpu" not in found:
        healthy = False
        lines.append("PROBLEM no onnxruntime: nothing can be measured; install lipaudit's dependencies again.")
    for ok, text in (*probe(), _numerical_model(), _catalogue()):
        healthy = healthy and ok
        lines.append(("ok      " if ok else "PROBLEM ") + text)
    return "\n".join(lines), healthy


def _numerical_model() -> tuple[bool, str]:
    """The certificates need IEEE doubles in BLAS and LAPACK: no flush of NaN pivots, error of inner products within gamma_k."""
    indefinite = np.array([[0.0, -2.0], [-2.0, 0.0]], order="F")  # 1 - G has the eigenvalues -1 and 3
    if factors(indefinite, 1.0):
        return False, "LAPACK's Cholesky accepts an indefinite matrix: certified norms would be wrong on this machine"
    if accepts_single(np.array([1.0, 1.0, 2.0], dtype=np.complex64), 2):  # [[1, 2], [2, 1]]: packed, eigenvalues 3 and -1
        return False, "LAPACK's Cholesky in float32 accepts an indefinite matrix: certified norms would be wrong on this machine"
    entry = 1 + 2.0**-12  # products need all 24 bits: arithmetic of tensor cores (TF32, bfloat16) loses them
    single = np.full((64, 64), entry, dtype=np.float32)
    off = float(np.max(np.abs((single @ single).astype(np.float64) / (64 * entry * entry) - 1)))
    if off > 65 * 2.0**-24:
        return False, f"products of float32 matrices are off by {off:.1g}: BLAS does not compute in float32 as it must"
    hilbert = 1.0 / (np.arange(24)[:, None] + np.arange(24)[None, :] + 1.0)
    bound = dense_norm(hilbert, "l2")
    if Lower("1.867").exceeds(bound.upper) or not bound.upper.is_finite:
        return False, f"the certified norm of a Hilbert matrix is {bound.upper}: linear algebra does not round as it must"
    return True, f"linear algebra: verified Cholesky works (Hilbert 24: {bound.upper.decimal(10)})"


def _catalogue() -> tuple[bool, str]:
    catalogue = Catalogue.load()
    return True, f"rules: {len(catalogue.entries)} operators in {rules_dir()}"
