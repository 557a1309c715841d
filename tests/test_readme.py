"""What the README says is so: every script and flag is in it, every command in it runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT, clean_environment

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(
    path.name for path in ROOT.glob("*.py") if path.stem not in ("config", "dspy_pipeline")
)


@cache
def help_of(name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / name), "--help"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.py")))
def test_every_module_at_the_root_is_named(name: str) -> None:
    assert name in README


@pytest.mark.parametrize(
    "path", sorted((ROOT / "question_optimizer").iterdir()), ids=lambda p: p.name
)
def test_every_part_of_the_package_is_named(path: Path) -> None:
    if not path.name.startswith("__"):
        assert path.name in README


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_documented(name: str) -> None:
    flags = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", help_of(name))) - {"--help"}
    assert [flag for flag in sorted(flags) if flag not in README] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_flag_in_the_readme_is_made_up(name: str) -> None:
    for line in README.splitlines():
        if re.search(rf"python {name}\b", line):
            for flag in re.findall(r"--[a-z][a-z-]+", line):
                assert flag in help_of(name)


def test_every_command_of_the_step_by_step_part_runs(tmp_path: Path) -> None:
    part = next(block for block in blocks("sh") if "data/tryout" in block)
    for entry in ("data", "question_optimizer", *(path.name for path in ROOT.glob("*.py"))):
        source = ROOT / entry
        if source.is_dir():
            ignored = shutil.ignore_patterns("demo", "__pycache__", "tryout*")
            shutil.copytree(source, tmp_path / entry, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / entry)
    environment = clean_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", part],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert (
        "200 chunks (for a rehearsal; the chunks are real) -> data/tryout-files/raw_chunks.jsonl"
        in said
    )
    assert (
        "73 gold questions (suggestions by the rehearsal) -> data/tryout-files/gold_dataset.json"
        in said
    )
    assert "20 questions generated (rehearsal), 20 chunks written back" in said


def test_the_other_commands_are_targets_and_files_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    for copied in re.findall(r"^cp (\S+)", "\n".join(blocks("sh")), re.M):
        if copied != "-R":
            assert (ROOT / copied).exists()
    for linked in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / linked).exists(), linked


def test_make_demo_make_test_and_ci_are_one_path() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in ci and "make lint" in ci
    for target in ("demo", "test", "lint"):
        assert re.search(rf"^{target}: \$\(STAMP\)", makefile, re.M)


def test_python_examples_of_the_readme_name_what_exists() -> None:
    import inspect

    from optimized_question_generator import OptimizedQuestionGenerator

    known = set(inspect.signature(OptimizedQuestionGenerator).parameters)
    example = next(block for block in blocks("python") if "generate()" in block)
    used = set(re.findall(r"^    (\w+)=", example, re.M))
    assert used and used <= known
    for block in blocks("python"):
        compile(f"async def example():\n{re.sub('^', '    ', block, flags=re.M)}", "README", "exec")
