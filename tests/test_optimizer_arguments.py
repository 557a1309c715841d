"""The optimisers' arguments: DSPy's own names, presets, refusals, and its formulas."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Mapping
from typing import Any

import dspy
import pytest

from question_optimizer import optimizer_arguments as known
from question_optimizer.errors import UserError
from question_optimizer.optimizer_arguments import (
    NAMES,
    OPTIMIZERS,
    PRESETS,
    Sizes,
    flag,
    most_runs,
    resolved,
)

SIZES = Sizes(train=22, dev=22, predictors=2)
EVERY = sorted({a for o in OPTIMIZERS.values() for a in o.accepted} - {"auto"})  # --preset says it


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="optimize", allow_abbrev=False)
    known.add_to(made)
    return made


def on_command_line(name: str, flags: str, sizes: Sizes = SIZES) -> dict[str, Any]:
    """What the flags come to; UserError or SystemExit where they are refused."""
    return resolved(name, "light", known.given(parser().parse_args(flags.split())), sizes)


def class_of(name: str) -> Any:
    return getattr(dspy, OPTIMIZERS[name].dspy_name)


def in_dspy(name: str) -> dict[str, inspect.Parameter]:
    """The named parameters of the class's __init__ and compile. `**kwargs` names nothing."""
    found: dict[str, inspect.Parameter] = {}
    for function in (class_of(name).__init__, class_of(name).compile):
        found |= inspect.signature(function).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in found.items() if p.kind in named}


# ---------------------------------------------------------------------- names and presets


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_called_as_dspy_calls_it(name: str) -> None:
    assert set(OPTIMIZERS[name].accepted) <= set(in_dspy(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_of_words_is_dspys_own(name: str) -> None:
    for argument in OPTIMIZERS[name].accepted:
        annotation = str(in_dspy(name)[argument].annotation)
        for action in parser()._actions:
            words = action.choices or () if action.dest == argument else ()
            assert all(f"'{word}'" in annotation for word in words)


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_complete_and_each_names_the_same_arguments(name: str) -> None:
    presets = OPTIMIZERS[name].presets
    assert tuple(presets) == PRESETS
    assert len({tuple(arguments) for arguments in presets.values()}) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("predictors", [1, 2])
@pytest.mark.parametrize(("train", "dev"), [(4, 4), (22, 22), (40, 51), (100, 100), (300, 250)])
def test_a_heavier_preset_costs_more(name: str, train: int, dev: int, predictors: int) -> None:
    sizes = Sizes(train, dev, predictors)
    runs = [most_runs(name, resolved(name, preset, {}, sizes), sizes) for preset in PRESETS]
    totals = [most.student + most.teacher for most in runs]
    assert totals == sorted(set(totals))
    assert [most.proposals for most in runs] == sorted(most.proposals for most in runs)


# ---------------------------------------------------------------------- refusals


FOREIGN = [(n, a) for n in NAMES for a in EVERY if a not in OPTIMIZERS[n].accepted]


@pytest.mark.parametrize(("name", "argument"), FOREIGN)
def test_a_foreign_argument_is_refused_naming_its_owners_and_ones_own(
    name: str, argument: str
) -> None:
    with pytest.raises(UserError) as refused:
        resolved(name, "light", {argument: 1}, SIZES)
    owned, own = str(refused.value).split(f", not of {name}, which takes ")
    owners = owned.removeprefix(f"{flag(argument)} is an argument of ").split(", ")
    assert owners == [o for o in NAMES if argument in OPTIMIZERS[o].accepted]
    assert {flag(a) for a in OPTIMIZERS[name].accepted if a != "auto"} <= set(own.split(", "))


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_offers_only_flags_that_there_are(name: str) -> None:
    foreign = next(argument for other, argument in FOREIGN if other == name)
    with pytest.raises(UserError) as refused:
        resolved(name, "light", {foreign: 1}, SIZES)
    offered = str(refused.value).split("which takes ")[1].split(", ")
    there_are = {option for action in parser()._actions for option in action.option_strings}
    assert set(offered) <= there_are


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("mipro", "--num-candidates 4", "--num-candidates and --num-trials belong together"),
        ("mipro", "--num-trials 4", "--num-candidates and --num-trials belong together"),
        ("mipro", "--minibatch", "--minibatch needs --num-trials"),
        ("gepa", "--max-metric-calls 9 --max-full-evals 2", "exclude each other"),
        ("copro", "--breadth 1", "--breadth must be at least 2"),
        ("copro", "--breadth 0", "--breadth must be at least 2"),
        ("simba", "--bsize 23", "--bsize 23 is more than the 22 items of the train split"),
        ("simba", "--bsize 0", "--bsize must be at least 1"),
        ("copro", "--depth 0", "--depth must be at least 1"),
        ("gepa", "--reflection-minibatch-size 0", "-minibatch-size must be at least 1"),
        (
            "mipro",
            "--num-candidates 2 --num-trials 3 --minibatch --minibatch-full-eval-steps 0",
            "--minibatch-full-eval-steps must be at least 1",
        ),
        ("gepa", "--max-metric-calls 0", "--max-metric-calls must be at least 1"),
        ("gepa", "--max-full-evals 0", "--max-full-evals must be at least 1"),
    ],
)
def test_combinations_that_cannot_work_are_refused_before_any_call(
    name: str, flags: str, message: str
) -> None:
    with pytest.raises(UserError) as refused:
        on_command_line(name, flags)
    assert message in str(refused.value)
    assert refused.value.exit_code == 2


