"""The five optimisers through the script's front door: bounds, seeds, roles, trust, and refusals.

Over real HTTP, in process: a local server in the rehearsal's words, but with questions that depend
on the whole prompt, scores that vary, and proposals that are never the same twice. So a candidate's
runs cannot come out of the store by accident, and a bound on calls is put to the test.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dspy
import pytest

import optimize_pipeline
from config import accounts_of, load_settings
from conftest import ROOT, LLMServer, clean_environment, tree_digest
from custom_lm import LanguageModels
from dspy_pipeline import SyntheticQuestionPipeline, load_pipeline, pipeline_state
from question_optimizer import rehearsal
from question_optimizer.cli import run
from question_optimizer.errors import StopRun
from question_optimizer.gold import read_gold
from question_optimizer.optimizer_arguments import NAMES, OPTIMIZERS
from question_optimizer.programs.judge import CRITERIA, Unjudged
from question_optimizer.programs.optimizers import Candidate, unique
from question_optimizer.programs.runs import ask_program
from question_optimizer.programs.search import choose

ROLES = ("student", "teacher", "judge")
KEYS = {role: f"sk-{role}-0123456789abcdef" for role in ROLES}
SMALL: dict[str, list[str]] = {
    "bootstrap": ["--num-candidate-programs", "2", "--max-bootstrapped-demos", "1"],
    "mipro": ["--num-candidates", "3", "--num-trials", "4"],
    "gepa": ["--max-metric-calls", "40"],
    "simba": ["--bsize", "4", "--num-candidates", "2", "--max-steps", "2"],
    "copro": ["--breadth", "2", "--depth", "2"],
}
ANYHOW = "--allow-unchecked-judge"
Messages = list[dict[str, Any]]
each_optimizer = pytest.mark.parametrize("optimizer", NAMES)


# ---------------------------------------------------------------------- what is optimised


def made_gold(train: int, dev: int, test: int = 1) -> list[dict[str, Any]]:
    """Items of documents of their own, each about five words that no other has."""
    items = []
    for number, split in enumerate(["train"] * train + ["dev"] * dev + ["test"] * test):
        a, b, c, d, e = (
            f"{stem}_{number}x" for stem in ("pager", "journal", "vacuum", "codec", "pin")
        )
        items.append(
            {
                "chunk_id": f"chunk-{number}",
                "document_id": f"document-{number}",
                "chunk_text": f"The {a} writes the {b} before {c} begins. A {d} that is full makes "
                f"the {a} wait for the {c}; without {e} the {b} is thrown away, and {d} with it.",
                "persona_description": "An engineer who keeps databases alive at night.",
                "gold_question": f"How long may {a} stall before {c} because of {d}?",
                "suggestions": [f"What is {e}?", f"How do {a} and {b} depend on {c}?"],
                "suggestions_shown": True,
                "split": split,
            }
        )
    return items


# ---------------------------------------------------------------------- who answers


def is_judge(messages: Messages) -> bool:
    return "`answerable`" in messages[0]["content"]


def is_pairwise(messages: Messages) -> bool:
    return "`query_a`" in messages[0]["content"]


def outputs_of(messages: Messages) -> list[str]:
    """The fields that a prompt asks for."""
    listed = re.search(
        r"Your output fields are:\n(.*?)\n\S*\s*All inter", messages[0]["content"], re.S
    )
    return re.findall(r"^\d+\. `(\w+)`", listed[1], re.M) if listed else []


def is_step(messages: Messages) -> bool:
    """A step of the pipeline, whoever runs it."""
    return outputs_of(messages) in (["query_type", "query_format"], ["query"])


def is_proposal(messages: Messages) -> bool:
    return not (is_judge(messages) or is_pairwise(messages) or is_step(messages))


def section(name: str, text: str) -> str:
    found = re.search(rf"\[\[ ## {name} ## \]\]\n(.*?)(?=\n\n\[\[ ##|\n\nRespond|\Z)", text, re.S)
    return found[1] if found else ""


class Lively:
    """Questions and scores drawn by the prompt; the n-th answer to a proposal's prompt is its own.

    The same run gets the same answers, whatever the order in which it asks.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, messages: Messages) -> str:
        text, last = rehearsal.answer(messages), messages[-1]["content"]
        key = json.dumps(messages)
        dice = random.Random(hashlib.sha256(key.encode()).hexdigest())
        if outputs_of(messages) == ["query"]:
            words = sorted(set(re.findall(r"\w*_\w*", section("chunk_text", last))))
            one, two, three = (dice.choice(words) for _ in range(3))
            keywords = "keywords" in section("query_format", last)
            asked = f"{one} {two}" if keywords else f"How does {one} with {two} change {three}?"
            return f"[[ ## query ## ]]\n{asked}\n\n[[ ## completed ## ]]"
        if is_judge(messages):
            for name in CRITERIA:
                score = dice.choice("345")
                text = re.sub(rf"(\[\[ ## {name} ## \]\]\n)\d", rf"\g<1>{score}", text)
            return text
        self.asked[key] += 1
        mark = f"Point {hashlib.sha256(f'{self.asked[key]}{key}'.encode()).hexdigest()[:8]}: "
        text = re.sub(r"(\[\[ ## \w*instruction\w* ## \]\]\n)", rf"\g<1>{mark}", text)
        return re.sub(r'("\w*instruction\w*": ")', rf"\g<1>{mark}", text)


