"""The verdict from its command line: what is asked, what is kept, what it costs, how it ends."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import evaluate_pipeline
from conftest import ROOT, LLMServer, clean_environment, tree_digest
from dspy_pipeline import SyntheticQuestionPipeline, fingerprint, pipeline_state
from question_optimizer import files
from question_optimizer.cli import run as run_script
from question_optimizer.programs import evaluation
from question_optimizer.programs.runs import chunk_digest
from question_optimizer.programs.trust import BUILT_IN, judge_at_work
from question_optimizer.providers import LLMClientConfig
from question_optimizer.usage import CallUsage, Meter

Messages = list[dict[str, Any]]

KEY = "sk-only-key-0123456789"
PERSONA = "A maintenance engineer who keeps the plant running and plans repairs."
TEST, DEV, TRAIN = 8, 10, 3  # items of each side

# ---------------------------------------------------------------------- a gold set of our own


def gold_item(number: int, split: str, **more: Any) -> dict[str, Any]:
    """An item about a pump of its own, whose number tells a prompt's item wherever it is sent."""
    topic = f"topic{number:02}"
    return {
        "chunk_id": f"chunk-{number:02}",
        "chunk_text": (
            f"The {topic} pump moves cooling water through the primary circuit. Its relief valve "
            f"opens at {number + 3} bar and closes again below {number + 2} bar. Bearings want "
            "grease each spring, and the seal is to be replaced after a dry run."
        ),
        "persona_description": PERSONA,
        "gold_question": f"At which overpressure does the {topic} unit let water escape?",
        "document_id": f"manual-{number % 5}",
        "query_type": "fact retrieval",
        "query_format": "formal question",
        "split": split,
        "suggestions": [
            f"Why might the {topic} machine need a new seal once it ran without water?",
            f"How often are bearings on the {topic} machine greased?",
        ],
        "suggestions_shown": True,
        "bad_suggestions": [f"How often are bearings on the {topic} machine greased?"],
        **more,
    }


def gold_set(tests: int = TEST, *, others: bool = True) -> list[dict[str, Any]]:
    sides = ["test"] * tests + (["train"] * TRAIN + ["dev"] * DEV if others else [])
    return [gold_item(number, split) for number, split in enumerate(sides)]


def write_program(
    path: Path, style: str, *, seen: Mapping[str, Any] | None = None, **meta: Any
) -> None:
    """A finished pipeline whose prompts name its `style`, for the server to know it by.

    "original" is the unoptimised pipeline itself.
    """
    program = SyntheticQuestionPipeline()
    for _, predictor in program.named_predictors() if style != "original" else ():
        told = f"{predictor.signature.instructions} Work in the {style} style."
        predictor.signature = predictor.signature.with_instructions(told)
    files.write_atomic(path, pipeline_state(program))
    files.write_meta(
        path,
        phase="optimize_pipeline",
        settings={"judge_digest": judge_at_work(path.parent, BUILT_IN).digest},
        inputs={},
        **{"signature": fingerprint(program), "seen": seen or {}, **meta},
    )


# ---------------------------------------------------------------------- a server that plays along


def step_of(messages: Messages) -> str:
    """Which of the four prompts it is: analyse, write, score or compare."""
    system = messages[0]["content"]
    if "`answerable`" in system:
        return "score"
    if "`query_a`" in system:
        return "compare"
    return "write" if "1. `query` (" in system else "analyse"


def topic_of(messages: Messages) -> int:
    found = re.search(r"topic(\d\d)", messages[-1]["content"])
    assert found is not None
    return int(found[1])


def style_of(messages: Messages) -> str:
    found = re.search(r"Work in the (\w+) style", messages[0]["content"])
    return found[1] if found else "original"


def field(messages: Messages, name: str) -> str:
    """An input field of the prompt's last message."""
    found = re.search(rf"\[\[ ## {name} ## \]\]\n(.*?)\n\n", messages[-1]["content"], re.S)
    assert found is not None, name
    return found[1]


def fields(**values: object) -> str:
    written = "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in values.items())
    return f"{written}[[ ## completed ## ]]"


CRITERIA = ("answerable", "self_contained", "specific", "fits_persona", "well_formed")


WORDS = {"original": "usual", "better": "highest", "worse": "vague", "other": "lowest"}


class Model:
    """Plays student and judge; each test changes what it needs to.

    A style shows in one word of the question. `level` is what the judge gives a question, 1 to 5 on
    each criterion, side by side as well.
    """

    def analyse(self, messages: Messages) -> str:
        return fields(query_type="fact retrieval", query_format="formal question")

    def write(self, messages: Messages) -> str:
        return fields(query=self.question(style_of(messages), topic_of(messages)))

    def question(self, style: str, topic: int) -> str:
        return f"Which {WORDS[style]} pressure makes machine topic{topic:02} release its coolant?"

    def level(self, question: str, topic: int) -> int:
        """Better by one or two levels where the style is "better", worse where it is "worse"."""
        if "highest" in question:
            return 4 + topic % 2
        return 1 + topic % 2 if "vague" in question else 3

    def score(self, messages: Messages) -> str:
        level = self.level(field(messages, "question"), topic_of(messages))
        return fields(reason=f"of level {level}", **dict.fromkeys(CRITERIA, level))

    def compare(self, messages: Messages) -> str:
        topic = topic_of(messages)
        a, b = (self.level(field(messages, name), topic) for name in ("query_a", "query_b"))
        return fields(reason="by level", better="tie" if a == b else "A" if a > b else "B")

    def __call__(self, messages: Messages) -> str:
        return str(getattr(self, step_of(messages))(messages))


ACCOUNT = """
[[accounts]]
name = "{name}"
model = "{model}"
base_url = "{url}/v1"
api_key_env = "ONLY_KEY"
concurrency = {concurrency}
input_price = 1.0
output_price = 2.0
roles = {roles}
"""


def account(
    server: LLMServer,
    name: str = "only",
    *,
    model: str = "m",
    roles: Sequence[str] = ("student", "teacher", "judge"),
    concurrency: int = 4,
    more: str = "",
) -> str:
    text = ACCOUNT.format(
        name=name, model=model, url=server.url, concurrency=concurrency, roles=json.dumps(roles)
    )
    return f"{text}{more}\n"


# ---------------------------------------------------------------------- running it


