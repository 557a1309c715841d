"""A retrieval model evaluated on questions, and fine-tuned on pairs, by sentence-transformers.

Its evaluator and its trainer do the work; here they are set so that they stay silent, send nothing
anywhere, keep no checkpoint, and tell each question's figures besides the means.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from question_optimizer.embedding import Embedder
from question_optimizer.errors import UserError
from question_optimizer.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentence_transformers import SentenceTransformer
    from torch import Tensor

CUT = 10  # of nDCG@10 and recall@10
_ENCODED_TOGETHER = 256  # chunks between two steps of the progress shown


class Question(NamedTuple):
    """A question, the chunks that answer it, and the document that they are from; `source` is its
    name for people."""

    id: str
    text: str
    relevant: frozenset[str]
    document: str
    source: str = ""


class Found(NamedTuple):
    """How well one question was served. `rank` is that of the first relevant chunk, from 1; None
    beyond the evaluator's 100 hits."""

    ndcg: float
    recall: float
    rank: int | None


class Retrieved(NamedTuple):
    """What one evaluation found: a `Found` for each question, and the evaluator's own means."""

    found: dict[str, Found]
    means: dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned: what sentence-transformers' own examples use for such a model."""

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 2e-5
    warm_up: float = 0.1  # of the steps
    seed: int = 0
    device: str = "cpu"

    def steps(self, pairs: int) -> int:
        """Optimiser steps that `pairs` take; a few more where batches had to avoid repeats."""
        return self.epochs * math.ceil(pairs / self.batch_size)


def require() -> None:
    """UserError unless everything that training needs is installed."""
    try:
        import accelerate  # noqa: F401
        import datasets  # noqa: F401
        from sentence_transformers.sentence_transformer.trainer import (  # noqa: F401
            SentenceTransformerTrainer,
        )
    except ImportError as error:
        raise UserError(
            f"--prove: {error.name or error} is not installed; "
            "pip install 'question-optimizer[exports]'"
        ) from error


def load(model: str, device: str = "cpu") -> SentenceTransformer:
    """The model, fresh from its files; UserError where it or the device cannot be had."""
    import torch

    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[device]:
        raise UserError(f"--prove-device {device}: torch finds none here; leave it out for the CPU")
    return Embedder(model)._transformer().to(device)


# ---------------------------------------------------------------------- evaluation


def encoded(model: SentenceTransformer, corpus: Mapping[str, str]) -> Tensor:
    """(len(corpus), dimensions): the chunks' vectors, in the corpus' order."""
    import torch

    texts = list(corpus.values())
    parts = []
    with Progress("chunks embedded", len(texts)) as told:
        for start in range(0, len(texts), _ENCODED_TOGETHER):
            batch = texts[start : start + _ENCODED_TOGETHER]
            parts.append(
                model.encode_document(batch, convert_to_tensor=True, show_progress_bar=False)
            )
            for _ in batch:
                told.advance()
    return torch.cat(parts)


