"""Every guideline file: it loads, its examples hold and can fail, and what it names exists."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lipaudit.judge import fill
from lipaudit.judge.condition import NotEvaluated
from lipaudit.judge.guideline import Example, Guideline, citations, documented_facts, load_guidelines
from lipaudit.resources import rules_dir

GUIDELINES = load_guidelines()
FACTS = documented_facts()
BY_CODE = {guideline.code: guideline for guideline in GUIDELINES}

EXAMPLES = [(guideline, i) for guideline in GUIDELINES for i in range(len(guideline.example))]
IDS = [f"{guideline.code}-{i}" for guideline, i in EXAMPLES]

FIRST_BATCH = ["LIP201", "LIP202", "LIP203", "LIP301", "LIP302", "LIP401", "LIP405", "LIP501", "LIP502", "LIP505", "LIP601", "LIP701"]
PYTHON_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "double": (int, float), "string": (str,), "bool": (bool,)}


def fires(guideline: Guideline, facts: dict[str, dict[str, Any]], params: dict[str, Any] | None = None) -> bool:
    return guideline.condition().holds({**facts, "p": guideline.params if params is None else params})


def test_the_first_batch_is_complete() -> None:
    assert set(FIRST_BATCH) <= set(BY_CODE)


def test_files_are_named_after_what_they_hold() -> None:
    files = sorted((rules_dir() / "guidelines").glob("*.toml"))
    assert [path.stem for path in files] == [f"{guideline.code}-{guideline.name}" for guideline in GUIDELINES]
    assert len({guideline.name for guideline in GUIDELINES}) == len(GUIDELINES)


@pytest.mark.parametrize(("guideline", "i"), EXAMPLES, ids=IDS)
def test_examples_hold(guideline: Guideline, i: int) -> None:
    example = guideline.example[i]
    assert fires(guideline, example.facts) is example.fires


@pytest.mark.parametrize("guideline", GUIDELINES, ids=lambda g: g.code)
def test_there_are_firing_and_clean_examples_and_text_for_the_reader(guideline: Guideline) -> None:
    assert {example.fires for example in guideline.example} == {True, False}
    assert len(guideline.why) >= 60 and len(guideline.fix) >= 60
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", guideline.name)
    assert re.fullmatch(r"\d+\.\d+", guideline.since)


@pytest.mark.parametrize("guideline", GUIDELINES, ids=lambda g: g.code)
def test_every_source_is_in_the_bibliography(guideline: Guideline) -> None:
    for key in guideline.cite:
        assert key in citations()
        assert len(citations()[key].text) > len(key)


@pytest.mark.parametrize("guideline", GUIDELINES, ids=lambda g: g.code)
def test_every_fact_that_is_named_is_documented_and_of_its_type(guideline: Guideline) -> None:
    named = {name for name in guideline.condition().facts if not name.startswith("p.")}
    named |= set(re.findall(r"\{([a-z_]+\.[a-z_0-9]+)\}", guideline.message))
    assert named, "a condition without facts is always true or always false"
    assert named <= set(FACTS)
    for example in guideline.example:
        for space, group in example.facts.items():
            for member, fact in group.items():
                kind = FACTS[f"{space}.{member}"].type
                assert isinstance(fact, PYTHON_TYPES[kind]), f"{space}.{member} is a {kind}"
                assert kind == "bool" or not isinstance(fact, bool)


@pytest.mark.parametrize("guideline", GUIDELINES, ids=lambda g: g.code)
def test_the_message_is_filled_in_completely(guideline: Guideline) -> None:
    facts = {name.partition(".")[0]: {} for name in FACTS}
    for name, fact in FACTS.items():
        space, _, member = name.partition(".")
        facts[space][member] = {"int": 3, "double": 0.25, "string": "words", "bool": True}[fact.type]
    text = fill(guideline.message, facts)
    assert "{" not in text and "None" not in text


def _without(facts: dict[str, dict[str, Any]], space: str, member: str, new: Any) -> dict[str, dict[str, Any]]:
    return {name: {**group, member: new} if name == space else dict(group) for name, group in facts.items()}


@pytest.mark.parametrize("guideline", GUIDELINES, ids=lambda g: g.code)
def test_every_fact_of_the_condition_matters_in_some_example(guideline: Guideline) -> None:
    """Changing one fact of an example flips the verdict for each fact somewhere: no part of a condition is untested."""
    idle = {name for name in guideline.condition().facts if not name.startswith("p.")}
    for example in guideline.example:
        for space, group in example.facts.items():
            for member, fact in group.items():
                if any(_flips(guideline, example, space, member, other) for other in _others(fact)):
                    idle.discard(f"{space}.{member}")
    assert not idle


def _others(fact: Any) -> list[Any]:
    if isinstance(fact, bool):
        return [not fact]
    if isinstance(fact, str):
        return ["batch", "layer", "instance", "l2", "rms", "float16", "float32", "something else"]
    return [0, 1, -1e300, 1e300, 1000] if isinstance(fact, float) else [0, 1, 10**9]


def _flips(guideline: Guideline, example: Example, space: str, member: str, other: Any) -> bool:
    try:
        return fires(guideline, _without(example.facts, space, member, other)) is not example.fires
    except NotEvaluated:
        return False


@pytest.mark.parametrize("guideline", [g for g in GUIDELINES if g.params], ids=lambda g: g.code)
def test_every_threshold_decides_some_example(guideline: Guideline) -> None:
    """A threshold far on either side flips an example, so a slip of the decimal point is noticed."""
    for name, limit in guideline.params.items():
        moved = [type(limit)(limit * 1000 + 1000), type(limit)(-1000)]
        flipped = [
            value
            for value in moved
            for example in guideline.example
            if fires(guideline, example.facts, {**guideline.params, name: value}) is not example.fires
        ]
        assert flipped, name


NUDGES = [
    ("LIP202", {"norm": {"kind": "batch"}}, "norm.epsilon", "max", True),
    ("LIP301", {"region": {}}, "region.run_without_shortcut", "min", True),
    ("LIP405", {"model": {"edge_count": 50, "quantized": False}}, "model.edge_share", "share", True),
    ("LIP405", {"model": {"edge_share": 1.0, "quantized": False}}, "model.edge_count", "min", True),
    ("LIP502", {"node": {"bare_exp_sum": True}, "model": {"dtype": "float32"}}, "node.exp_input_max", "max", False),
    ("LIP502", {"node": {"bare_exp_sum": True}, "model": {"dtype": "float16"}}, "node.exp_input_max", "half", False),
    ("LIP505", {"norm": {"stat_dtype": "float16", "kind": "layer", "has_floor": True}}, "norm.epsilon", "min", False),
]


@pytest.mark.parametrize(("code", "facts", "name", "param", "at_limit"), NUDGES, ids=[f"{n[0]}-{n[3]}" for n in NUDGES])
def test_a_nudge_over_the_threshold_flips_the_verdict(
    code: str, facts: dict[str, dict[str, Any]], name: str, param: str, at_limit: bool
) -> None:
    guideline = BY_CODE[code]
    space, _, member = name.partition(".")
    limit = guideline.params[param]
    small = 1 if isinstance(limit, int) else limit * 1e-12
    verdicts = [fires(guideline, _without(facts, space, member, fact)) for fact in (limit - small, limit, limit + small)]
    below = code == "LIP505"  # the only one that fires below its threshold
    assert verdicts == [below, at_limit, not below]


def test_every_documented_fact_says_what_it_is() -> None:
    for name, fact in FACTS.items():
        assert re.fullmatch(r"[a-z]+\.[a-z_0-9]+", name)
        assert fact.text.endswith(".")


def test_every_source_can_be_printed() -> None:
    text = (rules_dir() / "sources.bib").read_text(encoding="utf-8")
    keys = re.findall(r"@\w+\{\s*([^,\s]+)", text)
    assert len(keys) == len(set(keys)), "a key twice"
    assert set(keys) == set(citations()), "an entry that the reader of the file misses"
