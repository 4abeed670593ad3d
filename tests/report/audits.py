"""Hand-built audits that every renderer is tested on."""

from __future__ import annotations

import math
from typing import Any

from lipaudit.records import (
    Audit,
    Certified,
    Cited,
    Contradiction,
    Domain,
    Finding,
    InputBox,
    LocalGains,
    MatrixEntry,
    Measured,
    Model,
    OperatorUse,
    Provenance,
    ReasonRecord,
    Region,
    Skipped,
    Step,
    TensorType,
)

TAG = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(2)</script>"
REVERSED = "abc\u202egpj.exe"
CONTROL = "a\x1b]0;title\x07b\x00c\nd\u2028e\x9bm"
MARKUP = "[bold]@someone `tick` |pipe| ![x](http://example.invalid/y)[/x]"
LONG = "n" * 10_000
HOSTILE = (TAG, SCRIPT, REVERSED, CONTROL, MARKUP, LONG)


def certified(upper: str, log10: float | None, **more: Any) -> Certified:
    return Certified(status="finite", upper=upper, log10=log10, offset=more.pop("offset", "0"), method=more.pop("method", "paths"), **more)


def measured(lower: str, log10: float | None) -> Measured:
    return Measured(
        status="measured",
        lower=lower,
        log10=log10,
        device="cpu",
        method="random directions, then ascent; confirmed in float64",
        witness={"seed": 0, "start": 3, "distance": "1.0e-03"},
    )


NOT_MEASURED = Measured(status="not-measured", reason="not asked for")


def region(path: str, kind: str, gain: float | None, seen: float | None, **more: Any) -> Region:
    return Region(
        path=path,
        kind=kind,
        nodes=more.pop("nodes", [f"{path}/{i}" for i in range(3)]),
        entries=["x"],
        exit=f"{path}.out",
        certified=more.pop("bound", None) or certified(f"{10 ** (gain or 0):.4e}", gain),
        measured=NOT_MEASURED if seen is None else measured(f"{10**seen:.4e}", seen),
        facts=more.pop("facts", {}),
        children=more.pop("children", []),
        **more,
    )


def blocks(number: int) -> list[Region]:
    """Residual blocks of three leaves each, with made-up numbers that vary."""
    made: list[Region] = []
    leaf_sum = sum(0.3 + 0.2 * math.sin(i) + 0.4 for i in range(number))
    for i in range(number):
        before, own = 0.9 * i, 0.3 + 0.2 * math.sin(i)
        after = 0.9 * (number - 1 - i)
        parts = [
            region(
                f"blocks.{i}.norm",
                "normalization",
                -0.2,
                -0.4,
                facts={"norm": {"kind": "layer", "width": 64, "epsilon": 1e-5, "scale_max": None}},
                before_log10=before,
                after_log10=after + 0.6,
                share=0.0,
            ),
            region(
                f"blocks.{i}.mlp.fc1", "linear", own, own - 0.5, before_log10=before + 0.2, after_log10=after + 0.4, share=own / leaf_sum
            ),
            region(f"blocks.{i}.mlp.fc2", "linear", 0.4, 0.1, before_log10=before + 0.5, after_log10=after, share=0.4 / leaf_sum),
        ]
        made.append(
            region(
                f"blocks.{i}",
                "residual",
                own + 0.5,
                own,
                children=parts,
                before_log10=before,
                after_log10=after,
                facts={"residual": {"branch_zero": False, "norm_position": "pre"}, "region": {"run_without_shortcut": 2}},
            )
        )
    return made


def finding(code: str, severity: str, message: str, **more: Any) -> Finding:
    return Finding(
        code=code,
        name=more.pop("name", "normalization-epsilon-oversized"),
        severity=severity,  # type: ignore[arg-type]
        region=more.pop("region", "blocks.1"),
        node=more.pop("node", ""),
        message=message,
        why="An epsilon of this size is no guard against division by zero any more: it rescales the output.",
        fix="Name the argument. PyTorch: `nn.BatchNorm2d(channels, momentum=0.2)`; JAX: `flax.linen.BatchNorm(epsilon=1e-5)`.",
        facts=more.pop("facts", {"norm.epsilon": 0.8, "p.max": 0.05}),
        cite=[Cited("gan116", "PyTorch-GAN. Issue 116: epsilon 0.8 in batch normalization. eriklindernoren/PyTorch-GAN. 2020")],
        **more,
    )