# A busy machine answers now in 2 ms, now in 20: no verdict here may hang on it.
PATIENT = ["--max-latency-ratio", "1e9"]


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Project:
    """A folder with a gold set, an optimised pipeline and accounts, where the phase is run."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]):
        self.root, self.data, self._capsys = root, root / "data", capsys
        self.write_gold(gold_set())
        write_program(self.data / "optimized_pipeline.json", "better")

    @property
    def gold(self) -> list[dict[str, Any]]:
        return list(json.loads((self.data / "gold_dataset.json").read_text(encoding="utf-8")))

    def write_gold(self, items: list[dict[str, Any]]) -> None:
        files.write_json(self.data / "gold_dataset.json", items)

    def write_accounts(self, *accounts: str) -> None:
        (self.root / "llm_providers.toml").write_text("".join(accounts), encoding="utf-8")

    def evaluate(self, *flags: object) -> Done:
        """Run the phase in this process, as its script would end."""
        before, sys.argv = sys.argv, ["evaluate_pipeline.py", *PATIENT, *map(str, flags)]
        self._capsys.readouterr()
        try:
            code = run_script(lambda: evaluate_pipeline.main(sys.argv[1:]))
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        finally:
            sys.argv = before
        return Done(code, *self._capsys.readouterr())

    def start(self, *flags: object, **environ: str) -> subprocess.Popen[str]:
        """The phase in a process of its own."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "evaluate_pipeline.py"), *PATIENT, *map(str, flags)],
            cwd=self.root,
            env=clean_environment(ONLY_KEY=KEY, **environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def runs(self) -> list[Path]:
        return sorted((self.data / "runs").glob("*"))

    def folder(self, name: str = "") -> Path:
        [found] = [path for path in self.runs if name in path.name]
        return found

    def summary(self, name: str = "") -> dict[str, Any]:
        return dict(json.loads((self.folder(name) / "summary.json").read_text(encoding="utf-8")))

    def rows(self, name: str = "", arm: str = "") -> list[dict[str, Any]]:
        lines = (self.folder(name) / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if arm in ("", row["arm"])]

    def bytes(self, name: str = "") -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder(name).iterdir())}


Serve = Callable[..., LLMServer]


def quick(server: LLMServer) -> LLMServer:
    """Without Nagle's algorithm, which delays each answer by 40 ms: headers and body are two
    writes."""
    handler = server.RequestHandlerClass
    server.RequestHandlerClass = type("Quick", (handler,), {"disable_nagle_algorithm": True})
    return server


def project_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    """A project in `folder`, which becomes the working directory."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ONLY_KEY", KEY)
    monkeypatch.delenv("COLUMNS", raising=False)
    return Project(folder, capsys)


def serving(project: Project, llm_server: Callable[..., LLMServer]) -> Serve:
    """Starts the server that the project's one account speaks to."""

    def start(model: Callable[[Messages], str] | None = None, **more: Any) -> LLMServer:
        server = quick(llm_server(model or Model()))
        project.write_accounts(account(server, **more))
        return server

    return start


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    return project_in(tmp_path, monkeypatch, capsys)


@pytest.fixture
def serve(project: Project, llm_server: Callable[..., LLMServer]) -> Serve:
    return serving(project, llm_server)


def asked(server: LLMServer) -> Counter[str]:
    """How many requests came, by step."""
    return Counter(step_of(body["messages"]) for *_, body in server.requests)


def sent(server: LLMServer, step: str) -> list[str]:
    """The last message of each request of a step."""
    bodies = [body["messages"] for *_, body in server.requests]
    return [messages[-1]["content"] for messages in bodies if step_of(messages) == step]


def bodies(server: LLMServer) -> Counter[str]:
    return Counter(json.dumps(body, sort_keys=True) for *_, body in server.requests)


# ---------------------------------------------------------------------- replay

CALLS = {"analyse": 2 * TEST, "write": 2 * TEST, "score": 2 * TEST, "compare": 2 * TEST}


@pytest.mark.parametrize("how", ["again", "fresh", "runs deleted"])
def test_a_second_run_changes_no_byte_and_asks_nothing(
    how: str, project: Project, serve: Serve
) -> None:
    server = serve()
    first, known = project.evaluate(), project.bytes()
    assert (first.code, first.err, asked(server)) == (0, "", CALLS)
    if how == "runs deleted":
        shutil.rmtree(project.data / "runs")
    second = project.evaluate(*["--fresh"] * (how == "fresh"))
    assert second == first
    assert project.bytes() == known
    assert sorted(known) == [
        "report.html",
        "scores.jsonl",
        "summary.json",
        "summary.json.meta.json",
    ]
    assert asked(server) == CALLS


@pytest.mark.parametrize("rehearsal", [False, True])
def test_another_process_with_other_hashes_and_concurrency_makes_the_same_bytes(
    rehearsal: bool, project: Project, serve: Serve
) -> None:
    flags = ["--rehearsal"] * rehearsal
    server = serve(concurrency=8)
    first, known = project.evaluate(*flags), project.bytes()
    shutil.rmtree(project.data / "runs")
    if rehearsal:  # its answers are a pure function of the prompt: not even a cache is needed
        shutil.rmtree(project.data / "cache")
    project.write_accounts(account(server, concurrency=1))
    before = asked(server)
    process = project.start(*flags, PYTHONHASHSEED="4711")
    out, err = process.communicate(timeout=60)
    assert Done(process.returncode, out, err) == first
    assert project.bytes() == known
    assert asked(server) == before


def another_seed(project: Project) -> list[str]:
    return ["--seed", "1"]


def another_gold_set(project: Project) -> list[str]:
    project.write_gold([*project.gold, gold_item(90, "train")])
    return []


def another_pipeline(project: Project) -> list[str]:
    write_program(project.data / "optimized_pipeline.json", "worse")
    return []


def another_limit(project: Project) -> list[str]:
    return ["--max-cost-ratio", "4"]


