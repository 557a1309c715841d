"""The dispatcher against its peers: one server, one run, one table.

    python benchmarks/dispatcher.py                          # everything, about two hours
    python benchmarks/dispatcher.py --quick                  # 45 s runs, to see that it works
    python benchmarks/dispatcher.py --only known --systems ours,sdk --json known.json

A local server enforces providers' limits (`limit_server.py`, its own process and core). The
contestants (`peers.py`) take turns, each in a fresh process; none runs beside another. In `known`,
`wrong` and `faults` 64 callers keep four keys of 600 requests a minute busy: each asks, waits for
the answer and asks again; after an error it backs off (0.25 s doubling to 8 s, jittered) and asks
the same again, and the error is counted. Sections:

    known      the configured limits are right: token bucket, fixed and sliding window
    wrong      20 % and 100 % too high; no Retry-After; tokens bind; limit in flight unknown
    faults     a fifth of the calls fails, one account is dead; every item must come through, once
    cpu        CPU a call, memory and calls at 1,000 callers, the dispatcher alone, idle waiters
    spread     equality of equal accounts, and the order of waiting
    processes  two processes on one daily limit, four on one rate

goodput   answers delivered after the first 30 s (in short runs: the first third) ÷ what the server
          lets through in that time, limit × time. A server whose window lasts 60 s lets through
          more or less in a part of a window: whole minutes must remain, as in runs of 150 s
whole     the same from the first second; a full bucket or a begun window can lift it over 100 %
wasted    429s ÷ all requests, over the whole run
errors    exceptions that reached the caller
p50, p99  what a caller waited for an answer, limits included, after the first 30 s
CPU       of the client's process, all threads; unlike calls a second it bears a busy machine
MB/1,000  memory at its peak less that before, with 1,000 callers, of whom `in flight` got out

Ours is judged by the thresholds printed below its row. Ctrl-C prints what was measured so far.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for a checkout that is not installed

import jobs  # noqa: E402
import limit_server  # noqa: E402
import peers  # noqa: E402
from jobs import Figures, Job, Scenario  # noqa: E402

SECTIONS = ("known", "wrong", "faults", "cpu", "spread", "processes")
CONTEST = ("ours", "router", "router-tuned", "paced", "dspy", "sdk")
LIBRARIES = ("openai", "aiohttp", "dspy", "litellm", "aiolimiter")


# ---------------------------------------------------------------------- columns and thresholds


class Column(NamedTuple):
    header: str
    key: str
    form: str = "{:,.0f}"

    def text(self, figures: Figures) -> str:
        value = figures.get(self.key)
        return "–" if value is None else self.form.format(value)


PERCENT = "{:.2%}"
WAITS = [
    Column("goodput", "goodput", PERCENT),
    Column("whole", "goodput_whole", PERCENT),
    Column("wasted", "wasted", PERCENT),
    Column("errors", "errors"),
    Column("p50 s", "p50", "{:.2f}"),
    Column("p99 s", "p99", "{:.2f}"),
    Column("p99/p50", "p99_over_p50", "{:.2f}"),
    Column("CPU s", "cpu_s", "{:.1f}"),
]
COLUMNS: dict[Callable[..., Any], list[Column]] = {
    jobs.limits: WAITS,
    jobs.faults: [
        Column("items", "items", PERCENT),
        Column("twice", "delivered_twice"),
        Column("to dead", "dead_requests"),
        Column("errors", "errors"),
        Column("requests", "arrived"),
        Column("seconds", "seconds", "{:.1f}"),
        Column("p99 s", "p99", "{:.2f}"),
        Column("CPU s", "cpu_s", "{:.1f}"),
    ],
    jobs.cpu_per_call: [
        Column("ms at 64", "cpu_ms_64", "{:.3f}"),
        Column("calls/s", "rate_64"),
        Column("ms at 256", "cpu_ms_256", "{:.3f}"),
        Column("calls/s", "rate_256"),
        Column("x bare", "over_bare", "{:.2f}"),
        Column("x dspy", "over_dspy", "{:.2f}"),
    ],
    jobs.memory: [
        Column("in flight", "in_flight"),
        Column("MB/1,000", "mb_per_1000", "{:.1f}"),
        Column("base MB", "base_mb", "{:.0f}"),
    ],
    jobs.alone: [
        Column("µs idle", "us_idle", "{:.2f}"),
        Column("µs, 1,000", "us_waiting", "{:.2f}"),
    ],
    jobs.waiters: [
        Column("ms, slots", "cpu_ms_in_flight", "{:.1f}"),
        Column("ms, rate", "cpu_ms_rate", "{:.1f}"),
    ],
    jobs.spread: [Column("spread", "spread", "{:.3%}"), Column("errors", "errors")],
    jobs.order: [Column("inversions", "inversions"), Column("granted", "granted")],
    jobs.shared_day: [Column("arrived", "arrived"), Column("done", "done")],
    jobs.shared_rate: [
        Column("goodput", "goodput", PERCENT),
        Column("deviation", "deviation", PERCENT),
        Column("429s", "refused_429"),
        Column("errors", "errors"),
    ],
}


class Threshold(NamedTuple):
    """What ours must reach: `key` compared with `bound` by `sign`."""

    what: str
    key: str
    sign: str
    bound: float
    form: str = "{:g}"

    def verdict(self, figures: Figures) -> str:
        value = figures.get(self.key)
        return f"{self.what} {self.sign} {self.form.format(self.bound)} " + (
            "not measured" if value is None else "ok" if self._met(value) else "MISSED"
        )

    def _met(self, value: float) -> bool:
        if self.sign == "=":
            return value == self.bound
        if self.sign == "<":
            return value < self.bound
        return value >= self.bound if self.sign == "≥" else value <= self.bound


def _limit_thresholds(goodput: float, wasted: float, even: bool) -> list[Threshold]:
    common = [
        Threshold("goodput", "goodput", "≥", goodput, "{:.1%}"),
        Threshold("wasted", "wasted", "≤", wasted, "{:.1%}"),
        Threshold("errors", "errors", "=", 0),
    ]
    return [*common, Threshold("p99/p50", "p99_over_p50", "≤", 1.1)] if even else common


def thresholds(scenario: Scenario, system: str) -> list[Threshold]:
    """What `system` is held to in `scenario`; peers to nothing."""
    if system not in peers.OURS:
        return []
    if scenario.run is jobs.limits and scenario.section == "known":
        fixed = scenario.server["requests"]["kind"] == "fixed"
        return _limit_thresholds(0.995, 0.005 if fixed else 0.001, even=True)
    if scenario.run is jobs.limits:
        return _limit_thresholds(0.97, 0.015, even=False)
    if scenario.run is jobs.cpu_per_call and system != "lm":
        return []  # judged is what DSPy programs use
    if scenario.run is jobs.memory and system != "lm":
        return []
    return OTHER_THRESHOLDS[scenario.run]


OTHER_THRESHOLDS: dict[Callable[..., Any], list[Threshold]] = {
    jobs.faults: [
        Threshold("items", "items", "=", 1.0, "{:.0%}"),
        Threshold("twice", "delivered_twice", "=", 0),
        Threshold("errors", "errors", "=", 0),
    ],
    jobs.cpu_per_call: [
        Threshold("x bare", "over_bare", "≤", 1.15),
        Threshold("x dspy", "over_dspy", "<", 1.0),
    ],
    jobs.memory: [
        Threshold("in flight", "in_flight", "≥", 101),
        Threshold("MB/1,000", "mb_per_1000", "≤", 45),
    ],
    jobs.alone: [
        Threshold("µs idle", "us_idle", "≤", 10),
        Threshold("µs with 1,000 waiters", "us_waiting", "≤", 10),
    ],
    jobs.waiters: [  # a thousandth of the 5 s
        Threshold("ms, slots", "cpu_ms_in_flight", "≤", 5),
        Threshold("ms, rate", "cpu_ms_rate", "≤", 5),
    ],
    jobs.spread: [Threshold("spread", "spread", "≤", 0.001, "{:.1%}")],
    jobs.order: [Threshold("inversions", "inversions", "=", 0)],
    jobs.shared_day: [Threshold("arrived", "arrived", "=", jobs.DAY_LIMIT)],
    jobs.shared_rate: [
        Threshold("goodput", "goodput", "≥", 0.99, "{:.0%}"),
        Threshold("deviation", "deviation", "≤", 0.03, "{:.0%}"),
    ],
}


# ---------------------------------------------------------------------- the run


@dataclass
class Result:
    scenario: Scenario
    system: str
    figures: Figures
    rounds: list[Figures] = field(default_factory=list)

    def as_json(self) -> Figures:
        checks = thresholds(self.scenario, self.system)
        return {
            "section": self.scenario.section,
            "scenario": self.scenario.name,
            "system": self.system,
            **self.figures,
            "verdicts": [check.verdict(self.figures) for check in checks],
            **({"rounds": self.rounds} if len(self.rounds) > 1 else {}),
        }


class Bench:
    """The server, the options and everything measured so far."""

    def __init__(self, args: argparse.Namespace, server: limit_server.Server, scratch: Path):
        self.args, self.server, self.scratch = args, server, scratch
        self.results: list[Result] = []
        self.started = time.strftime("%Y-%m-%d %H:%M:%S")
        self._environment = {
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise its import asks the network
            "DSPY_CACHEDIR": str(scratch / "dspy"),
        }

    def seconds(self, scenario: Scenario) -> float:
        if scenario.run is jobs.shared_rate:
            return 30.0
        if self.args.seconds:
            return self.args.seconds
        return 45.0 if self.args.quick else 150.0 if scenario.section == "known" else 120.0

    def command(self, scenario: Scenario, system: str) -> list[str]:
        return [
            *(sys.executable, str(Path(__file__).resolve()), "--one", system, scenario.name),
            *("--server", self.server.url, "--seconds", f"{self.seconds(scenario):g}"),
            *("--items", str(self.args.items)),
            *("--log-file", str(self.scratch / f"{scenario.section}-{len(self.results)}.json")),
        ]

    def one(self, scenario: Scenario, system: str) -> Figures:
        """One contestant in its own process."""
        done = subprocess.run(
            self.command(scenario, system),
            capture_output=True,
            text=True,
            check=False,
            env=self._environment,
            timeout=self.seconds(scenario) + 300,
        )
        return read_figures(done.stdout, done.stderr)

    def together(self, scenario: Scenario, processes: int) -> list[Figures]:
        """Several processes of ours that start at the same moment on one log file."""
        with contextlib.ExitStack() as stack:
            errors = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(processes)]
            running = [
                stack.enter_context(
                    subprocess.Popen(
                        self.command(scenario, "ours"),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=file,
                        text=True,
                        env=self._environment,
                    )
                )
                for file in errors
            ]
            for process in running:
                stack.callback(process.kill)  # before it is waited for, should this be interrupted
            self.server.configure({})
            for process in running:
                assert process.stdout
                process.stdout.readline()  # "ready"
            self.server.configure(scenario.config())
            outputs = _go(running)
            for file in errors:
                file.seek(0)
            return [
                read_figures(out, file.read()) for out, file in zip(outputs, errors, strict=True)
            ]

    def keep(self, result: Result) -> None:
        self.results.append(result)
        what = f"{result.scenario.section}: {result.scenario.name}: {peers.LABELS[result.system]}"
        shown = [f"{c.header} {c.text(result.figures)}" for c in COLUMNS[result.scenario.run]]
        why = result.figures.get("skipped") or result.figures.get("failed")
        print(f"{what}: {why or ', '.join(shown)}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        if self.args.json:
            told = {
                "started": self.started,
                "machine": {
                    "system": platform.platform(),
                    "cores": os.cpu_count(),
                    "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
                    "python": platform.python_version(),
                    **{name: importlib.metadata.version(name) for name in LIBRARIES},
                },
                "results": [result.as_json() for result in self.results],
            }
            Path(self.args.json).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _go(running: list[subprocess.Popen[str]]) -> list[str]:
    """Start all at once; what each printed."""
    for process in running:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):  # it died; its error is read below
            process.stdin.write("go\n")
            process.stdin.flush()
    return [process.communicate()[0] for process in running]


def read_figures(output: str, error: str) -> Figures:
    """The last line a process printed, or why there is none."""
    with contextlib.suppress(ValueError, IndexError):
        return json.loads(output.strip().splitlines()[-1])
    lines = error.strip().splitlines() or ["no output"]
    return {"failed": lines[-1][:200]}


# ---------------------------------------------------------------------- sections


def contestants(scenario: Scenario, everybody: bool) -> tuple[str, ...]:
    """Who takes part in a scenario, in which order."""
    if scenario.run is jobs.cpu_per_call:
        return ("bare", "ours", "lm", "lm-sdk", "dspy", "router")
    if scenario.run is jobs.memory:
        return ("bare", "ours", "lm", "dspy", "router")
    if scenario.run is jobs.spread:
        return CONTEST if everybody else ("ours", "router-tuned")
    if scenario.run not in (jobs.limits, jobs.faults) or (scenario.extra and not everybody):
        return ("ours",)
    if scenario.section == "wrong" and not everybody:
        return ("ours", "router-tuned", "sdk")
    return CONTEST


def chosen(bench: Bench, scenario: Scenario) -> list[str]:
    """Those of them that --systems names; `ours` stands for all of ours, `bare` always runs."""
    wanted = bench.args.systems
    names = contestants(scenario, bench.args.all)
    groups = {name: "ours" if name in peers.OURS else name for name in names}
    return [name for name in names if name == "bare" or not wanted or groups[name] in wanted]


def measure(bench: Bench, scenario: Scenario) -> None:
    """Everybody's turn in one scenario."""
    if scenario.run in (jobs.shared_day, jobs.shared_rate):
        if chosen(bench, scenario):
            bench.keep(Result(scenario, "ours", shared(bench, scenario)))
    elif scenario.run is jobs.cpu_per_call:
        in_rounds(bench, scenario)
    else:
        for system in chosen(bench, scenario):
            bench.keep(Result(scenario, system, bench.one(scenario, system)))


