"""The project's own promises about itself: one runtime, one index, links and commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "samples/README.md", "CHANGELOG.md")
PLATFORMS = [
    (system, machine)
    for system in ("linux", "darwin", "win32")
    for machine in ("x86_64", "aarch64", "arm64", "AMD64", "ARM64", "ppc64le")
]  # fmt: skip


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize(("system", "machine"), PLATFORMS)
def test_exactly_one_onnxruntime_on_each_platform(system: str, machine: str) -> None:
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    runtimes = [text for text in dependencies if text.startswith("onnxruntime")]
    assert len(runtimes) == 2
    environment = {"sys_platform": system, "platform_machine": machine}
    chosen = [text.split(">")[0] for text in runtimes if Marker(text.split(";")[1].strip()).evaluate(environment)]
    has_cuda_wheel = (system, machine) in {("linux", "x86_64"), ("win32", "AMD64")}
    assert chosen == ["onnxruntime-gpu" if has_cuda_wheel else "onnxruntime"]


def test_cuda_extra_never_adds_a_second_runtime() -> None:
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    (cuda,) = extras["cuda"]
    marker = Marker(cuda.split(";")[1].strip())
    chosen = {(system, machine) for system, machine in PLATFORMS if marker.evaluate({"sys_platform": system, "platform_machine": machine})}
    assert chosen == {("linux", "x86_64"), ("win32", "AMD64")}


def test_lock_file_pins_everything_with_hashes_and_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 40
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9._-]*(\[[a-z,]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [target for target in targets if not target.startswith("http") and not (path.parent / target).exists()]
    assert missing == []


def test_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named >= {"demo", "test"}
    assert named <= targets


def run_help(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "lipaudit", *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_readme_lists_every_command_and_every_audit_option() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`lipaudit ([a-z]+)", readme))
    listed = run_help().split("Commands:")[1]
    commands = set(re.findall(r"^  ([a-z]+) ", listed, re.MULTILINE))
    assert named == commands
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", run_help("audit"))) - {"--help", "--validate", "--output"}
    table = readme.split("Options of `audit`")[1].split("Exit codes:")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", table)) - {"--help"} == options