@pytest.mark.parametrize(
    "change", [another_seed, another_gold_set, another_pipeline, another_limit]
)
def test_what_the_result_depends_on_makes_another_run(
    change: Callable[[Project], list[str]], project: Project, serve: Serve
) -> None:
    server = serve()
    project.evaluate()
    known, run, before = project.bytes(), project.folder(), asked(server)
    assert project.evaluate(*change(project)).code in (0, 3)
    assert len(project.runs) == 2
    assert {path.name: path.read_bytes() for path in run.iterdir()} == known
    new = asked(server) - before
    if change is another_pipeline:  # the original's answers are known
        assert new == {step: count // 2 for step, count in CALLS.items()} | {"compare": 2 * TEST}
    else:
        assert not new


def test_totals_do_not_hang_on_the_order_in_which_calls_end() -> None:
    priced = LLMClientConfig("only", "m", input_price=0.15, output_price=0.60)
    totals = set()
    for order in itertools.permutations([(230, 140), (750, 20), (770, 100)]):
        meter = Meter()
        for number, (read, written) in enumerate(order):
            cost = priced.cost(read, written)
            meter.calls[str(number)] = CallUsage("only", "m", read, written, cost, seconds=0.0)
        totals.add(meter.total.as_dict()["cost"])
    assert len(totals) == 1


class Slow(Model):
    def __call__(self, messages: Messages) -> str:
        time.sleep(0.01)
        return super().__call__(messages)


def test_a_killed_run_goes_on_where_it_stopped(project: Project, serve: Serve) -> None:
    server = serve(Slow())
    process = project.start()
    while len(server.requests) < 30:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert not list((project.data / "runs").glob("*/summary.json"))
    assert project.evaluate().code == 0
    wanted = sum(CALLS.values())
    assert wanted <= len(server.requests) <= wanted + 4  # what was in flight
    rows, summary = project.rows(), project.summary()
    assert summary["test_set_opened"] == 1
    shutil.rmtree(project.data / "cache")
    assert project.evaluate("--fresh").code == 0  # without any kill
    timeless = [[{**row, "latency_seconds": 0} for row in rows] for rows in (rows, project.rows())]
    assert timeless[0] == timeless[1]
    for one in (summary, again := project.summary()):
        for arm in one["arms"].values():
            del arm["seconds_per_question"], arm["median_seconds_per_question"]
    assert again["arms"] == summary["arms"]


def test_an_interrupted_run_says_how_to_go_on(project: Project, serve: Serve) -> None:
    server = serve(Slow())
    process = project.start("--repeats", 2)
    while len(server.requests) < 20:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    flags = " ".join([*PATIENT, "--repeats 2"])
    assert err.splitlines()[-1] == (
        f"evaluate_pipeline.py: resume with: python evaluate_pipeline.py {flags}"
    )
    assert "Traceback" not in err
    assert project.evaluate("--repeats", 2).code == 0
    assert asked(server) == {step: 2 * count for step, count in CALLS.items()}
    assert [run.name[-6:] for run in project.runs] == ["-live1"]


# ---------------------------------------------------------------------- live


class Varying(Model):
    """Never writes the same question twice."""

    def __init__(self) -> None:
        self.drawn = itertools.count(100)

    def write(self, messages: Messages) -> str:
        question = self.question(style_of(messages), topic_of(messages))
        return fields(query=question.replace("coolant", f"coolant at {next(self.drawn)} degrees"))


def times(calls: Mapping[str, int], n: int) -> dict[str, int]:
    return {step: n * count for step, count in calls.items()}


def test_a_live_run_asks_each_repeat_anew(project: Project, serve: Serve) -> None:
    server = serve(Varying())
    done = project.evaluate("--repeats", 3)
    assert done.code == 0, done
    assert asked(server) == times(CALLS, 3)
    rows = project.rows()
    repeats: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        repeats.setdefault((row["item"], row["arm"]), []).append(row["repeat"])
    assert len(repeats) == 2 * TEST and set(map(tuple, repeats.values())) == {(0, 1, 2)}
    assert len({row["question"] for row in rows}) == 6 * TEST
    summary = project.summary()
    assert (summary["items"], summary["repeats"], summary["mode"]) == (TEST, 3, "live")
    comparison = summary["comparisons"][0]
    assert (comparison["n"], comparison["pairwise"]["n"], comparison["pairwise"]["asked"]) == (
        *(TEST, TEST),
        3 * TEST,
    )
    assert summary["arms"]["optimised"]["items"] == TEST


def test_live_runs_and_replays_do_not_disturb_each_other(project: Project, serve: Serve) -> None:
    server = serve(Varying())
    assert project.evaluate().code == 0
    replayed = project.bytes()
    name = project.folder().name
    for number in (1, 2):
        assert project.evaluate("--repeats", 2).code == 0
        assert asked(server) == times(CALLS, 1 + 2 * number)
    live = [run.name.rpartition("-")[2] for run in project.runs if run.name != name]
    assert live == ["live1", "live2"]
    assert project.rows("live1") != project.rows("live2")
    assert project.evaluate("--fresh").code == 0
    assert {path.name: path.read_bytes() for path in (project.data / "runs" / name).iterdir()} == (
        replayed
    )
    assert asked(server) == times(CALLS, 5)


def test_a_live_run_that_a_budget_stopped_goes_on(project: Project, serve: Serve) -> None:
    server = serve(Varying())
    poor = project.evaluate("--repeats", 2, "--max-calls", 50)
    assert (poor.code, poor.out, len(server.requests)) == (5, "", 50)
    assert "50 calls made, as many as --max-calls allows" in poor.err
    assert project.evaluate("--repeats", 2).code == 0
    assert asked(server) == times(CALLS, 2)
    assert [run.name.rpartition("-")[2] for run in project.runs] == ["live1"]
    assert project.summary()["test_set_opened"] == 1


def test_a_live_run_asks_anew_though_earlier_runs_were_deleted(
    project: Project, serve: Serve
) -> None:
    server = serve(Varying())
    for _ in range(2):
        assert project.evaluate("--repeats", 1).code == 0
        shutil.rmtree(project.data / "runs")
    assert asked(server) == times(CALLS, 2)


def test_a_live_run_asks_anew_though_the_judge_was_checked_since(
    project: Project, serve: Serve
) -> None:
    server = serve(Varying())
    project.evaluate("--repeats", 1)
    project.evaluate("--check-judge", "--judge-pairs", 4)
    project.evaluate("--check-judge")
    before = asked(server)
    project.evaluate("--repeats", 1)
    assert asked(server) - before == CALLS


# ---------------------------------------------------------------------- arms


def test_several_programs_are_held_to_stricter_intervals(project: Project, serve: Serve) -> None:
    serve()
    write_program(project.root / "one.json", "worse")
    write_program(project.root / "two.json", "original")
    done = project.evaluate("--program", "mine=one.json", "--program", "yours=two.json")
    summary = project.summary()
    assert done.code == 0
    assert summary["candidates"] == ["optimised", "mine", "yours"]
    assert summary["arm_order"] == ["original", "optimised", "mine", "yours"]
    assert summary["recommended"] == "optimised"
    verdicts = {c["arm"]: c["verdict"] for c in summary["comparisons"]}
    assert verdicts == {"optimised": "GO", "mine": "NO-GO", "yours": "NO-GO"}
    assert {round(c["level"], 4) for c in summary["comparisons"]} == {0.9833}
    assert summary["comparisons"][0]["p_holm"] > summary["comparisons"][0]["p"]
    assert "With 3 candidates" in summary["rule"] and "Holm" in summary["rule"]
    assert "98.3333 % interval" in summary["sentence"]
    inputs = files.read_meta(project.folder() / "summary.json", made_by="")["inputs"]
    named = {"optimised: optimized_pipeline.json", "mine: one.json", "yours: two.json"}
    assert {"gold_dataset.json"} | named <= set(inputs)


def test_a_program_named_twice_over_is_compared_once(project: Project, serve: Serve) -> None:
    server = serve()
    for name in ("one.json", "two.json"):
        write_program(project.root / name, "better")
    done = project.evaluate("--program", "mine=one.json", "--program", "yours=two.json")
    assert done.code == 0
    assert done.err.splitlines() == [
        "mine is the same program as optimised and is left out",
        "yours is the same program as optimised and is left out",
    ]
    assert project.summary()["candidates"] == ["optimised"]
    assert project.summary()["comparisons"][0]["level"] == 0.95
    assert asked(server) == CALLS


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("mine", "must be NAME=PATH, the name a word"),
        ("mine=", "must be NAME=PATH, the name a word"),
        ("=one.json", "must be NAME=PATH, the name a word"),
        ("my own=one.json", "must be NAME=PATH, the name a word"),
        ("[red]=one.json", "must be NAME=PATH, the name a word"),
        ("original=one.json", "'original' is the name of an arm of its own"),
        ("optimised=one.json", "'optimised' is the name of an arm of its own"),
        ("existing=one.json", "'existing' is the name of an arm of its own"),
        ("gold=one.json", "'gold' is the name of an arm of its own"),
    ],
)
def test_a_program_has_a_name_of_its_own(
    named: str, says: str, project: Project, serve: Serve
) -> None:
    server = serve()
    done = project.evaluate("--program", named)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert f"argument --program: {says}" in done.err
    assert not server.requests


