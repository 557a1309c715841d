"""The arguments of DSPy's optimisers: names, presets, meaning, and how many runs they lead to.

Knows DSPy's formulas, and not DSPy, so that a command line can be read without loading it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from question_optimizer.cli import amount, count
from question_optimizer.errors import UserError

PRESETS = ("light", "medium", "heavy")
_MIPRO_SIZES = {"light": 6, "medium": 12, "heavy": 18}  # DSPy's AUTO_RUN_SETTINGS
_MIPRO_MINIBATCH_ABOVE = 50  # dev items; DSPy's own threshold
_AT_LEAST_ONE = (
    *("max_metric_calls", "max_full_evals", "num_trials", "bsize", "max_steps", "max_rounds"),
    *("num_candidates", "minibatch_size", "minibatch_full_eval_steps"),
    *("reflection_minibatch_size", "depth"),
)
_GEPA_OVERSHOOT = 1.35  # feedback calls come on top of its budget (measured: 1.1 to 1.35)


class Sizes(NamedTuple):
    """What the number of calls depends on besides the arguments."""

    train: int
    dev: int
    predictors: int


class Runs(NamedTuple):
    """How often a search runs the program, at most: as student and as teacher; and how often it
    asks the teacher for instructions. Every run is judged."""

    student: int
    teacher: int
    proposals: int


@dataclass(frozen=True)
class Arguments:
    """What one optimiser takes: its class in DSPy, its presets by DSPy's names, its runs."""

    dspy_name: str
    presets: Mapping[str, Mapping[str, Any]]
    runs: Callable[[Sizes, Mapping[str, Any]], Runs]
    scores_dev: bool  # whether its candidates are scored on the dev set, or on the train set
    optional: tuple[str, ...] = ()  # arguments that no preset sets

    @property
    def accepted(self) -> list[str]:
        """What may be given; `auto` is what --preset says."""
        return [name for name in (*self.presets["light"], *self.optional) if name != "auto"]


