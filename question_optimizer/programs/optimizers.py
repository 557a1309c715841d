"""DSPy's optimisers under one roof: their arguments, what they cost, and what they found.

Each is called as its authors meant it, and handed back as candidates. Which candidate is kept is
not left to the optimiser: two of the five choose by the training set, all count an outage as a
zero, and none knows that the unoptimised program may be as good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import dspy

from question_optimizer.errors import UserError
from question_optimizer.optimizer_arguments import GEPA_BUDGETS, gepa_budget


class Search(NamedTuple):
    """What an optimiser works with; the student's LM and `max_errors` are those of the context."""

    student: dspy.Module
    metric: Callable[..., Any]
    train: list[dspy.Example]
    dev: list[dspy.Example]
    teacher: dspy.LM  # writes demonstrations and instructions
    threads: int
    seed: int


class Candidate(NamedTuple):
    """A program that an optimiser found, and the score it gave it (None: it gave none)."""

    name: str
    program: dspy.Module
    own_score: float | None = None


# ---------------------------------------------------------------------- bootstrap


def _bootstrap(search: Search, arguments: Mapping[str, Any]) -> list[Candidate]:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=search.metric,
        teacher_settings={"lm": search.teacher},
        num_threads=search.threads,
        **arguments,
    )
    compiled = optimizer.compile(search.student, trainset=search.train, valset=search.dev)
    named = {-3: "unoptimised", -2: "labelled only", -1: "in given order"}
    return [
        Candidate(
            named.get(entry["seed"], f"sample {entry['seed']}"), entry["program"], entry["score"]
        )
        for entry in sorted(compiled.candidate_programs, key=lambda entry: entry["seed"])
    ]


# ---------------------------------------------------------------------- MIPROv2


def _mipro(search: Search, arguments: Mapping[str, Any]) -> list[Candidate]:
    if find_spec("optuna") is None:  # MIPROv2 would say so after two thirds of its calls
        raise UserError("--optimizer mipro needs optuna: pip install 'question-optimizer[mipro]'")
    at_compile = ("num_trials", "minibatch", "minibatch_size", "minibatch_full_eval_steps")
    own = {name: value for name, value in arguments.items() if name not in at_compile}
    if own["num_candidates"] is not None:
        own["auto"] = None
    optimizer = dspy.MIPROv2(
        metric=search.metric,
        prompt_model=search.teacher,
        task_model=dspy.settings.lm,
        teacher_settings={"lm": search.teacher},
        num_threads=search.threads,
        seed=search.seed % 2**32,  # Optuna's; not to compile(), which takes 0 for no seed
        **own,
    )
    compiled = optimizer.compile(
        search.student,
        trainset=search.train,
        valset=search.dev,
        num_trials=arguments["num_trials"],
        minibatch=arguments["minibatch"],
        minibatch_size=min(arguments["minibatch_size"], len(search.dev)),
        minibatch_full_eval_steps=arguments["minibatch_full_eval_steps"],
    )
    fully = [entry for entry in compiled.candidate_programs if entry["full_eval"]]
    return [
        Candidate("MIPROv2's choice", compiled, compiled.score),
        *(Candidate(f"trial {n}", e["program"], e["score"]) for n, e in enumerate(fully, 1)),
    ]


# ---------------------------------------------------------------------- GEPA


def _gepa(search: Search, arguments: Mapping[str, Any]) -> list[Candidate]:
    optimizer = dspy.GEPA(
        metric=search.metric,
        reflection_lm=search.teacher,
        num_threads=search.threads,
        track_stats=True,
        seed=search.seed,
        # No log_dir: its checkpoint is a pickle, is reused for other data without a word, and a
        # resumed search would not end where the uninterrupted one does. Our answers are on disk.
        **gepa_budget(arguments),
        **{n: v for n, v in arguments.items() if n not in GEPA_BUDGETS},
    )
    compiled = optimizer.compile(search.student, trainset=search.train, valset=search.dev)
    found = compiled.detailed_results
    return [
        Candidate(f"reflection {number}" if number else "unoptimised", program, score)
        for number, (program, score) in enumerate(
            zip(found.candidates, found.val_aggregate_scores, strict=True)
        )
    ]


# ---------------------------------------------------------------------- SIMBA


def _simba(search: Search, arguments: Mapping[str, Any]) -> list[Candidate]:
    optimizer = dspy.SIMBA(
        metric=search.metric,
        prompt_model=search.teacher,
        num_threads=search.threads,
        # no teacher_settings: SIMBA would write its rollout ids into that model's own settings
        **arguments,
    )
    compiled = optimizer.compile(search.student, trainset=search.train, seed=search.seed)
    return [
        Candidate(f"winner {number}", entry["program"], 100 * entry["score"])
        for number, entry in enumerate(compiled.candidate_programs)
    ]


# ---------------------------------------------------------------------- COPRO


def _copro(search: Search, arguments: Mapping[str, Any]) -> list[Candidate]:
    # COPRO has no seed; another rollout of its proposals is what another seed gives.
    again = search.teacher.kwargs.get("rollout_id", "")  # a new attempt's, which must not be lost
    rollout = f"{again} seed {search.seed}".strip()
    proposer = search.teacher.copy(rollout_id=rollout) if search.seed else search.teacher
    optimizer = dspy.COPRO(prompt_model=proposer, metric=search.metric, **arguments)
    quiet = {"num_threads": search.threads, "display_progress": False, "display_table": False}
    compiled = optimizer.compile(search.student, trainset=search.train, eval_kwargs=quiet)
    return [
        Candidate(f"proposal {number}", entry["program"], entry["score"])
        for number, entry in enumerate(compiled.candidate_programs, 1)
    ]


_SEARCHES: Mapping[str, Callable[[Search, Mapping[str, Any]], list[Candidate]]] = {
    "bootstrap": _bootstrap,
    "mipro": _mipro,
    "gepa": _gepa,
    "simba": _simba,
    "copro": _copro,
}


def candidates_of(name: str, search: Search, arguments: Mapping[str, Any]) -> list[Candidate]:
    """What optimiser `name` finds; AdapterParseError where a proposal cannot be read."""
    return _SEARCHES[name](search, arguments)


def unique(candidates: Sequence[Candidate], state: Callable[[dspy.Module], str]) -> list[Candidate]:
    """The candidates without those that are the same program as an earlier one."""
    seen: dict[str, Candidate] = {}
    for candidate in candidates:
        seen.setdefault(state(candidate.program), candidate)
    return list(seen.values())
