"""Mutation run: every constant made 1 % too small must be caught by a test. Prints the survivors; exits with 1 if there are any.

For each operator of the catalogue the slope (and the offset) that its rule returns is multiplied by 0.99 in memory, and the tests that ask
that rule run until one fails. Which tests those are, and how long they take, is recorded in a first run without mutants. The numbers of
scalar entries (slopes, ranges, jumps, turns) are mutated by ``tests/rules/test_proofs.py`` itself, which runs here too. What a function
body says of a node better than its rule is one more mutant, called "definition".

``python tools/mutants.py [WORD ...]`` restricts the run to operators whose name contains a word.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402
from _pytest.runner import runtestprotocol  # noqa: E402
from hypothesis import Phase, settings  # noqa: E402

import lipaudit.operators  # noqa: E402
from lipaudit.bounds.scalar import Upper  # noqa: E402
from lipaudit.certify import definitions, node_gains  # noqa: E402
from lipaudit.operators.base import Finite, Rule  # noqa: E402
from lipaudit.operators.catalogue import Catalogue  # noqa: E402
from lipaudit.operators.outputs import PerOutput  # noqa: E402

TESTS = ("tests/rules/test_checks.py", "tests/operators", "tests/certify")
DEFINITION = "definition"
SHRINK = Upper(Fraction(99, 100))
SLOWEST = 12.0
"""Tests that take longer (in seconds) are not repeated for each mutant."""


def rule_classes() -> Iterator[type[Rule]]:
    """All classes that define a ``gain`` of their own."""
    for module in pkgutil.iter_modules(lipaudit.operators.__path__):
        importlib.import_module(f"lipaudit.operators.{module.name}")
    stack: list[type[Rule]] = [Rule]
    seen: set[type[Rule]] = set()
    while stack:
        found = stack.pop()
        if found not in seen:
            seen.add(found)
            stack.extend(found.__subclasses__())
            if "gain" in vars(found) and found is not Rule:
                yield found


def shrunk(gain: Finite, part: str) -> Finite:
    """The constant with its slope or its offset 1 % too small; those of single outputs too."""
    changes: dict[str, Any] = {part: getattr(gain, part) * SHRINK}
    if isinstance(gain, PerOutput):
        changes["outputs"] = tuple(shrunk(each, part) for each in gain.outputs)
    if getattr(gain, "outcome", None) is not None:
        changes["outcome"] = None  # the flow must use the shrunk constant
    return replace(gain, **changes)


@dataclass
class Mutants:
    """A pytest plugin: one recording run, then one run per mutant."""

    words: tuple[str, ...]
    asked: dict[str, set[str]] = field(default_factory=dict)
    parts: dict[str, set[str]] = field(default_factory=dict)
    current: tuple[str, str] | None = None
    nesting: threading.local = field(default_factory=threading.local)
    """How many gains are being asked for, in each thread: gains of a network are asked in parallel."""
    recording: set[str] | None = None
    survivors: list[str] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)
    killed: int = 0

    def patch(self) -> None:
        """Wrap every ``gain``."""
        for cls in list(rule_classes()):
            setattr(cls, "gain", self._wrapped(vars(cls)["gain"]))  # noqa: B010
        original = definitions.better_gains

        def better_gains(*args: Any, **more: Any) -> tuple[Any, ...]:
            return tuple(self._defined(gain) for gain in original(*args, **more))

        node_gains.better_gains = better_gains

    def _defined(self, gain: Any) -> Any:
        if not isinstance(gain, Finite) or gain.method != definitions.METHOD:
            return gain
        if self.recording is not None:
            self._record(DEFINITION, gain)
        return shrunk(gain, self.current[1]) if self.current is not None and self.current[0] == DEFINITION else gain

    def _record(self, kind: str, found: Finite) -> None:
        assert self.recording is not None
        self.recording.add(kind)
        live = {part for part in ("slope", "offset") if not getattr(found, part).is_zero and getattr(found, part).is_finite}
        self.parts.setdefault(kind, set()).update(live)

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def gain(rule: Rule, *args: Any, **more: Any) -> Any:
            depth = getattr(self.nesting, "depth", 0)
            self.nesting.depth = depth + 1
            try:
                found = original(rule, *args, **more)
            finally:
                self.nesting.depth = depth
            # A rule that asks itself through its base class is shrunk once.
            if depth or not isinstance(found, Finite):
                return found
            if self.recording is not None:
                self._record(rule.kind, found)
            return shrunk(found, self.current[1]) if self.current is not None and self.current[0] == rule.kind else found

        return gain

    def pytest_configure(self) -> None:
        """Hypothesis finds failures; nobody needs them small."""
        settings.register_profile("mutants", derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of one run."""
        self.patch()
        duration: dict[str, float] = {}
        items = {item.nodeid: item for item in session.items}
        for item in session.items:
            self.recording = set()
            begin = time.perf_counter()
            passed = self._passes(item)
            duration[item.nodeid] = time.perf_counter() - begin
            if not passed:
                print(f"fails without any mutant, left out: {item.nodeid}")
            elif duration[item.nodeid] <= SLOWEST:
                for kind in self.recording:
                    self.asked.setdefault(kind, set()).add(item.nodeid)
        self.recording = None
        all_kinds = (*Catalogue.load().entries, DEFINITION)
        kinds = sorted(kind for kind in all_kinds if not self.words or any(word in kind for word in self.words))
        for kind in kinds:
            tests = sorted(self.asked.get(kind, ()), key=lambda name: duration[name])
            if not self.parts.get(kind):
                self.untested.append(kind)
            for part in sorted(self.parts.get(kind, ())):
                self.current = (kind, part)
                if any(not self._passes(items[name]) for name in tests):
                    self.killed += 1
                else:
                    self.survivors.append(f"{kind}: {part} ({len(tests)} tests)")
        self.current = None
        return True

    def _passes(self, item: pytest.Item) -> bool:
        item._initrequest()  # type: ignore[attr-defined]
        reports = runtestprotocol(item, log=False, nextitem=None)
        return all(not report.failed for report in reports)


def main(words: tuple[str, ...]) -> int:
    """Run; print a summary."""
    plugin = Mutants(words)
    pytest.main([*(str(ROOT / test) for test in TESTS), "-q", "-p", "no:cacheprovider", "--no-header", "--no-summary"], plugins=[plugin])
    proofs = 0
    if not words:
        proofs = pytest.main([str(ROOT / "tests/rules/test_proofs.py"), "-q", "-p", "no:cacheprovider", "-k", "refuted or jumps_are"])
    print(f"\n{plugin.killed} mutants caught, {len(plugin.survivors)} survived.")
    for name in plugin.survivors:
        print(f"  survived  {name}")
    for name in plugin.untested:
        print(f"  no constant other than 0 in any test  {name}")
    return 1 if plugin.survivors or proofs else 0


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:])))
