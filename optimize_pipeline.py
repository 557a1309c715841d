"""Phase 4 of 5 · Optimise: find the demonstrations that make the pipeline write better questions.

DSPy's BootstrapFewShotWithRandomSearch: a teacher writes questions for the train split, those the
judge passes become demonstrations, and the candidate that scores best on the dev split is kept.
The test split is never looked at.

    python optimize_pipeline.py --dry-run
    python optimize_pipeline.py

Reads   data/gold_dataset.json, llm_providers.toml
Writes  data/optimized_pipeline.json
Next    python evaluate_pipeline.py
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import TYPE_CHECKING, Any

from question_optimizer.cli import (
    Progress,
    count,
    dry_run_line,
    finish_on_interrupt,
    phase_parser,
    run,
    share,
)
from question_optimizer.errors import FAILED_ITEMS, StopRun

if TYPE_CHECKING:
    import dspy

    from config import Settings
    from custom_lm import LanguageModels
    from question_optimizer.gold import GoldSet
    from question_optimizer.programs.judge import LLMMetric
    from question_optimizer.providers import LLMClientConfig

OUTPUT = "optimized_pipeline.json"
MAX_UNJUDGED = 0.05  # more failed judgements than this and the choice would rest on what is missing


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = phase_parser(__doc__, calls_llm=True)
    search = parser.add_argument_group("search (DSPy's names)")
    search.add_argument(
        "--max-bootstrapped-demos",
        type=count,
        default=2,
        metavar="N",
        help="per predictor (default: 2)",
    )
    search.add_argument(
        "--num-candidate-programs",
        type=count,
        default=5,
        metavar="N",
        help="demo sets tried (default: 5)",
    )
    search.add_argument(
        "--pass-score",
        type=share,
        metavar="S",
        help="judge's score, 0 to 1, from which a question may become a demo (default: 0.75)",
    )
    search.add_argument(
        "--fresh", action="store_true", help="optimise again even if nothing changed"
    )
    return parser.parse_args(argv)


def settings_used(settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    """What the result depends on besides its inputs."""
    from question_optimizer.programs.judge import PASS_SCORE

    return {
        "optimizer": "BootstrapFewShotWithRandomSearch",
        "seed": settings.seed,
        "max_bootstrapped_demos": args.max_bootstrapped_demos,
        "num_candidate_programs": args.num_candidate_programs,
        "pass_score": PASS_SCORE if args.pass_score is None else args.pass_score,
    }


def call_counts(train: int, dev: int, used: dict[str, Any]) -> dict[str, int]:
    """Upper bound of LM calls by role: candidates on dev, bootstrapping on train, two calls each.

    DSPy scores num_candidate_programs + 3 programs on the dev set, and bootstraps for all but the
    first two of them until enough demonstrations pass, at worst through the whole train set.
    """
    runs = (used["num_candidate_programs"] + 3) * dev
    bootstraps = (used["num_candidate_programs"] + 1) * train
    return {"student": 2 * runs, "teacher": 2 * bootstraps, "judge": runs + bootstraps}


def compile_pipeline(
    models: LanguageModels, train: list[dspy.Example], dev: list[dspy.Example], used: dict[str, Any]
) -> tuple[dspy.Module, list[dict[str, Any]], LLMMetric]:
    """(best program, every candidate's seed and dev score, the metric used)."""
    import dspy

    from dspy_pipeline import SyntheticQuestionPipeline
    from question_optimizer.programs.judge import LLMMetric, QuestionJudge
    from question_optimizer.programs.runs import recording_failures, run_quietly, threads_for

    most = call_counts(len(train), len(dev), used)["judge"]
    progress = Progress(
        "judged", most, spend=lambda: models.dispatcher.spend, note=models.dispatcher.live_line
    )
    llm_metric = LLMMetric(
        QuestionJudge(), models.lm("judge"), pass_score=used["pass_score"], judged=progress.advance
    )
    shuffled = list(train)
    random.Random(used["seed"]).shuffle(shuffled)

    def search() -> dspy.Module:
        optimizer = dspy.BootstrapFewShotWithRandomSearch(
            metric=llm_metric,
            teacher_settings={"lm": models.lm("teacher")},
            max_bootstrapped_demos=used["max_bootstrapped_demos"],
            # Labelled demos would put the same raw example, half its fields missing, in both steps.
            max_labeled_demos=0,
            num_candidate_programs=used["num_candidate_programs"],
            num_threads=threads_for(models.dispatcher),
            max_errors=10 * (len(train) + len(dev)),
        )
        student = recording_failures(SyntheticQuestionPipeline)()
        return optimizer.compile(student, trainset=shuffled, valset=dev)

    with dspy.context(lm=models.lm("student")), progress:
        compiled = run_quietly(search)
    best, candidates = choose(compiled.candidate_programs, llm_metric)
    return best, candidates, llm_metric


def choose(
    programs: list[dict[str, Any]], llm_metric: LLMMetric
) -> tuple[dspy.Module, list[dict[str, Any]]]:
    """The candidate with the best mean over the dev items that were judged in every candidate.

    DSPy's own choice counts a failed item as zero; here it is left out of all. Ties go to the
    earlier candidate, so the unoptimised program wins against equals.
    """
    from question_optimizer.programs.judge import Unjudged

    failed = len(llm_metric.failures)
    entries = sorted(programs, key=lambda entry: entry["seed"])
    scores = list(zip(*(entry["subscores"] for entry in entries), strict=True))
    judged = [row for row in scores if not any(isinstance(score, Unjudged) for score in row)]
    if failed > MAX_UNJUDGED * max(1, llm_metric.judgements) or not judged:
        raise StopRun(
            f"{failed} of {llm_metric.judgements} questions could not be judged "
            f"({llm_metric.failures[0]}); no choice can rest on the others; check the accounts and "
            "run again",
            exit_code=FAILED_ITEMS,
        )
    means = [sum(column) / len(judged) for column in zip(*judged, strict=True)]
    candidates = [
        {"seed": entry["seed"], "dev_score": round(mean, 6), "judged": len(judged)}
        for entry, mean in zip(entries, means, strict=True)
    ]
    best = max(range(len(entries)), key=lambda place: (candidates[place]["dev_score"], -place))
    return entries[best]["program"], candidates


def main(argv: list[str] | None = None) -> int:
    from config import accounts_of, load_settings
    from question_optimizer import files
    from question_optimizer.gold import read_gold, typical_prompt_characters

    args = parse(argv)
    settings = load_settings(args)
    accounts = accounts_of(settings)
    source = settings.data_dir / "gold_dataset.json"
    gold = read_gold(source)
    train, dev = gold.side("train"), gold.side("dev")
    used = settings_used(settings, args)
    if args.dry_run:
        calls = call_counts(len(train), len(dev), used)
        print(dry_run_line(accounts, calls, characters=typical_prompt_characters(train + dev)))
        return 0
    output = settings.data_dir / OUTPUT
    used["models"] = sorted(f"{role}: {a.model}" for a in accounts for role in a.roles)
    inputs = {source.name: files.sha256(source)}
    if files.is_finished(output, settings=used, inputs=inputs) and not args.fresh:
        print(
            "already optimised from this gold set, nothing to do (--fresh does it again) "
            f"-> {output}"
        )
        return 0
    optimise(settings, accounts, gold, used, inputs=inputs, max_cost=args.max_cost)
    return 0


def optimise(
    settings: Settings,
    accounts: list[LLMClientConfig],
    gold: GoldSet,
    used: dict[str, Any],
    *,
    inputs: dict[str, str],
    max_cost: float | None,
) -> None:
    """Compile, save, and say what came out."""
    from custom_lm import LanguageModels
    from dspy_pipeline import fingerprint, pipeline_state
    from question_optimizer import files
    from question_optimizer.programs.runs import examples_of

    output = settings.data_dir / OUTPUT
    train, dev = examples_of(gold.side("train")), examples_of(gold.side("dev"))
    with (
        LanguageModels(
            accounts,
            data_dir=settings.data_dir,
            max_cost=max_cost,
            limits_url=settings.secret_of("limits_url"),
        ) as models,
        finish_on_interrupt(models.dispatcher),
    ):
        program, candidates, llm_metric = compile_pipeline(models, train, dev, used)
        rehearsal, usage = models.rehearsal, models.usage.seen.total
    files.write_atomic(output, pipeline_state(program))
    files.write_meta(
        output,
        phase="optimize_pipeline",
        settings=used,
        inputs=inputs,
        counts={"train": len(train), "dev": len(dev), "unjudged": len(llm_metric.failures)},
        candidates=candidates,
        signature=fingerprint(program),
        usage=usage.as_dict(),
        rehearsal=rehearsal,
    )
    report(program, candidates)
    first, best = candidates[0]["dev_score"], max(c["dev_score"] for c in candidates)
    note = " (rehearsal)" if rehearsal else ""
    print(
        f"dev score {first:.3f} -> {best:.3f} over {len(candidates)} candidates{note} -> {output}"
    )


def report(program: dspy.Module, candidates: list[dict[str, Any]]) -> None:
    """The candidates' scores and the chosen demonstrations, in words, on stderr."""
    from question_optimizer.hostile_text import printable

    for candidate in candidates:
        kind = "unoptimised" if candidate["seed"] == -3 else f"candidate {candidate['seed']}"
        on = f"on {candidate['judged']} dev items"
        print(f"  {kind:14} {candidate['dev_score']:.3f} {on}", file=sys.stderr)
    for name, predictor in program.named_predictors():
        print(f"  {name}: {len(predictor.demos)} demonstrations", file=sys.stderr)
        for demo in predictor.demos:
            shown = {key: demo[key] for key in predictor.signature.output_fields if key in demo}
            print(f"    {printable(str(shown))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main))
