from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import msgspec
import pytest

from lipaudit.errors import ModelError
from lipaudit.records import Audit
from lipaudit.report.json import render
from lipaudit.report.schema import published_schema, schema
from tests.report import audits


def strict(text: str) -> Any:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("case", list(audits.ALL))
def test_json_is_valid_and_fits_the_schema(case: str) -> None:
    found = strict(render(audits.ALL[case]()))
    schema = json.loads(published_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(found)


def test_the_published_schema_is_up_to_date() -> None:
    assert json.loads(published_schema()) == schema(), "run: python -m lipaudit.report.schema > lipaudit/report/audit.schema.json"


def test_the_schema_refuses_what_is_no_audit() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    found = strict(render(audits.audit()))
    for change in ({"schema": "lipaudit.audit/2"}, {"norm": "l3"}, {"surprise": 1}, {"certified": {"status": "maybe"}}):
        assert not validator.is_valid(found | change), change
    del found["findings"]
    assert not validator.is_valid(found)


def test_an_audit_comes_back_equal() -> None:
    assert msgspec.json.decode(render(audits.audit()), type=Audit) == audits.audit()


def test_infinite_facts_become_text_and_infinite_numbers_of_the_contract_null() -> None:
    shown = audits.audit(
        regions=[
            audits.region(
                "r", "linear", 1.0, None, facts={"a": {"up": math.inf, "down": [-math.inf], "no": math.nan}}, after_log10=math.inf
            )
        ]
    )
    found = strict(render(shown))["regions"][0]
    assert found["facts"] == {"a": {"up": "inf", "down": ["-inf"], "no": "nan"}}
    assert found["after_log10"] is None


def test_facts_are_sorted_whatever_the_order_they_came_in() -> None:
    one = audits.audit(regions=[audits.region("r", "linear", 1.0, None, facts={"b": 1, "a": 2})])
    two = audits.audit(regions=[audits.region("r", "linear", 1.0, None, facts={"a": 2, "b": 1})])
    assert render(one) == render(two)


def test_nesting_beyond_json_is_an_error_in_words() -> None:
    with pytest.raises(ModelError, match="nested too deeply"):
        render(audits.deep(5000))


def test_json_is_indented_by_two() -> None:
    assert render(audits.audit()).startswith('{\n  "schema": "lipaudit.audit/1",\n  "model": {\n    "path"')
