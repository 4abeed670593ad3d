"""The check of the installation names arithmetic that the certificates cannot trust."""

from __future__ import annotations

import pytest

from lipaudit import doctor


def test_linear_algebra_here_is_sound() -> None:
    healthy, text = doctor._numerical_model()
    assert healthy, text


@pytest.mark.parametrize("name", ["factors", "accepts_single"])
def test_factorisations_that_accept_anything_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, name, lambda *_: True)
    healthy, text = doctor._numerical_model()
    assert not healthy and "accepts an indefinite matrix" in text
