"""The five optimisers, whatever happens: what they bring, cost, lose in a crash, and take in time.

    python benchmarks/optimizers.py                                # everything, about an hour
    python benchmarks/optimizers.py --only kills --systems simba,gepa --kills 3
    python benchmarks/optimizers.py --only table --preset light --json table.json

The sample's gold set (22 train, 22 dev, 29 test items), optimised and evaluated by the scripts as a
person runs them. A local server stands in for the accounts (`limit_server.py`: real HTTP, 50 ms an
answer, the rehearsal's words): two keys of the student, one of the teacher, two of the judge. What
it says of scores is about the rehearsal; what is measured here is the machinery.

    table    every optimiser: calls by role, seconds, dev and test scores before and after, verdict;
             with the rehearsal in process, over the server, and over limits per key
    kills    SIGKILL at random moments, the same command until it ends: is the result the same,
             byte for byte, and what was paid twice?
    outage   all accounts down for 60 s, a tenth of the judge's answers unreadable or cut, one judge
             dead: are the scores the same, and how much time was lost?
    wall     optimize_pipeline.py against the same optimiser of DSPy with plain `dspy.LM`s

paid twice  answers delivered over all of a killed run's processes, less those delivered to one that
            was left alone, plus calls let in whose client was gone before the answer
in flight   of the calls let in at the kills: without an answer, or answered less than 0.25 s ago
            and perhaps never read. No more than these may be paid twice
lost        seconds beyond those of the run that was left alone

Ctrl-C keeps what `--json` has been given so far.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
sys.path.insert(0, str(ROOT))  # for a checkout that is not installed

import limit_server  # noqa: E402
from limit_server import Server  # noqa: E402

OPTIMIZERS = ("bootstrap", "mipro", "gepa", "simba", "copro")
SECTIONS = ("table", "kills", "outage", "wall")
SMALL: dict[str, list[str]] = {
    "bootstrap": ["--num-candidate-programs", "2", "--max-bootstrapped-demos", "1"],
    "mipro": ["--num-candidates", "3", "--num-trials", "4"],
    "gepa": ["--max-metric-calls", "60"],
    "simba": ["--bsize", "8", "--num-candidates", "3", "--max-steps", "2"],
    "copro": ["--breadth", "3", "--depth", "2"],
}
LATENCY_SECONDS = 0.05
KEYS = ("student-1", "student-2", "teacher-1", "judge-1", "judge-2")
ONE_EACH = ("student-1", "teacher-1", "judge-1")
CONCURRENCY = 4
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 1800.0


# ---------------------------------------------------------------------- a project to optimise


@dataclass(frozen=True)
class Done:
    """How a script ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    def must(self, *codes: int) -> Done:
        """Itself; RuntimeError where it ended otherwise."""
        if self.code not in codes:
            raise RuntimeError(f"ended with {self.code}: {self.stderr.strip()[-2000:]}")
        return self


@dataclass
class Running:
    """A script at work. What it prints goes to files: a pipe that nobody reads would stop it."""

    process: subprocess.Popen[bytes]
    outputs: tuple[Path, Path]
    began: float = field(default_factory=time.monotonic)

    def wait(self) -> Done:
        try:
            code = self.process.wait(_PATIENCE_SECONDS)
        finally:
            self.process.kill()
        took = time.monotonic() - self.began
        stdout, stderr = (path.read_text("utf-8", "replace") for path in self.outputs)
        return Done(code, stdout, stderr, took)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Outcome(NamedTuple):
    """What an optimisation leaves behind that must not depend on what went wrong meanwhile."""

    program: bytes
    dev_scores: list[float]


