"""Convolutions against matrices written out from the definition."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds import conv, lags, symbol, torus
from lipaudit.bounds.conv import Convolution, TransposedConvolution
from lipaudit.bounds.scalar import INFINITE
from lipaudit.bounds.torus import Torus, grid_factor
from tests.bounds.operators import NORMS, check_operator, conv_matrix
from tests.bounds.truth import exact, exact_sums, norm_from_below, rounded_up, spectral_from_below

Floats = NDArray[np.float64]


def draw(rng: np.random.Generator, k: int) -> tuple[Floats, dict[str, object], tuple[int, ...]]:
    """A random kernel, its attributes and an image: strides, dilations, pads, groups, kernels larger than the image."""
    dim = 3 if k % 9 == 0 else int(rng.integers(1, 3))
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    o, c = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    if k % 5 == 0:
        groups, o, c = int(rng.integers(1, 5)), 1, 1
    kernel = [int(n) for n in rng.integers(1, 3 if dim == 3 else 5, dim)]
    strides = [1] * dim if k % 3 == 0 else [int(n) for n in rng.integers(1, 4, dim)]
    dilations = [1] * dim if k % 3 == 1 else [int(n) for n in rng.integers(1, 4, dim)]
    pads = [(int(a), int(b)) for a, b in rng.integers(-1 if k % 7 == 0 else 0, 4, (dim, 2))]
    image = tuple(int(n) for n in rng.integers(1, 4 if dim == 3 else 8, dim))
    weight = rng.standard_normal((groups * o, c, *kernel))
    if k % 4 == 0:
        weight = rng.integers(-2, 3, weight.shape).astype(float)
    elif k % 4 == 1:
        weight = np.abs(weight)
    return weight, {"strides": strides, "dilations": dilations, "pads": pads, "groups": groups}, image


def truth(operator: Convolution, weight: Floats, options: dict[str, object]) -> Floats:
    image, outputs = operator.in_shape[2:], operator.out_shape[2:]
    return conv_matrix(weight, image, outputs, options["strides"], options["dilations"], options["pads"], options["groups"])


@pytest.mark.parametrize("formed", [True, False], ids=["formed", "by symbol"])
def test_random_small_convolutions(formed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not formed:
        monkeypatch.setattr(conv, "DENSE_SIDE", 0)
    rng = np.random.default_rng(10 + formed)
    seen: dict[str, int] = {}
    count = 0
    for k in range(400):
        weight, options, image = draw(rng, k)
        operator = Convolution(weight, image, **options)
        if math.prod(operator.out_shape) == 0:
            continue
        count += 1
        method = operator.norm("l2").method.split(":")[0]
        seen[method] = seen.get(method, 0) + 1
        check_operator(operator, truth(operator, weight, options), tight=1.01e-6 if formed else None, seed=k)
    assert count >= 300
    wanted = ["formed"] if formed else ["twisted torus", "twisted torus, scalar symbols", "single tap"]
    assert all(seen.get(method, 0) >= 20 for method in wanted), seen


def test_random_transposed_convolutions() -> None:
    rng = np.random.default_rng(12)
    count = 0
    for k in range(160):
        weight, options, image = draw(rng, k)
        strides, dilations, pads = options["strides"], options["dilations"], options["pads"]
        extra = [int(rng.integers(0, s)) for s in strides]
        output = [
            s * (n - 1) + e + (kernel - 1) * d + 1 - sum(pad)
            for s, n, e, kernel, d, pad in zip(strides, image, extra, weight.shape[2:], dilations, pads, strict=True)
        ]
        if min(output) < 1:
            continue
        count += 1
        operator = TransposedConvolution(weight, image, output, **options)
        assert operator.in_shape == (1, weight.shape[0], *image)
        assert operator.out_shape == (1, weight.shape[1] * options["groups"], *output)
        matrix = conv_matrix(weight, output, image, strides, dilations, pads, options["groups"]).T
        check_operator(operator, np.ascontiguousarray(matrix), tight=1.01e-6, seed=k)
    assert count >= 90


@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("height", [7, 15, 31])
def test_all_ones_kernel_has_its_closed_form(height: int, formed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    true = (1 + 2 * math.cos(math.pi / (height + 1))) ** 2
    uniform = Convolution(np.ones((1, 1, 3, 3)), (height, height), pads=((1, 1), (1, 1)))
    assert true * (1 - 1e-14) <= float(uniform.norm("l2").upper) <= true + 1e-9
    if not formed:
        monkeypatch.setattr(conv, "DENSE_SIDE", 0)
    kernel = np.ones((1, 1, 3, 3))
    kernel[0, 0, 0, 0] = 1 - 2.0**-40  # not uniform any more
    found = Convolution(kernel, (height, height), pads=((1, 1), (1, 1))).norm("l2")
    assert true * (1 - 1e-11) <= float(found.upper) <= true * (1 + 2e-6)
    if not formed:
        assert found.evidence["twist"] == [1, 1]
        assert float(found.upper) <= true + 1e-9


def test_uniform_kernels_are_never_materialised() -> None:
    weight = np.broadcast_to(np.float32(-0.5), (4, 3, 3, 2))
    for options in ({}, {"strides": (2, 1), "pads": ((1, 0), (2, 1))}, {"dilations": (2, 3), "pads": ((2, 2), (0, 3))}):
        operator = Convolution(weight, (6, 5), **options)
        full = {"strides": (1, 1), "dilations": (1, 1), "pads": ((0, 0), (0, 0)), "groups": 1, **options}
        check_operator(operator, truth(operator, np.ascontiguousarray(weight, dtype=float), full), tight=1e-11)
    huge = Convolution(np.broadcast_to(np.float32(1), (2**20, 2**20, 3, 3)), (512, 512), pads=((1, 1), (1, 1)))
    assert exact(huge.norm("linf").upper) == 9 * 2**20
    assert float(huge.norm("l2").upper) <= 9 * 2**20 * (1 + 1e-9)


def test_plain_torus_of_the_image_size_would_be_too_small() -> None:
    """Taps [1, 0, -1] on two pixels: the torus N = H gives 0, the norm is 1."""
    operator = Convolution(np.array([[[1.0, 0.0, -1.0]]]), (2,), pads=((1, 1),))
    assert exact(operator.norm("l2").upper) >= 1


def test_residues_of_a_dilation_share_one_tap_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """K = [0, -1, 1, 0], H = 3, d = 4, pads 6: each residue alone reaches too few taps."""
    monkeypatch.setattr(conv, "DENSE_SIDE", 0)
    for kernel in ([0.0, -1.0, 1.0, 0.0], [0.5, -1.0, 1.0, 2.0]):
        weight = np.array([[kernel]])
        options = {"strides": (1,), "dilations": (4,), "pads": ((6, 6),), "groups": 1}
        operator = Convolution(weight, (3,), strides=(1,), dilations=(4,), pads=((6, 6),))
        check_operator(operator, truth(operator, weight, options))


def test_l1_counts_the_taps_of_one_phase_with_dilation() -> None:
    """K = [1, 1, 1], s = d = 2: one input meets three taps, not two."""
    operator = Convolution(np.array([[[1.0, 1.0, 1.0]]]), (9,), strides=(2,), dilations=(2,))
    assert exact(operator.norm("l1").upper) == 3


def test_reshaped_kernel_is_no_norm() -> None:
    operator = Convolution(np.ones((1, 1, 3)), (50,), pads=((1, 1),))
    assert float(operator.norm("l2").upper) > 2.99


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300, 5e-324])
def test_extreme_scales(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(13)
    whole = rng.integers(-4, 5, (3, 2, 3, 3)).astype(float)
    true = spectral_from_below(conv_matrix(whole, (5, 5), (5, 5), (1, 1), (1, 1), ((1, 1), (1, 1)), 1))
    for side in (2048, 0):
        monkeypatch.setattr(conv, "DENSE_SIDE", side)
        found = Convolution(whole * scale, (5, 5), pads=((1, 1), (1, 1))).norm("l2")
        factor = Fraction(scale) if scale == 5e-324 else Fraction(scale) * (1 - Fraction(1, 10**14))
        assert exact(found.upper) >= Fraction(true) * factor
        assert exact(found.upper) <= Fraction(true) * Fraction(scale) * Fraction(16, 10)


def test_middle_sizes_by_symbol_are_close_to_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sup between grid points, peaked and flat symbols, both orders of the sides, strides: against the dense norm."""
    monkeypatch.setattr(conv, "DENSE_SIDE", 0)
    rng = np.random.default_rng(14)
    smooth = np.outer([1.0, 2, 1], [1.0, 2, 1])[None, None] * rng.uniform(0.5, 1, (4, 3))[:, :, None, None]
    cases = [
        (rng.standard_normal((6, 5, 3, 3)), (9, 11), {"pads": ((1, 1), (1, 1))}, 0.08),
        (rng.standard_normal((5, 9, 3, 3)), (12, 10), {"pads": ((1, 1), (1, 1)), "strides": (2, 2)}, 0.08),
        (smooth, (13, 13), {"pads": ((1, 1), (1, 1))}, 1e-3),
        (rng.standard_normal((4, 4, 7)), (40,), {"pads": ((3, 3),)}, 0.05),
        (rng.standard_normal((4, 2, 3, 3)), (12, 12), {"pads": ((2, 2), (2, 2)), "dilations": (2, 2), "groups": 2}, 0.15),
        (rng.standard_normal((12, 1, 3, 3)), (12, 12), {"pads": ((1, 1), (1, 1)), "groups": 12}, 0.1),
    ]
    for weight, image, options, excess in cases:
        full = {"strides": (1,) * len(image), "dilations": (1,) * len(image), "groups": 1, **options}
        operator = Convolution(weight, image, **options)
        matrix = truth(operator, weight, full)
        true, found = spectral_from_below(matrix), operator.norm("l2")
        assert exact(found.upper) >= Fraction(true)
        assert float(found.upper) <= true * (1 + excess), found
        assert true * 0.97 <= float(found.lower) <= np.linalg.norm(matrix, 2) * (1 + 1e-13), found


