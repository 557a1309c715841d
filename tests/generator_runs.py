"""What the tests of the generator share: a generator, a pipeline that a test writes for, a corpus
of a few chunks, and the script run in this process (DSPy takes three seconds to import)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conftest import COLLECTION, ROOT
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.providers import LLMClientConfig, rehearsal_account

SUBJECTS = (
    "brake pads pantograph bogie coupler compressor gearbox transformer inverter toilet horn "
    "window seat ladder bumper sander wiper mirror antenna battery fuse relay contactor breaker "
    "fan filter radiator pump valve pipe gauge thermostat heater damper spring axle wheel bearing"
).split()
_CAUSES = "friction corrosion vibration overheating fatigue moisture misalignment leakage".split()


def text_of(number: int) -> str:
    subject, cause = SUBJECTS[number % len(SUBJECTS)], _CAUSES[number % len(_CAUSES)]
    return f"The {subject} of unit {number} wears by {cause} and is inspected by hand."


def corpus(folder: Path, count: int, *, name: str = "units", **payloads: dict[str, Any]) -> Path:
    """A Qdrant folder of `count` chunks, each about something else; `payloads` by id with a p
    before it (p1={…}) are added."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder))
    try:
        size = models.VectorParams(size=2, distance=models.Distance.COSINE)
        client.create_collection(name, vectors_config=size)
        client.upsert(
            name,
            [
                models.PointStruct(
                    id=number,
                    vector=[1.0, number / count],
                    payload={
                        "text": text_of(number),
                        "file_name": f"manual-{number % 3}.pdf",
                        **payloads.get(f"p{number}", {}),
                    },
                )
                for number in range(1, count + 1)
            ],
        )
    finally:
        client.close()
    return folder


def change(folder: Path, payload: dict[str, Any], *ids: int, name: str = "units") -> None:
    """Set payload keys of points, as a host does while no generator runs."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder))
    try:
        client.set_payload(name, payload, points=list(ids))
    finally:
        client.close()


def payloads(folder: Path, name: str | None = None) -> dict[Any, dict[str, Any]]:
    """{id: payload} of the only collection, or of the one named."""
    from question_optimizer.qdrant_folder import QdrantFolder

    with QdrantFolder(folder, name) as store:
        return dict(store.payloads(store.point_ids()))


def questions(folder: Path) -> dict[Any, str]:
    """{id: its question} of the points that have one."""
    return {
        point_id: payload["generated_query"]
        for point_id, payload in payloads(folder).items()
        if "generated_query" in payload
    }


class Asked(NamedTuple):
    """One call of a pipeline's second step."""

    chunk_text: str
    query_type: str
    query_format: str
    advice: str


class Scripted:
    """A pipeline whose questions a test writes: `write(asked, n)` for the n-th question of a chunk.

    By default a question that passes every gate. `state` is what it would be saved as.
    """

    def __init__(
        self, write: Callable[[Asked, int], str] | None = None, *, state: str = "scripted"
    ):
        self.state = state
        self.analysed: list[str] = []
        self.asked: list[Asked] = []
        self._write = write or good_question

    def dump_state(self) -> dict[str, str]:
        return {"state": self.state}

    async def analyse(self, chunk_text: str, persona_description: str) -> tuple[str, str]:
        self.analysed.append(chunk_text)
        return "fact retrieval", "formal question"

    async def write(
        self,
        chunk_text: str,
        persona_description: str,
        query_type: str,
        query_format: str,
        *,
        advice: str = "",
    ) -> str:
        asked = Asked(chunk_text, str(query_type), str(query_format), advice)
        number = sum(before.chunk_text == chunk_text for before in self.asked)
        self.asked.append(asked)
        return self._write(asked, number)

    def per_chunk(self) -> list[int]:
        """How often the second step was asked, chunk by chunk, in the order of their texts."""
        texts = sorted({asked.chunk_text for asked in self.asked})
        return [sum(asked.chunk_text == text for asked in self.asked) for text in texts]


def good_question(asked: Asked, number: int) -> str:
    """As long as was planned, about the chunk's own unit, and no two alike."""
    words = asked.chunk_text.split()
    subject, unit, cause = words[1], words[4], words[7]
    tag = f"{subject} {unit}"
    if "keywords" in asked.query_format:
        wanted = _planned(asked.advice, 3)
        spread = [subject, unit, cause, f"wear{number}", "inspection", "hand"]
        return " ".join(spread[:wanted])
    wanted = _planned(asked.advice, 12)
    opening = f"Which {cause} wears the {tag}"
    rest = (
        f"when nobody looks at it by hand for {number + 2} years of daily service on a branch line "
        "with steep grades and tight curves all winter long"
    ).split()
    return " ".join([*opening.split(), *rest][:wanted]) + "?"


def twins_at_first(asked: Asked, number: int) -> str:
    """The same words for chunks 4 and 6, until one is told that it was refused."""
    if asked.chunk_text in {text_of(4), text_of(6)} and "refused" not in asked.advice:
        return "What do inspectors of coupler and gearbox look at by hand?"
    return good_question(asked, number)


def _planned(advice: str, default: int) -> int:
    words = advice.split()
    if "Write" not in words:
        return default
    return int(words[words.index("in") + 1])  # "Write it in 10 to 15 words."


def words_as_vectors(texts: Sequence[str]) -> list[list[float]]:
    """An embedding that needs no model: each word of a text counts in one of 64 dimensions."""
    vectors = []
    for text in texts:
        vector = [1e-3] * 64
        for word in text.lower().replace("?", " ").replace(".", " ").split():
            vector[hashlib.sha256(word.encode()).digest()[0] % 64] += 1.0
        vectors.append(vector)
    return vectors


def generator_for(qdrant: Path, data: Path, **rest: Any) -> Any:
    """A generator over a folder, with the rehearsal for a model where nothing else is given."""
    from optimized_question_generator import OptimizedQuestionGenerator

    settings: dict[str, Any] = {
        "qdrant_path": qdrant,
        "dispatcher": LLMDispatcher([rehearsal_account()]),
        "persona_function": one_reader,
        "pipeline": None,
        "embedding": words_as_vectors,
        "data_dir": data,
        "limit": 20,
    }
    return OptimizedQuestionGenerator(**{**settings, **rest})


def one_reader(text: str) -> str:
    return "A reader of the manual."


def account_at(url: str, **rest: Any) -> LLMClientConfig:
    """An account at a server of a test's own."""
    settings: dict[str, Any] = {"name": "a", "model": "m", "api_key": "key", "concurrency": 4}
    return LLMClientConfig(base_url=f"{url}/v1", **{**settings, **rest})


def points(qdrant: Path) -> dict[str, Any]:
    """{id: record} of the sample, with vectors, by the official client."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(qdrant))
    try:
        found, _ = client.scroll(COLLECTION, limit=1000, with_vectors=True)
        return {str(point.id): point for point in found}
    finally:
        client.close()


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Generator:
    """optimized_question_generator.py, run in this process and in `folder`, with the rehearsal and
    one persona, so that nothing has to be loaded."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        self.folder = folder
        self.data = folder / "data"
        self._capsys = capsys
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["optimized_question_generator.py"])

    def __call__(self, *args: object, rehearsal: bool = True) -> Done:
        import optimized_question_generator
        from question_optimizer.cli import run

        always = ["--original", "--personas-file", ROOT / "tests" / "one_persona.json"]
        always += ["--rehearsal"] if rehearsal else []
        argv = [str(arg) for arg in (*always, *args)]
        self._capsys.readouterr()
        code = run(lambda: optimized_question_generator.main(argv))
        return Done(code, *self._capsys.readouterr())