def resolved(name: str, preset: str, given: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The arguments of optimiser `name`; UserError where one is foreign to it or cannot work."""
    known = OPTIMIZERS[name]
    for argument in given:
        if argument not in known.accepted:
            owners = [other for other, o in OPTIMIZERS.items() if argument in o.accepted]
            raise UserError(
                f"{flag(argument)} is an argument of {', '.join(owners)}, not of {name}, which "
                f"takes {', '.join(map(flag, known.accepted))}"
            )
    arguments = {**known.presets[preset], **given}
    if name == "simba":
        arguments["bsize"] = _batch(arguments["bsize"], sizes.train, "bsize" in given)
    if name == "copro" and arguments["breadth"] < 2:
        raise UserError("--breadth must be at least 2: one of them is the present instruction")
    if name == "gepa" and {"max_metric_calls", "max_full_evals"} <= {*given}:
        raise UserError("--max-metric-calls and --max-full-evals exclude each other; give one")
    _check_ranges(name, arguments)
    if name == "mipro":
        _check_mipro(arguments)
    return arguments


# SIMBA weighs programs by exp(score / temperature), which overflows from 1 / 709 down
_TEMPERATURES = {
    "init_temperature": (0.0, 2.0),  # what DSPy lets a request ask for
    "temperature_for_sampling": (0.01, math.inf),
    "temperature_for_candidates": (0.01, math.inf),
}


def _check_ranges(name: str, arguments: Mapping[str, Any]) -> None:
    for argument in _AT_LEAST_ONE:
        if arguments.get(argument) == 0:
            raise UserError(f"{flag(argument)} must be at least 1")
    for argument, (low, high) in _TEMPERATURES.items():
        if not low <= arguments.get(argument, low) <= high:
            said = f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g}"
            raise UserError(f"{flag(argument)} must be {said}")
    shots = arguments.get("max_bootstrapped_demos")
    if shots == 0 and (name == "bootstrap" or arguments["max_labeled_demos"]):
        raise UserError(
            "--max-bootstrapped-demos must be at least 1"
            + (", or 0 together with --max-labeled-demos 0" if name == "mipro" else "")
        )


def flag(argument: str) -> str:
    """The command line's spelling of an argument."""
    return f"--{argument.replace('_', '-')}"


def _batch(wanted: int, train: int, was_given: bool) -> int:
    if was_given and wanted > train:
        raise UserError(f"--bsize {wanted} is more than the {train} items of the train split")
    return min(wanted, train)


def _check_mipro(arguments: Mapping[str, Any]) -> None:
    if (arguments["num_candidates"] is None) != (arguments["num_trials"] is None):
        raise UserError("--num-candidates and --num-trials belong together; give both or none")
    if arguments["minibatch"] and arguments["num_trials"] is None:
        raise UserError("--minibatch needs --num-trials; without, MIPROv2 decides by itself")


# ---------------------------------------------------------------------- runs they lead to


def _bootstrap_runs(sizes: Sizes, arguments: Mapping[str, Any]) -> Runs:
    """DSPy scores num_candidate_programs + 3 programs on the dev set, and bootstraps for all but
    the first two of them until enough demonstrations pass, at worst through the train set."""
    candidates = arguments["num_candidate_programs"]
    bootstraps = (candidates + 1) * sizes.train * arguments["max_rounds"]
    return Runs((candidates + 3) * sizes.dev, bootstraps, 0)


def _mipro_runs(sizes: Sizes, arguments: Mapping[str, Any]) -> Runs:
    """Trials as `MIPROv2._set_num_trials_from_num_candidates` counts them; bootstraps for all but
    three of the demo sets; proposals: one an instruction, and some to describe data and program."""
    size = arguments["num_candidates"] or _MIPRO_SIZES[arguments["auto"]]
    with_demos = arguments["max_bootstrapped_demos"] or arguments["max_labeled_demos"]
    variables = sizes.predictors * (2 if with_demos else 1)
    trials = arguments["num_trials"] or int(max(2 * variables * math.log2(size), 1.5 * size))
    by_itself = arguments["num_trials"] is None and sizes.dev > _MIPRO_MINIBATCH_ABOVE
    if arguments["minibatch"] or by_itself:
        steps = arguments["minibatch_full_eval_steps"]
        full = 1 + trials // steps + bool(trials % steps)
        runs = min(arguments["minibatch_size"], sizes.dev) * trials + sizes.dev * full
    else:
        runs = sizes.dev * (trials + 1)
    halved = with_demos and arguments["num_candidates"] is None  # only where MIPROv2 decides
    instructions = (size + 1) // 2 if halved else size
    bootstraps = size - (2 if arguments["max_labeled_demos"] else 1)
    about_data = 10 + sizes.train // 10
    proposals = sizes.predictors * 3 * instructions + about_data
    return Runs(runs, max(0, bootstraps) * sizes.train, proposals)


GEPA_BUDGETS = ("auto", "max_metric_calls", "max_full_evals")


def gepa_budget(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The one of its three ways to say the budget that was given, else the preset's."""
    given = {n: arguments[n] for n in GEPA_BUDGETS[1:] if arguments.get(n) is not None}
    return given or {"auto": arguments["auto"]}


def _gepa_runs(sizes: Sizes, arguments: Mapping[str, Any]) -> Runs:
    budget = gepa_budget(arguments)
    if "auto" in budget:
        calls = _gepa_budget_of(budget["auto"], sizes)
    elif "max_full_evals" in budget:
        calls = budget["max_full_evals"] * (sizes.train + sizes.dev)
    else:
        calls = budget["max_metric_calls"]
    reflections = math.ceil(calls / (2 * arguments["reflection_minibatch_size"]))
    return Runs(math.ceil(calls * _GEPA_OVERSHOOT) + sizes.dev, 0, reflections)


def _simba_runs(sizes: Sizes, arguments: Mapping[str, Any]) -> Runs:
    steps, batch, found = (arguments[n] for n in ("max_steps", "bsize", "num_candidates"))
    runs = steps * batch * (2 * found + 1) + (found + 1) * sizes.train
    return Runs(runs, 0, steps * (found + 1))


def _copro_runs(sizes: Sizes, arguments: Mapping[str, Any]) -> Runs:
    breadth, depth = arguments["breadth"], arguments["depth"]
    tried = sizes.predictors * breadth * depth * (depth + 1) // 2
    return Runs(tried * sizes.train, 0, sizes.predictors * breadth * depth)


def _gepa_budget_of(preset: str, sizes: Sizes) -> int:
    """`GEPA.auto_budget` of DSPy 3.4, which counts metric calls."""
    found = _MIPRO_SIZES[preset]
    trials = int(max(4 * sizes.predictors * math.log2(found), 1.5 * found))
    full = (trials + 1) // 5 + 1 + (trials < 5)
    return sizes.dev * (1 + full) + 5 * found + 35 * trials


# Labelled demos would put the same raw example, half its fields missing, in both steps: none.
OPTIMIZERS: Mapping[str, Arguments] = {
    "bootstrap": Arguments(
        "BootstrapFewShotWithRandomSearch",
        {
            preset: {
                "max_bootstrapped_demos": demos,
                "max_labeled_demos": 0,
                "max_rounds": 1,
                "num_candidate_programs": programs,
            }
            for preset, demos, programs in (("light", 2, 5), ("medium", 3, 10), ("heavy", 4, 16))
        },
        _bootstrap_runs,
        scores_dev=True,
        optional=("stop_at_score",),
    ),
    "mipro": Arguments(
        "MIPROv2",
        {
            preset: {
                "auto": preset,
                "max_bootstrapped_demos": demos,
                "max_labeled_demos": 0,
                "num_candidates": None,
                "num_trials": None,
                "minibatch": False,
                "minibatch_size": 35,
                "minibatch_full_eval_steps": 5,
                "init_temperature": 1.0,
            }
            for preset, demos in (("light", 2), ("medium", 3), ("heavy", 4))
        },
        _mipro_runs,
        scores_dev=True,
    ),
    "gepa": Arguments(
        "GEPA",
        {
            preset: {
                "auto": preset,
                "reflection_minibatch_size": 3,
                "candidate_selection_strategy": "pareto",
                "skip_perfect_score": True,
                "use_merge": True,
                "max_merge_invocations": 5,
            }
            for preset in PRESETS
        },
        _gepa_runs,
        scores_dev=True,
        optional=("max_metric_calls", "max_full_evals"),
    ),
    "simba": Arguments(
        "SIMBA",
        {
            preset: {
                "bsize": 32,
                "num_candidates": found,
                "max_steps": steps,
                "max_demos": demos,
                "temperature_for_sampling": 0.2,
                "temperature_for_candidates": 0.2,
            }
            for preset, found, steps, demos in (
                ("light", 4, 4, 2),
                ("medium", 6, 8, 3),
                ("heavy", 8, 12, 4),
            )
        },
        _simba_runs,
        scores_dev=False,
    ),
    "copro": Arguments(
        "COPRO",
        {
            preset: {"breadth": breadth, "depth": depth, "init_temperature": 1.4}
            for preset, breadth, depth in (("light", 4, 2), ("medium", 7, 3), ("heavy", 10, 3))
        },
        _copro_runs,
        scores_dev=False,
    ),
}

NAMES = tuple(OPTIMIZERS)

# How the command line reads each argument: its type, and what it means.
_MEANING: Mapping[str, tuple[Any, str]] = {
    "max_bootstrapped_demos": (int, "demonstrations a predictor, written by the teacher"),
    "max_labeled_demos": (int, "raw gold items as demonstrations; half their fields are missing"),
    "max_rounds": (int, "attempts to bootstrap an item"),
    "num_candidate_programs": (int, "demo sets tried"),
    "stop_at_score": (float, "stop at this dev score, 0 to 100"),
    "num_candidates": (
        int,
        "mipro: instructions and demo sets proposed; simba: new programs a step",
    ),
    "num_trials": (int, "combinations tried"),
    "minibatch": (bool, "try combinations on a part of the dev set first"),
    "minibatch_size": (int, "items of that part"),
    "minibatch_full_eval_steps": (int, "trials between two looks at the whole dev set"),
    "init_temperature": (float, "of the proposals"),
    "max_metric_calls": (int, "budget in judged questions"),
    "max_full_evals": (int, "budget in passes over train and dev"),
    "reflection_minibatch_size": (int, "items reflected on at once"),
    "candidate_selection_strategy": (("pareto", "current_best"), "which candidate goes on"),
    "skip_perfect_score": (bool, "do not reflect on items that are perfect already"),
    "use_merge": (bool, "also merge two candidates"),
    "max_merge_invocations": (int, "merges at most"),
    "bsize": (int, "items a step; at most the train split"),
    "max_steps": (int, "steps"),
    "max_demos": (int, "demonstrations a predictor, at most"),
    "temperature_for_sampling": (float, "of choosing the programs that are run"),
    "temperature_for_candidates": (float, "of choosing the program that is changed"),
    "breadth": (int, "instructions a round, the present one included"),
    "depth": (int, "rounds"),
}


def most_runs(name: str, arguments: Mapping[str, Any], sizes: Sizes) -> Runs:
    """An upper bound of a search's runs."""
    return OPTIMIZERS[name].runs(sizes, arguments)


# ---------------------------------------------------------------------- the command line


def add_to(parser: argparse.ArgumentParser) -> None:
    """A flag for every argument, under DSPy's name; without a default, so that presets hold."""
    group = parser.add_argument_group("the optimiser's own arguments, by DSPy's names")
    for argument, (kind, meaning) in _MEANING.items():
        text = f"{meaning} ({_defaults(argument)})"
        if kind is bool:
            group.add_argument(
                flag(argument), action=argparse.BooleanOptionalAction, default=None, help=text
            )
        elif isinstance(kind, tuple):
            group.add_argument(flag(argument), choices=kind, help=text)
        else:
            group.add_argument(
                flag(argument), type=count if kind is int else amount, metavar="N", help=text
            )


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that were given on the command line."""
    return {name: value for name in _MEANING if (value := getattr(args, name)) is not None}


def _defaults(argument: str) -> str:
    """Who takes it, with its value in each preset: "bootstrap: 2, 3, 4"."""
    shown = []
    for name, known in OPTIMIZERS.items():
        if argument in known.accepted:
            values = [known.presets[preset].get(argument) for preset in PRESETS]
            said = [str(value) for value in dict.fromkeys(values) if value is not None]
            shown.append(f"{name}: {', '.join(said) or 'by the preset'}")
    return "; ".join(shown)
