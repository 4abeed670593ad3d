"""The catalogue as a whole: files load, classes exist and are named, operators exist, the frequent ones are there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

import lipaudit.operators
from lipaudit.errors import UsageError
from lipaudit.graph.ir import Node
from lipaudit.operators.base import Rule
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.elementwise import Scalar
from lipaudit.operators.stated import StatedGains
from lipaudit.resources import rules_dir
from tests.rules.entries import CATALOGUE, CUSTOM, KINDS, SCALAR, schema_domain, versions

_SPEC = importlib.util.spec_from_file_location("operator_table", Path(__file__).parents[2] / "tools" / "operator_table.py")
assert _SPEC is not None and _SPEC.loader is not None
operator_table = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(operator_table)

# Counted over 110 real models and 70 exports, most frequent first.
FREQUENT = [
    "Add", "Reshape", "MatMul", "Transpose", "Relu", "Conv", "Mul", "Concat", "Gather", "Gemm", "Slice", "Unsqueeze", "Softmax",
    "Cast", "Div", "Shape", "ConstantOfShape", "Sigmoid", "Where", "LayerNormalization", "Expand", "Flatten", "Equal", "MaxPool",
    "ReduceMean", "Sub", "Identity", "Pow", "And", "Squeeze", "Sqrt", "Tanh", "Erf", "Split", "BatchNormalization", "Range",
    "Neg", "IsNaN", "AveragePool", "ReduceSum", "GatherND", "Attention", "Pad", "Resize", "GlobalAveragePool",
    "DequantizeLinear", "Clip", "Gelu", "LSTM", "ConvTranspose", "Cos", "Reciprocal", "Not", "Greater", "GreaterOrEqual", "Sin",
    "QuantizeLinear", "MatMulInteger", "DynamicQuantizeLinear", "Less", "ArgMax", "Dropout", "Exp", "LessOrEqual",
    "RMSNormalization", "Log",
]  # fmt: skip
# Operators of early versions that onnx no longer ships a schema for.
RETIRED = {"ai.onnx::Affine", "ai.onnx::ParametricSoftplus", "ai.onnx::ScaledTanh", "ai.onnx::SimplifiedLayerNormalization"}


def node(kind: str, version: int = 0) -> Node:
    domain, op = schema_domain(kind)
    return Node("n", op, (), (), domain, version)


@pytest.mark.parametrize("kind", KINDS)
def test_entry_loads_and_has_a_rule(kind: str) -> None:
    entry = CATALOGUE.entries[kind]
    assert entry.op == kind
    if entry.function:  # replaced by the nodes of its definition before rules are asked
        assert CATALOGUE.rule(node(kind)) is None and CATALOGUE.operators().function(node(kind)) is not None
    else:
        assert isinstance(CATALOGUE.rule(node(kind)), Rule)
    assert entry.citations(), "a rule says where its constant is from"
    assert entry.describe()


def test_index_by_first_line_agrees_with_the_files() -> None:
    files = [path for path in (rules_dir() / "operators").rglob("*.toml") if path.name != "not-supported.toml"]
    assert len(files) == len(CATALOGUE.entries)
    for kind, path in CATALOGUE.entries.files.items():
        assert CATALOGUE.entries[kind].op == kind, path


def test_every_rule_class_is_named_by_an_entry() -> None:
    named = {CATALOGUE.entries[kind].rule for kind in KINDS}
    missing = []
    for module in pkgutil.iter_modules(lipaudit.operators.__path__):
        found = importlib.import_module(f"lipaudit.operators.{module.name}")
        for name, value in vars(found).items():
            own = inspect.isclass(value) and issubclass(value, Rule) and value.__module__ == found.__name__
            if own and value not in (Scalar, StatedGains) and not inspect.isabstract(value) and f"{module.name}:{name}" not in named:
                missing.append(f"{module.name}:{name}")
    shared = {name for name in missing if _has_subclass(name)}
    assert set(missing) - shared == set()


def _has_subclass(name: str) -> bool:
    module, _, cls = name.partition(":")
    return bool(getattr(importlib.import_module(f"lipaudit.operators.{module}"), cls).__subclasses__())


@pytest.mark.parametrize("kind", [*KINDS, *CATALOGUE.refusals])
def test_operator_exists(kind: str) -> None:
    assert versions(kind) or schema_domain(kind)[0].startswith(CUSTOM) or kind in RETIRED


def test_nothing_is_both_ruled_and_refused() -> None:
    assert not CATALOGUE.refusals.keys() & CATALOGUE.entries.keys()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if versions(kind)])
def test_rule_covers_all_versions_from_since_on(kind: str) -> None:
    since = CATALOGUE.entries[kind].since
    assert since <= versions(kind)[-1]
    newest = node(kind, versions(kind)[-1])
    assert CATALOGUE.rule(newest) is not None or CATALOGUE.operators().function(newest) is not None
    if since > 1:
        assert CATALOGUE.rule(node(kind, since - 1)) is None


@pytest.mark.parametrize("op", FREQUENT)
def test_frequent_operator_has_a_rule(op: str) -> None:
    kind = f"ai.onnx::{op}"
    assert CATALOGUE.entry(kind) is not None


def test_coverage_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    """Every operator of the installed onnx has a rule or a stated reason; nothing in the catalogue is made up. Prints the counts."""
    shipped = sorted(operator_table.shipped())
    open_ = [kind for kind in shipped if kind not in CATALOGUE.entries and kind not in CATALOGUE.refusals]
    with capsys.disabled():
        for domain in sorted({kind.split("::")[0] for kind in shipped}):
            own = [kind for kind in shipped if kind.startswith(f"{domain}::")]
            ruled, refused = sum(kind in CATALOGUE.entries for kind in own), sum(kind in CATALOGUE.refusals for kind in own)
            print(f"\n{domain}: {len(own)} operators, {ruled} with a rule, {refused} refused with a reason", end="")
    assert len(shipped) > 200
    assert not open_
    runtime = {f"{schema.domain or 'ai.onnx'}::{schema.name}" for schema in get_all_operator_schema()}
    known = {*shipped, *runtime, *RETIRED}
    made_up = [
        kind
        for kind in (*CATALOGUE.entries, *CATALOGUE.refusals)
        if kind not in known and not kind.startswith(("lipaudit::", "com.microsoft.extensions::"))
    ]
    assert not made_up


def test_the_table_in_the_docs_is_current() -> None:
    assert operator_table.PAGE.read_text(encoding="utf-8") == operator_table.page(), "run tools/operator_table.py"


def test_scalar_operators_are_one_file_each() -> None:
    assert len(SCALAR) >= 45


def write(folder: Path, text: str, name: str = "own.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


GOOD = 'op = "acme::Soft"\ncite = "mine"\nformula = "x/(1 + abs(x))"\nslope = ["0", "1"]\nkinks = ["0"]\n'


def test_user_folder_adds_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    other = write(tmp_path, GOOD.replace("acme::Soft", "ai.onnx::Relu"), "relu.toml")
    found = Catalogue.load([tmp_path])
    assert found.user_files == [path, other]
    assert found.entry("acme::Soft") is not None
    relu = found.entry("ai.onnx::Relu")
    assert relu is not None and relu.cite == "mine"
    assert isinstance(found.rule(node("acme::Soft")), Scalar)


def test_user_folder_may_lift_a_refusal(tmp_path: Path) -> None:
    write(tmp_path, '"acme::Other" = "no meaning"\n', "not-supported.toml")
    write(tmp_path, GOOD.replace("acme::Soft", "ai.onnx::NonZero"))
    found = Catalogue.load([tmp_path])
    assert found.refusal("acme::Other") == "no meaning"
    assert found.refusal("ai.onnx::NonZero") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("op = ", "not valid TOML"),
        ('slope = ["0", "1"]', "missing required field `op`"),
        (GOOD + "colour = 3\n", "unknown field `colour`"),
        (GOOD.replace("acme::Soft", "Soft"), "domain::name"),
        (GOOD.replace('["0", "1"]', "[0, 1]"), "slope"),
        (GOOD.replace('["0", "1"]', '["0", "2*"]'), "ends too early"),
        (GOOD.replace("1 + abs(x)", "1 + open(x)"), "unknown function 'open'"),
        (GOOD.replace("1 + abs(x)", "1 + x.__class__"), "unexpected"),
        (GOOD.replace('["0", "1"]', '["0", "x"]'), "slope must not depend on x"),
        ('op = "acme::A"\ncite = "c"\n', "either a rule or a slope"),
        ('op = "acme::A"\nrule = "os:system"\n', "module:Class"),
        ('op = "acme::A"\nrule = "../x:Y"\n', "module:Class"),
        (GOOD + "[[case]]\nrefuse = 'no'\n", "would always apply"),
        ('formula = "' + "(" * 200 + 'x"', "missing required field"),
        (GOOD.replace("x/(1 + abs(x))", "(" * 200 + "x" + ")" * 200), "nested too deeply"),
        (GOOD.replace("x/(1 + abs(x))", "x" + " + x" * 300), "at most"),
        (GOOD.replace("x/(1 + abs(x))", "x**1000"), "small integers"),
    ],
)
def test_bad_user_files_are_refused_with_file_and_reason(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        Catalogue.load([tmp_path])
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_other_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        Catalogue.load([tmp_path / "missing"])
    write(tmp_path, "#" * 1_000_001)
    with pytest.raises(UsageError, match="larger than"):
        Catalogue.load([tmp_path])
    write(tmp_path, GOOD)
    write(tmp_path, GOOD, "twice.toml")
    with pytest.raises(UsageError, match="also defined"):
        Catalogue.load([tmp_path])
    (tmp_path / "twice.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        Catalogue.load([tmp_path])
    write(tmp_path, 'op = "acme::A"\nrule = "arithmetic:Nothing"\n', "twice.toml")
    with pytest.raises(UsageError, match="names no class"):
        Catalogue.load([tmp_path]).rule(node("acme::A"))
    write(tmp_path, '"acme" = 3\n', "not-supported.toml")
    with pytest.raises(UsageError, match="not-supported"):
        Catalogue.load([tmp_path])
