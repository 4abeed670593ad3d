"""What all tests share: the hypothesis profiles and the folder of real models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# `ci` finds the same examples on every machine; `soak` searches anew each time, and longer.
settings.register_profile("ci", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def models_folder() -> Path | None:
    """Return the folder of real models: ``LIPAUDIT_MODELS``, else ``../shared/models`` beside the checkout, else None."""
    named = os.environ.get("LIPAUDIT_MODELS")
    if named:
        folder = Path(named)
        if not folder.is_dir():
            raise pytest.UsageError(f"LIPAUDIT_MODELS names {named}, which is not a folder")
        return folder
    beside = ROOT.parent / "shared" / "models"
    return beside if beside.is_dir() else None


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of real models; the test is skipped, with the reason, where there is none."""
    folder = models_folder()
    if folder is None:
        pytest.skip("no folder of real models: set LIPAUDIT_MODELS, or put them at ../shared/models beside the checkout")
    return folder


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of the sample models that the project ships."""
    return ROOT / "samples" / "models"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the soak tests to ``make soak``: they are skipped, by name, everywhere else."""
    if os.environ.get("HYPOTHESIS_PROFILE") == "soak":
        return
    skip = pytest.mark.skip(reason="soak test: run `make soak`")
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(skip)