def contrary(messages: Messages) -> str:
    """A judge that gives to bad questions what is due to good ones."""
    text = rehearsal.answer(messages)
    if is_judge(messages):
        scores = rf"(\[\[ ## (?:{'|'.join(CRITERIA)}) ## \]\]\n)(\d)"
        text = re.sub(scores, lambda found: f"{found[1]}{6 - int(found[2])}", text)
    return text


ACCOUNT = """
[[accounts]]
name = "{role}-account"
model = "{role}-model"
base_url = "{url}/v1"
api_key_env = "KEY_{upper}"
roles = ["{role}"]
concurrency = 4
input_price = 1.0
output_price = 2.0
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str
    requests: list[tuple[str, dict[str, str], dict[str, Any]]]

    @property
    def calls(self) -> dict[str, int]:
        """By role, as the model's name tells."""
        return dict(Counter(body["model"].removesuffix("-model") for *_, body in self.requests))

    @property
    def prompts(self) -> list[Messages]:
        return [body["messages"] for *_, body in self.requests]


class Project:
    """A folder with a gold set and one account a role, all at one server of its own."""

    def __init__(self, folder: Path, reply: Callable[[Messages], str], items: list[dict[str, Any]]):
        self.folder, self.data = folder, folder / "data"
        self.data.mkdir(parents=True)
        (self.data / "gold_dataset.json").write_text(json.dumps(items), encoding="utf-8")
        self.server = LLMServer(reply)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.accounts()

    def accounts(self, more: str = "") -> None:
        text = "".join(
            ACCOUNT.format(role=role, upper=role.upper(), url=self.server.url) + more
            for role in ROLES
        )
        (self.folder / "llm_providers.toml").write_text(text, encoding="utf-8")

    def run(self, *flags: str) -> Done:
        """optimize_pipeline.py with `flags`, in this process."""
        flags += ("--data-dir", str(self.data))
        flags += ("--providers-file", str(self.folder / "llm_providers.toml"))
        out, err, before = io.StringIO(), io.StringIO(), len(self.server.requests)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(lambda: optimize_pipeline.main(list(flags)))
        return Done(code, out.getvalue(), err.getvalue(), self.server.requests[before:])

    def meta(self, name: str = "optimized_pipeline") -> dict[str, Any]:
        return dict(json.loads((self.data / f"{name}.json.meta.json").read_text(encoding="utf-8")))

    def program(self, name: str = "optimized_pipeline") -> str:
        return (self.data / f"{name}.json").read_text(encoding="utf-8")

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module", autouse=True)
def _keys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for role, key in KEYS.items():
            patch.setenv(f"KEY_{role.upper()}", key)
        yield


