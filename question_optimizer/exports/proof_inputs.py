"""What a proof is made of: an export as it was written, and the questions to be searched for.

`read_export` alone knows the export's files. No question may be of a document or chunk that is
trained on: the human ones are held against the training pairs here, whatever the export promises.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.errors import NO_GO, UserError
from question_optimizer.exports.formats import plain_id
from question_optimizer.exports.reading import MADE_BY
from question_optimizer.exports.splitting import SPLITS, read_kept
from question_optimizer.exports.training import Question
from question_optimizer.exports.workspace import SIDES
from question_optimizer.gold import GoldSet
from question_optimizer.records import GoldItem

LEAST_QUESTIONS = 5  # human ones; fewer are an anecdote
MOST_SYNTHETIC = 1_000  # of each synthetic set, drawn at random: more change the third decimal


@dataclass(frozen=True)
class Pair:
    """A row of the export: a question, the chunk it was made from, where that is from, by whom."""

    question: str
    text: str
    chunk_id: str
    document: str
    group: str  # what was split as a whole: the document where there are enough
    model: str


@dataclass(frozen=True)
class Export:
    """An export as far as it is needed here."""

    pairs: dict[str, list[Pair]]  # by split
    corpus: dict[str, str]  # text of every chunk, by id
    unit: str  # what was split as a whole: document, section or chunk
    inputs: dict[str, str]  # sha256 of what was read

    @property
    def rehearsal(self) -> bool:
        """Whether a training question was written by the rule-based stand-in."""
        from question_optimizer.providers import rehearsal_account

        stand_in = rehearsal_account().model
        return any(pair.model == stand_in for pair in self.pairs["train"])


_PAIR = ("anchor", "positive", "chunk_id", "document", "split_group", "model")


def read_export(folder: Path) -> Export:
    """The export in `folder`; UserError naming the file that is missing or damaged."""
    names = ("beir/corpus.jsonl", *(f"pairs/{side}.jsonl" for side in SIDES))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder / missing[0]}: does not exist; the proof needs the formats pairs and beir, "
            f"run {MADE_BY} with both"
        )
    return Export(
        {
            side: [
                Pair(*(_text(row, key, where) for key in _PAIR))
                for where, row in _rows(folder / "pairs" / f"{side}.jsonl")
            ]
            for side in SIDES
        },
        {
            _text(row, "_id", where): _text(row, "text", where)
            for where, row in _rows(folder / "beir" / "corpus.jsonl")
        },
        read_kept(folder / SPLITS).unit or "document",
        {name: files.sha256(folder / name) for name in names},
    )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line."""
    for number, row in files.read_jsonl(path, made_by=MADE_BY):
        yield f"{path}:{number}", row


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(row.get(key), str):
        raise UserError(f"{where}: no {key}; rerun {MADE_BY}")
    return str(row[key])


class Corpus:
    """The chunks to be searched, each text once: of two that are the same word for word no model
    can tell which was meant, so finding either is right."""

    def __init__(self, texts: Mapping[str, str]):
        self._known: dict[str, str] = {}  # by folded text
        self._home = {
            chunk_id: self._known.setdefault(_folded(text), chunk_id)
            for chunk_id, text in texts.items()
        }
        self.texts = {chunk_id: texts[chunk_id] for chunk_id in self._known.values()}
        self.identical = len(texts) - len(self.texts)

    def place(self, chunk_id: object, text: str) -> str | None:
        """The id under which a chunk is searched, by its id or else its text; None if it is not."""
        return self._home.get(plain_id(str(chunk_id))) or self._known.get(_folded(text))


def _folded(text: str) -> str:
    return " ".join(text.split())


# ---------------------------------------------------------------------- the questions


def human_questions(
    gold: GoldSet, export: Export, corpus: Corpus, on: str
) -> tuple[list[Question], dict[str, int]]:
    """The gold questions to be searched for, and how many were left out, by reason.

    UserError with exit code 3 if one of the test split stands among the training pairs; of all
    items those are left out. UserError where fewer than `LEAST_QUESTIONS` are left.
    """
    leak = _leaks(export)
    left_out: Counter[str] = Counter()
    items = []
    for item in gold.side("test") if on == "test" else gold.items:
        if (where := leak(item)) and on == "test":
            raise UserError(
                f"pairs/train.jsonl: trains on {where}, which is in the test split of {gold.path}; "
                "export again with the gold set's test documents held out",
                exit_code=NO_GO,
            )
        if where:
            left_out["in the training pairs"] += 1
        elif corpus.place(item.chunk_id, item.chunk_text) is None:
            left_out["not in the exported corpus"] += 1
        else:
            items.append(item)
    if len(items) < LEAST_QUESTIONS:
        lost = "".join(f", {number} {reason}" for reason, number in left_out.items())
        raise UserError(
            f"{gold.path}: {len(items)} questions to prove it with{lost}; at least "
            f"{LEAST_QUESTIONS} are needed, of documents that are not trained on: annotate more"
        )
    found = (
        (
            item.gold_question,
            corpus.place(item.chunk_id, item.chunk_text),
            next(_names(item), str(item.chunk_id)),
            item.file_name or "",
        )
        for item in items
    )
    return questions_of(found), dict(left_out)


def _leaks(export: Export) -> Callable[[GoldItem], str | None]:
    """Tells which document or chunk of a gold item is trained on, in words, or None."""
    trained = export.pairs["train"]
    by_document = export.unit == "document"
    units = {pair.document if by_document else pair.group for pair in trained} - {""}
    chunks = {pair.chunk_id for pair in trained}
    texts = {_folded(pair.text): pair.chunk_id for pair in trained}

    def leak(item: GoldItem) -> str | None:
        if str(item.chunk_id) in chunks:
            return f"chunk {item.chunk_id}"
        if same := texts.get(_folded(item.chunk_text)):
            return f"chunk {same}, the same text as chunk {item.chunk_id}"
        if shared := {*(_names(item) if by_document else [item.split_group])} & units:
            return f"{export.unit} {min(shared)}"
        return None

    return leak


def _names(item: GoldItem) -> Iterator[str]:
    return (name for name in (item.document_id, item.file_name) if name)


def synthetic_questions(pairs: Sequence[Pair], corpus: Corpus, seed: int) -> list[Question]:
    """The export's own questions of one split, at most `MOST_SYNTHETIC` of them."""
    if len(pairs) > MOST_SYNTHETIC:
        pairs = random.Random(seed).sample(pairs, MOST_SYNTHETIC)
    return questions_of(
        (pair.question, corpus.place(pair.chunk_id, pair.text), pair.document or pair.chunk_id, "")
        for pair in pairs
    )


def questions_of(asked: Iterable[tuple[str, str | None, str, str]]) -> list[Question]:
    """Questions from (text, chunk, document, its name); one that was asked of several chunks is one
    question that any of them answers. Chunks that are not in the corpus (None) are left out."""
    chunks: dict[str, list[str]] = {}
    places: dict[str, tuple[str, str]] = {}
    for text, chunk, document, source in asked:
        if chunk is not None:
            chunks.setdefault(text, []).append(chunk)
            places.setdefault(text, (document, source))
    return [
        Question(files.digest([text, *answers])[:16], text, frozenset(answers), *places[text])
        for text, answers in chunks.items()
    ]