def in_rounds(bench: Bench, scenario: Scenario) -> None:
    """Three rounds, the contestants alternating so that a busy minute hits all; medians."""
    results = [Result(scenario, name, {}) for name in chosen(bench, scenario)]
    try:
        for _ in range(1 if bench.args.quick else 3):
            for result in results:
                result.rounds.append(bench.one(scenario, result.system))
    finally:  # interrupted: the rounds so far
        measured = [result for result in results if result.rounds]
        for result in measured:
            result.figures = medians(result.rounds)
        for result in measured:
            for base in measured:
                if base is not result and base.system in ("bare", "dspy"):
                    result.figures[f"over_{base.system}"] = ratio(result.figures, base.figures)
            bench.keep(result)


def medians(rounds: list[Figures]) -> Figures:
    """Of each figure; where no round succeeded, why the first did not."""
    good = [figures for figures in rounds if "cpu_ms_64" in figures]
    if not good:
        return rounds[0]
    return {key: statistics.median(figures[key] for figures in good) for key in good[0]}


def ratio(figures: Figures, base: Figures) -> float | None:
    """How much more CPU a call takes than the base's, at the worse of the two loads."""
    keys = ("cpu_ms_64", "cpu_ms_256")
    if not all(key in figures and key in base for key in keys):
        return None
    return max(figures[key] / base[key] for key in keys)


