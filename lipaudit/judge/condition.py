"""Conditions in CEL (Common Expression Language). The only file that imports the CEL library."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

__all__ = ["Condition", "NotEvaluated"]

# Rules of --rules are strangers' data, and the compiler recurses: a source of 100,000 characters ends the process.
_LONGEST_SOURCE = 2000
_MOST_OPERATORS = 100


class NotEvaluated(Exception):
    """A fact is null (or of another type than the condition needs), so the condition is neither true nor false."""


_EXTENSION = "cel.cel"


@cache
def _compiler() -> Any:
    """The ``compile`` of the extension module itself: the package's ``__init__`` imports its own command line (150 ms).

    The extension can be initialised once in a process (a second time it panics), so it is kept where an import finds it.
    """
    if _EXTENSION in sys.modules:
        return sys.modules[_EXTENSION].compile
    spec = find_spec("cel")
    if spec is not None and spec.submodule_search_locations:
        for path in sorted(Path(spec.submodule_search_locations[0]).glob("cel.*")):
            if path.suffix in (".so", ".pyd"):
                extension = spec_from_file_location(_EXTENSION, path)
                if extension is not None and extension.loader is not None:
                    module = module_from_spec(extension)
                    extension.loader.exec_module(module)
                    sys.modules[_EXTENSION] = module
                    return module.compile
    import cel

    return cel.compile


class Condition:
    """A compiled condition and the facts that it names.

    Raises
    ------
    ValueError
        If the source is too long or does not compile.
    """

    def __init__(self, source: str) -> None:
        if len(source) > _LONGEST_SOURCE or len(re.findall(r"[-+*/%<>=!&|?]", source)) > _MOST_OPERATORS:
            raise ValueError("it is too long")
        try:
            self._program = _compiler()(source)
        except ValueError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        self.source = source
        bare = re.sub(r"\"[^\"]*\"|'[^']*'", "''", source)
        self.facts = frozenset(re.findall(r"\b([a-z_]+\.[a-z_0-9]+)\b", bare))

    def holds(self, facts: Mapping[str, Mapping[str, Any]]) -> bool:
        """Evaluate on ``{namespace: {name: value}}``; raises :class:`NotEvaluated`."""
        try:
            return self._program.execute({space: dict(values) for space, values in facts.items()}) is True
        except (TypeError, KeyError, RuntimeError, ValueError) as error:
            raise NotEvaluated(str(error)) from None