def absent(path: Path) -> None:
    path.unlink()


def without_meta(path: Path) -> None:
    files.meta_path(path).unlink()


def edited(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("worse", "worst"), encoding="utf-8")


def not_json(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def a_folder(path: Path) -> None:
    path.unlink()
    files.meta_path(path).unlink()
    path.mkdir()


def a_judge(path: Path) -> None:
    from question_optimizer.programs.judge import QuestionJudge

    files.write_atomic(path, pipeline_state(QuestionJudge()))
    files.write_meta(
        path,
        phase="optimize_pipeline",
        settings={},
        inputs={},
        signature=fingerprint(QuestionJudge()),
    )


def newer(path: Path) -> None:
    _with_meta(path, schema_version=99)


def _with_meta(path: Path, **changes: Any) -> None:
    meta = json.loads(files.meta_path(path).read_text(encoding="utf-8"))
    files.write_json(files.meta_path(path), meta | changes)


def _with_state(path: Path, **changes: Any) -> None:
    """The generator's saved state changed, with a meta file that fits."""
    state = json.loads(path.read_text(encoding="utf-8"))
    state["generator"].update(changes)
    files.write_json(path, state)
    _with_meta(path, output={"name": path.name, "sha256": files.sha256(path)})


def with_a_model(path: Path) -> None:
    _with_state(path, lm={"model": "openai/gpt-4o"})


def with_something_odd(path: Path) -> None:
    _with_state(path, __class__="os.system")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (absent, "one.json: does not exist"),
        (without_meta, "one.json: unfinished, one.json.meta.json is missing"),
        (edited, "one.json: changed since it was made"),
        (not_json, "one.json: not UTF-8 text"),
        (a_folder, "one.json: does not exist"),
        (a_judge, "one.json: holds 'judge', not 'analyzer', 'generator': a program of another"),
        (newer, "schema version 99 is newer"),
        (with_a_model, "predictor 'generator' names a model"),
        (with_something_odd, "predictor 'generator': unknown key '__class__'"),
    ],
)
def test_a_program_that_cannot_be_used_is_refused_before_any_call(
    spoil: Callable[[Path], None], says: str, project: Project, serve: Serve
) -> None:
    server = serve()
    path = project.root / "one.json"
    write_program(path, "worse")
    spoil(path)
    done = project.evaluate("--program", "mine=one.json")
    assert (done.code, done.out) == (2, "")
    assert says in done.err and len(done.err.splitlines()) == 1
    assert not server.requests
    assert not project.runs and not (project.data / "test_set_openings.json").exists()


@pytest.mark.parametrize(
    "meta",
    [
        {"output": []},
        {"seen": {"train": [1]}},
        {"judge": None},
    ],
)
def test_a_program_with_a_damaged_meta_file_is_refused_before_any_call(
    meta: dict[str, Any], project: Project, serve: Serve
) -> None:
    server = serve()
    _with_meta(project.data / "optimized_pipeline.json", **meta)
    done = project.evaluate()
    assert (done.code, len(done.err.splitlines()), len(server.requests)) == (2, 1, 0)


@pytest.mark.parametrize("state", [{"demos": 5}, {"demos": ["x"]}, {"signature": {}}])
def test_a_program_with_a_damaged_state_is_refused_before_any_call(
    state: dict[str, Any], project: Project, serve: Serve
) -> None:
    server = serve()
    _with_state(project.data / "optimized_pipeline.json", **state)
    done = project.evaluate()
    assert (done.code, len(done.err.splitlines()), len(server.requests)) == (2, 1, 0)


def test_two_programs_of_one_name_are_refused(project: Project, serve: Serve) -> None:
    server = serve()
    write_program(project.root / "one.json", "worse")
    done = project.evaluate("--program", "mine=one.json", "--program", "mine=one.json")
    assert (done.code, done.out) == (2, "")
    assert done.err == "evaluate_pipeline.py: two programs of one name; give each its own\n"
    assert not server.requests


def test_the_optimised_pipeline_may_be_missing_where_another_is_named(
    project: Project, serve: Serve
) -> None:
    server = serve()
    path = project.data / "optimized_pipeline.json"
    shutil.move(path, project.root / "one.json")
    shutil.move(files.meta_path(path), files.meta_path(project.root / "one.json"))
    done = project.evaluate()
    assert (done.code, done.out) == (2, "")
    assert "optimized_pipeline.json: does not exist; run optimize_pipeline.py first" in done.err
    assert not server.requests
    assert project.evaluate("--program", "mine=one.json").code == 0
    assert project.summary()["arm_order"] == ["original", "mine"]