UNWORKABLE = [  # each accepted, and then a traceback out of DSPy
    ("bootstrap", "--max-bootstrapped-demos 0", "empty range for randrange"),
    ("mipro", "--num-candidates 0 --num-trials 1", "KeyError: 0"),
    ("mipro", "--max-bootstrapped-demos 0 --max-labeled-demos 2", "empty range for randrange"),
    ("mipro", "--init-temperature 3", "temperature must be in [0, 2], after bootstrapping"),
    ("simba", "--num-candidates 0", "index out of bounds"),
    ("simba", "--temperature-for-sampling 0", "float division by zero"),
    ("simba", "--temperature-for-candidates 0", "float division by zero"),
    ("simba", "--temperature-for-candidates 0.001", "total of weights must be finite"),
    ("copro", "--init-temperature 2.5", "temperature must be in [0, 2]"),
]


@pytest.mark.parametrize(
    ("name", "flags"),
    [pytest.param(name, flags) for name, flags, why in UNWORKABLE],
)
def test_values_that_dspy_cannot_take_are_refused_before_any_call(name: str, flags: str) -> None:
    with pytest.raises((UserError, SystemExit)):
        on_command_line(name, flags)


def test_a_preset_gives_way_to_the_command_line_and_to_a_small_train_split() -> None:
    small = SIZES._replace(train=5)
    assert on_command_line("simba", "", small)["bsize"] == 5
    assert on_command_line("simba", "", SIZES._replace(train=500))["bsize"] == 32
    assert on_command_line("simba", "--bsize 5 --max-demos 0", small)["max_demos"] == 0
    preset = dict(OPTIMIZERS["gepa"].presets["light"])
    assert on_command_line("gepa", "--no-use-merge") == {**preset, "use_merge": False}
    assert dict(OPTIMIZERS["gepa"].presets["light"]) == preset, "a preset was changed"


def test_only_what_was_given_is_given_zero_and_no_included() -> None:
    args = parser().parse_args("--max-labeled-demos 0 --no-use-merge --breadth 5".split())
    assert known.given(args) == {"max_labeled_demos": 0, "use_merge": False, "breadth": 5}
    assert known.given(parser().parse_args([])) == {}


@pytest.mark.parametrize(
    ("flags", "budget"),
    [
        ("", {"auto": "light"}),
        ("--max-metric-calls 40", {"max_metric_calls": 40}),
        ("--max-full-evals 2", {"max_full_evals": 2}),
    ],
)
def test_gepa_is_told_one_budget_and_takes_it(flags: str, budget: Mapping[str, Any]) -> None:
    said = known.gepa_budget(on_command_line("gepa", flags))
    assert said == budget
    dspy.GEPA(metric=five_arguments, reflection_lm=dspy.LM("none/none"), **said)


# ---------------------------------------------------------------------- DSPy's formulas


