"""Do the exported questions help retrieval? A model before and after training on them, on gold.

The questions that people wrote, in documents that no training pair is from, are searched for in the
whole corpus by a sentence-transformers model; the model is fine-tuned on the export's training
pairs, and searches again. What is claimed is what the paired interval shows, and no more. The
export's own held-out questions are looked at as well, second: they are of the same making as the
training pairs, so that a gain there may be the gain of knowing their style.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from question_optimizer import files
from question_optimizer.cli import amount, positive
from question_optimizer.errors import UserError
from question_optimizer.exports import training
from question_optimizer.exports.proof_inputs import (
    Corpus,
    Export,
    human_questions,
    read_export,
    synthetic_questions,
)
from question_optimizer.exports.proof_verdict import METRICS, Serving, compared, signed, verdict_of
from question_optimizer.exports.reading import MADE_BY
from question_optimizer.exports.training import Question, Recipe
from question_optimizer.gold import read_gold
from question_optimizer.hostile_text import one_line, printable

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PROOF = "proof.json"
SETS = {
    "human": "human questions",
    "test": "held-out documents' questions",
    "dev": "dev documents' questions",
}
_VERSIONED = ("sentence-transformers", "transformers", "torch", "datasets", "accelerate", "numpy")


class Settings(Protocol):
    """What is needed of the script's settings."""

    @property
    def data_dir(self) -> Path: ...
    @property
    def embedding_model(self) -> str: ...
    @property
    def seed(self) -> int: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The proof's flags."""
    recipe = Recipe()
    group = parser.add_argument_group("the proof")
    group.add_argument(
        "--prove",
        action="store_true",
        help="fine-tune a model on the training pairs; search the gold questions before and after",
    )
    group.add_argument(
        "--prove-model", metavar="NAME", help="a sentence-transformers model (default: the setting)"
    )
    group.add_argument(
        "--prove-on",
        choices=("test", "all"),
        default="test",
        help="the gold set's test split, or all items of documents not trained on (default: test)",
    )
    group.add_argument(
        "--prove-shares",
        type=shares,
        default=(1.0,),
        metavar="S,S",
        help="shares of the training pairs, one training each: 0.25,0.5,1 (default: 1)",
    )
    for name, kind, default in (
        ("epochs", positive, recipe.epochs),
        ("batch-size", positive, recipe.batch_size),
        ("learning-rate", amount, recipe.learning_rate),
    ):
        group.add_argument(
            f"--prove-{name}", type=kind, default=default, metavar="X", help=f"(default: {default})"
        )
    group.add_argument(
        "--prove-device", choices=("cpu", "cuda", "mps"), default="cpu", help="(default: cpu)"
    )
    group.add_argument("--save-model", type=Path, metavar="DIR", help="keep the tuned model there")