def test_the_query_that_a_chunk_carries_is_an_arm_that_decides_nothing(
    project: Project, serve: Serve
) -> None:
    server, carried = serve(), range(0, TEST, 2)  # by every other chunk
    query = "How does machine topic{:02} protect itself from bursting?"
    items = project.gold
    for number in carried:
        items[number]["existing_query"] = query.format(number)
    project.write_gold(items)
    done = project.evaluate()
    assert done.code == 0, done.err
    assert asked(server) == {**CALLS, "score": 2 * TEST + len(carried)}
    summary = project.summary()
    assert summary["arm_order"] == ["original", "optimised", "existing"]
    assert summary["candidates"] == ["optimised"]
    assert summary["arms"]["existing"]["items"] == len(carried)
    assert summary["items"] == TEST
    against = summary["comparisons"][1]
    assert (against["arm"], against["against"]) == ("optimised", "existing")
    assert (against["decides"], against["n"], against["pairwise"]) == (False, len(carried), None)
    rows = project.rows(arm="existing")
    assert [row["question"] for row in rows] == [query.format(number) for number in carried]
    for row in rows:
        assert (row["model"], row["judge_model"], row["tokens"], row["cost"]) == ("", "m", 0, 0.0)
        assert row["pairwise"] is None


def test_a_query_carried_by_train_items_alone_makes_no_arm(project: Project, serve: Serve) -> None:
    serve()
    items = project.gold
    items[-1]["existing_query"] = "How does the machine protect itself?"
    project.write_gold(items)
    assert project.evaluate().code == 0
    assert project.summary()["arm_order"] == ["original", "optimised"]


@pytest.mark.parametrize("persona", [PERSONA, "A buyer who compares pumps."])
def test_a_gold_set_that_names_an_item_twice_does_not_waste_the_calls(
    persona: str, project: Project, serve: Serve
) -> None:
    server = serve()
    items = project.gold
    project.write_gold([*items, {**items[0], "persona_description": persona}])
    done = project.evaluate()
    assert done.code == 0 or (done.code == 2 and not server.requests)


# ---------------------------------------------------------------------- models and accounts

MANY = 16
ROLES = {"s": ("student", "teacher"), "j": ("judge",)}


@pytest.fixture
def four(project: Project, llm_server: Callable[..., LLMServer]) -> dict[str, LLMServer]:
    """Two students and two judges, each a model and a server of its own."""
    servers = {name: quick(llm_server(Model())) for name in ("s1", "s2", "j1", "j2")}
    project.write_accounts(
        *(
            account(server, name, model=f"model-{name}", roles=ROLES[name[0]])
            for name, server in servers.items()
        )
    )
    project.write_gold(gold_set(MANY))
    return servers


def test_all_arms_of_an_item_are_written_and_judged_by_the_same_models(
    project: Project, four: dict[str, LLMServer]
) -> None:
    items = project.gold
    for item in items:
        item["existing_query"] = f"How is {item['chunk_id']} protected from bursting?"
    project.write_gold(items)
    assert project.evaluate("--repeats", 2).code == 0
    rows = project.rows()
    for kind in ("model", "judge_model"):
        models: dict[str, set[str]] = {}
        for row in rows:
            if row["arm"] != "existing" or kind == "judge_model":
                models.setdefault(row["item"], set()).add(row[kind])
        assert len(models) == MANY and {len(found) for found in models.values()} == {1}
        assert {name for found in models.values() for name in found} == (
            {"model-s1", "model-s2"} if kind == "model" else {"model-j1", "model-j2"}
        )
    # side by side too
    for name, server in four.items():
        judged = {row["chunk_id"] for row in rows if row["judge_model"] == f"model-{name}"}
        shown = {f"chunk-{topic_of(b['messages']):02}" for *_, b in server.requests}
        assert name[0] == "s" or judged == shown
    summary = project.summary()
    for arm in ("original", "optimised"):
        by_model = summary["arms"][arm]["by_model"]
        assert set(by_model) == {"model-s1", "model-s2"}
        assert sum(found["n"] for found in by_model.values()) == MANY
        assert all(found["score"] is not None for found in by_model.values())
    by_model = summary["comparisons"][0]["by_model"]
    assert [found["model"] for found in by_model] == ["model-s1", "model-s2"]
    assert sum(found["n"] for found in by_model) == MANY


REFUSED = (401, {}, '{"error": {"message": "this key was revoked"}}')


@pytest.mark.parametrize(("dead", "after"), [("s2", 0), ("s1", 6), ("j1", 6)])
def test_a_run_goes_on_without_an_account_that_died(
    dead: str, after: int, project: Project, four: dict[str, LLMServer]
) -> None:
    four[dead].fail = lambda number: REFUSED if number > after else None
    done = project.evaluate()
    assert done.code == (3 if after else 0) or not done.err
    rows = project.rows()
    assert len(rows) == 2 * MANY and all(row["score"] is not None for row in rows)
    assert all(row["pairwise"]["outcome"] for row in rows if row["arm"] == "optimised")
    kind = "model" if dead.startswith("s") else "judge_model"
    assert (f"model-{dead}" in " ".join(row[kind] for row in rows)) == (after > 0)
    summary = project.summary()
    [compared] = summary["comparisons"]
    # what one model wrote, or judged, in one arm and another in the other is no pair
    assert compared["n"] + compared["other_model"] == MANY
    assert sum(found["n"] for found in compared["by_model"]) == compared["n"]
    known = project.bytes()
    assert project.evaluate("--fresh").code == done.code
    if not after:
        assert compared["n"] == MANY
        assert project.bytes() == known


# ---------------------------------------------------------------------- verdicts and exit codes


def test_a_clearly_better_program_is_a_go(project: Project, serve: Serve) -> None:
    serve()
    done = project.evaluate()
    summary = project.summary()
    assert (done.code, summary["verdict"], summary["exit_code"]) == (0, "GO", 0)
    assert summary["recommended"] == "optimised"
    said = " ".join(done.out.split())
    assert said.startswith(
        "GO: optimised is better than original: +0.375 on 8 items, 95 % interval"
    )
    assert done.out.splitlines()[-1] == (
        f"GO: 8 test items, 2 arms -> {Path('data/runs') / project.folder().name / 'report.html'}"
    )
    report = (project.folder() / "report.html").read_text(encoding="utf-8")
    assert summary["comparisons"][0]["why"] in report


