"""Phase 5 of 5 · Evaluate: original and optimised pipeline side by side on the locked test split.

Both write a question for every test item, the judge scores each, and the differences are taken
item by item, with an interval. The table says how much better, the five examples say how.

    python evaluate_pipeline.py --dry-run
    python evaluate_pipeline.py

Reads   data/gold_dataset.json, data/optimized_pipeline.json, llm_providers.toml
Writes  data/runs/<id>/: scores.jsonl, summary.json, report.html
Next    python optimized_question_generator.py
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from question_optimizer.cli import (
    Progress,
    count,
    dry_run_line,
    finish_on_interrupt,
    phase_parser,
    run,
)
from question_optimizer.errors import FAILED_ITEMS

if TYPE_CHECKING:
    from config import Settings
    from custom_lm import LanguageModels
    from question_optimizer.providers import LLMClientConfig
    from question_optimizer.records import GoldItem

ARMS = ("original", "optimised")
EXAMPLES = 5
RUN_FILES = ("scores.jsonl", "report.html")  # besides summary.json, which the meta file is about


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = phase_parser(__doc__, calls_llm=True)
    parser.add_argument(
        "--examples",
        type=count,
        default=EXAMPLES,
        metavar="N",
        help="how many to print (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead")
    parser.add_argument(
        "--fresh", action="store_true", help="evaluate again even if nothing changed"
    )
    return parser.parse_args(argv)


def evaluate(models: LanguageModels, items: list[GoldItem], pipeline: Path) -> list[dict[str, Any]]:
    """One row per item and arm, by item, then arm. A failed item has no score but an error."""
    import dspy

    from dspy_pipeline import SyntheticQuestionPipeline, load_pipeline
    from question_optimizer.programs.judge import LLMMetric, QuestionJudge
    from question_optimizer.programs.runs import Arm, examples_of, run_quietly, threads_for

    progress = Progress(
        "judged",
        len(ARMS) * len(items),
        spend=lambda: models.dispatcher.spend,
        note=models.dispatcher.live_line,
    )
    llm_metric = LLMMetric(QuestionJudge(), models.lm("judge"), judged=progress.advance)
    programs = {"original": SyntheticQuestionPipeline(), "optimised": load_pipeline(pipeline)}
    examples = examples_of(items)
    rows = []
    with dspy.context(lm=models.lm("student")), progress:
        for name, program in programs.items():
            arm = Arm(name, program, llm_metric)
            evaluator = dspy.Evaluate(
                devset=examples,
                metric=arm.metric,
                num_threads=threads_for(models.dispatcher),
                max_errors=len(examples) + 1,
            )
            run_quietly(partial(evaluator, arm))
            rows += [arm.rows[example.chunk_id, example.gold_question] for example in examples]
    order = {example.chunk_id: number for number, example in enumerate(examples)}
    return sorted(rows, key=lambda row: (order[row["chunk_id"]], ARMS.index(row["arm"])))


def summarise(rows: list[dict[str, Any]], *, seed: int) -> dict[str, Any]:
    """Means by arm, over the items that both arms have a score for, and the paired comparison."""
    from question_optimizer.programs.judge import CRITERIA, PASS_SCORE
    from question_optimizer.statistics import compare_paired, smallest_detectable

    scores = {arm: {r["item"]: r for r in rows if r["arm"] == arm} for arm in ARMS}
    paired = [
        item for item in scores[ARMS[0]] if all(scores[a][item]["score"] is not None for a in ARMS)
    ]
    arms = {}
    for arm in ARMS:
        mine = [scores[arm][item] for item in paired]
        number = len(mine)
        failed = sum(r["score"] is None for r in scores[arm].values())
        if not mine:  # nothing was scored, and a zero would look like a score
            arms[arm] = {"score": None, "passed": None, "failed": failed}
            continue
        arms[arm] = {
            "score": round(sum(r["score"] for r in mine) / number, 6),
            "passed": sum(r["score"] >= PASS_SCORE for r in mine),
            **{c: round(sum(r["criteria"][c] for r in mine) / number, 4) for c in CRITERIA},
            "tokens_per_question": round(sum(r["tokens"] for r in mine) / number, 1),
            "seconds_per_question": round(sum(r["latency_seconds"] for r in mine) / number, 4),
            "cost_per_question": round(sum(r["cost"] for r in mine) / number, 8),
            "failed": failed,
        }
    comparison = compare_paired(
        *([scores[arm][item]["score"] for item in paired] for arm in ARMS), seed=seed
    )
    return {
        "items": len(scores[ARMS[0]]),
        "scored_in_both": len(paired),
        "arms": arms,
        "comparison": comparison._asdict(),
        "smallest_detectable_difference": round(smallest_detectable(len(paired)), 4)
        if len(paired) > 1
        else None,
    }


def show(summary: dict[str, Any], rows: list[dict[str, Any]], examples: int) -> None:
    """The table and the examples, on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from question_optimizer.hostile_text import one_line, printable
    from question_optimizer.reports import figure

    console = Console()
    table = Table(
        title=f"test split, {summary['scored_in_both']} of {summary['items']} items scored in both"
    )
    table.add_column("")
    for arm in ARMS:
        table.add_column(arm, justify="right")
    for key in summary["arms"][ARMS[0]]:
        cells = [summary["arms"][arm][key] for arm in ARMS]
        table.add_row(key.replace("_", " "), *map(figure, cells))
    console.print(table)
    console.print(Text(verdict_sentence(summary)))
    by_item: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_item.setdefault(row["item"], {})[row["arm"]] = row
    for arms in list(by_item.values())[:examples]:
        first = arms[ARMS[0]]
        excerpt = one_line(first["chunk_text"])[:160]
        console.print(Text(f"\nchunk      {excerpt}…", style="dim"))
        console.print(Text(f"gold       {printable(first['gold_question'])}"))
        for arm in ARMS:
            row = arms[arm]
            said = row["question"] if row["score"] is not None else f"failed: {row['error']}"
            score = "" if row["score"] is None else f"  ({row['score']:.2f})"
            console.print(Text(f"{arm:10} {printable(said or '')}{score}"))


