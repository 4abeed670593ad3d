"""What ``lipaudit explain`` and ``lipaudit rules`` print: the guidelines and the operator catalogue, in words, offline."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from lipaudit.errors import UsageError
from lipaudit.judge.guideline import Example, FactType, Guideline, citations, documented_facts, load_guidelines
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.entry import Case, Entry
from lipaudit.report.text import count, printable, shorten, value

__all__ = ["explain", "listing"]

_WIDTH = 100
_LABEL = 12


def explain(subject: str, rules: Sequence[str] = ()) -> str:
    """A guideline or an operator in words.

    Parameters
    ----------
    subject
        Code (``LIP202``) or name (``normalization-epsilon-oversized``) of a guideline; an operator as ``Softmax`` (of every
        domain that has one) or ``com.microsoft::Attention``. Upper and lower case are the same.
    rules
        Folders with further rules and guidelines.

    Raises
    ------
    UsageError
        There is no such guideline or operator; names the nearest.
    """
    wanted = subject.strip().casefold()
    folders = [Path(folder) for folder in rules]
    guidelines = load_guidelines(folders)
    for guideline in guidelines:
        if wanted in (guideline.code.casefold(), guideline.name.casefold()):
            return "\n".join(_guideline(guideline))
    catalogue = Catalogue.load(folders)
    kinds = [*catalogue.entries, *catalogue.refusals]
    found = [kind for kind in kinds if wanted in (kind.casefold(), _op(kind).casefold())]
    if found:
        return "\n\n".join("\n".join(_operator(kind, catalogue)) for kind in sorted(found))
    known = {name.casefold(): name for name in kinds}
    known |= {_op(kind).casefold(): _op(kind) for kind in kinds}
    known |= {name.casefold(): name for guideline in guidelines for name in (guideline.code, guideline.name)}
    near = get_close_matches(wanted[:200], known, n=3, cutoff=0.5)
    hint = f"The nearest: {', '.join(known[name] for name in near)}." if near else "`lipaudit rules` lists all."
    raise UsageError(f"{shorten(subject, 80)!r} is neither a guideline nor an operator of the catalogue.", hint=hint)


def listing() -> str:
    """All guidelines with severity and subject, and all operators that have a rule, by family."""
    lines = ["Guidelines"]
    for guideline in load_guidelines():
        state = "" if guideline.status == "stable" else f" ({guideline.status})"
        lines.append(f"  {guideline.code}  {guideline.severity:<8} {guideline.name}{state}")
    catalogue = Catalogue.load()
    families: dict[str, list[str]] = {}
    for kind, path in catalogue.entries.files.items():
        families.setdefault(path.parent.name, []).append(kind.removeprefix("ai.onnx::"))
    lines += ["", f"Operators with a rule ({len(catalogue.entries)})"]
    for family in sorted(families):
        lines += [f"  {family}", *_wrap(", ".join(sorted(families[family])), "    ")]
    if catalogue.refusals:
        lines += ["", f"Operators known to have no finite gain, or no rule yet ({len(catalogue.refusals)})"]
        lines += _wrap(", ".join(sorted(kind.removeprefix("ai.onnx::") for kind in catalogue.refusals)), "    ")
    return "\n".join([*lines, "", "lipaudit explain CODE or OPERATOR says more about one of them."])


def _op(kind: str) -> str:
    return kind.rpartition("::")[2]


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        printable(text), _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def _labelled(label: str, text: str) -> list[str]:
    """``label`` in a column of its own, ``text`` wrapped beside it; nothing if there is no text."""
    lines = _wrap(" ".join(text.split()), " " * (_LABEL + 2))
    return [f"  {label:<{_LABEL}}{lines[0].lstrip()}", *lines[1:]] if lines else []


def _guideline(guideline: Guideline) -> Iterator[str]:
    state = "" if guideline.status == "stable" else f", {guideline.status}"
    yield f"{guideline.code} {guideline.name}"
    yield f"  {guideline.severity}{state}, looks at each {guideline.on}, since {guideline.since}"
    yield ""
    yield from _labelled("condition", guideline.when)
    for name, limit in guideline.params.items():
        yield from _labelled("", f"p.{name} = {value(limit)}")
    yield from _labelled("why", guideline.why)
    yield from _labelled("fix", guideline.fix)
    known = citations()
    for key in guideline.cite:
        yield from _labelled("source", known[key].text if key in known else key)
    facts = documented_facts()
    named = sorted(name for name in guideline.condition().facts if name in facts)
    if named:
        yield ""
        yield "  The facts in the condition:"
        for name in named:
            yield from _wrap(f"{name}: {_fact(facts, name)}", "    ")
    yield ""
    yield "  Examples:"
    for example in guideline.example:
        yield from _wrap(f"{'fires' if example.fires else 'clean'}: {_example(example)}", "    ")


def _fact(facts: Mapping[str, FactType], name: str) -> str:
    fact = facts[name]
    return f"{fact.text} ({fact.type}{f', {fact.unit}' if fact.unit else ''})"


def _example(example: Example) -> str:
    return ", ".join(f"{space}.{name} = {value(fact)}" for space, group in example.facts.items() for name, fact in group.items())


def _operator(kind: str, catalogue: Catalogue) -> Iterator[str]:
    yield kind
    entry = catalogue.entry(kind)
    if entry is None:
        yield from _labelled("no rule", catalogue.refusal(kind) or "")
        return
    version = f", from version {entry.since}" if entry.since > 1 else ""
    sort = "structured" if entry.rule else "composed" if entry.function else "stated" if entry.gain else "scalar"
    yield f"  {sort} operator{version}"
    yield ""
    yield from _labelled("rule", entry.describe())
    if entry.rule:
        yield from _labelled("class", f"lipaudit.operators.{entry.rule}")
    elif entry.function:
        yield from _composed(entry)
    elif entry.gain:
        yield from _labelled("range", f"all elements in [{entry.range[0]}, {entry.range[1]}]")
    else:
        yield from _scalar(entry)
    if entry.like is not None:
        yield from _labelled("shape", f"that of input {entry.like}")
    conditions = [entry.conditions] if isinstance(entry.conditions, str) else entry.conditions
    for condition in conditions:
        yield from _labelled("condition", condition)
    yield from _labelled("needs", entry.needs)
    for case in entry.case:
        yield from _labelled("case", _case(case))
    known = citations()
    for key in entry.citations():
        yield from _labelled("source", known[key].text if key in known else key)
    if entry.check:
        yield from _labelled("checked", f"{count(len(entry.check), 'example')} with known answers in {_place(catalogue, kind)}")


def _composed(entry: Entry) -> Iterator[str]:
    yield from _labelled("definition", "the operator is replaced by these nodes:")
    for line in entry.function.strip().splitlines():
        yield f"    {printable(line)}".rstrip()
    for name, values in entry.accepts.items():
        yield from _labelled("condition", f"{name} is one of {', '.join(str(item) for item in values)}")


def _scalar(entry: Entry) -> Iterator[str]:
    yield from _labelled("formula", f"f(x) = {entry.formula}" if entry.formula else "")
    if entry.slope is not None:
        yield from _labelled("slope", f"f'(x) in [{entry.slope[0]}, {entry.slope[1]}] on all reals; often less on a smaller domain")
    yield from _labelled("range", f"f(x) in [{entry.range[0]}, {entry.range[1]}]")
    if entry.domain is not None:
        yield from _labelled("domain", f"x in [{entry.domain[0]}, {entry.domain[1]}]")
    if entry.jump:
        where = f" at {', '.join(entry.jump_at)}" if entry.jump_at else ""
        yield from _labelled("jump", f"at most {entry.jump}{where}")
    for name, default in entry.attributes.items():
        yield from _labelled("attribute", f"{name}, by default {default}")


def _case(case: Case) -> str:
    """When the case applies, and what is different then: "before version 13: ..."."""
    when = [f"if {case.when}"] if case.when else []
    when += [f"before version {case.before}"] if case.before else []
    when += [f"{name} = {setting}" for name, setting in case.attrs.items()]
    if case.refuse:
        change = [f"no rule: {case.refuse}"]
    else:
        change = [f"f(x) = {case.formula}"] if case.formula else []
        change += [f"slope in [{case.slope[0]}, {case.slope[1]}]"] if case.slope else []
        change += [f"range [{case.range[0]}, {case.range[1]}]"] if case.range else []
        change += [f"jumps by at most {case.jump}"] if case.jump else []
    return f"{', '.join(when) or 'otherwise'}: {'; '.join(change) or 'as above'}"


def _place(catalogue: Catalogue, kind: str) -> str:
    path = catalogue.entries.files[kind]
    return "/".join(path.parts[-4:])