def test_an_identical_program_is_no_go_and_costs_nothing_twice(
    project: Project, serve: Serve
) -> None:
    server = serve()
    write_program(project.data / "optimized_pipeline.json", "original")
    done = project.evaluate()
    summary = project.summary()
    assert (done.code, summary["verdict"], summary["recommended"]) == (3, "NO-GO", None)
    assert "gains nothing on original: all 8 items score the same" in summary["sentence"]
    assert asked(server) == {"analyse": TEST, "write": TEST, "score": TEST}
    duels = [row["pairwise"] for row in project.rows(arm="optimised")]
    assert {(duel["outcome"], duel["asked"], duel["reasons"][0]) for duel in duels} == {
        ("tie", False, "both are the same")
    }


def test_a_worse_program_is_no_go(project: Project, serve: Serve) -> None:
    serve()
    write_program(project.data / "optimized_pipeline.json", "worse")
    done = project.evaluate()
    summary = project.summary()
    assert (done.code, summary["verdict"], summary["exit_code"]) == (3, "NO-GO", 3)
    assert summary["sentence"].startswith("NO-GO: optimised is worse than original: -0.375 on 8")
    assert summary["comparisons"][0]["pairwise"]["losses"] == TEST


class Fickle(Model):
    """Finds half of the better ones worse."""

    def level(self, question: str, topic: int) -> int:
        return 3 if "usual" in question else 1 + 4 * (topic % 2)


def test_an_open_question_tells_how_many_gold_items_would_settle_it(
    project: Project, serve: Serve
) -> None:
    serve(Fickle())
    done = project.evaluate()
    summary = project.summary()
    assert (done.code, summary["verdict"], summary["exit_code"]) == (3, "INCONCLUSIVE", 3)
    comparison = summary["comparisons"][0]
    assert comparison["items_needed"] > TEST
    share = len(project.gold) / TEST
    assert comparison["gold_items_needed"] == pytest.approx(
        share * comparison["items_needed"], 0.01
    )
    assert f"a gold set of {comparison['gold_items_needed']:,}" in summary["sentence"]


class Wordy(Model):
    def write(self, messages: Messages) -> str:
        padding = "Let me think. " * 1000 if style_of(messages) == "better" else ""
        return padding + super().write(messages)


class Unreadable(Model):
    def write(self, messages: Messages) -> str:
        broken = style_of(messages) == "better" and topic_of(messages) < 3
        return "I would rather not." if broken else super().write(messages)


class SelfReferring(Model):
    """The better style's questions about even items refer to "this section"."""

    def question(self, style: str, topic: int) -> str:
        if style == "better" and topic % 2 == 0:
            return f"What does this section say about the highest pressure of topic{topic:02}?"
        return super().question(style, topic)


class Breathing(Model):
    """Every answer takes measurable time."""

    def __call__(self, messages: Messages) -> str:
        time.sleep(0.003)
        return super().__call__(messages)


@pytest.mark.parametrize(
    ("model", "flags", "name"),
    [
        (Breathing(), ["--max-latency-ratio", "0.01"], "seconds per question"),
        (Wordy(), [], "cost per question"),
        (Model(), ["--max-cost-ratio", "0.5"], "cost per question"),
        (Unreadable(), [], "readable questions"),
        (SelfReferring(), [], "gate failures"),
    ],
)
def test_a_broken_guardrail_is_named(
    model: Model, flags: list[str], name: str, project: Project, serve: Serve
) -> None:
    serve(model)
    done = project.evaluate(*flags)
    summary = project.summary()
    assert (done.code, summary["verdict"]) == (3, "NO-GO")
    broken = [g["name"] for g in summary["comparisons"][0]["guardrails"] if g["broken"]]
    assert name in broken
    assert "optimised breaks a guardrail" in summary["sentence"] and name in summary["sentence"]
    assert f"broken, optimised: {name}: " in done.out
    assert name in (project.folder() / "report.html").read_text(encoding="utf-8")


def test_what_was_fitted_to_what_the_optimiser_saw_is_no_go(project: Project, serve: Serve) -> None:
    serve()
    seen = {"train": [[0.1, 0.9], [0.1, 1.0]] * 10, "dev": [[0.1, 0.95]] * 10}
    write_program(project.data / "optimized_pipeline.json", "better", seen=seen)
    done = project.evaluate()
    summary = project.summary()
    assert (done.code, summary["verdict"]) == (3, "NO-GO")
    assert summary["comparisons"][0]["gap"]["n_seen"] == 30
    assert "train-test gap: a gain of +0.850 on 30 items the optimiser saw" in summary["sentence"]


class Mute(Model):
    """The judge cannot be read about some items."""

    def __init__(self, *topics: int) -> None:
        self.topics = topics

    def score(self, messages: Messages) -> str:
        return "no idea" if topic_of(messages) in self.topics else super().score(messages)


def test_failed_items_end_in_exit_code_4_and_are_asked_again(
    project: Project, serve: Serve
) -> None:
    model = Mute(3)
    server = serve(model)
    done = project.evaluate()
    summary = project.summary()
    assert (done.code, summary["verdict"]) == (4, "GO")
    assert done.err.startswith("1 items failed in an arm or side by side and are left out")
    assert summary["comparisons"][0]["n"] == TEST - 1
    failed = [row for row in project.rows() if row["score"] is None]
    assert {row["chunk_id"] for row in failed} == {"chunk-03"}
    assert {row["error"] for row in failed} == {"the judge's answer could not be read"}
    assert all(row["passed"] is None and row["criteria"] == {} for row in failed)
    assert failed[1]["pairwise"]["error"] == "the judge's answer could not be read"
    model.topics = ()
    before = asked(server)
    assert project.evaluate().code == 0
    assert asked(server) - before == {"score": 2, "compare": 2}
    assert all(row["score"] is not None for row in project.rows())


def test_a_clear_no_stays_a_no_though_items_failed(project: Project, serve: Serve) -> None:
    serve(Mute(3))
    write_program(project.data / "optimized_pipeline.json", "worse")
    done = project.evaluate()
    assert (done.code, project.summary()["verdict"]) == (3, "NO-GO")
    assert "1 items failed" in done.err


def test_nothing_judged_at_all_is_no_verdict(project: Project, serve: Serve) -> None:
    serve(Mute(*range(TEST)))
    done = project.evaluate("--examples", 0)
    summary = project.summary()
    assert (done.code, summary["verdict"]) == (4, "INCONCLUSIVE")
    assert "no item was scored in both optimised and original" in summary["sentence"]


