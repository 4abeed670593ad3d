"""The BLAS and LAPACK routines that the bounds call directly: no copies, no zeroing of the other triangle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from scipy.linalg import get_blas_funcs, get_lapack_funcs

__all__ = ["chemv", "cpftrf", "dgemm", "dpotrf", "dsyevr", "dsymv", "dsyrk", "ssymv", "zhemv", "zpftrf", "zpotrf"]

Routine = Callable[..., Any]

dsyrk = cast(Routine, get_blas_funcs("syrk", dtype=np.float64))
dgemm = cast(Routine, get_blas_funcs("gemm", dtype=np.float64))
dsymv = cast(Routine, get_blas_funcs("symv", dtype=np.float64))
ssymv = cast(Routine, get_blas_funcs("symv", dtype=np.float32))
chemv = cast(Routine, get_blas_funcs("hemv", dtype=np.complex64))
zhemv = cast(Routine, get_blas_funcs("hemv", dtype=np.complex128))
dpotrf = cast(Routine, get_lapack_funcs("potrf", dtype=np.float64))
zpotrf = cast(Routine, get_lapack_funcs("potrf", dtype=np.complex128))
cpftrf = cast(Routine, get_lapack_funcs("pftrf", dtype=np.complex64))
zpftrf = cast(Routine, get_lapack_funcs("pftrf", dtype=np.complex128))
dsyevr = cast(Routine, get_lapack_funcs("syevr", dtype=np.float64))