def five_arguments(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> float:
    return 0.0


def with_predictors(number: int) -> dspy.Module:
    program = dspy.Module()
    for place in range(number):
        setattr(program, f"step_{place}", dspy.Predict("question -> answer"))
    return program


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("predictors", [1, 2, 3, 5])
def test_gepas_budget_is_what_dspy_reckons(preset: str, predictors: int) -> None:
    """Its calls are 1.35 times the budget, and a look at the dev set that is under way."""
    from dspy.teleprompt.gepa.gepa import AUTO_RUN_SETTINGS

    arguments = resolved("gepa", preset, {}, SIZES)
    gepa: Any = dspy.GEPA(
        metric=five_arguments, reflection_lm=dspy.LM("none/none"), **known.gepa_budget(arguments)
    )
    for dev in (0, 1, 2, 5, 8, 22, 35, 36, 50, 51, 100, 101, 333, 1000):
        budget = gepa.auto_budget(predictors, AUTO_RUN_SETTINGS[preset]["n"], dev)
        sizes = Sizes(22, dev, predictors)
        assert most_runs("gepa", arguments, sizes).student == math.ceil(budget * 1.35) + dev


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("predictors", [1, 2, 3, 5])
@pytest.mark.parametrize("demos", [0, 2])
def test_miprov2s_trials_are_what_dspy_reckons(preset: str, predictors: int, demos: int) -> None:
    from dspy.teleprompt.mipro_optimizer_v2 import AUTO_RUN_SETTINGS

    arguments = resolved("mipro", preset, {"max_bootstrapped_demos": demos}, SIZES)
    mipro: Any = dspy.MIPROv2(
        metric=five_arguments, prompt_model=dspy.LM("none/none"), task_model=dspy.LM("none/none")
    )
    trials = mipro._set_num_trials_from_num_candidates(
        with_predictors(predictors), demos == 0, AUTO_RUN_SETTINGS[preset]["n"]
    )
    for dev in (1, 10, 50):
        runs = most_runs("mipro", arguments, Sizes(22, dev, predictors))
        assert runs.student == dev * (trials + 1)
    # above 50 dev items minibatches of 35, every fifth followed by a look at all
    runs = most_runs("mipro", arguments, Sizes(22, 51, predictors))
    assert runs.student == 35 * trials + 51 * (1 + math.ceil(trials / 5))


def test_miprov2s_own_threshold_for_minibatches_is_ours() -> None:
    from dspy.teleprompt import mipro_optimizer_v2

    arguments = resolved("mipro", "light", {}, SIZES)
    at, above = (
        most_runs("mipro", arguments, Sizes(22, mipro_optimizer_v2.MIN_MINIBATCH_SIZE + more, 2))
        for more in (0, 1)
    )
    assert above.student < at.student


@pytest.mark.parametrize("name", NAMES)
def test_more_of_anything_never_costs_less(name: str) -> None:
    base = most_runs(name, resolved(name, "light", {}, SIZES), SIZES)
    for sizes in (SIZES._replace(train=40), SIZES._replace(dev=44), SIZES._replace(predictors=3)):
        more = most_runs(name, resolved(name, "light", {}, sizes), sizes)
        assert all(a >= b for a, b in zip(more, base, strict=True))


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize("argument", EVERY)
def test_every_flag_says_what_it_does_whose_it_is_and_the_presets_values(argument: str) -> None:
    [action] = [a for a in parser()._actions if a.dest == argument]
    assert flag(argument) in action.option_strings
    text = str(action.help)
    assert len(text.split(" (")[0]) >= 5
    for name, optimizer in OPTIMIZERS.items():
        assert (f"{name}" in text) == (argument in optimizer.accepted), name
        for preset in PRESETS:
            value = optimizer.presets[preset].get(argument)
            assert value is None or str(value) in text


def test_the_command_line_has_no_flag_that_nobody_takes() -> None:
    offered = {action.dest for action in parser()._actions} - {"help"}
    assert offered == set(EVERY)
    assert "%" not in parser().format_help()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--breadth -1", "must be a whole number"),
        ("--breadth 2.5", "must be a whole number"),
        ("--init-temperature nan", "must be a number, not negative"),
        ("--candidate-selection-strategy best", "invalid choice"),
        ("--num-cand 3", "unrecognized arguments"),
    ],
)
def test_what_is_no_value_is_refused(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args(flags.split())
    assert left.value.code == 2
    assert message in capsys.readouterr().err
