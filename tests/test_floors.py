"""Imports go down the floors only, and heavy libraries wait until they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT, clean_environment

PHASES = (
    *("fetch_chunks", "annotate_chunks", "optimize_pipeline", "evaluate_pipeline"),
    "export_questions",
)
DSPY_STOREY = ("dspy_signatures", "dspy_pipeline", "custom_lm", "optimized_question_generator")
HEAVY = (
    *("dspy", "qdrant_client", "torch", "sentence_transformers", "openai", "anthropic", "numpy"),
    *("datasets", "pyarrow", "ray"),
)
SCRIPTS = (*PHASES, *(name for name in DSPY_STOREY if name != "dspy_pipeline"))


def floor_of(module: str) -> int:
    """The floor a module of ours stands on."""
    parts = module.split(".")
    if parts[0] in PHASES:
        return 5
    if parts[0] == "config":
        return 4
    if parts[0] in DSPY_STOREY or parts[:2] == ["question_optimizer", "programs"]:
        return 3
    if parts[:2] == ["question_optimizer", "reports"]:
        return 2
    if module in ("question_optimizer", "question_optimizer.errors", "question_optimizer.records"):
        return 0
    return 1


def our_modules() -> dict[str, Path]:
    found = {path.stem: path for path in ROOT.glob("*.py")}
    for path in (ROOT / "question_optimizer").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, *, deferred: bool) -> set[str]:
    """Modules imported by a file; with `deferred` also inside functions, guards and type checks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if deferred else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours_among(names: set[str]) -> set[str]:
    known = our_modules()
    return {name for name in names if name in known}


@pytest.mark.parametrize("module", sorted(our_modules()))
def test_imports_go_down(module: str) -> None:
    path = our_modules()[module]
    for imported in ours_among(imports(path, deferred=False)):
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported} upward"
    if floor_of(module) <= 2:  # not even later: the lower floors never reach up
        for imported in ours_among(imports(path, deferred=True)):
            assert floor_of(imported) <= floor_of(module), f"{module} reaches up to {imported}"


@pytest.mark.parametrize("module", sorted(our_modules()))
def test_phases_meet_only_in_files(module: str) -> None:
    imported = ours_among(imports(our_modules()[module], deferred=True))
    assert not imported & set(PHASES), f"{module} imports a phase"


@pytest.mark.parametrize("module", sorted(our_modules()))
def test_what_a_host_imports_never_reads_config_at_import(module: str) -> None:
    if floor_of(module) <= 3:
        assert "config" not in imports(our_modules()[module], deferred=False)


@pytest.mark.parametrize("module", sorted(our_modules()))
def test_flat_modules_are_imported_by_name_so_that_a_clash_names_the_culprit(module: str) -> None:
    tree = ast.parse(our_modules()[module].read_text(encoding="utf-8"))
    flat = {path.stem for path in ROOT.glob("*.py")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & flat


def test_no_circles_on_one_floor() -> None:
    graph = {
        module: ours_among(imports(path, deferred=True)) - {module}
        for module, path in our_modules().items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join([*trail, module])}"
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_needs_no_key_no_network_and_no_heavy_library(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / f"{name}.py"), "--help"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    docstring = ast.get_docstring(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8")))
    assert done.returncode == 0
    assert docstring is not None and docstring.splitlines()[0] in done.stdout
    assert not loaded & set(HEAVY)
    assert list(tmp_path.iterdir()) == []


def test_the_distribution_holds_the_package_and_the_host_modules_and_nothing_else() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "question_optimizer").rglob("__init__.py")
    }
    assert set(setup["tool"]["setuptools"]["packages"]) == packages
    assert set(setup["tool"]["setuptools"]["py-modules"]) == set(DSPY_STOREY)