def test_a_provider_that_refuses_some_items_is_not_held_against_the_candidate(
    project: Project, serve: Serve
) -> None:
    server = serve()

    def filtered(number: int) -> tuple[int, dict[str, str], str] | None:
        messages = server.requests[number - 1][2]["messages"]
        refused = step_of(messages) == "write" and topic_of(messages) < 2
        text = '{"error": {"message": "content filter"}}'
        return (400, {}, text) if refused and style_of(messages) == "better" else None

    server.fail = filtered
    done = project.evaluate()
    assert project.summary()["arms"]["optimised"]["failed"] == 2
    assert project.summary()["arms"]["optimised"]["valid_rate"] == 1.0
    assert (done.code, project.summary()["verdict"]) == (4, "INCONCLUSIVE")  # 2 are too many


def test_half_an_emoji_in_an_answer_does_not_fail_the_item(project: Project, serve: Serve) -> None:
    class Emoji(Model):
        def score(self, messages: Messages) -> str:
            return super().score(messages).replace("of level", "of \ud83d level")

    serve(Emoji())
    assert project.evaluate().code == 0


# ---------------------------------------------------------------------- gates, side by side


def test_a_question_that_a_gate_stops_never_reaches_the_judge(
    project: Project, serve: Serve
) -> None:
    server = serve(SelfReferring())
    project.evaluate()
    assert asked(server) == {**CALLS, "score": 2 * TEST - 4, "compare": TEST}
    assert not any(
        "this section say" in t for t in (*sent(server, "score"), *sent(server, "compare"))
    )
    for row in project.rows(arm="optimised"):
        if int(row["chunk_id"][-2:]) % 2 == 0:
            assert (row["score"], row["passed"], row["criteria"]) == (0.0, False, {})
            assert (row["judge_model"], row["error"], row["valid"]) == ("", "", True)
            assert [set(gate) for gate in row["gates"]] == [{"gate", "reason"}]
            duel = row["pairwise"]
            assert (duel["outcome"], duel["asked"], duel["consistent"]) == ("loss", False, None)
        else:
            assert row["gates"] == [] and row["pairwise"]["asked"] is True
    arm = project.summary()["arms"]["optimised"]
    assert arm["gate_failure_rate"] == 0.5 and sum(arm["gates"].values()) == 4


def test_two_programs_that_write_nothing_fit_tie_without_the_judge(
    project: Project, serve: Serve
) -> None:
    class Silent(Model):
        def question(self, style: str, topic: int) -> str:
            return "" if style == "original" else "N/A"

    server = serve(Silent())
    done = project.evaluate()
    assert set(asked(server)) == {"analyse", "write"}
    assert {row["score"] for row in project.rows()} == {0.0}
    assert {row["pairwise"]["outcome"] for row in project.rows(arm="optimised")} == {"tie"}
    assert (done.code, project.summary()["verdict"]) == (3, "NO-GO")


def test_two_questions_are_compared_blind_and_in_both_orders(
    project: Project, serve: Serve
) -> None:
    server = serve()
    project.evaluate()
    shown: dict[int, list[tuple[str, str]]] = {}
    gold = {item["gold_question"] for item in project.gold}
    for _, headers, body in server.requests:
        messages = body["messages"]
        if step_of(messages) != "compare":
            continue
        text = json.dumps([headers, messages], ensure_ascii=False).casefold()
        for name in ("original", "optimised", "better style", "existing"):
            assert name not in text
        assert not any(question in text for question in map(str.casefold, gold))
        pair = (field(messages, "query_a"), field(messages, "query_b"))
        shown.setdefault(topic_of(messages), []).append(pair)
    assert len(shown) == TEST
    for topic, pairs in shown.items():
        both = {Model().question(style, topic) for style in ("original", "better")}
        assert len(pairs) == 2 and pairs[0] == pairs[1][::-1] and set(pairs[0]) == both
    for row in project.rows(arm="optimised"):
        duel = row["pairwise"]
        assert (duel["against"], duel["outcome"], duel["consistent"]) == ("original", "win", True)
        assert duel["reasons"] == ["by level", "by level"] and duel["error"] == ""


class First(Model):
    """Prefers whatever is shown first."""

    def compare(self, messages: Messages) -> str:
        return fields(reason="the first", better="A")


def test_a_judge_that_goes_by_the_order_makes_ties_only(project: Project, serve: Serve) -> None:
    serve(First())
    project.evaluate()
    found = project.summary()["comparisons"][0]["pairwise"]
    assert (found["wins"], found["ties"], found["losses"]) == (0, TEST, 0)
    assert (found["asked"], found["consistent"], found["p"]) == (TEST, 0.0, 1.0)


def test_comparisons_that_could_not_be_had_are_told(project: Project, serve: Serve) -> None:
    class Lost(Model):
        def compare(self, messages: Messages) -> str:
            return "no idea"

    serve(Lost())
    done = project.evaluate("--examples", 0)
    assert project.summary()["comparisons"][0]["pairwise"]["n"] == 0
    assert "could not be read" in done.out + done.err or done.code == 4


# ---------------------------------------------------------------------- openings of the test set


def test_each_run_opens_the_test_set_once(project: Project, serve: Serve) -> None:
    serve()
    project.evaluate("--dry-run")
    project.evaluate("--check-judge")
    assert not (project.data / "test_set_openings.json").exists()
    first = project.evaluate()
    name, known = project.folder().name, project.bytes()
    project.evaluate("--fresh")
    second = project.evaluate("--seed", 1)
    project.evaluate("--fresh")
    other = next(run for run in project.runs if run.name != name)
    openings = json.loads((project.data / "test_set_openings.json").read_text(encoding="utf-8"))
    assert [opening["run"] for opening in openings] == [name, other.name]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", opening["at"]) for opening in openings)
    assert project.bytes(name) == known
    for run, count, done in ((name, 1, first), (other.name, 2, second)):
        summary = project.summary(run)
        assert (summary["test_set_opened"], summary["openings"]) == (count, openings[:count])
        meta = files.read_meta(project.data / "runs" / run / "summary.json", made_by="")
        assert meta["counts"]["test_set_opened"] == count
        times_ = "1 time" if count == 1 else "2 times"
        assert f"the test set was opened {times_} so far\n" in done.out
        report = (project.data / "runs" / run / "report.html").read_text(encoding="utf-8")
        assert f"The test set was opened {times_}" in report


def test_openings_at_the_same_time_are_all_counted(tmp_path: Path) -> None:
    names = [f"run-{number}" for number in range(8)] * 3
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(partial(evaluation.open_test_set, tmp_path), names))
    openings = json.loads((tmp_path / "test_set_openings.json").read_text(encoding="utf-8"))
    assert sorted(opening["run"] for opening in openings) == sorted(set(names))