def shared(bench: Bench, scenario: Scenario) -> Figures:
    """What several processes did together, by the server's count and by their own."""
    day = scenario.run is jobs.shared_day
    each = bench.together(scenario, 2 if day else 4)
    if bad := [figures for figures in each if "done" not in figures]:
        return bad[0]
    stats, done = bench.server.stats(), [figures["done"] for figures in each]
    figures = {
        "arrived": jobs.total(stats, "arrived"),
        "refused_429": jobs.total(stats, "refused_429"),
        "done": sum(done),
        "by_process": done,
    }
    if day:
        return figures
    seconds = bench.seconds(scenario)
    settled = jobs.settled_after(seconds) // 2
    mean = statistics.mean(done)
    return {
        **figures,
        "goodput": jobs.delivered(stats, settled, seconds)
        / (scenario.per_second * (seconds - settled)),
        "deviation": max(abs(count - mean) for count in done) / max(mean, 1),
        "errors": sum(figures["errors"] for figures in each),
    }


# ---------------------------------------------------------------------- the table


def table(results: list[Result]) -> Iterator[str]:
    """One line a contestant, a head for each scenario, verdicts below ours."""
    last: Scenario | None = None
    for result in results:
        columns = COLUMNS[result.scenario.run]
        if result.scenario is not last:
            last = result.scenario
            heads = "".join(f"{column.header:>11}" for column in columns)
            yield ""
            yield f"{last.section}: {last.name}"
            yield f"  {'':24}{heads}"
        name = f"  {peers.LABELS[result.system]:24}"
        if why := result.figures.get("skipped") or result.figures.get("failed"):
            yield f"{name}  {'skipped' if 'skipped' in result.figures else 'failed'}: {why}"
            continue
        yield name + "".join(f"{column.text(result.figures):>11}" for column in columns)
        if checks := thresholds(result.scenario, result.system):
            yield "      " + " · ".join(check.verdict(result.figures) for check in checks)


