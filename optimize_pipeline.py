"""Phase 4 of 5 · Optimise: find the instructions and demonstrations that write better questions.

One of DSPy's optimisers proposes programs by the train split, the judge scores them on the dev
split, and the best is kept. The test split is never looked at. First the judge itself is checked
against the person's picks: with one that is no better than chance nothing is optimised.

    python optimize_pipeline.py --dry-run
    python optimize_pipeline.py --optimizer gepa --preset light
    python optimize_pipeline.py --target judge

Reads   data/gold_dataset.json, llm_providers.toml
Writes  data/optimized_pipeline.json, or data/optimized_judge.json; data/judge_check.json
Next    python evaluate_pipeline.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from question_optimizer.cli import (
    dry_run_line,
    finish_on_interrupt,
    phase_parser,
    positive,
    run,
    share,
)
from question_optimizer.errors import FAILED_ITEMS, NO_GO, StopRun, UserError
from question_optimizer.progress import Progress

if TYPE_CHECKING:
    from config import Settings
    from custom_lm import LanguageModels
    from question_optimizer.programs.search import Choice, Plan
    from question_optimizer.programs.trust import Judge
    from question_optimizer.providers import LLMClientConfig
    from question_optimizer.records import GoldItem

FORMER = "programs"  # where replaced programs are kept, in the data dir
LOCK = "optimize.lock"
MOST_SHOWN = 8  # candidates
OUTPUTS = {"pipeline": "optimized_pipeline.json", "judge": "optimized_judge.json"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    from question_optimizer import optimizer_arguments as known

    parser = phase_parser(__doc__, calls_llm=True)
    search = parser.add_argument_group("search")
    search.add_argument(
        "--optimizer", choices=known.NAMES, default="bootstrap", help="(default: bootstrap)"
    )
    search.add_argument(
        "--preset", choices=known.PRESETS, default="light", help="how thorough (default: light)"
    )
    search.add_argument(
        "--target", choices=list(OUTPUTS), default="pipeline", help="what to optimise"
    )
    search.add_argument(
        "--pass-score",
        "--metric-threshold",
        dest="pass_score",
        type=share,
        metavar="S",
        help="judge's score, 0 to 1, from which a question may become a demo, if no criterion is "
        "below 3 (default: 0.75)",
    )
    search.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write (default: optimized_pipeline.json in the data dir)",
    )
    search.add_argument(
        "--fresh", action="store_true", help="optimise again even if nothing changed"
    )
    trust = parser.add_argument_group("the judge")
    trust.add_argument("--judge", metavar="FILE", help="an optimised judge, or built-in")
    trust.add_argument(
        "--judge-pairs",
        type=positive,
        default=100,
        metavar="N",
        help="pairs it is checked on, at most (default: 100)",
    )
    trust.add_argument(
        "--allow-unchecked-judge",
        action="store_true",
        help="optimise with a judge that was not checked, or failed",
    )
    known.add_to(parser)
    return parser.parse_args(argv)


# ---------------------------------------------------------------------- what is to be done


def plan_of(settings: Settings, args: argparse.Namespace, gold: Any) -> Plan:
    from question_optimizer import optimizer_arguments as known
    from question_optimizer.optimizer_arguments import Sizes, resolved
    from question_optimizer.programs.judge import PASS_SCORE
    from question_optimizer.programs.runs import examples_of
    from question_optimizer.programs.search import Plan, judge_sides
    from question_optimizer.programs.trust import BUILT_IN, judge_at_work

    on_judge = args.target == "judge"
    # a judge is optimised from the built-in one, whatever came of it the last time
    judge = judge_at_work(settings.data_dir, BUILT_IN if on_judge else args.judge)
    if on_judge:
        train, dev = judge_sides(gold.side("train"), args.judge_pairs, settings.seed)
    else:
        train, dev = examples_of(gold.side("train")), examples_of(gold.side("dev"))
    sizes = Sizes(len(train), len(dev), 1 if on_judge else 2)
    return Plan(
        target=args.target,
        optimizer=args.optimizer,
        arguments=resolved(args.optimizer, args.preset, known.given(args), sizes),
        seed=settings.seed,
        pass_score=PASS_SCORE if args.pass_score is None else args.pass_score,
        judge=judge,
        train=train,
        dev=dev,
    )


# ---------------------------------------------------------------------- the run


def main(argv: list[str] | None = None) -> int:
    from config import accounts_of, load_settings
    from question_optimizer import files
    from question_optimizer.gold import read_gold
    from question_optimizer.locks import only_one

    args = parse(argv)
    from question_optimizer.programs import trust  # loads DSPy: not for --help

    settings = load_settings(args)
    accounts = accounts_of(settings)
    source = settings.data_dir / "gold_dataset.json"
    gold = read_gold(source, keep_sides=True)
    plan = plan_of(settings, args, gold)
    models = sorted({account.model for account in accounts if "judge" in account.roles})
    checking = trust.check_settings(
        plan.judge, models, most=args.judge_pairs, seed=settings.seed, pass_score=plan.pass_score
    )
    inputs = {source.name: files.sha256(source)}
    kept = trust.kept_check(settings.data_dir, checking, inputs)
    if args.dry_run:
        needs_check = kept is None and not skips_check(args)
        print(foretell(plan, accounts, gold, check=needs_check, most=args.judge_pairs))
        return 0
    output = output_of(settings, args)
    used = plan.settings()
    used["models"] = sorted(f"{role}: {a.model}" for a in accounts for role in a.roles)
    done = files.is_finished(output, settings=used, inputs=inputs) and not args.fresh
    if done and (skips_check(args) or was_trusted(output)):
        print(
            "already optimised from this gold set, nothing to do (--fresh does it again) "
            f"-> {output}"
        )
        return 0
    with only_one(settings.data_dir / LOCK, "another optimisation"):
        optimise(settings, args, accounts, gold.items, plan, used, inputs, (checking, kept))
    return 0


def output_of(settings: Settings, args: argparse.Namespace) -> Path:
    """Where the program goes; UserError, before any call, where it cannot."""
    from question_optimizer import files

    output: Path = args.output or settings.data_dir / OUTPUTS[args.target]
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file")
    if args.output and output.exists():
        place = files.meta_path(output)
        meta = files.read_json(place, made_by=None) if place.is_file() else {}
        if not isinstance(meta, dict) or meta.get("phase") != "optimize_pipeline":
            raise UserError(f"--output {output}: exists and is no program; name another file")
    return output


def was_trusted(output: Path) -> bool:
    """Whether what stands there was chosen by a judge that had passed its check."""
    from question_optimizer import files

    meta = files.read_meta(output, made_by="optimize_pipeline.py")
    return bool(meta.get("judge", {}).get("trusted"))


def skips_check(args: argparse.Namespace) -> bool:
    """A judge that is to be optimised need not be good; nor one that the person vouches for."""
    return bool(args.allow_unchecked_judge or args.target == "judge")


def foretell(
    plan: Plan, accounts: list[LLMClientConfig], gold: Any, *, check: bool, most: int
) -> str:
    """What a run would take at most, and what the gold set can show; no call is made."""
    from question_optimizer.programs.estimates import prompt_characters
    from question_optimizer.programs.judge_check import calls_needed, pairs_of
    from question_optimizer.programs.trust import items_for_check
    from question_optimizer.statistics import ASSUMED_DEVIATION, smallest_detectable

    calls = plan.calls()
    lines = []
    if check:
        needed = calls_needed(
            pairs_of(items_for_check(gold.items, plan.judge), most=most, seed=plan.seed)
        )
        calls["judge"] += needed
        lines.append(f"{needed} of the judge's calls check the judge itself")
    characters = prompt_characters(plan.target, plan.judge.program, plan.train, plan.arguments)
    lines.insert(0, dry_run_line(accounts, calls, characters=characters))
    lines.append("these are upper bounds: an answer that is known already is not asked for again")
    if plan.target == "pipeline":
        dev, test = len(plan.dev), sum(item.split == "test" for item in gold.items)
        lines.append(
            f"the {dev} dev items show a difference of about {smallest_detectable(dev):.3f} or "
            f"more, the {test} test items one of {smallest_detectable(test):.3f} (80 % power, if "
            f"differences scatter by {ASSUMED_DEVIATION:g})"
        )
    return "\n".join(lines)


def optimise(
    settings: Settings,
    args: argparse.Namespace,
    accounts: list[LLMClientConfig],
    items: list[GoldItem],
    plan: Plan,
    used: dict[str, Any],
    inputs: dict[str, str],
    check: tuple[dict[str, Any], dict[str, Any] | None],
) -> None:
    """Check the judge, search, save, and say what came out."""
    from custom_lm import LanguageModels
    from question_optimizer import files

    output = output_of(settings, args)
    with (
        LanguageModels(
            accounts,
            data_dir=settings.data_dir,
            max_cost=args.max_cost,
            max_calls=args.max_calls,
            limits_url=settings.secret_of("limits_url"),
        ) as models,
        finish_on_interrupt(models.dispatcher),
    ):
        trusted = judge_check(settings, args, models, items, plan.judge, inputs, check)
        choice = watched_search(plan, models)
        rehearsal, usage = models.rehearsal, models.usage
    report(plan, choice, trusted)
    if plan.target == "judge" and choice.best is choice.unoptimised:
        keep_former(output, settings.data_dir / FORMER)
        for path in (files.meta_path(output), output):
            path.unlink(missing_ok=True)
        print(f"no better judge among {len(choice.candidates)}: the built-in one is used")
        return
    former = settings.data_dir / FORMER
    save(
        output, former, plan, choice, used, inputs, judge=trusted, usage=usage, rehearsal=rehearsal
    )
    if plan.target == "judge" and args.output is None:
        print(
            "this judge scores from now on: check it with evaluate_pipeline.py --check-judge; "
            "scores of another judge do not compare",
            file=sys.stderr,
        )
    first = choice.candidates[0]["dev_score"]
    best = max(candidate["dev_score"] for candidate in choice.candidates)
    note = " (rehearsal)" if rehearsal else ""
    print(
        f"dev score {first:.3f} -> {best:.3f}, best of {len(choice.candidates)}{note} -> {output}"
    )


def judge_check(
    settings: Settings,
    args: argparse.Namespace,
    models: LanguageModels,
    items: list[GoldItem],
    judge: Judge,
    inputs: dict[str, str],
    check: tuple[dict[str, Any], dict[str, Any] | None],
) -> dict[str, Any]:
    """What is known of the judge; StopRun, with the reason, where it must not be relied on."""
    from question_optimizer.programs import trust
    from question_optimizer.verdict import MAX_MISSING

    checking, found = check
    if (found is None or found["unjudged"]) and not skips_check(args):
        found = trust.make_check(settings.data_dir, items, judge, models, checking, inputs)
    if found is None:
        return {"checked": False, "why": "the judge was not checked against the person's picks"}
    if not found["trusted"] and not skips_check(args):
        raise StopRun(
            f"the judge is not to be relied on: {found['why']}; give it a stronger model, optimise "
            "it with --target judge, or go on at your own risk with --allow-unchecked-judge",
            exit_code=FAILED_ITEMS if found["unjudged"] > MAX_MISSING * found["pairs"] else NO_GO,
        )
    return found


def watched_search(plan: Plan, models: LanguageModels) -> Choice:
    """`search` with progress: what is judged, trial and best score so far, spend, time left."""
    import dspy

    from question_optimizer.programs.adapter import CachedPromptAdapter
    from question_optimizer.programs.runs import run_quietly
    from question_optimizer.programs.search import Task, search
    from question_optimizer.programs.trials import Trials

    trials = Trials(len(plan.dev), len(plan.train))
    runs = plan.runs()
    progress = Progress(
        "judged",
        runs["student"] + runs["teacher"],
        spend=lambda: models.dispatcher.spend,
        note=lambda: ", ".join(filter(None, (trials.line, models.dispatcher.live_line()))),
    )

    failures = 0

    def advance() -> None:
        nonlocal failures
        now = len(task.counted.failures)
        progress.advance(failed=now > failures)
        failures = now
        task.check_failures()

    task = Task(plan, models, advance)
    # DSPy ends an evaluation after some errors; here each is recorded where it happens.
    patient = 1000 * (len(plan.train) + len(plan.dev))
    settings = {"lm": task.lm, "adapter": CachedPromptAdapter(), "callbacks": [trials]}
    with dspy.context(max_errors=patient, **settings), progress:
        choice = run_quietly(lambda: search(task, trials.say))
    if trials.unread:
        print(
            f"{trials.unread} of the teacher's answers could not be read, so that proposals are "
            "missing; a stronger model may do better",
            file=sys.stderr,
        )
    return choice


def save(
    output: Path,
    former: Path,
    plan: Plan,
    choice: Choice,
    used: dict[str, Any],
    inputs: dict[str, str],
    *,
    judge: dict[str, Any],
    usage: Any,
    rehearsal: bool,
) -> None:
    """The program's state, then the meta file that makes it finished."""
    from dspy_pipeline import fingerprint, pipeline_state
    from question_optimizer import files
    from question_optimizer.programs.pair_scorer import judge_of

    program = choice.best.program
    if plan.target == "judge":
        program = judge_of(program)
    state = pipeline_state(program)
    if not output.is_file() or output.read_text(encoding="utf-8", errors="replace") != state:
        keep_former(output, former)
    files.write_atomic(output, state)
    files.write_meta(
        output,
        phase="optimize_pipeline",
        settings=used,
        inputs=inputs,
        counts={"train": len(plan.train), "dev": len(plan.dev)},
        candidates=choice.candidates,
        chosen=choice.best.name,
        seen=choice.seen,
        chunks=plan.chunks(),
        judge=judge,
        signature=fingerprint(program),
        usage=usage.as_dict(),
        rehearsal=rehearsal,
    )


