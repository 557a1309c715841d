"""A search for a better program: what the optimiser gets to work on, and what is chosen of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from custom_lm import LanguageModels
from dspy_pipeline import SyntheticQuestionPipeline, pipeline_state
from question_optimizer.errors import FAILED_ITEMS, StopRun, UserError, reason_of
from question_optimizer.optimizer_arguments import OPTIMIZERS, Sizes, most_runs
from question_optimizer.programs.judge import LLMMetric, Unjudged
from question_optimizer.programs.judge_check import pairs_of
from question_optimizer.programs.optimizers import Candidate, Search, candidates_of, unique
from question_optimizer.programs.pair_scorer import PairMetric, PairScorer, judge_examples
from question_optimizer.programs.runs import (
    chunk_digest,
    in_threads,
    pinned,
    recording_failures,
    threads_for,
)
from question_optimizer.programs.trust import Judge
from question_optimizer.records import GoldItem
from question_optimizer.verdict import MAX_MISSING

FINALISTS = 6  # candidates looked at on the dev set, of an optimiser that scores by the train set
_PROPOSAL_ATTEMPTS = 3
_MOST_ROLLOUTS = 30
_CHOOSING_SHARE = 1 / 3  # of the train side's chunks, to choose among judges


@dataclass(frozen=True)
class Plan:
    """Everything a run depends on, before any call."""

    target: str
    optimizer: str
    arguments: dict[str, Any]
    seed: int
    pass_score: float
    judge: Judge
    train: list[dspy.Example]
    dev: list[dspy.Example]

    @property
    def sides(self) -> dict[str, list[dspy.Example]]:
        return {"train": self.train, "dev": self.dev}

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.train), len(self.dev), 2 if self.target == "pipeline" else 1)

    def settings(self) -> dict[str, Any]:
        """What the result depends on besides its inputs."""
        return {
            "target": self.target,
            "optimizer": OPTIMIZERS[self.optimizer].dspy_name,
            **self.arguments,
            "seed": self.seed,
            "pass_score": self.pass_score,
            "judge": self.judge.origin,
            "judge_digest": self.judge.digest,
        }

    def chunks(self) -> list[str]:
        """Digests of the chunks that the search may look at."""
        return sorted({chunk_digest(e.chunk_text) for e in (*self.train, *self.dev)})

    def runs(self) -> dict[str, int]:
        """Upper bounds: runs of the program by the student and by the teacher, and proposals."""
        most = most_runs(self.optimizer, self.arguments, self.sizes)
        final = 0 if OPTIMIZERS[self.optimizer].scores_dev else FINALISTS
        looks = (1 + final) * len(self.dev) + 2 * len(self.train)
        return {
            "student": most.student + looks,
            "teacher": most.teacher,
            "proposals": most.proposals,
        }

    def calls(self) -> dict[str, int]:
        """Upper bounds by role. A pipeline asks twice and is judged; a judge scores two."""
        runs = self.runs()
        if self.target == "judge":
            return {
                "judge": 2 * runs["student"],
                "teacher": 2 * runs["teacher"] + runs["proposals"],
            }
        return {
            "student": 2 * runs["student"],
            "teacher": 2 * runs["teacher"] + runs["proposals"],
            "judge": runs["student"] + runs["teacher"],
        }


def judge_sides(
    items: Sequence[GoldItem], most: int, seed: int
) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Pairs to learn from and pairs to choose by, of different chunks, all of the train side: the
    dev side is what the optimised judge is checked on afterwards."""
    examples = judge_examples(pairs_of(items, most=most, seed=seed))
    chunks = sorted({example.chunk_id for example in examples})
    random.Random(seed).shuffle(chunks)
    held = set(chunks[: round(_CHOOSING_SHARE * len(chunks))])
    learn = [example for example in examples if example.chunk_id not in held]
    choose = [example for example in examples if example.chunk_id in held]
    if not learn or not choose:
        raise UserError(
            f"{len(examples)} pairs of {len(chunks)} chunks in the train split are too few to "
            "optimise a judge; annotate more chunks with annotate_chunks.py"
        )
    return learn, choose


# ---------------------------------------------------------------------- the search


class Task:
    """The program under optimisation with its metric and models, as DSPy wants them."""

    def __init__(self, plan: Plan, models: LanguageModels, judged: Callable[[], None]):
        self.plan = plan
        runs = plan.runs()
        self._to_judge = runs["student"] + runs["teacher"]  # at most
        self._seen = models.answers.seen
        self.teacher = models.lm("teacher")
        self.counted: Any
        if plan.target == "judge":
            self.lm = models.lm("judge")
            self.student = recording_failures(PairScorer)()
            self.counted = PairMetric(judged)
            self.threads = threads_for(models.dispatcher, ["judge"])
        else:
            self.lm = models.lm("student")
            self.student = recording_failures(SyntheticQuestionPipeline)()
            self.counted = LLMMetric(
                plan.judge.program, models.lm("judge"), pass_score=plan.pass_score, judged=judged
            )
            self.threads = threads_for(models.dispatcher)
        self.metric = pinned(self.counted)

    @property
    def asked(self) -> int:
        """Calls so far that the store did not answer."""
        return self._seen.fresh

    def scores(self, program: dspy.Module, examples: list[dspy.Example]) -> list[Any]:
        """The metric for each example: a number, or `Unjudged`."""

        def score(example: dspy.Example) -> Any:
            return self.metric(example, program(**example.inputs()))

        return in_threads(score, examples, threads=self.threads)

    def check_failures(self, final: bool = False) -> None:
        """StopRun where so much could not be judged that no choice can rest on the rest."""
        failed, asked = len(self.counted.failures), self.counted.judgements
        expected = asked if final else self._to_judge
        if failed > MAX_MISSING * max(1, expected):
            raise StopRun(
                f"{failed} of {asked} questions could not be judged "
                f"({self.counted.failures[0]}); no choice can rest on the others; check the "
                "accounts and run again",
                exit_code=FAILED_ITEMS,
            )