class Project:
    """A folder with the sample's gold set and a providers file; scripts run in it."""

    def __init__(self, folder: Path, gold: Path, providers: str):
        self.folder = folder
        self.data = folder / "data"
        folder.mkdir(parents=True)
        shutil.copytree(gold, self.data)
        (folder / "llm_providers.toml").write_text(providers, encoding="utf-8")

    def start(self, script: str, *flags: str) -> Running:
        outputs = (self.folder / "stdout", self.folder / "stderr")
        command = [sys.executable, str(ROOT / script), *flags, "--data-dir", str(self.data)]
        with outputs[0].open("wb") as stdout, outputs[1].open("wb") as stderr:
            return Running(
                subprocess.Popen(
                    command, cwd=self.folder, env=environment(), stdout=stdout, stderr=stderr
                ),
                outputs,
            )

    def run(self, script: str, *flags: str) -> Done:
        return self.start(script, *flags).wait()

    def outcome(self) -> Outcome:
        path = self.data / "optimized_pipeline.json"
        return Outcome(path.read_bytes(), [entry["dev_score"] for entry in self.candidates()])

    def candidates(self) -> list[dict[str, Any]]:
        meta = self.data / "optimized_pipeline.json.meta.json"
        return json.loads(meta.read_text(encoding="utf-8"))["candidates"]


def environment() -> dict[str, str]:
    """Ours without settings from outside, and with the keys, which are called as they read."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("QO_") and not name.endswith("_API_KEY")
    }
    return {**kept, **{variable_of(key): key for key in KEYS}, "HF_HUB_OFFLINE": "1"}


def variable_of(key: str) -> str:
    return key.upper().replace("-", "_")


def role_of(key: str) -> str:
    return key.partition("-")[0]


def providers(
    server: Server,
    keys: Sequence[str] = KEYS,
    *,
    rpm: Mapping[str, float] | None = None,
    concurrency: int = CONCURRENCY,
) -> str:
    """The providers file for these keys; `rpm` by role is what their owner believes in."""
    parts = []
    for key in keys:
        lines = [
            "[[accounts]]",
            f'name = "{key}"',
            'model = "m"',
            f'base_url = "{server.base_url}"',
            f'api_key_env = "{variable_of(key)}"',
            f'roles = ["{role_of(key)}"]',
            f"concurrency = {concurrency}",
        ]
        if rpm:
            lines.append(f"rpm_limit = {rpm[role_of(key)]}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def make_gold(folder: Path, most: int | None = None) -> Path:
    """A data folder with the sample's gold set, made by the scripts; `most` items of each split."""
    data = folder / "gold"
    common = ["--data-dir", str(data), "--rehearsal"]
    common += ["--personas-file", str(SAMPLE / "personas.json")]
    for script, flag, source in (
        ("fetch_chunks.py", "--qdrant-path", "small_sqlite"),
        ("annotate_chunks.py", "--replay", "decisions.jsonl"),
    ):
        command = [sys.executable, str(ROOT / script), flag, str(SAMPLE / source), *common]
        subprocess.run(command, env=environment(), check=True, capture_output=True)
    shutil.rmtree(data / "cache", ignore_errors=True)
    if most is not None:
        path = data / "gold_dataset.json"
        items = json.loads(path.read_text(encoding="utf-8"))
        splits = ("train", "dev", "test")
        cut = [i for split in splits for i in [i for i in items if i["split"] == split][:most]]
        path.write_text(json.dumps(cut), encoding="utf-8")
    return data


def flags_of(optimizer: str, more: Sequence[str] = ()) -> list[str]:
    """The command line of one optimiser, as this checkout understands it."""
    known = help_of("optimize_pipeline.py")
    flags = ["--optimizer", optimizer] if "--optimizer" in known else []
    flags += ["--allow-unchecked-judge"] if "--allow-unchecked-judge" in known else []
    return [*flags, *more]


_helps: dict[str, str] = {}


