"""The operator catalogue: ``rules/operators/**/*.toml``, and the folders that the user adds.

The catalogue is the registry: an operator has a rule because a file says so. Files that come with lipaudit are decoded
when their operator is asked for (the tests decode all of them); files of the user are checked at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import msgspec
from onnx import FunctionProto, parser

from lipaudit.errors import UsageError
from lipaudit.graph.ir import Node
from lipaudit.graph.simplify import Operators
from lipaudit.operators.base import Rule
from lipaudit.operators.entry import Entry
from lipaudit.resources import rules_dir

__all__ = ["Catalogue"]

_LIMIT = 1_000_000
_OP_LINE = re.compile(r'^op\s*=\s*"([^"\\\n]+)"', re.MULTILINE)
_KIND = re.compile(r"[\w.\-]+::\w+")
_RULE = re.compile(r"[a-z_][a-z_0-9.]*:[A-Z]\w*")
_FUNCTION_LINE = re.compile(r"^function\s*=", re.MULTILINE)
_REFUSALS = "not-supported.toml"


class _Entries(Mapping[str, Entry]):
    """Entries by kind, decoded when read."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self._texts: dict[str, str] = {}
        self._decoded: dict[str, Entry] = {}

    def put(self, kind: str, path: Path, text: str) -> None:
        self.files[kind] = path
        self._texts[kind] = text
        self._decoded.pop(kind, None)

    def __getitem__(self, kind: str) -> Entry:
        entry = self._decoded.get(kind)
        if entry is None:
            entry = self._decoded[kind] = _decode(self._texts[kind], self.files[kind])
        return entry

    def __contains__(self, kind: object) -> bool:
        return kind in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


class Catalogue:
    """Rules by operator kind (``domain::op``).

    Attributes
    ----------
    entries
        Entries by kind; files are decoded as they are read.
    refusals
        Reason by kind, from the files ``not-supported.toml``.
    user_files
        Files outside lipaudit's own rules, in the order they were read.
    """

    def __init__(self) -> None:
        self.entries = _Entries()
        self.refusals: dict[str, str] = {}
        self.user_files: list[Path] = []
        self._rules: dict[str, Rule] = {}
        self._mine: set[str] = set()
        self._functions: dict[str, FunctionProto] = {}
        self._limits: dict[str, str] = {}

    @classmethod
    def load(cls, extra: Sequence[Path] = ()) -> Catalogue:
        """Read lipaudit's rules, then the folders ``extra``; later ones override earlier ones.

        Raises
        ------
        UsageError
            A folder or file cannot be read, or says something that is not a rule; names the file and the key.
        """
        catalogue = cls()
        catalogue._read(rules_dir() / "operators", user=False)
        for folder in extra:
            if not folder.is_dir():
                raise UsageError("this is not a folder of rules.", where=str(folder))
            inner = folder / "operators"
            catalogue._read(inner if inner.is_dir() else folder, user=True)
        return catalogue

    def _read(self, folder: Path, *, user: bool) -> None:
        found: dict[str, Path] = {}
        for path in sorted(folder.rglob("*.toml")):
            if user and "guidelines" in path.relative_to(folder).parts:
                continue
            text = _text(path)
            if user:
                self.user_files.append(path)
            if path.name == _REFUSALS:
                self._refuse(text, path)
                continue
            line = _OP_LINE.search(text)
            kind = line.group(1) if line is not None and not user else _decode(text, path).op
            if kind in found:
                raise UsageError(f"{kind} is also defined in {found[kind]}.", where=str(path))
            found[kind] = path
            self.entries.put(kind, path, text)
            self.refusals.pop(kind, None)
            if user or _FUNCTION_LINE.search(text):
                self._put_definition(kind, path, user=user)

    def _put_definition(self, kind: str, path: Path, *, user: bool) -> None:
        """What a file says beyond a rule: its definition by other nodes, and in files of the user the shape of its outputs."""
        entry = self.entries[kind]
        self._rules.pop(kind, None)
        self._functions.pop(kind, None)
        self._limits.pop(kind, None)
        if user:
            self._mine.add(kind)
        if entry.function:
            self._functions[kind] = _parsed(entry, path)
            accepted = [f"{name} in {values}" for name, values in entry.accepts.items()]
            if not user:
                accepted += [entry.conditions] if isinstance(entry.conditions, str) else entry.conditions
            if accepted:
                self._limits[kind] = f"its definition in {path.name} holds only for {'; '.join(accepted)}"

    def _refuse(self, text: str, path: Path) -> None:
        try:
            reasons = msgspec.convert(_toml(text, path), dict[str, str])
        except msgspec.ValidationError as error:
            raise UsageError(f"{error}.", where=str(path), hint='Each line is "domain::op" = "reason".') from None
        for kind, reason in reasons.items():
            if not _KIND.fullmatch(kind) or not reason.strip():
                raise UsageError(f"{kind!r} is not an operator kind with a reason.", where=str(path))
            self.refusals[kind] = reason

    def entry(self, kind: str) -> Entry | None:
        """What the catalogue says about ``domain::op``, or None."""
        return self.entries.get(kind)

    def refusal(self, kind: str) -> str | None:
        """Why ``domain::op`` has no rule, if the catalogue says so."""
        return self.refusals.get(kind) or self._limits.get(kind)

    def rule(self, node: Node) -> Rule | None:
        """The rule for ``node``; None without an entry, or if the node's version is older than the entry covers."""
        rule = self._rules.get(node.kind)
        entry = self.entry(node.kind)
        if entry is None or entry.function or (node.version and node.version < entry.since):
            return None
        if rule is None:
            rule = self._rules[node.kind] = _build(entry, self.entries.files[node.kind])
        return rule

    def operators(self) -> Operators:
        """What simplification needs to know: which operators have rules, and what the user's files define by other nodes."""
        like = {kind: index for kind in self._mine if (index := self.entries[kind].like) is not None}
        return Operators(lambda node: self.rule(node) is not None, self._function, like)

    def _function(self, node: Node) -> FunctionProto | None:
        entry = self.entry(node.kind) if node.kind in self._functions else None
        if entry is None:
            return None
        function = self._functions[node.kind]
        if node.kind not in self._mine and (len(node.inputs) > len(function.input) or len(node.outputs) > len(function.output)):
            return None  # a variadic operator: the definition is that of one tensor
        for name, values in entry.accepts.items():
            if name in node.attrs and node.attrs[name] not in values:
                return None
        return function


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LIMIT:
            raise UsageError(f"larger than {_LIMIT} bytes: this is not a rule.", where=str(path))
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read ({error.__class__.__name__}).", where=str(path)) from None