def compile_program(task: Task) -> list[Candidate]:
    """The unoptimised program, then what the optimiser found, each program once."""
    plan = task.plan
    optimizer = OPTIMIZERS[plan.optimizer]
    train = list(plan.train)
    random.Random(plan.seed).shuffle(train)
    unoptimised = Candidate("unoptimised", task.student.deepcopy())
    attempt = unread = 0  # those that only replay an earlier run's do not count
    while unread < _PROPOSAL_ATTEMPTS and attempt < _MOST_ROLLOUTS:
        before = task.asked
        # What was answered comes from the store, so that a new attempt costs only what is new.
        teacher = task.teacher.copy(rollout_id=f"again {attempt}") if attempt else task.teacher
        search = Search(
            task.student, task.metric, train, plan.dev, teacher, task.threads, plan.seed
        )
        try:
            found = candidates_of(plan.optimizer, search, plan.arguments)
            break
        except AdapterParseError:
            unread += task.asked > before
        except dspy.LMError as error:
            raise StopRun(
                f"{optimizer.dspy_name} cannot go on: a call to the teacher failed "
                f"({reason_of(error)}); give the role teacher to another model, or run again",
                exit_code=FAILED_ITEMS,
            ) from None
        attempt += 1
    else:
        raise StopRun(
            f"{optimizer.dspy_name} stopped {_PROPOSAL_ATTEMPTS} times because the teacher's "
            "proposals could not be read; give the role teacher to a stronger model",
            exit_code=FAILED_ITEMS,
        )
    best_first = sorted(found, key=lambda candidate: -(candidate.own_score or 0.0))
    candidates = unique([unoptimised, *best_first], pipeline_state)
    return candidates if optimizer.scores_dev else candidates[: 1 + FINALISTS]


@dataclass(frozen=True)
class Choice:
    """What was chosen, among what, and the scores it rests on."""

    best: Candidate
    unoptimised: Candidate
    candidates: list[dict[str, Any]]
    seen: dict[str, list[list[float]]]  # side: [score unoptimised, score of the best] by item


def choose(
    candidates: list[Candidate], scores: list[list[Any]]
) -> tuple[int, list[dict[str, Any]]]:
    """(place of the best, every candidate with its score) by the mean over the dev items that
    were judged in all of them. Ties go to the earlier, so the unoptimised wins against equals."""
    rows = list(zip(*scores, strict=True))
    judged = [row for row in rows if not any(isinstance(score, Unjudged) for score in row)]
    if len(rows) - len(judged) > MAX_MISSING * len(rows):
        raise StopRun(
            f"{len(rows) - len(judged)} of {len(rows)} dev items could not be judged in every "
            "candidate; no choice can rest on the others; check the accounts and run again",
            exit_code=FAILED_ITEMS,
        )
    means = [round(sum(column) / len(judged), 6) for column in zip(*judged, strict=True)]
    listed = [
        {"name": candidate.name, "dev_score": mean, "judged": len(judged)}
        for candidate, mean in zip(candidates, means, strict=True)
    ]
    return max(range(len(means)), key=lambda place: (means[place], -place)), listed


def search(task: Task, note: Callable[..., None]) -> Choice:
    """Score the unoptimised program, let the optimiser search, choose on the dev set.

    `note(stage)` and `note(stage, best score so far)` are told what goes on.

    The unoptimised program comes first, many items at once: DSPy bootstraps one item after the
    other, and finds what it would ask for in the store.
    """
    plan = task.plan
    note("scoring the unoptimised program")
    before = {side: task.scores(task.student, examples) for side, examples in plan.sides.items()}
    task.check_failures(final=True)
    judged = [score for score in before["dev"] if not isinstance(score, Unjudged)]
    mean = sum(judged) / len(judged) if judged else 0.0
    if hasattr(task.counted, "stand_in"):
        task.counted.stand_in = mean
    note("searching", mean)
    candidates = compile_program(task)
    note(f"choosing among {len(candidates)}")
    rivals = [task.scores(candidate.program, plan.dev) for candidate in candidates[1:]]
    place, listed = choose(candidates, [before["dev"], *rivals])
    best = candidates[place]
    after = before
    if place:
        after = {"train": task.scores(best.program, plan.train), "dev": rivals[place - 1]}
    task.check_failures(final=True)
    return Choice(best, candidates[0], listed, _in_pairs(before, after))


def _in_pairs(
    before: Mapping[str, Sequence[Any]], after: Mapping[str, Sequence[Any]]
) -> dict[str, list[list[float]]]:
    """{side: [score before, score after] of each item that has both}."""
    return {
        side: [
            [float(one), float(other)]
            for one, other in zip(before[side], after[side], strict=True)
            if not (isinstance(one, Unjudged) or isinstance(other, Unjudged))
        ]
        for side in before
    }
