"""The command line: parse, call the API, set the exit code. The only place that catches errors.

Heavy modules are imported inside the commands, so that ``lipaudit --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipaudit.errors import LipauditError, UsageError

if TYPE_CHECKING:
    from lipaudit.outputs import Outputs

__all__ = ["app", "main"]

app = typer.Typer(
    name="lipaudit", no_args_is_help=True, add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Certified Lipschitz bounds, measured gains and stability findings for exported ONNX models.",
)  # fmt: skip

_SEVERITIES = ("note", "warning", "error")
_INTERRUPTED = 130
_state = {"verbose": False}


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show a traceback with an internal error.")] = False,
) -> None:
    _state["verbose"] = verbose
    if version:
        from lipaudit import __version__

        typer.echo(f"lipaudit {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


@app.command()
def audit(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=".onnx or .onnx.gz files, or - for standard input.")],
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="FORMAT=PATH", help="html, json, markdown or terminal; PATH - is standard output."),
    ] = None,
    boxes: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=LO:HI", help="Domain of an input; default: all reals.")
    ] = None,
    dim: Annotated[list[str] | None, typer.Option("--dim", metavar="NAME=N", help="Size of a symbolic dimension.")] = None,
    norm: Annotated[str, typer.Option(help="l2, l1 or linf.")] = "l2",
    effort: Annotated[str, typer.Option(help="quick (default), normal or thorough.")] = "quick",
    time_limit: Annotated[float | None, typer.Option(help="Seconds for the search of inputs.")] = None,
    validate: Annotated[bool, typer.Option("--validate/--no-validate", help="Run the model to measure gains.")] = True,
    inputs: Annotated[
        str | None, typer.Option("--inputs", metavar="FILE.npz", help="Real inputs by name, examples first: where the search starts.")
    ] = None,
    witness: Annotated[str | None, typer.Option("--witness", metavar="FILE.npz", help="Write the worst pair that was found.")] = None,
    replay: Annotated[
        str | None, typer.Option("--replay", metavar="FILE.npz", help="Evaluate the pair of --witness again; no search.")
    ] = None,
    no_isolate: Annotated[bool, typer.Option("--no-isolate", help="Measure in this process, not in a child under limits.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    select: Annotated[list[str] | None, typer.Option(help="Guideline codes or prefixes to report.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Guideline codes or prefixes to leave out.")] = None,
    fail_on: Annotated[str, typer.Option(help="error, warning, note or never.")] = "error",
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 although there are findings.")] = False,
    rules: Annotated[list[str] | None, typer.Option("--rules", metavar="DIR", help="A folder with further rules.")] = None,
) -> None:
    """Audit models: certified and measured gain, regions, findings.

    Exit codes: 0 nothing at or above --fail-on, 1 findings, 2 usage, 3 a model cannot be audited, 4 internal.
    """
    from lipaudit.outputs import check_path, parse_outputs, path_for

    if fail_on not in (*_SEVERITIES, "never"):
        raise UsageError(f"{fail_on!r} is not a value of --fail-on; choose one of error, warning, note, never.")
    outputs = parse_outputs(output or [], models)
    sizes = _sizes(dim or [])
    if len(models) > 1 and (inputs is not None or replay is not None):
        raise UsageError("--inputs and --replay belong to one model: audit the models one by one.")
    if witness is not None:
        check_path("--witness", witness, several=len(models) > 1)
    worst = 0
    for model in models:
        try:
            code = _audit_one(
                model, outputs, fail_on, boxes=boxes or [], dims=sizes, norm=norm, effort=effort, time_limit=time_limit,
                measure=validate, device=device, seed=seed, select=select or [], ignore=ignore or [], rules=rules or [],
                inputs=inputs, replay=replay, witness=None if witness is None else path_for(witness, model), isolate=not no_isolate,
            )  # fmt: skip
        except LipauditError as error:
            if len(models) == 1 or error.exit_code == UsageError.exit_code:
                raise
            _complain(error)
            code = error.exit_code
        if code == _INTERRUPTED:
            raise typer.Exit(code)
        worst = max(worst, 0 if exit_zero and code == 1 else code)
    raise typer.Exit(worst)


def _audit_one(model: str, outputs: Outputs, fail_on: str, **options: Any) -> int:
    from lipaudit.audit import audit as run
    from lipaudit.progress import Bar
    from lipaudit.report import render

    with Bar() as bar:
        result = run(model, progress=bar.update, keep_on_interrupt=True, **options)
    outputs.write(model, result, render)
    for found in result.contradictions:
        typer.echo(
            f"lipaudit: {model}: measured gain {found.measured} of {found.where} lies above its certified bound {found.certified}: "
            "this is a bug in lipaudit, please report it.",
            err=True,
        )
    if result.contradictions:
        return 4
    if result.provenance.stopped == "interrupted":
        typer.echo(f"lipaudit: {model}: interrupted; the measured numbers are what was known by then", err=True)
        return _INTERRUPTED
    if fail_on == "never":
        return 0
    floor = _SEVERITIES.index(fail_on)
    return int(any(_SEVERITIES.index(f.severity) >= floor and f.state == "new" for f in result.findings))


def _sizes(texts: list[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not (name and equals and number.isascii() and number.isdigit() and int(number) > 0):
            raise UsageError(f"--dim {text!r} is not of the form NAME=N with a whole number N >= 1.")
        sizes[name] = int(number)
    return sizes


@app.command()
def weights(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=".onnx or .onnx.gz file, or - for standard input.")],
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="FORMAT=PATH", help="html, json, markdown or terminal; PATH - is standard output."),
    ] = None,
    dim: Annotated[list[str] | None, typer.Option("--dim", metavar="NAME=N", help="Size of a symbolic dimension.")] = None,
    sort: Annotated[str, typer.Option(help="graph (default), norm, slack or size.")] = "graph",
    threads: Annotated[int | None, typer.Option(help="Weights looked at at the same time; the numbers do not depend on it.")] = None,
    rules: Annotated[list[str] | None, typer.Option("--rules", metavar="DIR", help="A folder with further rules.")] = None,
) -> None:
    """List the linear parts: norms of every weight from both sides, stable rank, smallest singular value.

    Exit codes: 0, or 1 if a weight holds values that are not finite; 2 usage, 3 the model cannot be read, 4 internal.
    """
    from lipaudit.outputs import parse_outputs
    from lipaudit.progress import Bar
    from lipaudit.report.weights import FORMATS, render
    from lipaudit.weights import weights as run

    outputs = parse_outputs(output or [], [model], FORMATS)
    with Bar(("load", "simplify", "weights")) as bar:
        found = run(model, dims=_sizes(dim or []), rules=rules or [], sort=sort, threads=threads, progress=bar.update)
    outputs.write(model, found, render)
    raise typer.Exit(int(any(row.nonfinite for row in found.weights)))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    why: Annotated[str | None, typer.Option("--why", metavar="NODE", help="Say why a node was not recognised as something.")] = None,
    dim: Annotated[list[str] | None, typer.Option("--dim", metavar="NAME=N", help="Size of a symbolic dimension.")] = None,
    rules: Annotated[list[str] | None, typer.Option("--rules", metavar="DIR", help="A folder with further rules.")] = None,
) -> None:
    """Print the region tree of a model: what was recognised, and why something was not."""
    from lipaudit.inspect import inspect_text

    typer.echo(inspect_text(model, dims=_sizes(dim or []), why=why, rules=rules or []))


@app.command()
def explain(
    subject: Annotated[str, typer.Argument(metavar="CODE|OPERATOR")],
    rules: Annotated[list[str] | None, typer.Option("--rules", metavar="DIR", help="A folder with further rules.")] = None,
) -> None:
    """Explain a guideline (LIP201) or the rule of an operator (Softmax, com.microsoft::Attention)."""
    from lipaudit.explain import explain as text

    typer.echo(text(subject, rules or []))


@app.command()
def rules() -> None:
    """List the guidelines and the operators that have a rule."""
    from lipaudit.explain import listing

    typer.echo(listing())


@app.command()
def doctor() -> None:
    """Check this installation: libraries, the device that really runs, the numerical model."""
    from lipaudit.doctor import report

    text, healthy = report()
    typer.echo(text)
    raise typer.Exit(0 if healthy else 4)


def _complain(error: LipauditError) -> None:
    typer.echo(f"lipaudit: {_printable(str(error))}", err=True)


def _printable(text: str) -> str:
    """Names come from strangers' files: control characters are shown, not sent to the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main() -> None:
    """Entry point of the ``lipaudit`` command."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # one BLAS thread: results do not depend on the machine's cores
    try:
        code = app(standalone_mode=False)
    except LipauditError as error:
        if _state["verbose"]:
            traceback.print_exc()
        _complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("lipaudit: interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if _is_usage(error):
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        if _state["verbose"]:
            traceback.print_exc()
        typer.echo(f"lipaudit: internal error: {type(error).__name__}: {_printable(str(error))} (--verbose shows where)", err=True)
        sys.exit(4)
    sys.exit(code if isinstance(code, int) else 0)


def _is_usage(error: Exception) -> bool:
    """Errors of the command-line parser itself (typer vendors its own click, so they are told by their face)."""
    return hasattr(error, "show") and hasattr(error, "exit_code")


if __name__ == "__main__":
    main()
