"""The worst direction at a point: the largest gain of the Jacobian there, and a unit vector that has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm
from lipaudit.bounds.scalar import dual as dual_norm
from lipaudit.validate.engine import SMALL, Engine, State
from lipaudit.validate.vectors import dual_vector, norm_of, unit

__all__ = ["Direction", "View", "worst_direction"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Direction:
    """A unit tangent (in the norm at hand) and the gain |J t| that it is believed to have."""

    gain: float
    tangent: Floats


class View:
    """The function restricted to moves of some inputs and to some outputs (the others are held, or not looked at)."""

    def __init__(self, engine: Engine, inputs: slice | None = None, outputs: slice | None = None) -> None:
        self.engine = engine
        self.inputs = inputs if inputs is not None else slice(0, engine.problem.size)
        self.outputs = outputs if outputs is not None else slice(0, engine.outputs)
        self.size = self.inputs.stop - self.inputs.start
        self.rows = self.outputs.stop - self.outputs.start

    def value(self, state: State) -> Floats:
        """The outputs that are looked at."""
        return state.value[self.outputs]

    def pull(self, state: State, cotangents: Floats) -> Floats:
        """J' c by row, over the inputs that move."""
        whole = np.zeros((len(cotangents), self.engine.outputs))
        whole[:, self.outputs] = cotangents
        return self.engine.pull(state, whole)[:, self.inputs]

    def push(self, state: State, tangents: Floats) -> Floats:
        """J t by row."""
        whole = np.zeros((len(tangents), self.engine.problem.size))
        whole[:, self.inputs] = tangents
        return self.engine.push(state, whole)[:, self.outputs]

    def move(self, point: Floats, step: Floats) -> Floats:
        """``point`` after ``step`` of the inputs that move, back in the box."""
        moved = point.copy()
        moved[self.inputs] += step
        return self.engine.problem.clip(moved)


def worst_direction(
    view: View, state: State, norm: Norm, rng: np.random.Generator, *, rounds: int, probes: int, start: Floats | None = None
) -> Direction:
    """Gain of the Jacobian at ``state``.

    Exact (up to float32) if the Jacobian has few rows or columns; otherwise ``rounds`` of subspace iteration with
    ``probes`` directions (l2), or of the power method for mixed norms (l1, linf).
    """
    if view.rows <= SMALL:
        return _of_matrix(view.pull(state, np.eye(view.rows)), norm)
    if view.size <= SMALL and view.engine.has_forward:
        return _of_matrix(view.push(state, np.eye(view.size)).T, norm)
    return (_subspace if norm == "l2" else _mixed)(view, state, norm, rng, rounds, probes, start)


def _of_matrix(jacobian: Floats, norm: Norm) -> Direction:
    top = float(np.abs(jacobian).max(initial=0.0))
    if top == 0.0:
        return Direction(0.0, np.zeros(jacobian.shape[1]))
    scaled = jacobian / top
    if norm == "linf":
        i = int(np.argmax(np.abs(scaled).sum(axis=1)))
        return Direction(top * float(np.abs(scaled[i]).sum()), np.sign(scaled[i]))
    if norm == "l1":
        sums = np.abs(scaled).sum(axis=0)
        hot = np.zeros(jacobian.shape[1])
        hot[int(np.argmax(sums))] = 1.0
        return Direction(top * float(sums.max()), hot)
    rows, columns = scaled.shape
    if rows <= columns:
        _, vectors = np.linalg.eigh(scaled @ scaled.T)
        tangent = unit(vectors[:, -1] @ scaled, "l2")
    else:
        tangent = np.linalg.eigh(scaled.T @ scaled)[1][:, -1]
    return Direction(top * norm_of(scaled @ tangent, "l2"), tangent)


def _orthonormal(rows: Floats) -> Floats:
    """An orthonormal basis of the row space, by a QR of scaled rows."""
    sizes = np.abs(rows).max(axis=1, keepdims=True)
    scaled = rows / np.where(sizes > 0, sizes, 1.0)
    return np.linalg.qr(scaled.T)[0].T


def _subspace(view: View, state: State, norm: Norm, rng: np.random.Generator, rounds: int, probes: int, start: Floats | None) -> Direction:
    block = rng.standard_normal((max(1, min(probes, view.size, view.rows)), view.size))
    if start is not None:
        block[0] = start * np.sqrt(view.size)
    block = _orthonormal(block)
    best = Direction(0.0, block[0])
    for _ in range(rounds):
        images = view.push(state, block)
        if not np.any(images):
            break
        # With C orthonormal, the singular values of C J are below those of J, and its right vectors are the next block.
        pulled = view.pull(state, _orthonormal(images))
        top = float(np.abs(pulled).max())
        if top == 0.0:
            break
        sizes, vectors = np.linalg.eigh((pulled / top) @ (pulled / top).T)
        block = _orthonormal(vectors[:, ::-1].T @ pulled)
        gain = top * float(np.sqrt(max(sizes[-1], 0.0)))
        converged = gain <= best.gain * (1 + 1e-7)
        if gain > best.gain:
            best = Direction(gain, unit(vectors[:, -1] @ pulled, "l2"))
        if converged:
            break
    return best


def _mixed(view: View, state: State, norm: Norm, rng: np.random.Generator, rounds: int, probes: int, start: Floats | None) -> Direction:
    """Boyd's power method for the norm induced by l1 or linf."""
    tangent = start if start is not None else unit(np.sign(rng.standard_normal(view.size)), norm)
    best = Direction(0.0, tangent)
    other = dual_norm(norm)
    for _ in range(rounds):
        image = view.push(state, tangent[None])[0]
        gain = norm_of(image, norm)
        if gain > best.gain:
            best = Direction(gain, tangent)
        elif gain <= best.gain and best.gain > 0:
            break
        pulled = view.pull(state, dual_vector(image, norm)[None])[0]
        if not np.any(pulled):
            break
        # The unit vector of ``norm`` that aligns with the gradient: sign pattern for linf, one coordinate for l1.
        tangent = dual_vector(pulled, other)
    return best