def pinned(server: limit_server.Server) -> str:
    """Server and clients on cores of their own, where the system can; children inherit theirs."""
    if not hasattr(os, "sched_setaffinity") or len(cores := sorted(os.sched_getaffinity(0))) < 2:
        return "server and clients share the cores"
    os.sched_setaffinity(server.process.pid, {cores[1]})
    os.sched_setaffinity(0, {cores[0]})
    return f"server on core {cores[1]}, clients on core {cores[0]}"


def run_all(args: argparse.Namespace) -> None:
    """Measure what is wanted, then print the table, whole or as far as it got."""
    with (
        tempfile.TemporaryDirectory(prefix="dispatcher-benchmark-") as scratch,
        limit_server.running() as server,
    ):
        placed, bench = pinned(server), Bench(args, server, Path(scratch))
        try:
            for scenario in jobs.SCENARIOS:
                if scenario.section in args.only:
                    measure(bench, scenario)
        except KeyboardInterrupt:
            print("interrupted; measured so far:", file=sys.stderr)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    print(f"Python {platform.python_version()}, {versions}; {placed}")
    print("\n".join(table(bench.results)))


def _names(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        if unknown := set(names := text.split(",")) - set(allowed):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: none of {', '.join(allowed)}")
        return names

    return read


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names(SECTIONS), default=SECTIONS, help="sections")
    parser.add_argument("--systems", type=_names(CONTEST), help=", ".join(CONTEST))
    parser.add_argument("--seconds", type=float, help="a limit run; default 150 known, 120 else")
    parser.add_argument("--items", type=int, default=1500, help="of the section faults")
    parser.add_argument("--quick", action="store_true", help="45 s runs, one round")
    parser.add_argument("--all", action="store_true", help="all peers in all scenarios")
    parser.add_argument("--json", metavar="FILE", help="results, rewritten after each")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    parser.add_argument("--log-file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        system, name = args.one
        scenario = jobs.scenario_named(name)
        jobs.run_one(Job(system, scenario, args.server, args.seconds, args.items, args.log_file))
    run_all(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