def help_of(script: str) -> str:
    if script not in _helps:
        command = [sys.executable, str(ROOT / script), "--help"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        _helps[script] = done.stdout
    return _helps[script]


def known_optimizers() -> list[str]:
    """Those that this checkout has."""
    text = help_of("optimize_pipeline.py")
    if "--optimizer" not in text:
        return ["bootstrap"]
    return [name for name in OPTIMIZERS if name in text]


def healthy(latency: float = LATENCY_SECONDS) -> dict[str, Any]:
    """The server's configuration: every key answers after its latency, in the rehearsal's words."""
    return {"default": {"reply": "rehearsal", "latency": latency}}


def calls_by_role(stats: Mapping[str, Any]) -> dict[str, int]:
    """Answers delivered, by the role that a key serves."""
    counts: Counter[str] = Counter()
    for key, of_key in stats["keys"].items():
        counts[role_of(key)] += of_key["ok"]
    return dict(counts)


# ---------------------------------------------------------------------- kills


class Course(NamedTuple):
    """How a run that was left alone went: its outcome, and what was delivered by when."""

    outcome: Outcome
    seconds: float
    delivered: int
    samples: list[tuple[float, int]]  # seconds since the start, answers delivered by then

    def moment(self, at: float) -> tuple[int, float]:
        """(answers delivered by second `at`, for how many seconds it had been that many)."""
        number, since = 0, 0.0
        for seconds, delivered in self.samples:
            if seconds > at:
                break
            if delivered != number:
                number, since = delivered, seconds
        return number, at - since


class Killed(NamedTuple):
    """What a run that was killed again and again came to."""

    outcome: Outcome
    kills: int  # those that found a process alive
    delivered: int
    abandoned: int
    unread: int
    seconds: float  # of all processes together

    @property
    def in_flight(self) -> int:
        """How many calls may have been lost: over all kills, those without a sure answer."""
        return self.abandoned + self.unread

    def twice(self, course: Course) -> int:
        return self.delivered - course.delivered + self.abandoned


def watch(project: Project, server: Server, flags: Sequence[str]) -> Course:
    """An uninterrupted run. The server's counts must begin with it."""
    running = project.start("optimize_pipeline.py", *flags)
    samples = []
    while running.process.poll() is None:
        samples.append((time.monotonic() - running.began, server.stats()["delivered"]))
        time.sleep(_POLL_SECONDS)
    done = running.wait().must(0)
    return Course(project.outcome(), done.seconds, server.stats()["delivered"], samples)


def kill_often(
    project: Project,
    server: Server,
    flags: Sequence[str],
    course: Course,
    *,
    kills: int,
    seed: int = 0,
) -> Killed:
    """Kill at `kills` moments of `course`, equally likely all over it, then let it end.

    A moment of a run that has to catch up first is told by what was delivered then. The server's
    counts must begin with the first process.
    """
    dice = random.Random(seed)
    moments = sorted(dice.uniform(0, course.seconds) for _ in range(kills))
    began, done, lost = time.monotonic(), 0, Counter[str]()
    for number, since in map(course.moment, moments):
        running = project.start("optimize_pipeline.py", *flags)
        if wait_for(running, server, number, since):
            before = server.stats()
            running.kill()
            after = forgotten(server)
            lost.update({name: after[name] - before[name] for name in ("abandoned", "unread")})
            done += 1
        else:
            running.wait().must(0)
    project.run("optimize_pipeline.py", *flags).must(0)
    return Killed(
        outcome=project.outcome(),
        kills=done,
        delivered=server.stats()["delivered"],
        abandoned=lost["abandoned"],
        unread=lost["unread"],
        seconds=time.monotonic() - began,
    )


def wait_for(running: Running, server: Server, delivered: int, seconds: float) -> bool:
    """Wait until so much was delivered for so long; False where the process ended before."""
    while running.process.poll() is None:
        if server.stats()["delivered"] >= delivered:
            break
        time.sleep(_POLL_SECONDS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(seconds)
    return running.process.poll() is None


def forgotten(server: Server) -> dict[str, Any]:
    """The server's counts once it has noticed that its client is gone."""
    while (stats := server.stats())["connections"]:
        time.sleep(0.01)
    return stats


# ---------------------------------------------------------------------- outages


def outage(
    seconds: float,
    *,
    begins: float = 0.0,
    after: int = 0,
    unreadable: float = 0.05,
    cut: float = 0.05,
    latency: float = LATENCY_SECONDS,
) -> dict[str, Any]:
    """All keys are down for `seconds`, from second `begins` on after so many answers; of the
    judge's answers this share cannot be read, that is cut JSON; and one of its two keys is dead.

    Whose answer is spoilt depends on the request alone, not on the order in which they come.
    """
    down = {"kind": "503", "from": begins, "to": begins + seconds, "after": after}
    key = healthy(latency)["default"]
    spoilt = [
        {"kind": "unreadable", "p": unreadable, "draw": "request", "marker": JUDGE_MARKER},
        {"kind": "malformed", "p": cut, "draw": "request", "marker": JUDGE_MARKER},
    ]
    keys: dict[str, dict[str, Any]] = {name: {**key, "faults": [down, *spoilt]} for name in KEYS}
    keys["judge-2"] = {**key, "refuse": 401}
    return {"seed": 5, "keys": keys}


JUDGE_MARKER = "`answerable`"  # an output field of the judge's


def scores_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What of an evaluation's summary must not depend on what went wrong meanwhile."""
    timed = tuple(
        f"{name}_per_question" for name in ("seconds", "median_seconds", "tokens", "cost")
    )
    arms = {
        arm: {name: value for name, value in figures.items() if name not in timed}
        for arm, figures in summary["arms"].items()
    }
    kept = ("items", "verdict", "recommended", "arm_order", "repeats")
    of_pairs = ("arm", "difference", "low", "high", "p", "wins", "ties", "losses", "verdict")
    pairs = [{name: pair.get(name) for name in of_pairs} for pair in summary.get("comparisons", [])]
    return {"arms": arms, "pairs": pairs, **{name: summary.get(name) for name in kept}}


def evaluate(project: Project, *flags: str) -> tuple[dict[str, Any], Done]:
    """The summary on the test split, and how the script ended."""
    anyhow = ["--allow-unchecked-judge"]
    known = "--allow-unchecked-judge" in help_of("evaluate_pipeline.py")
    flags = ("--json", *(anyhow if known else []), *flags)
    done = project.run("evaluate_pipeline.py", *flags)
    if done.code == 4:
        rows = next((project.data / "runs").glob("*/scores.jsonl")).read_text(encoding="utf-8")
        errors = {row["error"] for row in map(json.loads, rows.splitlines()) if row["error"]}
        raise RuntimeError(f"items failed: {errors}")
    return json.loads(done.must(0, 3).stdout), done


# ---------------------------------------------------------------------- ours and plain DSPy


class CompileTask(NamedTuple):
    """What a process that only compiles is told: by whose language models, and what."""

    who: str  # "ours" or "plain"
    optimizer: str
    base_url: str
    data: str  # the folder with the gold set; caches go there too
    providers: str  # the providers file; its concurrency is the threads of both
    threads: int
    flags: list[str]  # as optimize_pipeline.py is given them
    whole: bool = False  # ours does all that the script does after the judge check


PLAIN_RETRIES = 10  # DSPy's own default of 3 loses items as soon as limits bind


def compile_once(task: CompileTask) -> dict[str, Any]:
    """{"compile": seconds, "start": seconds before it, "failed": questions without a judgement}.

    Both call the same optimiser with the same arguments, items, signatures, judge and metric, from
    as many threads. Ours is the search of optimize_pipeline.py, over the dispatcher; the plain one
    has a `dspy.LM` a role, DSPy's cache as it comes, and DSPy's retries.
    """
    began = time.monotonic()
    import optimize_pipeline
    from config import load_settings
    from question_optimizer.gold import read_gold

    flags = [*task.flags, "--data-dir", task.data, "--providers-file", task.providers]
    args = optimize_pipeline.parse(flags)
    settings = load_settings(args)
    plan = optimize_pipeline.plan_of(
        settings, args, read_gold(settings.data_dir / "gold_dataset.json")
    )
    compiling = _compiling_ours if task.who == "ours" else _compiling_plainly
    with compiling(task, settings, plan) as (compile_all, metric):
        start = time.monotonic() - began
        compile_all()
        took = time.monotonic() - began - start
    return {"compile": took, "start": start, "failed": len(metric.failures)}


@contextlib.contextmanager
def _compiling_ours(
    task: CompileTask, settings: Any, plan: Any
) -> Iterator[tuple[Callable[[], Any], Any]]:
    import dspy

    from config import accounts_of
    from custom_lm import LanguageModels
    from question_optimizer.programs.adapter import CachedPromptAdapter
    from question_optimizer.programs.runs import run_quietly
    from question_optimizer.programs.search import Task, compile_program, search

    accounts = accounts_of(settings)
    with LanguageModels(accounts, data_dir=settings.data_dir) as models:
        job = Task(plan, models, lambda: None)
        if job.threads != task.threads:
            raise RuntimeError(f"{job.threads} threads, not {task.threads}: no fair comparison")
        work = (
            partial(search, job, lambda *_: None) if task.whole else partial(compile_program, job)
        )
        with dspy.context(lm=job.lm, adapter=CachedPromptAdapter(), max_errors=MANY):
            yield lambda: run_quietly(work), job.counted


MANY = 100_000  # errors in an evaluation before DSPy gives up


@contextlib.contextmanager
def _compiling_plainly(
    task: CompileTask, settings: Any, plan: Any
) -> Iterator[tuple[Callable[[], Any], Any]]:
    import dspy

    from dspy_pipeline import SyntheticQuestionPipeline
    from question_optimizer.programs.judge import LLMMetric, QuestionJudge
    from question_optimizer.programs.optimizers import Search, candidates_of
    from question_optimizer.programs.runs import recording_failures

    dspy.configure_cache(disk_cache_dir=str(settings.data_dir / "plain-cache"))
    lms = {
        role_of(key): dspy.LM(
            "openai/m", api_base=task.base_url, api_key=key, num_retries=PLAIN_RETRIES
        )
        for key in ONE_EACH
    }
    metric = LLMMetric(QuestionJudge(), lms["judge"], pass_score=plan.pass_score)
    train = list(plan.train)
    random.Random(plan.seed).shuffle(train)
    student = recording_failures(SyntheticQuestionPipeline)()  # so that failures can be counted
    search = Search(student, metric, train, plan.dev, lms["teacher"], task.threads, plan.seed)
    with dspy.context(lm=lms["student"], max_errors=MANY):
        yield lambda: candidates_of(plan.optimizer, search, plan.arguments), metric


# ---------------------------------------------------------------------- sections


@dataclass
class Bench:
    """What every section needs, and where its figures go."""

    args: argparse.Namespace
    server: Server
    gold: Path
    folder: Path
    figures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _projects: int = 0

    def project(self, providers: str) -> Project:
        self._projects += 1
        return Project(self.folder / f"project-{self._projects}", self.gold, providers)

    def flags(self, optimizer: str) -> list[str]:
        """Small settings, or those of a preset."""
        preset = self.args.preset
        return flags_of(optimizer, ["--preset", preset] if preset else SMALL[optimizer])

    def add(self, section: str, row: dict[str, Any]) -> None:
        """Keep a row, and say it at once: the whole takes long."""
        self.figures.setdefault(section, []).append(row)
        print("  " + "  ".join(f"{name} {shown(value)}" for name, value in row.items()), flush=True)
        if self.args.json:
            self.args.json.write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")


def shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "NO", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same columns, in Markdown."""
    print(f"\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(shown(value) for value in row.values())} |")
    print(flush=True)


def limits_of(bench: Bench) -> dict[str, float]:
    """By role, requests a minute and key."""
    rpm = float(bench.args.rpm)
    return {"student": rpm, "teacher": rpm / 2, "judge": rpm / 2}


def limited(bench: Bench) -> dict[str, Any]:
    """Every key refuses what goes beyond its limit: a bucket that holds ten calls."""
    rpm, key = limits_of(bench), healthy()["default"]
    return {
        "keys": {
            name: {**key, "requests": {"limit": round(rpm[role_of(name)]), "burst": 10}}
            for name in KEYS
        }
    }


def table(bench: Bench) -> None:
    """Every optimiser in every setting, compiled, then loaded and evaluated by other processes."""
    settings: dict[str, tuple[dict[str, Any], Mapping[str, float] | None, list[str]]] = {
        "rehearsal": (healthy(), None, ["--rehearsal"]),
        "50 ms": (healthy(), None, []),
        "50 ms, limits": (limited(bench), limits_of(bench), []),
    }
    for name, (config, rpm, more) in settings.items():
        for optimizer in bench.args.systems:
            project = bench.project(providers(bench.server, rpm=rpm))
            bench.server.configure(config)
            done = project.run("optimize_pipeline.py", *bench.flags(optimizer), *more).must(0)
            stats = bench.server.stats()
            calls = calls_by_role(stats)
            refused = sum(sum(k["refused_429"].values()) for k in stats["keys"].values())
            dev = project.outcome().dev_scores
            bench.server.configure(config)
            summary, evaluated = evaluate(project, *more)
            arms = summary["arms"]
            row = {
                "setting": name,
                "optimiser": optimizer,
                "calls": sum(calls.values()) or usage_calls(project),
                **{role: calls.get(role) for role in ("student", "teacher", "judge")},
                "429": refused,
                "seconds": done.seconds,
                "dev before": dev[0],
                "dev after": max(dev),
                "test before": arms["original"]["score"],
                "test after": arms["optimised"]["score"],
                "verdict": str(summary["verdict"]),
                "exit": evaluated.code,
            }
            bench.add("table", row)
    print_table(bench.figures["table"])


def usage_calls(project: Project) -> int:
    """Calls of a rehearsal in process, which no server counts: as the run says itself."""
    meta = project.data / "optimized_pipeline.json.meta.json"
    return int(json.loads(meta.read_text(encoding="utf-8"))["usage"].get("calls", 0))


def kills(bench: Bench) -> None:
    for optimizer in bench.args.systems:
        flags = bench.flags(optimizer)
        course, again = left_alone(bench, flags), left_alone(bench, flags)
        bench.server.configure(healthy())
        project = bench.project(providers(bench.server))
        killed = kill_often(
            project, bench.server, flags, course, kills=bench.args.kills, seed=bench.args.seed
        )
        row = {
            "optimiser": optimizer,
            "calls": course.delivered,
            "left alone twice: same calls": again.delivered == course.delivered,
            "same program": again.outcome == course.outcome,
            "kills": killed.kills,
            "paid twice": killed.twice(course),
            "in flight": killed.in_flight,
            "after kills: same program": killed.outcome.program == course.outcome.program,
            "same dev scores": killed.outcome.dev_scores == course.outcome.dev_scores,
            "seconds": course.seconds,
            "with kills": killed.seconds,
        }
        bench.add("kills", row)
    print_table(bench.figures["kills"])


def left_alone(bench: Bench, flags: Sequence[str]) -> Course:
    bench.server.configure(healthy())
    return watch(bench.project(providers(bench.server)), bench.server, flags)


def outages(bench: Bench) -> None:
    for optimizer in bench.args.systems:
        flags = bench.flags(optimizer)
        calm = bench.project(providers(bench.server))
        bench.server.configure(healthy())
        course = watch(calm, bench.server, flags)
        optimising = middle_of(bench.server)
        bench.server.configure(healthy())
        expected, calmly = evaluate(calm)
        evaluating = middle_of(bench.server)
        stormy = bench.project(providers(bench.server))
        bench.server.configure(outage(bench.args.outage, begins=optimising))
        done = stormy.run("optimize_pipeline.py", *flags).must(0)
        seen = stormy.outcome()
        spoilt = faults_of(bench.server)
        bench.server.configure(outage(bench.args.outage, begins=evaluating))
        summary, evaluated = evaluate(stormy)
        row = {
            "optimiser": optimizer,
            "seconds": course.seconds,
            "with outage": done.seconds,
            "lost": done.seconds - course.seconds,
            "judge answers spoilt": spoilt["unreadable"] + spoilt["malformed"],
            "503s": spoilt["503"],
            "same program": seen.program == course.outcome.program,
            "same dev scores": seen.dev_scores == course.outcome.dev_scores,
            "same evaluation": scores_of(summary) == scores_of(expected),
            "evaluation lost": evaluated.seconds - calmly.seconds,
        }
        bench.add("outage", row)
    print_table(bench.figures["outage"])


def middle_of(server: Server) -> float:
    """When half of the time between first and last call had passed, since the counts began."""
    of_keys = server.stats()["keys"].values()
    return (min(k["first"] for k in of_keys) + max(k["last"] for k in of_keys)) / 2


def faults_of(server: Server) -> Counter[str]:
    faults: Counter[str] = Counter()
    for of_key in server.stats()["keys"].values():
        faults.update(of_key["faults"])
    return faults


class Wall(NamedTuple):
    """Under which conditions both compile. The plain program has one key a role, always."""

    limits: bool = False  # whether the server has any
    told: bool = False  # whether ours is told of them
    keys: tuple[str, ...] = ONE_EACH  # that ours may use
    whole: bool = False  # ours also scores train and dev before and after, and chooses


WALLS = {
    "no limits": Wall(),
    "no limits, whole search": Wall(whole=True),
    "limits": Wall(limits=True, told=True),
    "limits untold": Wall(limits=True),
    "limits, two keys": Wall(limits=True, told=True, keys=KEYS),
}


def wall(bench: Bench) -> None:
    """Both take turns; a pair's ratio is of two runs side by side, and the median ratio counts."""
    for name in bench.args.settings or WALLS:
        for optimizer in bench.args.systems:
            pairs = [wall_pair(bench, optimizer, name, n) for n in range(bench.args.repeats)]
            row: dict[str, Any] = {"setting": name, "optimiser": optimizer}
            for figure in ("start", "compile", "calls", "429", "failed"):
                for who in ("ours", "plain"):
                    row[f"{figure}, {who}"] = statistics.median(p[who][figure] for p in pairs)
            ratios = [p["ours"]["compile"] / p["plain"]["compile"] for p in pairs]
            row["compile, ratio"] = statistics.median(ratios)
            row["ratios"] = " ".join(f"{ratio:.3f}" for ratio in ratios)
            bench.add("wall", row)
    print_table(bench.figures["wall"])


def wall_pair(bench: Bench, optimizer: str, name: str, number: int) -> dict[str, dict[str, Any]]:
    """One process of each, in turns first and second."""
    wall = WALLS[name]
    text = providers(
        bench.server,
        wall.keys,
        rpm=limits_of(bench) if wall.told else None,
        concurrency=bench.args.threads // (1 if wall.keys == ONE_EACH else 2),
    )
    found: dict[str, dict[str, Any]] = {}
    for who in ("ours", "plain") if number % 2 else ("plain", "ours"):
        project = bench.project(text)
        bench.server.configure(limited(bench) if wall.limits else healthy())
        told = compiled(bench, project, optimizer, who, whole=wall.whole)
        stats = bench.server.stats()
        refused = sum(sum(k["refused_429"].values()) for k in stats["keys"].values())
        found[who] = {**told, "calls": stats["delivered"], "429": refused}
    return found


def compiled(
    bench: Bench, project: Project, optimizer: str, who: str, *, whole: bool
) -> dict[str, Any]:
    task = CompileTask(
        who=who,
        optimizer=optimizer,
        base_url=bench.server.base_url,
        data=str(project.data),
        providers=str(project.folder / "llm_providers.toml"),
        threads=bench.args.threads,
        flags=bench.flags(optimizer),
        whole=whole,
    )
    command = [sys.executable, __file__, "--compile", json.dumps(task)]
    done = subprocess.run(
        command, cwd=project.folder, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{who}, {optimizer}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------- the command


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator[Bench]:
    with limit_server.running() as server, tempfile.TemporaryDirectory() as folder:
        yield Bench(args, server, make_gold(Path(folder)), Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=(*SECTIONS, "all"), default="all")
    parser.add_argument("--systems", type=lambda text: text.split(","), metavar="NAME,…")
    parser.add_argument("--preset", choices=("light", "medium", "heavy"), help="else small ones")
    parser.add_argument("--kills", type=int, default=10, metavar="N")
    parser.add_argument("--outage", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of `wall`")
    parser.add_argument("--rpm", type=int, default=600, metavar="N", help="a key, where limited")
    parser.add_argument(
        "--settings", type=lambda text: text.split(";"), help="of `wall`: NAME;NAME"
    )
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="of `wall`")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of `kills`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        print(json.dumps(compile_once(CompileTask(*json.loads(args.compile)))))
        return 0
    args.systems = args.systems or known_optimizers()
    sections = {"table": table, "kills": kills, "outage": outages, "wall": wall}
    with contextlib.suppress(KeyboardInterrupt), opened(args) as bench:
        for name, section in sections.items():
            if args.only in (name, "all"):
                print(f"{name}:", flush=True)
                section(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