def shares(text: str) -> tuple[float, ...]:
    """argparse type: numbers above 0 and up to 1, with commas between; ascending, each once."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not 0 < found[0] <= found[-1] <= 1:  # NaN compares false and is refused, too
        raise argparse.ArgumentTypeError("must be numbers above 0 and up to 1, as in 0.25,0.5,1")
    return tuple(found)


# ---------------------------------------------------------------------- the run


def run(
    folder: Path,
    settings: Settings,
    args: argparse.Namespace,
    *,
    report: Callable[[Path], Path] | None = None,
) -> int:
    """Prove the export in `folder`: write proof.json there, print its figures; exit code 0.

    What was proved from the same files and settings is shown again, not done again. `report` makes
    the page of a folder's proof.json and returns its path. UserError, with exit code 3, where a
    gold item is among the training pairs.
    """
    export = read_export(folder)
    gold = read_gold(settings.data_dir / "gold_dataset.json", keep_sides=True)
    if not export.pairs["train"]:
        raise UserError(f"{folder}: no training pair; generate questions of more documents")
    corpus = Corpus(export.corpus)
    human, left_out = human_questions(gold, export, corpus, args.prove_on)
    sets = {"human": human}
    for split in ("test", "dev"):
        if found := synthetic_questions(export.pairs[split], corpus, settings.seed):
            sets[split] = found
    used = _used(settings, args)
    if getattr(args, "dry_run", False):
        print(_foretold(export, corpus, sets, used))
        return 0
    path, inputs = folder / PROOF, _inputs(export, gold.path, used["model"])
    if args.save_model or not files.is_finished(path, settings=used, inputs=inputs):
        told = _told(export, corpus, gold.path, left_out, used)
        proof = told | _proved(export, corpus, sets, used, args.save_model, len(gold.items))
        _write(path, proof, used, inputs)
    shown = report(folder) if report else path
    to = sys.stderr if getattr(args, "json", False) else sys.stdout  # which is one object then
    print("\n".join(_lines(files.read_json(path, made_by=MADE_BY), shown)), file=to)
    return 0


def _used(settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    """Every setting that the figures depend on."""
    recipe = Recipe(
        epochs=args.prove_epochs,
        batch_size=args.prove_batch_size,
        learning_rate=args.prove_learning_rate,
        seed=settings.seed,
        device=args.prove_device,
    )
    return {
        "model": args.prove_model or settings.embedding_model,
        "on": args.prove_on,
        "shares": list(args.prove_shares),
        "recipe": asdict(recipe),
    }


def _inputs(export: Export, gold: Path, model: str) -> dict[str, str]:
    """Digests of what the figures are made from; of a model folder, its weights."""
    weights = sorted(Path(model).glob("**/*.safetensors")) if Path(model).is_dir() else []
    named = {str(file.relative_to(model)): files.sha256(file) for file in weights}
    return {**export.inputs, gold.name: files.sha256(gold), **named}


def _foretold(
    export: Export, corpus: Corpus, sets: Mapping[str, Sequence[Question]], used: dict[str, Any]
) -> str:
    """What a proof would take; no model is loaded."""
    recipe = Recipe(**used["recipe"])
    counts = [_part(len(export.pairs["train"]), share) for share in used["shares"]]
    trained = ", ".join(f"{recipe.steps(n)} steps on {n} pairs" for n in counts)
    asked = ", ".join(f"{len(questions)} {SETS[name]}" for name, questions in sets.items())
    return (
        f"dry run: {trained} (batches of {recipe.batch_size}, {recipe.epochs} epochs); "
        f"{asked}; {len(corpus.texts)} chunks embedded {len(counts) + 1} times"
    )


def _part(pairs: int, share: float) -> int:
    return math.ceil(share * pairs - 1e-9)


def _told(
    export: Export, corpus: Corpus, gold: Path, left_out: dict[str, int], used: dict[str, Any]
) -> dict[str, Any]:
    """What stands in a proof besides its figures."""
    meta = files.meta_path(gold)
    rehearsed = meta.exists() and files.read_meta(gold, made_by="annotate_chunks.py")
    return {
        "model": used["model"],
        "settings": used,
        "rehearsal": {
            "questions": export.rehearsal,
            "gold": bool(rehearsed and rehearsed.get("rehearsal")),
        },
        "counts": {
            "train_pairs": len(export.pairs["train"]),
            "chunks": len(export.corpus),
            "identical_chunks": corpus.identical,
            "gold_left_out": left_out,
        },
        "versions": {name: version(name) for name in _VERSIONED},
    }


def _proved(
    export: Export,
    corpus: Corpus,
    sets: Mapping[str, Sequence[Question]],
    used: dict[str, Any],
    keep: Path | None,
    gold_items: int,
) -> dict[str, Any]:
    """Search, train, search again, for each share of the pairs. The last one, the largest, decides
    and is what the rows tell of."""
    training.require()
    if keep and keep.exists() and not (keep.is_dir() and not any(keep.iterdir())):
        raise UserError(f"--save-model {keep}: is there already; name a new folder")
    recipe = Recipe(**used["recipe"])
    pairs = [(pair.question, pair.text) for pair in export.pairs["train"]]
    random.Random(recipe.seed).shuffle(pairs)  # so that a share is of all documents
    _note(f"{one_line(used['model'])}: {len(corpus.texts)} chunks searched as it is")
    untrained = training.load(used["model"], recipe.device)
    before = _search(untrained, corpus, sets)
    trainings = []
    for share in used["shares"]:
        part = pairs[: _part(len(pairs), share)]
        _note(f"trained on {len(part)} pairs, {recipe.steps(len(part))} steps")
        model = deepcopy(untrained)
        training.tune(model, part, recipe)
        after = _search(model, corpus, sets)
        found = {
            name: compared(questions, before[name], after[name], recipe.seed)
            for name, questions in sets.items()
        }
        one = {"share": share, "pairs": len(part), "steps": recipe.steps(len(part)), "sets": found}
        trainings.append(one)
    if keep:
        training.save(model, keep)
    whole_split = gold_items if used["on"] == "test" else None
    return {
        "verdict": verdict_of(trainings[-1]["sets"]["human"], gold_items=whole_split),
        "trainings": trainings,
        "rows": _rows(sets, before, after),
    }


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _search(
    model: SentenceTransformer, corpus: Corpus, sets: Mapping[str, Sequence[Question]]
) -> dict[str, Serving]:
    vectors = training.encoded(model, corpus.texts)
    return {
        name: training.evaluate(model, corpus.texts, vectors, questions).found
        for name, questions in sets.items()
    }


def _rows(
    sets: Mapping[str, Sequence[Question]],
    before: Mapping[str, Serving],
    after: Mapping[str, Serving],
) -> list[dict[str, Any]]:
    """One row a question, with what each model made of it."""
    return [
        {
            "set": name,
            "question": question.text,
            "document": question.document,
            "source": question.source,
            "relevant": sorted(question.relevant),
            "before": before[name][question.id]._asdict(),
            "after": after[name][question.id]._asdict(),
        }
        for name, questions in sets.items()
        for question in questions
    ]


def _write(path: Path, proof: dict[str, Any], used: dict[str, Any], inputs: dict[str, str]) -> None:
    files.write_json(path, proof)
    files.write_meta(
        path,
        phase="export_questions --prove",
        settings=used,
        inputs=inputs,
        counts=proof["counts"],
        rehearsal=any(proof["rehearsal"].values()),
    )


# ---------------------------------------------------------------------- what is shown


def _lines(proof: Mapping[str, Any], path: Path) -> Iterator[str]:
    """The figures of the largest training as a table, the verdict, and where the rest is."""
    last = proof["trainings"][-1]
    yield f"{'':24} before   after  change  {'95 % interval':18} won/tied/lost"
    for name, found in last["sets"].items():
        yield f"{found['questions']:,} {SETS[name]}"
        for metric, words in METRICS.items():
            c = found[metric]
            known = c["low"] is not None
            between = f"{signed(c['low'])} to {signed(c['high'])}" if known else "–"
            yield (
                f"  {words:20}{c['before']:8.3f}{c['after']:8.3f}  {signed(c['difference'])}  "
                f"{between:18} {c['wins']}/{c['ties']}/{c['losses']}"
            )
    yield f"\n{printable(proof['verdict']['sentence'])}"
    rehearsed = proof["rehearsal"]["questions"]
    yield (
        f"{one_line(proof['model'])} on {last['pairs']} training pairs"
        f"{' (rehearsal: says nothing about a real model)' if rehearsed else ''}, "
        f"{last['sets']['human']['questions']} human questions -> {path}"
    )