def test_one_run_started_twice_at_the_same_time_is_one_opening_and_whole(project: Project) -> None:
    processes = [project.start("--rehearsal") for _ in range(2)]
    told = [process.communicate(timeout=60) for process in processes]
    assert {process.returncode for process in processes} <= {0, 3}, told
    assert told[0] == told[1]
    assert project.summary()["test_set_opened"] == 1
    known = project.bytes()
    assert project.evaluate("--rehearsal", "--fresh").out == told[0][0]
    assert project.bytes() == known


def test_a_lost_list_of_openings_is_begun_again(project: Project, serve: Serve) -> None:
    serve()
    first = project.evaluate()
    (project.data / "test_set_openings.json").unlink()
    assert project.evaluate() == first


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[{",
        *(pytest.param(text) for text in ("{}", "null", "[1]", '[{"at": "2026-01-01"}]')),
    ],
)
def test_a_damaged_list_of_openings_is_said_before_any_call(
    text: str, project: Project, serve: Serve
) -> None:
    server = serve()
    (project.data / "test_set_openings.json").write_text(text)
    done = project.evaluate()
    assert (done.code, done.out, len(server.requests)) == (2, "", 0)
    assert "test_set_openings.json" in done.err and len(done.err.splitlines()) == 1


# ---------------------------------------------------------------------- before spending


@pytest.mark.parametrize("flags", [[], ["--repeats", "2"]])
def test_a_dry_run_foretells_the_calls(flags: list[str], project: Project, serve: Serve) -> None:
    server = serve()
    items = project.gold
    for number in (0, 3, 5):
        items[number]["existing_query"] = f"How is machine topic{number:02} protected?"
    project.write_gold(items)
    write_program(project.root / "one.json", "worse")
    before = tree_digest(project.data)
    told = project.evaluate("--dry-run", "--program", "mine=one.json", *flags)
    assert (told.code, told.err, server.requests) == (0, "", [])
    assert tree_digest(project.data) == before
    found = re.search(r"dry run: (\d+) calls \((\d+) student, (\d+) judge\)", told.out)
    assert found is not None
    project.evaluate("--program", "mine=one.json", *flags)
    calls = asked(server)
    made = calls["analyse"] + calls["write"], calls["score"] + calls["compare"]
    assert tuple(map(int, found.groups())) == (sum(made), *made)
    assert ("live: everything is asked anew" in told.out) == bool(flags)
    assert f"{TEST} test items show a score difference of about 0." in told.out


def test_a_dry_run_of_one_item_does_not_speak_of_infinity(project: Project, serve: Serve) -> None:
    serve()
    project.write_gold(gold_set(1))
    done = project.evaluate("--dry-run")
    assert done.code == 0 and " inf " not in done.out


@pytest.mark.parametrize("flags", [["--max-calls", "20"], ["--max-cost", "0.02"]])
def test_a_budget_stops_the_run_and_a_higher_one_resumes(
    flags: list[str], project: Project, serve: Serve
) -> None:
    server = serve()
    poor = project.evaluate(*flags)
    assert (poor.code, poor.out) == (5, "")
    assert len(poor.err.splitlines()) == 1 and flags[0] in poor.err
    assert 0 < len(server.requests) < sum(CALLS.values())
    if flags[0] == "--max-calls":
        assert len(server.requests) == 20
    rich = project.evaluate(flags[0], 1000)
    assert rich.code == 0
    assert asked(server) == CALLS
    assert max(bodies(server).values()) == 1


def test_without_a_test_item_nothing_is_asked(project: Project, serve: Serve) -> None:
    server = serve()
    project.write_gold([item for item in project.gold if item["split"] != "test"])
    done = project.evaluate()
    assert (done.code, done.out, len(server.requests)) == (2, "", 0)
    assert f"no item in the test split of {DEV + TRAIN}" in done.err


# ---------------------------------------------------------------------- rows


def test_a_row_has_what_the_contract_says(project: Project, serve: Serve) -> None:
    serve()
    project.evaluate()
    rows = project.rows()
    assert [(row["chunk_id"], row["arm"]) for row in rows] == [
        (f"chunk-{number:02}", arm) for number in range(TEST) for arm in ("original", "optimised")
    ]
    row = rows[1]
    assert list(row) == [
        *("item", "arm", "repeat", "chunk_id", "document", "persona_description", "model"),
        *("judge_model", "score", "passed", "criteria", "feedback", "gates", "question"),
        *("query_type", "query_format", "gold_question", "chunk_text", "tokens"),
        *("latency_seconds", "cost", "error", "valid", "pairwise"),
    ]
    assert re.fullmatch(r"[0-9a-f]{16}", row["item"])
    assert (row["score"], row["passed"], row["valid"], row["error"]) == (0.75, True, True, "")
    assert row["criteria"] == dict.fromkeys(CRITERIA, 4) and row["feedback"] == "of level 4"
    assert row["tokens"] > 0 and row["cost"] > 0 and row["latency_seconds"] >= 0
    assert row["gold_question"] == project.gold[0]["gold_question"]
    assert row["document"] == "manual-0" and row["persona_description"] == PERSONA
    assert set(row["pairwise"]) == {
        *("against", "outcome", "consistent", "asked", "reasons", "error")
    }
    assert KEY not in "".join(
        path.read_text(encoding="utf-8") for path in project.folder().iterdir()
    )


# ---------------------------------------------------------------------- what a program has seen


def test_a_program_made_with_a_test_item_is_refused_before_any_call(
    project: Project, serve: Serve
) -> None:
    """The gold set has grown, or the program comes from elsewhere: it would know the answers."""
    server = serve()
    chunk = next(i for i in project.gold if i["split"] == "test")["chunk_text"]
    write_program(project.data / "optimized_pipeline.json", "better", chunks=[chunk_digest(chunk)])
    done = project.evaluate()
    assert (done.code, len(server.requests)) == (2, 0)
    assert f"was made with 1 of the {TEST} test items" in done.err


def test_a_demonstration_of_a_test_item_is_noticed_too(project: Project, serve: Serve) -> None:
    server = serve()
    chunk = next(i for i in project.gold if i["split"] == "test")["chunk_text"]
    path = project.data / "optimized_pipeline.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["generator"]["demos"] = [{"chunk_text": chunk, "query": "known?"}]
    files.write_json(path, state)
    meta = files.read_meta(path, made_by="")
    meta["output"]["sha256"] = files.sha256(path)
    files.write_json(files.meta_path(path), meta)
    done = project.evaluate()
    assert (done.code, len(server.requests)) == (2, 0)
    assert "was made with 1 of the" in done.err