def test_wrong_starts_cost_time_not_soundness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates of the symbol may be anything: they only say where to start."""
    monkeypatch.setattr(conv, "DENSE_SIDE", 0)
    rng = np.random.default_rng(15)
    weight = rng.standard_normal((4, 4, 3, 3))
    operator = Convolution(weight, (6, 6), pads=((1, 1), (1, 1)))
    true = spectral_from_below(conv_matrix(weight, (6, 6), (6, 6), (1, 1), (1, 1), ((1, 1), (1, 1)), 1))
    for factor in (1e-9, 0.3, 0.9):
        original = lags.Lags.scores
        monkeypatch.setattr(lags.Lags, "scores", lambda self, t, p, k, f=factor, call=original: f * call(self, t, p, k)[::-1])
        ritz = lags.Lags.ritz
        monkeypatch.setattr(lags.Lags, "ritz", lambda self, gram, f=factor, call=ritz: (f * call(self, gram)[0], call(self, gram)[1]))
        assert exact(operator.norm("l2").upper) >= Fraction(true)
        monkeypatch.undo()
        monkeypatch.setattr(conv, "DENSE_SIDE", 0)


def test_sweep_fails_over_to_free_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "DENSE_SIDE", 0)
    monkeypatch.setattr(symbol, "BUDGET", 0.0)
    rng = np.random.default_rng(16)
    for stride in (1, 2, 3):
        weight = rng.standard_normal((3, 2, 3, 3))
        operator = Convolution(weight, (8, 8), pads=((1, 1), (1, 1)), strides=(stride, stride))
        matrix = conv_matrix(weight, (8, 8), operator.out_shape[2:], (stride, stride), (1, 1), ((1, 1), (1, 1)), 1)
        found = operator.norm("l2")
        assert found.method in ("reshaped kernel", "sqrt(l1 * linf)")
        assert exact(found.upper) >= Fraction(spectral_from_below(matrix))


def test_image_independent_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "DENSE_SIDE", 0)
    monkeypatch.setattr(symbol, "GRID_FROM", 0.0)
    rng = np.random.default_rng(17)
    weight = rng.standard_normal((3, 3, 3))
    operator = Convolution(weight, (300,), pads=((1, 1),))
    found = operator.norm("l2")
    assert found.method == "uniform grid of frequencies, refined"
    fine = max(np.linalg.norm(sum(weight[:, :, t] * np.exp(1j * w * t) for t in range(3)), 2) for w in np.linspace(0, np.pi, 4001))
    assert fine * (1 - 1e-12) <= float(found.upper) <= fine * (1 + 1.5e-4)


def test_grid_factor_covers_the_cosines() -> None:
    for count, size in ((3, 96), (2, 48), (7, 288), (3, 32)):
        assert float(grid_factor((count,), (size,))) >= 1 / math.cos(math.pi * (count - 1) / (2 * size))


def test_cosine_table_is_within_its_stated_error() -> None:
    from flint import arb

    for half in (1, 2, 3, 4, 7, 57, 58, 97, 360, 3306):
        turns = np.arange(-half, 5 * half, max(1, half // 50), dtype=np.int64)
        cos, sin = torus.cosines(turns, half), torus.sines(turns, half)
        for k, c, s in zip(turns.tolist(), cos, sin, strict=True):
            angle = arb(k) / arb(half)
            assert abs(float(arb(float(c)) - (angle * arb.pi()).cos())) <= 8 * 2.0**-53
            assert abs(float(arb(float(s)) - (angle * arb.pi()).sin())) <= 8 * 2.0**-53


def test_half_of_the_frequencies_covers_all() -> None:
    for sizes in ((5,), (6,), (4, 5), (5, 6), (3, 4, 5)):
        for twists in np.ndindex(*(2,) * len(sizes)):
            shape = Torus(sizes, tuple(int(t) for t in twists))
            points = shape.frequencies()
            partners = (-points - np.array(twists)) % np.array(sizes)
            assert len({tuple(p) for p in np.concatenate([points, partners]).tolist()}) == math.prod(sizes)
            assert len(points) <= math.prod(sizes) // 2 + 2 ** len(sizes)


def test_non_finite_kernels_are_counted() -> None:
    weight = np.random.default_rng(18).standard_normal((3, 2, 3, 3)).astype(np.float32)
    weight[0, 0, 0, 0], weight[1, 1, 2, 2] = np.nan, np.inf
    for norm in NORMS:
        found = Convolution(weight, (8, 8)).norm(norm)
        assert found.upper == INFINITE and found.evidence == {"nonfinite": 2}


def test_float16_and_batches() -> None:
    rng = np.random.default_rng(19)
    weight = rng.standard_normal((3, 2, 3)).astype(np.float16)
    operator = Convolution(weight, (7,), pads=((1, 1),), batch=3)
    single = conv_matrix(weight.astype(float), (7,), (7,), (1,), (1,), ((1, 1),), 1)
    check_operator(operator, np.kron(np.eye(3), single), tight=1e-9)


def test_larger_padding_than_image_and_no_output() -> None:
    for pads, image in ((((5, 5),), (2,)), (((9, 0),), (1,)), (((0, 0),), (3,))):
        weight = np.array([[[1.0, -2.0, 3.0]]])
        operator = Convolution(weight, image, pads=pads)
        matrix = conv_matrix(weight, image, operator.out_shape[2:], (1,), (1,), pads, 1)
        for norm in NORMS:
            assert exact(operator.norm(norm).upper) >= norm_from_below(matrix, norm)
    unreached = Convolution(np.ones((1, 1, 1)), (3,), pads=((-5, 4),))
    assert unreached.out_shape == (1, 1, 2)
    assert all(unreached.norm(norm).upper.is_zero for norm in NORMS)


def test_sides_are_exact_for_strided_and_cropped_windows() -> None:
    rng = np.random.default_rng(20)
    for k in range(60):
        weight, options, image = draw(rng, k)
        weight = weight * 10.0 ** rng.uniform(-8, 8, weight.shape)
        operator = Convolution(weight, image, **options)
        if math.prod(operator.out_shape) == 0:
            continue
        matrix = truth(operator, weight, options)
        for norm in ("l1", "linf"):
            true = exact_sums(matrix, norm)
            assert exact(operator.norm(norm).upper) == rounded_up(true)