def steps(number: int) -> list[Step]:
    made = [
        Step(
            i,
            "gain",
            f"blocks.{i}.mlp.fc1",
            "ai.onnx::Gemm",
            [],
            f"{1 + i}",
            [str(1 + i), "0"],
            evidence={"input": 0, "method": "Cholesky", "sides": [64, 32]},
        )
        for i in range(number)
    ]
    made.append(Step(number, "gain", "x -> y", "paths over the region tree", list(range(number)), "7.2501e+03", ["58001", "-3"]))
    made.append(
        Step(number + 1, "gain", "all sources -> all outputs", "l2 norm of the matrix of gains", [number], "7.2501e+03", ["58001", "-3"])
    )
    return made


def audit(**more: Any) -> Audit:
    """A tidy audit of a small network; keywords replace fields."""
    derivation = more.pop("derivation", steps(12))
    fields: dict[str, Any] = {
        "schema": "lipaudit.audit/1",
        "model": Model(
            path="models/classifier.onnx",
            sha256="0f" * 32,
            nodes=126,
            parameters=11_689_512,
            opset={"": 17, "com.microsoft": 1},
            inputs=[TensorType("x", "float32", [1, 3, 32, 32], True), TensorType("ids", "int64", [1, 8])],
            outputs=[TensorType("y", "float32", [1, 10])],
            pinned_dims={"batch": 1},
            ir_version=9,
            producer="pytorch 2.4",
        ),
        "domain": Domain("box", [InputBox("x", "0", "1")], notes=["dimension batch pinned to 1"]),
        "norm": "l2",
        "certified": certified("7.2501e+03", 3.86035, step=len(derivation) - 1),
        "measured": measured("3.1e+01", 1.49136),
        "matrix": [MatrixEntry("x", "y", certified("7.2501e+03", 3.86035), measured("3.1e+01", 1.49136))],
        "regions": [
            region("stem", "stem", 0.7, 0.4, before_log10=0.0, after_log10=3.1, share=0.1),
            *blocks(4),
            region("head", "head", 0.2, 0.1, before_log10=3.6, after_log10=0.0, share=0.05),
        ],
        "operators": [
            OperatorUse("ai.onnx::Gemm", 9, "verified norm of the weight matrix"),
            OperatorUse("ai.onnx::Relu", 8, "slope in [0, 1]"),
        ],
        "skipped": [],
        "findings": [
            finding("LIP202", "warning", "blocks.1.norm: epsilon 0.8 of a batch normalization", node="bn_1"),
            finding("LIP202", "warning", "blocks.2.norm: epsilon 0.8 of a batch normalization", node="bn_2"),
        ],
        "derivation": derivation,
        "provenance": Provenance(
            "0.1.0",
            "0.1.0",
            "ab" * 32,
            {"numpy": "2.4.0", "onnx": "1.20.0"},
            "cpu",
            0,
            {"norm": "l2", "effort": "normal", "dim": {}, "input": {"x": "0:1"}, "select": []},
        ),
    }
    fields["local_gains"] = LocalGains(33, {"0.1": 1.2, "0.5": 2.5, "0.9": 7.04, "1": 9.5}, 12.3, 8)
    return Audit(**(fields | more))