def keep_former(output: Path, folder: Path) -> None:
    """Put the program that is about to be replaced, if it is a finished one, into `folder`."""
    from question_optimizer import files

    meta_file = files.meta_path(output)
    if not (output.is_file() and meta_file.is_file()):
        return
    try:
        meta = files.read_meta(output, made_by="optimize_pipeline.py")
        name = str(meta.get("settings", {}).get("optimizer", "program"))
    except UserError:  # a damaged one is kept all the same
        name = "unknown"
    kept = folder / f"{output.stem}-{name}-{files.sha256(output)[:8]}.json"
    files.write_atomic(kept, output.read_bytes())
    files.write_atomic(files.meta_path(kept), meta_file.read_bytes())
    print(f"the former one is kept: {kept} (--program takes it)", file=sys.stderr)


def report(plan: Plan, choice: Choice, judge: dict[str, Any]) -> None:
    """The candidates' scores, and in words what the chosen one does differently, on stderr."""
    from question_optimizer.hostile_text import printable
    from question_optimizer.programs.differences import difference

    def say(line: str) -> None:
        print(printable(line), file=sys.stderr)

    if plan.target == "pipeline":
        say(f"judge: {judge['why']}")
    width = max(len(candidate["name"]) for candidate in choice.candidates)
    unit = "dev items" if plan.target == "pipeline" else "pairs"
    best_first = sorted(choice.candidates, key=lambda c: -c["dev_score"])
    for candidate in best_first[:MOST_SHOWN]:
        mark = "  <- chosen" if candidate["name"] == choice.best.name else ""
        say(
            f"  {candidate['name']:{width}} {candidate['dev_score']:.3f} on {candidate['judged']} "
            f"{unit}{mark}"
        )
    if (more := len(best_first) - MOST_SHOWN) > 0:
        say(f"  and {more} more, none better")
    if choice.best is choice.unoptimised:
        say("nothing was better than the unoptimised one, which is kept")
    elif plan.target == "pipeline":
        say("the best of several looks better than it is; evaluate_pipeline.py tells by how much")
    for line in difference(choice.unoptimised.program, choice.best.program):
        say(line)


if __name__ == "__main__":
    sys.exit(run(main))
