"""What stands beside an export's data: the README, the dataset card and a training script.

Document text never gets in here; names of models, personas and collections do, and are quoted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from question_optimizer import files
from question_optimizer.exports.dataset import LEFT_OUT
from question_optimizer.exports.formats import negative_columns
from question_optimizer.exports.workspace import SIDES, Workspace
from question_optimizer.generation.ledger_records import Configuration
from question_optimizer.hostile_text import one_line
from question_optimizer.providers import rehearsal_account
from question_optimizer.records import Split

REHEARSAL = (
    "**Made in a rehearsal**: a rule-based stand-in wrote these questions, not a language model. "
    "They show that everything works and are of no use for training or evaluation."
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))

TRAIN = '''"""Fine-tune a sentence-transformers model (version 6) on the questions in this folder.

    python train.py [MODEL] [OUTPUT] [STEPS]

MODEL is a name or folder (default: sentence-transformers/all-MiniLM-L6-v2), OUTPUT a new folder
(default: model), STEPS an upper bound (default: one pass over everything). Triplets are used where
they were exported, pairs otherwise.
"""

import math
import sys
from pathlib import Path

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

HERE = Path(__file__).resolve().parent
# Some models want these: e5 has "query: " and "passage: ", all-MiniLM-L6-v2 has none.
PROMPTS = {"anchor": "", "positive": ""}
BATCH = 32


def main(model="sentence-transformers/all-MiniLM-L6-v2", output="model", steps="-1"):
    kind = "triplets" if (HERE / "triplets").is_dir() else "pairs"
    rows = load_dataset("json", data_files={"train": str(HERE / kind / "train.jsonl")})["train"]
    # The trainer takes every column for a text, so the ids must not be among them.
    texts = [n for n in rows.column_names if n.startswith(("anchor", "positive", "negative"))]
    texts = [name for name in texts if name != "negative_chunk_ids"]
    one_pass = math.ceil(len(rows) / BATCH)
    most = min(int(steps), one_pass) if int(steps) > 0 else -1
    network = SentenceTransformer(model)
    trainer = SentenceTransformerTrainer(
        model=network,
        args=SentenceTransformerTrainingArguments(
            output_dir=output,
            num_train_epochs=1,
            max_steps=most,
            per_device_train_batch_size=BATCH,
            learning_rate=2e-5,
            # A warm-up begins at a rate of 0: of fewer than ten steps there is none.
            warmup_steps=(one_pass if most < 0 else most) // 10,
            prompts={name: text for name, text in PROMPTS.items() if text} or None,
            # Every other positive of a batch is taken for a negative: none may occur twice in it.
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=rows.select_columns(texts),
        loss=MultipleNegativesRankingLoss(network),
    )
    trainer.train()
    network.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
'''

_LOAD = {
    "pairs": """from datasets import load_dataset

pairs = load_dataset("json", data_files={"train": "pairs/train.jsonl"})["train"]
pairs = pairs.select_columns(["anchor", "positive"])  # the trainer takes every column for a text
""",
    "triplets": """from datasets import load_dataset

triplets = load_dataset("json", data_files={"train": "triplets/train.jsonl"})["train"]
triplets = triplets.select_columns(["anchor", "positive", NEGATIVES])
""",
    "beir": """from beir.datasets.data_loader import GenericDataLoader
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

corpus, queries, qrels = GenericDataLoader("beir").load(split=HELD_OUT)
evaluator = InformationRetrievalEvaluator(
    queries,
    {number: f"{chunk['title']} {chunk['text']}".strip() for number, chunk in corpus.items()},
    {number: set(relevant) for number, relevant in qrels.items()},
)
""",
    "parquet": """import pyarrow.parquet

table = pyarrow.parquet.read_table("parquet/train.parquet")
""",
    "hf": """from datasets import load_dataset

splits = load_dataset("hf")
""",
}


@dataclass(frozen=True)
class Facts:
    """What an export tells of itself. `counts` are rows by format and side."""

    collection: str
    configuration: str
    pipeline: str
    models: Sequence[str]
    personas: int  # how many different ones asked
    checked: Mapping[str, int]  # questions by the policy that they passed
    sizes: Mapping[Split, int]  # questions by side
    groups: Mapping[str, int]  # documents, sections or chunks by side
    unit: str
    left_out: Mapping[str, int]
    counts: Mapping[str, Mapping[str, int]]
    negatives: int
    rehearsal: int  # questions that a rehearsal wrote


def gather(
    work: Workspace,
    configuration: Configuration,
    unit: str,
    left_out: Mapping[str, int],
    counts: Mapping[str, Mapping[str, int]],
    negatives: int,
) -> Facts:
    """The facts of what stands in `work`."""
    asked = "FROM questions WHERE side IS NOT NULL"
    models = work.ask(f"SELECT DISTINCT model {asked} AND model IS NOT NULL ORDER BY model")
    groups = work.ask(
        "SELECT q.side, COUNT(DISTINCT c.unit) FROM questions AS q "
        "JOIN chunks AS c ON c.number=q.chunk WHERE q.side IS NOT NULL GROUP BY q.side"
    )
    stand_in = rehearsal_account().model
    return Facts(
        collection=configuration.collection,
        configuration=configuration.fingerprint,
        pipeline=configuration.pipeline,
        models=[model for (model,) in models],
        personas=work.one(f"SELECT COUNT(DISTINCT persona_id) {asked}"),
        checked=dict(work.ask(f"SELECT checked, COUNT(*) {asked} GROUP BY checked")),
        sizes=work.sizes(),
        groups=dict(groups),
        unit=unit,
        left_out={why: left_out[why] for why in LEFT_OUT if left_out.get(why)},
        counts=counts,
        negatives=negatives,
        rehearsal=work.one(f"SELECT COUNT(*) {asked} AND model=?", stand_in),
    )


def write_cards(folder: Path, facts: Facts) -> None:
    """All of this module, into an export's folder."""
    files.write_atomic(folder / "README.md", readme(facts))
    if {"pairs", "triplets"} & facts.counts.keys():
        files.write_atomic(folder / "train.py", TRAIN)
    if "hf" in facts.counts:
        content = [files.sha256(path) for path in sorted((folder / "hf").rglob("*.parquet"))]
        files.write_atomic(folder / "hf" / "README.md", card(facts, files.digest(content)[:16]))


