"""Linear operators as lazy objects: matrices, factors, copies, one matrix per axis. Convolutions are in ``conv.py``."""

from __future__ import annotations

from lipaudit.bounds.diagonal import Diagonal
from lipaudit.bounds.kronecker import Kronecker
from lipaudit.bounds.matmul import Dense
from lipaudit.bounds.selection import Permutation, Selection

__all__ = ["Dense", "Diagonal", "Kronecker", "Permutation", "Selection"]