def verdict_sentence(summary: dict[str, Any]) -> str:
    """The comparison in one sentence, with what it rests on."""
    c = summary["comparison"]
    if not c["n"]:
        return "no item could be scored in both arms, so nothing can be said"
    if c["low"] is None:
        return (
            f"optimised − original: {c['difference']:+.3f} on {c['n']} items: too few to say more"
        )
    return (
        f"optimised − original: {c['difference']:+.3f}, "
        f"95 % interval {c['low']:+.3f} to {c['high']:+.3f}, "
        f"p = {c['p']:.4f}, {c['wins']} better, {c['ties']} equal, {c['losses']} worse"
    )


def main(argv: list[str] | None = None) -> int:
    from config import accounts_of, load_settings
    from question_optimizer import files
    from question_optimizer.gold import read_gold, typical_prompt_characters
    from question_optimizer.statistics import smallest_detectable

    args = parse(argv)
    settings = load_settings(args)
    accounts = accounts_of(settings)
    source = settings.data_dir / "gold_dataset.json"
    pipeline = settings.data_dir / "optimized_pipeline.json"
    items = read_gold(source).side("test")
    if args.dry_run:
        n = len(items)
        calls = {"student": 2 * len(ARMS) * n, "judge": len(ARMS) * n}
        print(dry_run_line(accounts, calls, characters=typical_prompt_characters(items)))
        print(
            f"{n} test items show a score difference of about {smallest_detectable(n):.3f} or more"
        )
        return 0
    files.read_meta(pipeline, made_by="optimize_pipeline.py")
    used = {
        "seed": settings.seed,
        "arms": list(ARMS),
        "models": sorted(
            f"{role}: {a.model}" for a in accounts for role in a.roles if role != "teacher"
        ),
    }
    inputs = {source.name: files.sha256(source), pipeline.name: files.sha256(pipeline)}
    folder = settings.data_dir / "runs" / f"evaluate-{files.digest([used, inputs])[:12]}"
    summary_file = folder / "summary.json"
    if args.fresh or not is_complete(summary_file, used, inputs):
        make_run(settings, args, accounts, items, folder, used, inputs)
    return tell(folder, args)