def _toml(text: str, path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"not valid TOML: {error}.", where=str(path)) from None


def _decode(text: str, path: Path) -> Entry:
    """An entry whose fields have the right types and whose formulas parse."""
    try:
        entry = msgspec.convert(_toml(text, path), Entry)
    except msgspec.ValidationError as error:
        raise UsageError(f"{error}.", where=str(path)) from None
    if not _KIND.fullmatch(entry.op):
        raise UsageError(f"op = {entry.op!r} is not of the form domain::name.", where=str(path))
    if sum((bool(entry.rule), bool(entry.function), bool(entry.gain), entry.slope is not None)) > 1:
        raise UsageError("an entry has a rule, a slope, a function or [[gain]] tables, not several of them.", where=str(path))
    if entry.accepts and not entry.function:
        raise UsageError("accepts goes with a function.", where=str(path))
    if entry.function:
        return entry
    if entry.gain:
        from lipaudit.operators.stated import problem as wrong

        found = wrong(entry)
        if found is not None:
            raise UsageError(found, where=str(path))
        return entry
    if entry.rule:
        if not _RULE.fullmatch(entry.rule):
            raise UsageError(f"rule = {entry.rule!r} is not of the form module:Class.", where=str(path))
    else:
        from lipaudit.operators.law import problem

        found = problem(entry)
        if found is not None:
            raise UsageError(found, where=str(path))
    return entry


def _parsed(entry: Entry, path: Path) -> FunctionProto:
    """The function that an entry holds as text."""
    try:
        return parser.parse_function(entry.function)
    except (parser.ParseError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"function is not a function in ONNX text syntax: {reason[:200]}.", where=str(path)) from None


def _build(entry: Entry, path: Path) -> Rule:
    """The rule object of an entry; its module is imported here."""
    if entry.gain:
        from lipaudit.operators.stated import StatedGains

        return StatedGains(entry)
    if not entry.rule:
        from lipaudit.operators.elementwise import Scalar

        return Scalar(entry)
    module, _, name = entry.rule.partition(":")
    try:
        found = getattr(import_module(f"lipaudit.operators.{module}"), name)
    except (ImportError, AttributeError):
        raise UsageError(f"rule = {entry.rule!r} names no class in lipaudit.operators.", where=str(path)) from None
    if not (isinstance(found, type) and issubclass(found, Rule)):
        raise UsageError(f"rule = {entry.rule!r} is not a rule class.", where=str(path))
    return found(entry.op, entry.params)