def readme(facts: Facts) -> str:
    """README.md of the export's folder: what is in it and how to load it; each block of code runs
    where the folder is the working directory."""
    lines = ["# Retrieval questions", "", *_made(facts), "## Files", ""]
    for name, counts in facts.counts.items():
        told = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items())
        lines.append(f"- `{name}/`: {told}")
    lines.append(f"- `splits.json`: which side each {facts.unit} is on, for later exports")
    if {"pairs", "triplets"} & facts.counts.keys():
        lines.append("- `train.py`: fine-tunes a model on them")
    lines += ["", "## Loading", ""]
    held_out = next((side for side in reversed(SIDES) if facts.sizes[side]), "test")
    columns = ", ".join(f'"{name}"' for name in negative_columns(facts.negatives))
    for name in facts.counts:
        code = _LOAD[name].replace("NEGATIVES", columns).replace("HELD_OUT", f'"{held_out}"')
        lines += ["```python", code.strip(), "```", ""]
    return "\n".join(lines)


def card(facts: Facts, content: str = "") -> str:
    """README.md of the Hugging Face dataset: its front matter names the files of each split.

    `content` is a digest of these files. `datasets` keeps what it loaded under the folder's name
    and a hash of the front matter, so another export must not have the same.
    """
    total = sum(facts.sizes.values())
    size = next((name for limit, name in _SIZES if total < limit), "n>1M")
    front = ["---", f"pretty_name: {json.dumps(f'Retrieval questions on {facts.collection}')}"]
    front += ["license: other", "license_name: to-be-named-by-the-owner-of-the-documents"]
    front += ["task_categories:", "- sentence-similarity", "- text-retrieval"]
    front += ["tags:", "- synthetic", "- sentence-transformers", "- retrieval"]
    front += [
        "size_categories:",
        f"- {size}",
        "configs:",
        "- config_name: default",
        f"  description: content {content}",
        "  data_files:",
    ]
    for side in SIDES:
        if facts.sizes[side]:
            front += [f"  - split: {side}", f"    path: data/{side}.parquet"]
    lines = [*front, "---", "", "# Retrieval questions", "", *_made(facts)]
    lines += [
        *("## Columns", ""),
        "`question` was written to be answered by `chunk`, which has the id `chunk_id` in the "
        "collection and stands in `document` under `heading`. `persona_id`, `query_type`, "
        "`query_format` and `query_length` are what was asked for, `model` wrote it, `checked` is "
        "the set of checks that it passed. `split_group` was split as a whole. `provenance` is a "
        "hash of what the question was made of and by.",
        *("", "## Licence", ""),
        "The chunks are passages of the documents, whose owner decides on what terms they may be "
        "passed on; name the licence here before you share this. The providers of the models may "
        "restrict what their output is used for.",
        "",
    ]
    return "\n".join(lines)


def _made(facts: Facts) -> list[str]:
    """How the questions were made, checked and split: Markdown lines, for both."""
    models = ", ".join(map(_quoted, facts.models)) or "unknown"
    checks = ", ".join(f"{n:,} {name or 'none'}" for name, n in facts.checked.items())
    sides = ", ".join(f"{facts.sizes[side]:,} {side}" for side in SIDES)
    units = ", ".join(f"{facts.groups.get(side, 0):,} {side}" for side in SIDES)
    lines = [REHEARSAL, ""] if facts.rehearsal else []
    lines += [
        f"Questions on chunks of {_quoted(facts.collection)}, written by language models as "
        f"{facts.personas:,} different personas would ask them: {sides}.",
        "",
        f"- models: {models}",
        f"- pipeline `{facts.pipeline}`, configuration `{facts.configuration}`",
        f"- checks passed: {checks or 'none'}",
        f"- split by {facts.unit} ({units}); texts and questions that are alike (Jaccard index of "
        "character 5-grams at least 0.8) are on one side",
    ]
    if facts.left_out:
        lines.append("- left out:")
        lines += [f"  - {count:,} that {LEFT_OUT[why]}" for why, count in facts.left_out.items()]
    return [*lines, ""]


def _quoted(name: str) -> str:
    """A name as inline code: nothing in it is Markdown or HTML to a renderer."""
    plain = one_line(name).replace("`", "'")
    return f"`{plain}`"
