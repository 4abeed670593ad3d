"""Where the data files of lipaudit are: inside an installed wheel, or beside the package in a checkout."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lipaudit.errors import InternalError

__all__ = ["rules_dir"]


def rules_dir() -> Path:
    """Return the folder with ``operators/``, ``guidelines/`` and ``sources.bib``.

    A wheel holds it as ``lipaudit/rules``; a checkout, and an editable install of one, as ``rules`` beside ``lipaudit``.

    Raises
    ------
    InternalError
        If neither exists: the installation is damaged.
    """
    package = Path(str(files("lipaudit")))
    candidates = (package / "rules", package.parent / "rules")
    for candidate in candidates:
        if (candidate / "operators").is_dir():
            return candidate
    raise InternalError(
        f"The rules folder is neither {candidates[0]} nor {candidates[1]}.",
        hint="Reinstall lipaudit.",
    )
