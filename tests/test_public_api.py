"""What `import lipaudit` offers, and what it must not cost."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

import lipaudit

HEAVY = ("numpy", "onnx", "scipy", "networkx", "onnxruntime", "flint", "jinja2", "sympy", "cel")


def imported_by(*arguments: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter imports for the given command line."""
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True, timeout=60)
    names = (line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("name", sorted(lipaudit.__all__))
def test_each_public_name_exists(name: str) -> None:
    assert getattr(lipaudit, name) is not None
    assert name in dir(lipaudit)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lipaudit.nothing


@pytest.mark.parametrize("name", ["audit", "explain"])
def test_function_wins_over_the_module_of_its_name(name: str) -> None:
    code = (
        f"import lipaudit, sys; from lipaudit.{name} import {name} as first; import lipaudit.{name};"
        f"assert lipaudit.{name} is first; assert callable(lipaudit.{name}); assert 'lipaudit.{name}' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_package_is_marked_as_typed() -> None:
    spec = find_spec("lipaudit")
    assert spec is not None
    assert spec.origin is not None
    assert isinstance(lipaudit, ModuleType)
    from importlib.resources import files

    assert files("lipaudit").joinpath("py.typed").is_file()


@pytest.mark.parametrize("arguments", [("-c", "import lipaudit"), ("-m", "lipaudit", "--help")], ids=["import", "help"])
def test_start_is_light(arguments: tuple[str, ...]) -> None:
    assert imported_by(*arguments).isdisjoint(HEAVY)