def evaluate(
    model: SentenceTransformer,
    corpus: Mapping[str, str],
    vectors: Tensor,
    questions: Sequence[Question],
) -> Retrieved:
    """Search the whole corpus for every question. `corpus` maps chunk ids to texts; `vectors` are
    `encoded(model, corpus)`. Ties go to the lower chunk id, as in the evaluator's own means."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    ranked: list[list[str]] = []

    class Evaluator(InformationRetrievalEvaluator):
        """Keeps what was found for each question, of which the library tells the means only."""

        def compute_metrics(self, queries_result_list: list[Any]) -> dict[str, dict[int, float]]:
            for hits in queries_result_list:
                in_order = sorted(hits, key=lambda hit: (-hit["score"], hit["corpus_id"]))
                ranked.append([hit["corpus_id"] for hit in in_order])
            return super().compute_metrics(queries_result_list)

    relevant = {question.id: set(question.relevant) for question in questions}
    evaluator = Evaluator(
        {question.id: question.text for question in questions},
        dict(corpus),
        relevant,
        write_csv=False,
    )
    means = evaluator(model, corpus_embeddings=vectors)
    known = zip(evaluator.queries_ids, ranked, strict=True)
    return Retrieved(
        {name: found(hits, relevant[name]) for name, hits in known},
        {
            name: next(v for key, v in means.items() if key.endswith(f"_{name}@{CUT}"))
            for name in ("ndcg", "recall")
        },
    )


def found(hits: Sequence[str], relevant: set[str]) -> Found:
    """One question's figures from its hits, best first, with relevance 0 or 1.

    nDCG@10: Σ relevance / log2(rank + 1) over the first ten, as a share of the best order's
    (Järvelin & Kekäläinen 2002). recall@10: the share of the relevant chunks among the first ten.
    """
    ranks = [rank for rank, chunk in enumerate(hits, 1) if chunk in relevant]
    within = [rank for rank in ranks if rank <= CUT]
    gain = sum(1 / math.log2(rank + 1) for rank in within)
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(CUT, len(relevant)) + 1))
    return Found(gain / best, len(within) / len(relevant), ranks[0] if ranks else None)


# ---------------------------------------------------------------------- training


def tune(model: SentenceTransformer, pairs: Sequence[tuple[str, str]], recipe: Recipe) -> None:
    """Fine-tune `model` in place on (question, chunk text) pairs.

    MultipleNegativesRankingLoss: the other chunks of a batch are the negatives, so no batch may
    hold a text twice. The same model, pairs and recipe give the same weights on the same machine's
    CPU. The state of torch's generator is as before.
    """
    import torch
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
    from transformers import PrinterCallback

    class Trainer(SentenceTransformerTrainer):
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """None: a card is not asked for, and its examples have a bar of their own."""

    data = Dataset.from_dict(
        {
            "anchor": [question for question, _ in pairs],
            "positive": [text for _, text in pairs],
        }
    )
    with tempfile.TemporaryDirectory(prefix="prove-") as place, torch.random.fork_rng(), _silence():
        trainer = Trainer(
            model=model,
            args=_arguments(model, place, len(pairs), recipe),
            train_dataset=data,
            loss=MultipleNegativesRankingLoss(model),
        )
        trainer.remove_callback(PrinterCallback)  # prints its log on stdout
        with Progress("training steps", recipe.steps(len(pairs))) as told:
            trainer.add_callback(_steps(told))
            trainer.train()


def _arguments(model: SentenceTransformer, place: str, pairs: int, recipe: Recipe) -> Any:
    from sentence_transformers.sentence_transformer.training_args import (
        BatchSamplers,
        SentenceTransformerTrainingArguments,
    )

    prompts = {"anchor": model.prompts.get("query"), "positive": model.prompts.get("document")}
    return SentenceTransformerTrainingArguments(
        output_dir=place,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=_warm_up(recipe, recipe.steps(pairs)),
        seed=recipe.seed,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        # What the evaluator puts before questions and chunks has to stand there in training too.
        prompts={column: prompt for column, prompt in prompts.items() if prompt} or None,
        use_cpu=recipe.device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _steps(told: Progress) -> Any:
    """A callback that moves our own progress."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            told.advance()

    return Steps()


@contextmanager
def _silence() -> Iterator[None]:
    """The libraries' own bars and logs off, and as they were afterwards."""
    import datasets
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def save(model: SentenceTransformer, folder: Path) -> None:
    """Write the model to `folder`, whole or not at all; UserError where that cannot be done."""
    part = folder.with_name(f".{folder.name}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        model.save(str(part), create_model_card=False)
        if folder.is_dir():
            folder.rmdir()  # empty, else it was refused at the beginning
        part.replace(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error


def _warm_up(recipe: Recipe, steps: int) -> int:
    """A warm-up begins at a learning rate of 0: of a few steps it would leave nothing."""
    return math.ceil(recipe.warm_up * steps) if steps >= 10 else 0
