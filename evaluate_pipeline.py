"""Phase 5 of 5 · Evaluate: is the optimised pipeline better? A verdict on the locked test split.

The original, the optimised and any further programs write a question for every test item; the
judge scores each, and compares each with the original's, blind and in both orders. The differences
are taken item by item, with an interval: GO, NO-GO, or INCONCLUSIVE and how many more gold items
would settle it.

    python evaluate_pipeline.py --check-judge
    python evaluate_pipeline.py --dry-run
    python evaluate_pipeline.py --program mine=data/mine.json

Answers known already are replayed, so the same inputs give the same bytes. --repeats K asks anew,
K times an item. Exit code 0: GO (or the judge is to be trusted), 3: not, 4: items failed.

Reads   data/gold_dataset.json, data/optimized_pipeline.json, llm_providers.toml
Writes  data/runs/<id>/: scores.jsonl, summary.json, report.html; data/judge_check.json
Next    python optimized_question_generator.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from question_optimizer.cli import (
    amount,
    count,
    dry_run_line,
    finish_on_interrupt,
    phase_parser,
    positive,
    run,
)
from question_optimizer.errors import FAILED_ITEMS, NO_GO
from question_optimizer.progress import Progress

if TYPE_CHECKING:
    from config import Settings
    from custom_lm import LanguageModels
    from question_optimizer.gold import GoldSet
    from question_optimizer.programs.evaluation import Evaluation
    from question_optimizer.providers import LLMClientConfig

EXAMPLES = 5
LEAST_SEEN = 10  # items from which a scatter can be told
OWN_ARMS = ("original", "optimised", "existing", "gold")
_MADE_BY = "evaluate_pipeline.py"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = phase_parser(__doc__, calls_llm=True)
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--program",
        action="append",
        default=[],
        type=named_path,
        metavar="NAME=PATH",
        help="a further optimised pipeline; may be given several times",
    )
    what.add_argument(
        "--repeats",
        type=positive,
        metavar="K",
        help="live mode: ask everything anew, K times an item, instead of replaying",
    )
    what.add_argument(
        "--max-latency-ratio",
        type=amount,
        metavar="X",
        help="guardrail: seconds a question, times the original's (default: 2)",
    )
    what.add_argument(
        "--max-cost-ratio",
        type=amount,
        metavar="X",
        help="guardrail: cost a question, times the original's (default: 3)",
    )
    what.add_argument("--fresh", action="store_true", help="evaluate again even if nothing changed")
    trust = parser.add_argument_group("the judge")
    trust.add_argument(
        "--check-judge",
        action="store_true",
        help="measure the judge against the person's picks, and evaluate nothing",
    )
    trust.add_argument("--judge", metavar="FILE", help="an optimised judge, or built-in")
    trust.add_argument(
        "--judge-pairs",
        type=positive,
        default=100,
        metavar="N",
        help="pairs it is checked on, at most (default: 100)",
    )
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--examples",
        type=count,
        default=EXAMPLES,
        metavar="N",
        help="how many to print (default: 5)",
    )
    shown.add_argument("--json", action="store_true", help="print the summary as JSON instead")
    shown.add_argument("--mlflow", action="store_true", help="log the run to MLflow as well")
    return parser.parse_args(argv)


def named_path(text: str) -> tuple[str, Path]:
    """argparse type: NAME=PATH."""
    name, found, path = text.partition("=")
    if not (found and path and name.isidentifier()):
        raise argparse.ArgumentTypeError("must be NAME=PATH, the name a word")
    if name in OWN_ARMS:
        raise argparse.ArgumentTypeError(f"{name!r} is the name of an arm of its own")
    return name, Path(path)


# ---------------------------------------------------------------------- what is to be done


def main(argv: list[str] | None = None) -> int:
    from config import accounts_of, load_settings
    from question_optimizer.gold import read_gold

    args = parse(argv)
    settings = load_settings(args)
    accounts = accounts_of(settings)
    gold = read_gold(settings.data_dir / "gold_dataset.json", keep_sides=True)
    plan = plan_of(args, settings, accounts, gold)
    if args.check_judge:
        return check(plan, args, settings)
    if args.dry_run:
        print(foretell(plan))
        return 0
    if args.mlflow:
        from question_optimizer import tracking

        tracking.require()
    folder = plan.folder
    if args.fresh or not plan.is_complete(folder):
        make_run(plan, folder, args, settings)
    if args.mlflow:
        tracking.log_run(folder, settings=plan.used, inputs=plan.sources)
    return tell(folder, args)


def plan_of(
    args: argparse.Namespace,
    settings: Settings,
    accounts: list[LLMClientConfig],
    gold: GoldSet,
) -> Evaluation:
    from question_optimizer.programs.evaluation import Evaluation
    from question_optimizer.programs.trust import judge_at_work
    from question_optimizer.verdict import Guardrails

    limits = {"latency_ratio": args.max_latency_ratio, "cost_ratio": args.max_cost_ratio}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return Evaluation(
        data_dir=settings.data_dir,
        gold=gold,
        judge=judge_at_work(settings.data_dir, args.judge),
        accounts=accounts,
        seed=settings.seed,
        named=args.program,
        live_repeats=args.repeats,
        guardrails=Guardrails(**given),
        dry=args.dry_run,
    )


def opened(plan: Evaluation, args: argparse.Namespace, settings: Settings) -> LanguageModels:
    from custom_lm import LanguageModels

    return LanguageModels(
        plan.accounts,
        data_dir=plan.data_dir,
        max_cost=args.max_cost,
        max_calls=args.max_calls,
        limits_url=settings.secret_of("limits_url"),
    )


# ---------------------------------------------------------------------- the judge's check


def check(plan: Evaluation, args: argparse.Namespace, settings: Settings) -> int:
    """Measure the judge, or show what is known; exit code 3 where it is not to be trusted."""
    from question_optimizer.programs import trust
    from question_optimizer.reports.terminal import show_check

    checking = trust.check_settings(
        plan.judge, plan.judge_models, most=args.judge_pairs, seed=plan.seed
    )
    inputs = plan.gold_input
    if args.dry_run:
        print(foretell_check(plan, args.judge_pairs))
        return 0
    found = None if args.fresh else trust.kept_check(plan.data_dir, checking, inputs)
    if found is None or found["unjudged"]:
        with opened(plan, args, settings) as models, finish_on_interrupt(models.dispatcher):
            found = trust.make_check(
                plan.data_dir, plan.gold.items, plan.judge, models, checking, inputs
            )
    if args.json:
        print(json.dumps(found, indent=2))  # in ASCII: what is hostile stays inert
    else:
        show_check(found)
        note = " (rehearsal: says nothing about a real model)" if found["rehearsal"] else ""
        path = plan.data_dir / trust.CHECK
        print(f"\n{found['pairs']} pairs of {found['chunks']} chunks{note} -> {path}")
    return 0 if found["trusted"] else NO_GO


def foretell_check(plan: Evaluation, most: int) -> str:
    """What checking the judge would take; no call is made."""
    from question_optimizer.programs.estimates import judge_characters
    from question_optimizer.programs.judge_check import calls_needed, pairs_of
    from question_optimizer.programs.runs import examples_of
    from question_optimizer.programs.trust import items_for_check

    items = items_for_check(plan.gold.items, plan.judge)
    pairs = pairs_of(items, most=most, seed=plan.seed)
    characters = judge_characters(plan.judge.program, examples_of(items))
    return dry_run_line(plan.accounts, {"judge": calls_needed(pairs)}, characters=characters)


# ---------------------------------------------------------------------- the evaluation


def foretell(plan: Evaluation) -> str:
    """What a run would take, and what the test set can show; no call is made."""
    from statistics import stdev

    from question_optimizer.programs import estimates, verdict_run
    from question_optimizer.programs.evaluation import seen_by
    from question_optimizer.programs.runs import examples_of
    from question_optimizer.statistics import ASSUMED_DEVIATION, smallest_detectable

    examples = examples_of(plan.items)
    programs = [arm.program for arm in plan.arms if arm.program is not None]
    written = [estimates.pipeline_characters(program, examples) for program in programs]
    characters = {
        "student": sum(written) / len(written),
        "judge": estimates.judge_characters(plan.judge.program, examples),
    }
    calls = verdict_run.calls_of(plan.arms, plan.items, plan.repeats)
    n = len(plan.items)
    known = [
        other - one for path in plan.programs.values() for one, other in seen_by(path, plan.judge)
    ]
    scatter, as_seen = ASSUMED_DEVIATION, ""
    if len(known) >= LEAST_SEEN:
        scatter, as_seen = stdev(known) or ASSUMED_DEVIATION, ", as on train and dev"
    return "\n".join(
        [
            dry_run_line(plan.accounts, calls, characters=characters),
            "an answer that is known already is not asked for again"
            if plan.live_repeats is None
            else "live: everything is asked anew",
            f"{n} test items show a score difference of about "
            f"{smallest_detectable(n, standard_deviation=scatter):.3f} or more (80 % power, if "
            f"differences scatter by {scatter:.2f}{as_seen})"
            if n > 1
            else "one test item shows nothing",
        ]
    )


def make_run(plan: Evaluation, folder: Path, args: argparse.Namespace, settings: Settings) -> None:
    """Evaluate and write the run's three files; the summary's meta comes last."""
    from question_optimizer import files
    from question_optimizer.programs.evaluation import (
        RUN_FILES,
        failed_items,
        health,
        judged_by,
        open_test_set,
        origin_of,
        summarise,
    )
    from question_optimizer.reports import write_evaluation_report

    folder.mkdir(parents=True, exist_ok=True)  # so that a killed run is told from a deleted one
    openings = open_test_set(plan.data_dir, folder.name)
    with opened(plan, args, settings) as models, finish_on_interrupt(models.dispatcher):
        rows = evaluate(plan, models, live=folder.name if plan.live_repeats else None)
        rehearsal, usage = models.rehearsal, models.usage.as_dict()
    summary = summarise(plan, rows) | {
        "mode": plan.used["mode"],
        "rehearsal": rehearsal,
        "judge": plan.judge_figures,
        "programs": {name: origin_of(name, path, plan) for name, path in plan.programs.items()},
        "set_health": health(plan, rows),
        "test_set_opened": len(openings),
        "openings": openings,
        "usage": usage,
    }
    summary["sentence"] += judged_by(summary["judge"])
    files.write_jsonl(folder / "scores.jsonl", rows)
    files.write_json(folder / "summary.json", summary)
    write_evaluation_report(folder, settings=plan.used, inputs=plan.sources)
    files.write_meta(
        folder / "summary.json",
        phase="evaluate_pipeline",
        settings=plan.used,
        inputs=plan.sources,
        counts={
            "items": summary["items"],
            "failed": failed_items(summary),
            "test_set_opened": summary["test_set_opened"],
        },
        verdict=summary["verdict"],
        files={name: files.sha256(folder / name) for name in RUN_FILES},
        usage=usage,
        rehearsal=rehearsal,
    )


def evaluate(plan: Evaluation, models: LanguageModels, *, live: str | None) -> list[dict[str, Any]]:
    """One row per item, arm and repeat. A failed item has no score but an error."""
    import dspy

    from question_optimizer.programs import verdict_run
    from question_optimizer.programs.adapter import CachedPromptAdapter
    from question_optimizer.programs.judge import PASS_SCORE
    from question_optimizer.programs.pairwise import PairwiseJudge
    from question_optimizer.programs.runs import threads_for

    progress = Progress(
        "judged",
        verdict_run.steps_of(plan.arms, plan.items, plan.repeats),
        spend=lambda: models.dispatcher.spend,
        note=models.dispatcher.live_line,
    )
    judging = verdict_run.Judging(
        models.lm("student"),
        models.lm("judge"),
        plan.judge.program,
        PairwiseJudge(),
        PASS_SCORE,
        plan.price_of,
    )
    with progress, dspy.context(adapter=CachedPromptAdapter()):
        return verdict_run.evaluate(
            plan.arms,
            plan.items,
            verdict_run.judgings_of(judging, live, plan.repeats),
            threads=threads_for(models.dispatcher),
            done=lambda failed: progress.advance(failed=failed),
        )


# ---------------------------------------------------------------------- what is shown


def tell(folder: Path, args: argparse.Namespace) -> int:
    """Print what the run's files say. Exit code 0: GO; 3: NO-GO; 4: items failed; 3: it is open."""
    from question_optimizer import files
    from question_optimizer.programs.evaluation import OPENINGS, failed_items, known_openings
    from question_optimizer.reports.terminal import show_verdict

    summary = files.read_json(folder / "summary.json", made_by=_MADE_BY)
    rows = [row for _, row in files.read_jsonl(folder / "scores.jsonl", made_by=_MADE_BY)]
    if args.json:
        print(json.dumps(summary, indent=2))  # in ASCII: what is hostile stays inert
    else:
        show_verdict(summary, rows, examples=args.examples)
        note = " (rehearsal: says nothing about a real model)" if summary["rehearsal"] else ""
        known = known_openings(folder.parents[1] / OPENINGS)
        opened = max(len(known), summary["test_set_opened"])
        print(f"\nthe test set was opened {opened} time{'s' if opened != 1 else ''} so far")
        arms = len(summary["arm_order"])
        print(
            f"{summary['verdict']}: {summary['items']} test items, {arms} arms{note} -> "
            f"{folder / 'report.html'}"
        )
    failed = failed_items(summary)
    if failed:
        print(
            f"{failed} items failed in an arm or side by side and are left out; the same command "
            f"asks for them again; see {folder / 'scores.jsonl'}",
            file=sys.stderr,
        )
    if failed and summary["verdict"] != "NO-GO":
        return FAILED_ITEMS
    return int(summary["exit_code"])


if __name__ == "__main__":
    sys.exit(run(main))