def hostile() -> Audit:
    """Attacker's text wherever a model can put it, several sources and outputs, numbers far beyond a double."""
    tree = [
        region(text, f"kind {TAG}", 0.5 * i, None, nodes=[text], facts={"norm": {"kind": text, "width": math.inf}}, share=0.1, reason=text)
        for i, text in enumerate(HOSTILE)
    ]
    bound = certified("2.2387e+812345", 812345.35, offset="3.5", method=TAG)
    pairs = [MatrixEntry(text, TAG, bound, NOT_MEASURED) for text in HOSTILE]
    model = Model(
        path=f"/tmp/{TAG}/{TAG}{REVERSED}.onnx",
        sha256="00" * 32,
        nodes=1,
        parameters=1,
        opset={TAG: 1},
        inputs=[TensorType(text, TAG, [1, 2], True) for text in HOSTILE],
        outputs=[TensorType(TAG, "float32", None)],
        pinned_dims={SCRIPT: 1},
        producer=CONTROL,
    )
    return audit(
        model=model,
        domain=Domain("box", [InputBox(TAG, "-1e3", "1/3")], notes=[f"dimension {SCRIPT} pinned to 1", LONG]),
        norm="linf",
        certified=msgspec_replace(bound, step=1),
        measured=measured("1.0e-12", -12.0),
        matrix=pairs,
        regions=tree,
        operators=[OperatorUse(f"{TAG}::{SCRIPT}", 2, TAG, LONG)],
        skipped=[Skipped(CONTROL, TAG, SCRIPT, REVERSED), Skipped(MARKUP, TAG, SCRIPT, REVERSED)],
        findings=[
            finding("LIP701", severity, text, node=text, region=text, facts={"node.name": text, "x": math.nan})
            for severity in ("note", "error", "warning")
            for text in HOSTILE
        ],
        derivation=[
            Step(0, TAG, SCRIPT, MARKUP, [], "inf", None, "inf", {TAG: SCRIPT, "list": [1.5, math.inf]}),
            Step(1, "gain", LONG, CONTROL, [0], "5", ["5", "0"]),
        ],
        provenance=Provenance("0.1.0", "0.1.0", "ab" * 32, {TAG: CONTROL}, CONTROL, 0, {"input": {TAG: "0:1"}}),
        user_rules=[TAG],
        contradictions=[Contradiction(TAG, "1.0", "2.0")],
    )


def unbounded() -> Audit:
    """No finite number anywhere, nothing measured."""
    why = [
        ReasonRecord(f"attn_{i}", "ai.onnx::Softmax", "the scores of dot-product attention are unbounded on all reals", "unbounded")
        for i in range(14)
    ]
    bound = Certified("unbounded", reasons=why)
    return audit(
        domain=Domain("reals"),
        certified=bound,
        measured=Measured("not-measured", reason="the runtime refused the graph"),
        local_gains=None,
        matrix=[],
        regions=[region("attn", "attention", None, None, bound=bound)],
        findings=[],
        derivation=[],
        skipped=[Skipped("q", "custom::Quant", "no rule for this operator", "gains through it are unknown")],
    )


def unknown() -> Audit:
    return audit(
        certified=Certified("unknown", reasons=[ReasonRecord("q", "custom::Quant", "no rule", "unknown")]),
        measured=measured("2.5", 0.3979),
        findings=[],
    )


def bare() -> Audit:
    """No regions, no operators, no inputs: a graph that returns a constant."""
    model = Model("-", "00" * 32, 0, 0, {}, [], [TensorType("y", "float32", [1])], {})
    return audit(
        model=model,
        domain=Domain("reals"),
        certified=certified("0", None),
        measured=Measured("measured", "0", None, "cpu"),
        matrix=[],
        regions=[],
        operators=[],
        findings=[],
        derivation=[],
    )


def deep(levels: int) -> Audit:
    """Regions nested ``levels`` deep."""
    inner = region("leaf", "linear", 0.1, None)
    for i in range(levels - 1):
        inner = region(f"level.{i}", "block", 0.1, None, children=[inner])
    return audit(regions=[inner])


def large() -> Audit:
    """120 blocks, 3000 steps, many findings."""
    many = [finding("LIP202", "warning", f"blocks.{i}: epsilon 0.8 of a batch normalization") for i in range(80)]
    return audit(regions=blocks(120), findings=many, derivation=steps(3000), certified=certified("1e+70", 70.0, step=3001))


def msgspec_replace(record: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(record, **changes)


ALL = {"tidy": audit, "hostile": hostile, "unbounded": unbounded, "unknown": unknown, "bare": bare, "large": large}