def is_complete(summary: Path, used: dict[str, Any], inputs: dict[str, str]) -> bool:
    """Whether all of a run's files are there as they were made, and no item failed.

    A run with failed items is made again by the same command: what was answered comes from the
    cache, what failed is asked anew.
    """
    from question_optimizer import files

    if not files.is_finished(summary, settings=used, inputs=inputs):
        return False
    meta = files.read_meta(summary, made_by="evaluate_pipeline.py")
    there = {
        name: files.sha256(path) if (path := summary.with_name(name)).is_file() else ""
        for name in RUN_FILES
    }
    return not meta["counts"]["failed"] and meta["files"] == there


def make_run(
    settings: Settings,
    args: argparse.Namespace,
    accounts: list[LLMClientConfig],
    items: list[GoldItem],
    folder: Path,
    used: dict[str, Any],
    inputs: dict[str, str],
) -> None:
    """Evaluate and write the run's three files; the summary's meta comes last."""
    from custom_lm import LanguageModels
    from question_optimizer import files
    from question_optimizer.reports import write_evaluation_report

    with (
        LanguageModels(
            accounts,
            data_dir=settings.data_dir,
            max_cost=args.max_cost,
            limits_url=settings.secret_of("limits_url"),
        ) as models,
        finish_on_interrupt(models.dispatcher),
    ):
        rows = evaluate(models, items, settings.data_dir / "optimized_pipeline.json")
        rehearsal, usage = models.rehearsal, models.usage.seen.total
    summary = summarise(rows, seed=settings.seed)
    others = settings.data_dir.glob("runs/evaluate-*/summary.json")
    summary["test_set_opened"] = 1 + sum(path.parent != folder for path in others)
    summary["rehearsal"] = rehearsal
    summary["verdict"] = verdict_sentence(summary)
    files.write_jsonl(folder / "scores.jsonl", rows)
    files.write_json(folder / "summary.json", summary)
    write_evaluation_report(folder, arms=ARMS, settings=used, inputs=inputs)
    files.write_meta(
        folder / "summary.json",
        phase="evaluate_pipeline",
        settings=used,
        inputs=inputs,
        counts={
            "items": summary["items"],
            "failed": summary["items"] - summary["scored_in_both"],
            "test_set_opened": summary["test_set_opened"],
        },
        files={name: files.sha256(folder / name) for name in RUN_FILES},
        usage=usage.as_dict(),
        rehearsal=rehearsal,
    )


def tell(folder: Path, args: argparse.Namespace) -> int:
    """Print what the run's files say; exit code 4 where items failed."""
    from question_optimizer import files

    summary = files.read_json(folder / "summary.json", made_by="evaluate_pipeline.py")
    rows = [
        row for _, row in files.read_jsonl(folder / "scores.jsonl", made_by="evaluate_pipeline.py")
    ]
    if args.json:
        print(json.dumps(summary, ensure_ascii=False, indent=2))
    else:
        show(summary, rows, args.examples)
        note = " (rehearsal: says nothing about a real model)" if summary["rehearsal"] else ""
        print(f"\n{summary['items']} test items, 2 arms{note} -> {folder / 'report.html'}")
    failed = summary["items"] - summary["scored_in_both"]
    if failed:
        print(
            f"{failed} items failed in an arm and are left out; see {folder / 'scores.jsonl'}",
            file=sys.stderr,
        )
    return FAILED_ITEMS if failed else 0


if __name__ == "__main__":
    sys.exit(run(main))