class Workshop:
    """Makes projects, and keeps what was optimised over the lively server: several tests look."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: list[Project] = []
        self._kept: dict[tuple[str, int, int], tuple[Project, Done, Done]] = {}

    def project(
        self,
        reply: Callable[[Messages], str] | None = None,
        items: list[dict[str, Any]] | None = None,
    ) -> Project:
        folder = self._folder / str(len(self._made))
        self._made.append(Project(folder, reply or Lively(), items or made_gold(4, 4)))
        return self._made[-1]

    def searched(self, optimizer: str, seed: int = 0, again: int = 0) -> tuple[Project, Done, Done]:
        """A run from an empty data dir: the project, its dry run, the run."""
        key = (optimizer, seed, again)
        if key not in self._kept:
            project = self.project()
            flags = ("--optimizer", optimizer, *SMALL[optimizer], ANYHOW, "--seed", str(seed))
            self._kept[key] = (project, project.run(*flags, "--dry-run"), project.run(*flags))
        return self._kept[key]

    def close(self) -> None:
        for project in self._made:
            project.close()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    yield made
    made.close()


def foretold(dry: Done) -> dict[str, int]:
    """The calls by role of a dry run."""
    out = dry.out.replace(",", "")
    counts = {r: int(n) for n, r in re.findall(r"(\d+) (student|teacher|judge)\b", out)}
    assert sum(counts.values()) == int(re.findall(r"dry run: (\d+) calls", out)[0])
    return counts


# ---------------------------------------------------------------------- bounds


@each_optimizer
def test_a_search_makes_no_more_calls_than_the_dry_run_says_and_not_far_fewer(
    optimizer: str, workshop: Workshop
) -> None:
    _, dry, done = workshop.searched(optimizer)
    assert done.code == 0, done.err
    most = foretold(dry)
    assert all(made <= most.get(role, 0) for role, made in done.calls.items())
    assert 8 * len(done.requests) >= sum(most.values())


@pytest.mark.parametrize(
    ("optimizer", "flags"),
    [
        ("bootstrap", "--num-candidate-programs 0 --max-rounds 3 --pass-score 1"),
        ("mipro", "--num-candidates 3 --num-trials 2 --max-bootstrapped-demos 0 --pass-score 1"),
        pytest.param(*("mipro", "--num-candidates 2 --num-trials 1 --pass-score 1")),
        (
            "mipro",
            "--num-candidates 3 --num-trials 7 --minibatch --minibatch-size 2 "
            "--minibatch-full-eval-steps 3",
        ),
        ("gepa", "--max-full-evals 6 --no-skip-perfect-score --reflection-minibatch-size 1"),
        ("gepa", "--max-metric-calls 1"),
        pytest.param(*("gepa", "--max-metric-calls 7 --reflection-minibatch-size 4")),
        ("copro", "--breadth 3 --depth 1"),
    ],
)
def test_the_bound_holds_at_the_edges_too(optimizer: str, flags: str, workshop: Workshop) -> None:
    project = workshop.project()
    flags_ = ("--optimizer", optimizer, *flags.split(), ANYHOW)
    most, done = foretold(project.run(*flags_, "--dry-run")), project.run(*flags_)
    assert done.code == 0, done.err
    assert all(made <= most.get(role, 0) for role, made in done.calls.items()), done.calls


@each_optimizer
def test_a_dry_run_makes_no_call_and_no_file(optimizer: str, workshop: Workshop) -> None:
    project, dry, _ = workshop.searched(optimizer)
    assert dry.code == 0
    assert dry.requests == []
    for word in ("tokens, cost ", "no limit per minute", "upper bounds", "4 dev items", "1 test"):
        assert word in dry.out
    before = tree_digest(project.data)
    assert project.run("--optimizer", optimizer, "--dry-run").requests == []
    assert tree_digest(project.data) == before


def test_a_dry_run_tells_the_judges_check_the_time_and_the_price(workshop: Workshop) -> None:
    project = workshop.project()
    without = project.run(ANYHOW, "--dry-run")
    project.accounts("rpm_limit = 10\n")
    with_check = project.run("--dry-run")
    checks = int(
        re.findall(r"(\d+) of the judge's calls check the judge itself", with_check.out)[0]
    )
    assert foretold(with_check)["judge"] - foretold(without)["judge"] == checks > 0
    assert "check the judge" not in without.out
    busiest = max(foretold(with_check).values())
    assert f"at least {busiest / 10:.0f} min at the present limits" in with_check.out
    cost = float(re.findall(r"cost ([\d.]+), ", with_check.out)[0])  # one account, one price
    tokens = int(re.findall(r"about ([\d,]+) tokens", with_check.out)[0].replace(",", ""))
    assert tokens / 1e6 < cost < 2 * tokens / 1e6


# ---------------------------------------------------------------------- what is saved


@each_optimizer
def test_what_was_optimised_asks_in_another_process_what_the_search_asked(
    optimizer: str, workshop: Workshop
) -> None:
    """Every prompt is known, to the byte: the loaded program's answers all come from the store."""
    project, _, done = workshop.searched(optimizer)
    assert done.code == 0, done.err
    before = len(project.server.requests)
    here = predictions(project.folder)
    assert all(query for query, *_ in here)
    if optimizer == NAMES[0]:  # one process for all five
        folders = [str(workshop.searched(name)[0].folder) for name in NAMES]
        code = (
            "import json, sys; from test_optimizers import predictions; from pathlib import Path; "
        )
        code += "print(json.dumps([predictions(Path(folder)) for folder in sys.argv[1:]]))"
        fresh = subprocess.run(
            [sys.executable, "-c", code, *folders],
            env=clean_environment(
                PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
                **{f"KEY_{role.upper()}": key for role, key in KEYS.items()},
            ),
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(fresh.stdout) == [predictions(Path(folder)) for folder in folders]
    assert len(project.server.requests) == before


def predictions(folder: Path) -> list[list[str]]:
    """[query, type, format] of the saved pipeline for each dev item."""
    args = optimize_pipeline.parse(
        [f"--data-dir={folder / 'data'}", f"--providers-file={folder / 'llm_providers.toml'}"]
    )
    settings = load_settings(args)
    pipeline = load_pipeline(settings.data_dir / "optimized_pipeline.json")
    items = read_gold(settings.data_dir / "gold_dataset.json").side("dev")
    with (
        LanguageModels(accounts_of(settings), data_dir=settings.data_dir) as models,
        dspy.context(lm=models.lm("student")),
    ):
        said = [ask_program(pipeline, item)[0] for item in items]
    return [[str(p.query), str(p.query_type), str(p.query_format)] for p in said]


@each_optimizer
def test_the_file_holds_no_model_key_or_address(optimizer: str, workshop: Workshop) -> None:
    project, _, _ = workshop.searched(optimizer)
    state = json.loads(project.program())
    assert {name for name in state if name != "metadata"} == {"analyzer", "generator"}
    for name in ("analyzer", "generator"):
        assert state[name]["lm"] is None
        assert state[name]["traces"] == state[name]["train"] == []
    both = project.program() + json.dumps(project.meta())
    for secret in (*KEYS.values(), "127.0.0.1", "http:"):
        assert secret not in both
    assert "model" not in project.program()


@each_optimizer
def test_the_meta_tells_what_was_chosen_among_what_and_at_what_price(
    optimizer: str, workshop: Workshop
) -> None:
    project, _, done = workshop.searched(optimizer)
    meta = project.meta()
    names = [candidate["name"] for candidate in meta["candidates"]]
    assert names[0] == "unoptimised" and len(set(names)) == len(names)
    assert [candidate["judged"] for candidate in meta["candidates"]] == [4] * len(names)
    scores = {candidate["name"]: candidate["dev_score"] for candidate in meta["candidates"]}
    assert scores[meta["chosen"]] == max(scores.values())
    assert {side: len(rows) for side, rows in meta["seen"].items()} == {"train": 4, "dev": 4}
    for column, name in enumerate(("unoptimised", meta["chosen"])):
        mean = sum(row[column] for row in meta["seen"]["dev"]) / 4
        assert mean == pytest.approx(scores[name], abs=1e-6)
    assert meta["judge"]["checked"] is False and meta["judge"]["why"]
    assert meta["usage"]["calls"] == len(done.requests)
    asked = meta["usage"]["input_tokens"], meta["usage"]["output_tokens"]
    assert meta["usage"]["cost"] == pytest.approx((asked[0] + 2 * asked[1]) / 1e6)
    settings = meta["settings"]
    assert set(OPTIMIZERS[optimizer].presets["light"]) <= set(settings)
    assert settings["optimizer"] == OPTIMIZERS[optimizer].dspy_name
    assert (settings["seed"], settings["target"], settings["judge"]) == (0, "pipeline", "built-in")
    assert settings["models"] == sorted(f"{role}: {role}-model" for role in ROLES)
    assert f"best of {len(names)}" in done.out
    assert meta["rehearsal"] is False


# ---------------------------------------------------------------------- seeds


# Of 4 items, bootstrap's seeds 0 and 1 happen to take the same 3.
OTHER_SEED = {name: 2 if name == "bootstrap" else 1 for name in NAMES}


@pytest.mark.parametrize(
    ("optimizer", "seed"), [(name, seed) for name in NAMES for seed in (0, OTHER_SEED[name])]
)
def test_the_same_seed_from_an_empty_folder_gives_the_same_bytes(
    optimizer: str, seed: int, workshop: Workshop
) -> None:
    one, _, done = workshop.searched(optimizer, seed)
    other, _, again = workshop.searched(optimizer, seed, again=1)
    assert one.program() == other.program()
    assert Counter(map(json.dumps, done.prompts)) == Counter(map(json.dumps, again.prompts))
    known = [{**each.meta(), "usage": None} for each in (one, other)]
    assert known[0] == known[1]


@pytest.mark.parametrize("optimizer", [name for name in NAMES if name != "copro"])
def test_another_seed_is_another_search(optimizer: str, workshop: Workshop) -> None:
    """COPRO draws nothing itself; another seed asks its teacher for another sample."""
    seed = OTHER_SEED[optimizer]
    zero, other = (workshop.searched(optimizer, number) for number in (0, seed))
    prompts = [Counter(map(json.dumps, done.prompts)) for *_, done in (zero, other)]
    assert prompts[0] != prompts[1]
    assert other[0].meta()["settings"]["seed"] == seed


def test_miprov2_takes_seed_0_for_0_and_not_for_its_default(workshop: Workshop) -> None:
    zero, nine = (workshop.searched("mipro", seed)[2] for seed in (0, 9))
    assert Counter(map(json.dumps, zero.prompts)) != Counter(map(json.dumps, nine.prompts))


def test_another_seed_asks_copros_teacher_again(workshop: Workshop) -> None:
    project = workshop.project()
    flags = ("--optimizer", "copro", "--breadth", "2", "--depth", "1", ANYHOW, "--seed")
    first = project.run(*flags, "1")
    assert project.run(*flags, "1", "--fresh").requests == []
    other = project.run(*flags, "2")
    assert first.calls["teacher"] == other.calls["teacher"] > 0
    assert project.run(*flags, "1", "--fresh").requests == []


# ---------------------------------------------------------------------- roles


@each_optimizer
def test_every_call_goes_to_the_account_of_its_role(optimizer: str, workshop: Workshop) -> None:
    _, _, done = workshop.searched(optimizer)
    seen = set()
    for _, headers, body in done.requests:
        role = body["model"].removesuffix("-model")
        sent = {name.lower(): value for name, value in headers.items()}
        assert sent["authorization"] == f"Bearer {KEYS[role]}"
        messages = body["messages"]
        assert is_judge(messages) == (role == "judge")
        assert role == "teacher" or not is_proposal(messages)
        seen.add((role, is_step(messages)))
    by_teacher = {step for role, step in seen if role == "teacher"}
    writes, proposes = optimizer in ("bootstrap", "mipro"), optimizer != "bootstrap"
    assert by_teacher <= {s for s, does in ((True, writes), (False, proposes)) if does}
    assert optimizer == "simba" or by_teacher  # SIMBA may find nothing to ask


def test_gepa_reflects_on_what_the_judge_said(workshop: Workshop) -> None:
    project, _, done = workshop.searched("gepa")
    proposals = [str(messages) for messages in done.prompts if is_proposal(messages)]
    assert proposals
    gold = json.loads((project.data / "gold_dataset.json").read_text(encoding="utf-8"))
    for prompt in proposals:
        assert "Feedback" in prompt
        assert "by the rehearsal" in prompt or "Weak: " in prompt, "the judge's reason"
        assert "a person chose" in prompt
        shown = {item["split"] for item in gold if item["gold_question"] in prompt}
        assert shown == {"train"}
    assert any("Scored low: " in prompt and "of 5 (wanted: " in prompt for prompt in proposals)


# ---------------------------------------------------------------------- the choice


def candidates(*names: str) -> list[Candidate]:
    return [Candidate(name, SyntheticQuestionPipeline()) for name in names]


def test_the_best_of_several_is_chosen_and_ties_go_to_the_earlier() -> None:
    three = candidates("unoptimised", "a", "b")
    assert choose(three, [[0.5, 0.5], [0.5, 0.6], [0.9, 0.1]])[0] == 1
    assert choose(three, [[0.5, 0.5], [0.4, 0.6], [0.6, 0.4]])[0] == 0
    assert choose(three, [[0.1, 0.5], [0.4, 0.6], [0.6, 0.4]])[0] == 1
    place, listed = choose(three, [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert place == 0
    assert listed[2] == {"name": "b", "dev_score": 0.0, "judged": 2}
    # a sum in another order is no better score
    assert choose(three[:2], [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])[0] == 0


def test_what_one_candidate_could_not_be_judged_on_counts_for_none() -> None:
    lost = Unjudged("away", 1.0)
    scores = [[0.5] * 20 + [1.0], [0.6] * 20 + [0.0], [0.4] * 20 + [lost]]
    place, listed = choose(candidates("unoptimised", "a", "b"), scores)
    assert place == 1
    assert [entry["judged"] for entry in listed] == [20] * 3
    assert [entry["dev_score"] for entry in listed] == [0.5, 0.6, 0.4]


@pytest.mark.parametrize(("lost", "items", "stops"), [(1, 20, False), (2, 39, True), (1, 1, True)])
def test_more_than_a_twentieth_that_could_not_be_judged_ends_the_run(
    lost: int, items: int, stops: bool
) -> None:
    """Those that any candidate lost, each in another place."""
    scores: list[list[Any]] = [[0.5] * items for _ in range(3)]
    for number in range(lost):
        scores[number % 3][number] = Unjudged("away", 0.9)
    three = candidates("unoptimised", "a", "b")
    if not stops:
        assert choose(three, scores)[0] == 0
        return
    with pytest.raises(StopRun, match=f"{lost} of {items} dev items could not be judged") as ended:
        choose(three, scores)
    assert ended.value.exit_code == 4


def test_a_program_that_was_found_twice_is_one_candidate() -> None:
    other = SyntheticQuestionPipeline()
    signature = other.generator.signature.with_instructions("Other.")
    other.generator.signature = signature
    found = [*candidates("unoptimised", "a"), Candidate("b", other), Candidate("c", other)]
    assert [one.name for one in unique(found, pipeline_state)] == ["unoptimised", "b"]


# ---------------------------------------------------------------------- trust in the judge


PLAIN = ("--optimizer", "bootstrap", *SMALL["bootstrap"], "--judge-pairs", "30")


@pytest.fixture
def distrusted(workshop: Workshop) -> tuple[Project, Done]:
    """A project whose judge was checked and failed."""
    project = workshop.project(contrary, made_gold(8, 8))
    return project, project.run(*PLAIN)


def test_a_judge_that_fails_its_check_stops_the_run_once_and_for_all(
    distrusted: tuple[Project, Done],
) -> None:
    project, done = distrusted
    assert done.code == 3
    assert "the judge is not to be relied on: accuracy" in done.err
    assert "is not better than chance" in done.err and ANYHOW in done.err
    assert set(done.calls) == {"judge"}
    assert not list(project.data.glob("optimized*"))
    again = project.run(*PLAIN)
    assert (again.code, again.requests) == (3, [])
    assert again.err == done.err
    # nor is it paid again where the person goes on, and the meta tells on which ground
    assert "check the judge" not in project.run(*PLAIN, "--dry-run").out
    anyhow = project.run(*PLAIN, ANYHOW)
    assert anyhow.code == 0, anyhow.err
    assert not any(map(is_pairwise, anyhow.prompts))
    meta = project.meta()["judge"]
    assert (meta["checked"], meta["trusted"]) == (True, False)
    assert meta["why"] in done.err
    assert f"judge: {meta['why']}" in anyhow.err


def test_what_a_distrusted_judge_chose_is_not_taken_for_finished(
    distrusted: tuple[Project, Done],
) -> None:
    project, _ = distrusted
    assert project.run(*PLAIN, ANYHOW).code == 0
    assert project.run(*PLAIN).code == 3


def test_a_judge_that_is_optimised_is_used_from_then_on_and_checked_on_the_dev_side(
    workshop: Workshop,
) -> None:
    project = workshop.project(rehearsal.answer, made_gold(8, 10))
    target = ("--target", "judge", "--optimizer", "copro", "--breadth", "2", "--depth", "1")
    most = foretold(project.run(*target, "--judge-pairs", "30", "--dry-run"))
    done = project.run(*target, "--judge-pairs", "30")
    assert done.code == 0, done.err
    assert done.out.rstrip().endswith("optimized_judge.json")
    assert all(made <= most.get(role, 0) for role, made in done.calls.items())
    assert set(done.calls) == {"judge", "teacher"}
    assert not any(map(is_pairwise, done.prompts))
    gold = json.loads((project.data / "gold_dataset.json").read_text(encoding="utf-8"))

    def sides(prompts: list[Messages]) -> set[str]:
        """The splits whose chunks are in the prompts."""
        sent = "\n".join(messages[-1]["content"] for messages in prompts)
        return {item["split"] for item in gold if item["chunk_text"] in sent}

    assert sides(done.prompts) == {"train"}
    meta = project.meta("optimized_judge")
    assert meta["settings"]["target"] == "judge" and meta["settings"]["judge"] == "built-in"
    assert json.loads(project.program("optimized_judge"))["judge"]["lm"] is None

    used = project.run(*PLAIN)
    assert used.code == 0, used.err
    checked = [messages for messages in used.prompts if is_pairwise(messages)]
    assert sides(checked) == {"dev"}
    assert project.meta()["settings"]["judge"] == "optimized_judge.json"
    assert project.meta()["judge"]["judge"] == "optimised"
    assert project.meta()["judge"]["chunks"] == 10
    state = json.loads(project.program("optimized_judge"))["judge"]
    said = " ".join(state["signature"]["instructions"].split())
    for messages in filter(is_judge, used.prompts):
        assert said in " ".join(messages[0]["content"].split())
    # by name it is the same judge, and nothing is left to do
    path = project.data / "optimized_judge.json"
    named = project.run(*PLAIN, "--judge", str(path))
    assert (named.code, named.requests) == (0, []) and "nothing to do" in named.out
    built_in = project.run(*PLAIN, "--judge", "built-in")
    assert built_in.code == 0, built_in.err
    assert sides([m for m in built_in.prompts if is_pairwise(m)]) == {"train", "dev"}
    assert project.meta()["settings"]["judge"] == "built-in"


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("bootstrap --num-candidate-programs 1"),
        "gepa --max-metric-calls 20",
        "simba --bsize 4 --num-candidates 2 --max-steps 1",
    ],
)
def test_the_bound_holds_for_the_judge_as_target(flags: str, workshop: Workshop) -> None:
    project = workshop.project(items=made_gold(8, 8))
    with_flags = ("--target", "judge", "--judge-pairs", "20", "--optimizer", *flags.split())
    most, done = foretold(project.run(*with_flags, "--dry-run")), project.run(*with_flags)
    assert done.code == 0, done.err
    assert all(made <= most.get(role, 0) for role, made in done.calls.items()), (most, done.calls)


def test_where_no_judge_is_better_than_the_built_in_one_that_is_used(workshop: Workshop) -> None:
    project = workshop.project(rehearsal.answer, made_gold(8, 10))
    target = ("--target", "judge", "--judge-pairs", "30", "--optimizer")
    assert project.run(*target, "copro", "--breadth", "2", "--depth", "1").code == 0
    assert (project.data / "optimized_judge.json").exists()
    done = project.run(*target, "gepa", "--max-metric-calls", "1")
    assert "no better judge among" in done.out
    project.run("--optimizer", "bootstrap", *SMALL["bootstrap"], ANYHOW)
    assert project.meta()["settings"]["judge"] == "built-in"


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_judges_file_that_is_none_is_refused(content: str | None, workshop: Workshop) -> None:
    project = workshop.project()
    path = project.folder / "strange.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    done = project.run("--judge", str(path), "--dry-run")
    assert done.code == 2
    assert str(path) in done.err and len(done.err.splitlines()) == 1


# ---------------------------------------------------------------------- refusals of the script


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--optimizer gepa --breadth 3", "--breadth is an argument of copro, not of gepa"),
        ("--optimizer simba --bsize 5", "more than the 4 items of the train split"),
        ("--optimizer copro --breadth 1", "--breadth must be at least 2"),
        ("--target judge --judge-pairs 1", "too few to optimise a judge"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_what_cannot_work_is_refused_before_any_call(
    flags: str, message: str, dry: bool, workshop: Workshop
) -> None:
    project = workshop.project()
    before = tree_digest(project.data)
    done = project.run(*flags.split(), *(["--dry-run"] if dry else []))
    assert done.code == 2
    assert message in done.err and len(done.err.splitlines()) == 1
    assert done.requests == [] and tree_digest(project.data) == before


def test_an_output_that_is_something_else_already_is_refused(workshop: Workshop) -> None:
    project = workshop.project()
    gold = project.data / "gold_dataset.json"
    before = gold.read_bytes()
    flags = ("--optimizer", "gepa", "--max-metric-calls", "1", ANYHOW)
    assert project.run(*flags, "--output", str(gold)).code == 2
    assert gold.read_bytes() == before


def test_a_damaged_meta_of_the_former_program_does_not_cost_the_new_one(
    workshop: Workshop,
) -> None:
    project = workshop.project()
    flags = ("--optimizer", "gepa", "--max-metric-calls", "1", ANYHOW)
    assert project.run(*flags).code == 0
    (project.data / "optimized_pipeline.json.meta.json").write_text("{broken", encoding="utf-8")
    assert project.run(*flags).code == 0


def test_the_pass_score_has_dspys_name_too() -> None:
    args = optimize_pipeline.parse(["--metric-threshold", "0.5"])
    assert args.pass_score == 0.5


# ---------------------------------------------------------------------- money


@pytest.mark.parametrize("optimizer", ["gepa", "simba"])  # both swallow what a program raises
def test_no_more_calls_than_allowed_and_none_of_them_twice(
    optimizer: str, workshop: Workshop
) -> None:
    calm, _, alone = workshop.searched(optimizer)
    project = workshop.project()
    flags = ("--optimizer", optimizer, *SMALL[optimizer], ANYHOW)
    some = len(alone.requests) * 2 // 3
    poor = project.run(*flags, "--max-calls", str(some))
    assert poor.code == 5
    assert len(poor.requests) == some
    assert f"{some} calls made, as many as --max-calls allows" in poor.err
    assert not list(project.data.glob("optimized*"))
    rich = project.run(*flags, "--max-calls", "5000")
    assert rich.code == 0, rich.err
    assert len(poor.requests) + len(rich.requests) == len(alone.requests)
    assert project.program() == calm.program()
    assert project.run(*flags).requests == []


# ---------------------------------------------------------------------- failures


def test_an_outage_of_seconds_is_waited_for_and_changes_nothing(workshop: Workshop) -> None:
    calm, _, _ = workshop.searched("bootstrap")
    project = workshop.project()
    began: list[float] = []

    def fail(number: int) -> tuple[int, dict[str, str], str] | None:
        if number >= 25:
            began.append(time.monotonic())
        away = bool(began) and time.monotonic() < began[0] + 2
        return (503, {}, '{"error": {"message": "overloaded"}}') if away else None

    project.server.fail = fail
    done = project.run("--optimizer", "bootstrap", *SMALL["bootstrap"], ANYHOW)
    assert done.code == 0, done.err
    assert len(began) > 1, "there was no outage"
    assert project.program() == calm.program()
    assert project.meta()["candidates"] == calm.meta()["candidates"]


def test_an_answer_of_the_students_that_cannot_be_read_is_a_bad_question(
    workshop: Workshop,
) -> None:
    items = made_gold(4, 4)
    victim = next(item for item in items if item["split"] == "dev")["chunk_text"]
    lively = Lively()

    def reply(messages: Messages) -> str:
        spoilt = is_step(messages) and victim in messages[-1]["content"]
        return "Sorry, I would rather not." if spoilt else lively(messages)

    project = workshop.project(reply, items)
    done = project.run("--optimizer", "bootstrap", *SMALL["bootstrap"], ANYHOW)
    assert done.code == 0, done.err
    meta = project.meta()
    assert [candidate["judged"] for candidate in meta["candidates"]] == [4] * len(
        meta["candidates"]
    )
    assert [0.0, 0.0] in meta["seen"]["dev"]
    assert not any(victim in m[-1]["content"] for m in done.prompts if is_judge(m))


def test_a_call_of_the_students_that_is_refused_is_no_score(workshop: Workshop) -> None:
    items = made_gold(4, 4)
    victim = next(item for item in items if item["split"] == "dev")["chunk_text"]
    project = workshop.project(items=items)
    refused = (400, {}, '{"error": {"message": "filtered"}}')

    def fail(number: int) -> tuple[int, dict[str, str], str] | None:
        messages = project.server.requests[number - 1][2]["messages"]
        return refused if is_step(messages) and victim in messages[-1]["content"] else None

    project.server.fail = fail
    done = project.run("--optimizer", "bootstrap", *SMALL["bootstrap"], ANYHOW)
    assert done.code == 4
    assert "could not be judged (LMInvalidRequestError" in done.err
    assert not list(project.data.glob("optimized*"))


proposers = pytest.mark.parametrize("optimizer", ["mipro", "copro"])


def unreadable(messages: Messages) -> str:
    """A teacher that writes good demonstrations, and proposals that nobody can read."""
    return "As you wish!" if is_proposal(messages) else rehearsal.answer(messages)


@proposers
def test_a_teacher_whose_proposals_cannot_be_read_is_one_clear_line(
    optimizer: str, workshop: Workshop
) -> None:
    project = workshop.project(unreadable)
    done = project.run("--optimizer", optimizer, *SMALL[optimizer], ANYHOW)
    assert done.code == 4
    assert done.err.splitlines()[-1].endswith(
        f"{OPTIMIZERS[optimizer].dspy_name} stopped 3 times because the teacher's proposals could "
        "not be read; give the role teacher to a stronger model"
    )
    assert "Traceback" not in done.err
    assert not list(project.data.glob("optimized*"))


def test_the_same_command_asks_an_unreadable_teacher_again(workshop: Workshop) -> None:
    project = workshop.project(unreadable)
    flags = ("--optimizer", "copro", *SMALL["copro"], ANYHOW)
    assert project.run(*flags).code == 4
    project.server.reply = rehearsal.answer
    assert project.run(*flags).code == 0


@pytest.mark.parametrize(
    "seed",
    [
        "0",
        pytest.param("1"),
    ],
)
def test_a_teacher_that_cannot_be_read_once_is_asked_anew(seed: str, workshop: Workshop) -> None:
    spoilt: list[Messages] = []

    def reply(messages: Messages) -> str:
        if is_proposal(messages) and len(spoilt) < 2:  # as chat, then as JSON
            spoilt.append(messages)
            return "As you wish!"
        return rehearsal.answer(messages)

    project = workshop.project(reply)
    flags = ("--optimizer", "copro", "--breadth", "2", "--depth", "1", ANYHOW, "--seed", seed)
    done = project.run(*flags)
    assert done.code == 0, done.err
    assert len(spoilt) == 2


@proposers
def test_a_teacher_that_refuses_to_propose_is_one_clear_line(
    optimizer: str, workshop: Workshop
) -> None:
    project = workshop.project()
    refused = (400, {}, '{"error": {"message": "content filtered"}}')
    project.server.fail = lambda number: (
        refused if is_proposal(project.server.requests[number - 1][2]["messages"]) else None
    )
    done = project.run("--optimizer", optimizer, *SMALL[optimizer], ANYHOW)
    assert done.code == 4
    assert "content filtered" in done.err.splitlines()[-1]


def test_gepa_tells_that_no_proposal_could_be_read(workshop: Workshop) -> None:
    project = workshop.project(unreadable)
    done = project.run("--optimizer", "gepa", *SMALL["gepa"], ANYHOW)
    assert done.calls["teacher"] > 4
    assert "proposals" in done.err
