"""Which judge is at work, and whether it was checked against people: what phases keep of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from custom_lm import LanguageModels
from dspy_pipeline import load_program
from question_optimizer import files
from question_optimizer.programs.judge import PASS_SCORE, QuestionJudge
from question_optimizer.programs.judge_check import calls_needed, check_judge, pairs_of
from question_optimizer.programs.pairwise import PairwiseJudge
from question_optimizer.programs.runs import threads_for
from question_optimizer.progress import Progress
from question_optimizer.records import GoldItem

OPTIMIZED_JUDGE = "optimized_judge.json"
CHECK = "judge_check.json"  # the latest
_CHECKS = "judge_checks"  # a file for each judge, models and gold set
BUILT_IN = "built-in"
_MADE_BY = "evaluate_pipeline.py --check-judge"


class Judge(NamedTuple):
    """The pointwise judge at work, where it comes from, and the hash of its prompts."""

    program: QuestionJudge
    origin: str  # "built-in", or the file's name
    digest: str

    @property
    def is_optimized(self) -> bool:
        return self.origin != BUILT_IN


def judge_at_work(data_dir: Path, named: str | None) -> Judge:
    """The judge that is `named`: a file, or "built-in". By default the optimised one of the data
    dir where there is one."""
    path = data_dir / OPTIMIZED_JUDGE if named is None else Path(named)
    if named == BUILT_IN or (named is None and not path.exists()):
        return _known(QuestionJudge(), BUILT_IN)
    return _known(load_program(path, QuestionJudge()), path.name)


def _known(program: QuestionJudge, origin: str) -> Judge:
    return Judge(program, origin, files.digest(program.dump_state())[:16])


def items_for_check(gold: Sequence[GoldItem], judge: Judge) -> list[GoldItem]:
    """Never the test side; nor the train side, if the judge learnt from it."""
    sides = ("dev",) if judge.is_optimized else ("train", "dev")
    return [item for item in gold if item.split in sides]


def check_settings(
    judge: Judge, models: Sequence[str], *, most: int, seed: int, pass_score: float = PASS_SCORE
) -> dict[str, Any]:
    """What a check depends on besides the gold set."""
    return {
        "judge": judge.origin,
        "judge_digest": judge.digest,
        "models": sorted(models),
        "judge_pairs": most,
        "seed": seed,
        "pass_score": pass_score,
    }


def kept_check(
    data_dir: Path, settings: dict[str, Any], inputs: dict[str, str]
) -> dict[str, Any] | None:
    """The check of this very judge, on these models and this gold set, if there is one.

    Where pairs are `unjudged`, another check asks again for what failed.
    """
    path = _kept_at(data_dir, settings, inputs)
    if not files.is_finished(path, settings=settings, inputs=inputs):
        return None
    return dict(files.read_json(path, made_by=_MADE_BY))


def make_check(
    data_dir: Path,
    gold: Sequence[GoldItem],
    judge: Judge,
    models: LanguageModels,
    settings: dict[str, Any],
    inputs: dict[str, str],
) -> dict[str, Any]:
    """Check the judge, with progress, and keep what came out."""
    pairs = pairs_of(
        items_for_check(gold, judge), most=settings["judge_pairs"], seed=settings["seed"]
    )
    progress = Progress(
        "judge checked",
        calls_needed(pairs),
        spend=lambda: models.dispatcher.spend,
        note=models.dispatcher.live_line,
    )
    with progress:
        found = check_judge(
            pairs,
            judge.program,
            PairwiseJudge(),
            models.lm("judge"),
            pass_score=settings["pass_score"],
            seed=settings["seed"],
            threads=threads_for(models.dispatcher, ["judge"]),
            judged=progress.advance,
            models=settings["models"],
            rehearsal=models.rehearsal,
        )
    if judge.is_optimized:
        found["why"] += " (chunks of the train split are left out: the judge learnt from them)"
    for path in (data_dir / CHECK, _kept_at(data_dir, settings, inputs)):
        files.write_json(path, found)
        files.write_meta(path, phase="check_judge", settings=settings, inputs=inputs)
    return found


def any_check(
    data_dir: Path, judge: Judge, models: Sequence[str], inputs: dict[str, str]
) -> dict[str, Any] | None:
    """A check of this judge on these models and this gold set, whatever its seed and size; of
    several the one of most pairs."""
    known = []
    for path in sorted((data_dir / _CHECKS).glob("*.json")):
        if path.name.endswith(".meta.json") or not files.meta_path(path).is_file():
            continue
        meta = files.read_meta(path, made_by=_MADE_BY)
        settings = meta.get("settings", {})
        same = settings.get("judge_digest") == judge.digest and settings.get("models") == models
        if same and meta.get("inputs") == inputs:
            known.append(files.read_json(path, made_by=_MADE_BY))
    return max(known, key=lambda check: check["pairs"], default=None)


def _kept_at(data_dir: Path, settings: dict[str, Any], inputs: dict[str, str]) -> Path:
    return data_dir / _CHECKS / f"{files.digest([settings, inputs])[:12]}.json"
