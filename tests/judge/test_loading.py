"""Guidelines of users are strangers' data: what is wrong is said in one sentence that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lipaudit.errors import UsageError
from lipaudit.judge import _chosen
from lipaudit.judge.condition import Condition, NotEvaluated
from lipaudit.judge.guideline import Guideline, load_guidelines
from tests.judge.users import write


def test_a_users_guideline_is_added_and_can_override(tmp_path: Path) -> None:
    write(tmp_path)
    assert "ABC001" in {guideline.code for guideline in load_guidelines([tmp_path])}
    write(tmp_path, code='"LIP201"')
    assert next(g for g in load_guidelines([tmp_path]) if g.code == "LIP201").why == "because"


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "unknown fact": ({"when": "'model.node > 3'"}, "did you mean model.nodes"),
    "unknown namespace": ({"when": "'modle.nodes > 3'"}, "did you mean model.nodes"),
    "parameter that is not given": ({"when": "'model.nodes > p.max'"}, "p.max"),
    "syntax": ({"when": "'model.nodes >'"}, "does not compile"),
    "too long": ({"when": f"'model.nodes > 1{' && true' * 400}'"}, "too long"),
    "very deep": ({"when": f"'{'1+' * 50_000}1 > model.nodes'"}, "too long"),
    "code": ({"code": '"lip1"'}, "LIP123"),
    "severity": ({"severity": '"fatal"'}, "severity"),
    "unknown key": ({"surprise": "1"}, "surprise"),
    "missing key": ({"fix": None}, "fix"),
    "not TOML": ({"code": '"'}, "TOML"),
    "nested": ({"cite": "[" * 100_000}, "TOML"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_broken_guideline_is_refused_with_file_and_item(tmp_path: Path, case: str) -> None:
    changes, words = BROKEN[case]
    path = write(tmp_path, **changes)
    with pytest.raises(UsageError) as caught:
        load_guidelines([tmp_path])
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_a_file_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text("#" * (1 << 21), encoding="utf-8")
    with pytest.raises(UsageError, match="1 MB"):
        load_guidelines([tmp_path])


def test_a_null_or_missing_fact_is_neither_true_nor_false() -> None:
    condition = Condition("region.log10_gain > 2.0")
    for facts in ({"region": {"log10_gain": None}}, {"region": {}}, {"region": {"log10_gain": "words"}}, {}):
        with pytest.raises(NotEvaluated):
            condition.holds(facts)
    assert condition.holds({"region": {"log10_gain": 3}})
    assert condition.holds({"region": {"log10_gain": float("inf")}})


def test_the_facts_of_a_condition_are_found_outside_strings_only() -> None:
    assert Condition('norm.kind == "a.b" && norm.epsilon > 1.5').facts == {"norm.kind", "norm.epsilon"}


def test_a_condition_can_be_compiled_again_and_beside_the_library_itself() -> None:
    import cel

    assert Condition("1 < 2").holds({}) and Condition("2 > 1").holds({})
    assert cel.evaluate("1 + 1") == 2


def test_select_and_ignore_are_codes_or_prefixes() -> None:
    guidelines = load_guidelines()
    every = [guideline.code for guideline in guidelines if guideline.status == "stable"]
    assert codes(_chosen(guidelines, [], [])) == every
    assert codes(_chosen(guidelines, ["LIP2"], [])) == [code for code in every if code.startswith("LIP2")]
    assert codes(_chosen(guidelines, ["LIP2", "LIP401"], ["LIP202"])) == [
        c for c in every if (c.startswith("LIP2") or c == "LIP401") and c != "LIP202"
    ]
    assert codes(_chosen(guidelines, [], ["LIP"])) == []
    for wrong in ("LIP999", "lip2", "X"):
        with pytest.raises(UsageError, match=wrong):
            _chosen(guidelines, [wrong], [])
        with pytest.raises(UsageError, match=wrong):
            _chosen(guidelines, [], [wrong])


def test_a_preview_guideline_runs_only_by_its_full_code(tmp_path: Path) -> None:
    write(tmp_path, status='"preview"')
    guidelines = load_guidelines([tmp_path])
    assert "ABC001" not in codes(_chosen(guidelines, [], []))
    assert "ABC001" not in codes(_chosen(guidelines, ["ABC"], []))
    assert codes(_chosen(guidelines, ["ABC001"], [])) == ["ABC001"]


def codes(guidelines: list[Guideline]) -> list[str]:
    return [guideline.code for guideline in guidelines]
