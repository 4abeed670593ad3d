"""The rules folder is found in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipaudit import resources
from lipaudit.errors import InternalError


def test_checkout_rules_are_found() -> None:
    folder = resources.rules_dir()
    assert folder.name == "rules"
    assert (folder / "operators").is_dir()
    assert (folder / "guidelines").is_dir()


def test_folder_inside_the_package_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "lipaudit" / "rules"
    (inside / "operators").mkdir(parents=True)
    (tmp_path / "rules" / "operators").mkdir(parents=True)
    monkeypatch.setattr(resources, "files", lambda name: tmp_path / name)
    assert resources.rules_dir() == inside


def test_damaged_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lipaudit").mkdir()
    monkeypatch.setattr(resources, "files", lambda name: tmp_path / name)
    with pytest.raises(InternalError, match="rules folder is neither"):
        resources.rules_dir()
