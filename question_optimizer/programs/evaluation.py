"""An evaluation before and after its calls: what it depends on, and what its rows come to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from dspy_pipeline import SyntheticQuestionPipeline, load_pipeline
from question_optimizer import files, verdict
from question_optimizer.errors import UserError
from question_optimizer.gold import GoldSet
from question_optimizer.locks import one_at_a_time
from question_optimizer.programs.differences import difference
from question_optimizer.programs.runs import chunk_digest
from question_optimizer.programs.trust import Judge, any_check
from question_optimizer.programs.verdict_run import BASELINE, EXISTING, Arm, Row, row_id
from question_optimizer.providers import LLMClientConfig
from question_optimizer.records import GoldItem
from question_optimizer.set_health import Item, set_health
from question_optimizer.usage import CallUsage
from question_optimizer.verdict import Guardrails

PIPELINE = "optimized_pipeline.json"
OPENINGS = "test_set_openings.json"
RUN_FILES = ("scores.jsonl", "report.html")  # besides summary.json, which the meta file is about
_MADE_BY = "evaluate_pipeline.py"


@dataclass
class Evaluation:
    """Everything an evaluation depends on, before any call."""

    data_dir: Path
    gold: GoldSet
    judge: Judge
    accounts: Sequence[LLMClientConfig]
    seed: int
    named: Sequence[tuple[str, Path]] = ()  # further programs
    live_repeats: int | None = None  # None: replay what is known
    guardrails: Guardrails = field(default_factory=Guardrails)
    dry: bool = False  # nothing will be asked, so a program need not be there yet

    @cached_property
    def items(self) -> list[GoldItem]:
        """Of the test side, each once: a repeat would count twice and tell nothing."""
        return list({row_id(item): item for item in self.gold.side("test")}.values())

    @cached_property
    def programs(self) -> dict[str, Path]:
        """The candidates; the optimised pipeline may be missing where others are named."""
        named = dict(self.named)
        if len(named) < len(self.named):
            raise UserError("two programs of one name; give each its own")
        path = self.data_dir / PIPELINE
        if not (named and not path.exists()):
            named = {"optimised": path, **named}
        return without_twins(named)

    @cached_property
    def arms(self) -> list[Arm]:
        original = SyntheticQuestionPipeline()
        missing = [path for path in self.programs.values() if not path.exists()]
        if self.dry and missing:  # the original's prompts tell about as much
            candidates = [Arm(name, original) for name in self.programs]
        else:
            candidates = [Arm(name, load_pipeline(path)) for name, path in self.programs.items()]
            for name, program in candidates:
                self.refuse_if_seen(name, program)
        existing = [Arm(EXISTING, None)] if any(item.existing_query for item in self.items) else []
        return [Arm(BASELINE, original), *candidates, *existing]

    def refuse_if_seen(self, name: str, program: Any) -> None:
        """UserError where a program was made with chunks of today's test side: it would be judged
        on what it knows."""
        shown = {
            chunk_digest(str(demo["chunk_text"]))
            for _, predictor in program.named_predictors()
            for demo in predictor.demos
            if "chunk_text" in demo
        }
        seen = shown | set(made(self.programs[name]).get("chunks", []))
        known = sum(chunk_digest(item.chunk_text) in seen for item in self.items)
        if known:
            raise UserError(
                f"{self.programs[name]}: was made with {known} of the {len(self.items)} test "
                "items, so they cannot tell how good it is; optimise again on this gold set"
            )

    @property
    def repeats(self) -> int:
        return self.live_repeats or 1

    @cached_property
    def inputs(self) -> dict[str, str]:
        return {
            **self.gold_input,
            **{f"{name}: {path.name}": files.sha256(path) for name, path in self.programs.items()},
        }

    @cached_property
    def sources(self) -> dict[str, str]:
        """The inputs, and what is known of the judge: a check made since makes the run anew, from
        known answers."""
        return {**self.inputs, "judge_check": files.digest(self.judge_figures)}

    @cached_property
    def used(self) -> dict[str, Any]:
        """What the result depends on besides its inputs."""
        return {
            "seed": self.seed,
            "arms": [arm.name for arm in self.arms],
            "models": sorted(
                f"{role}: {a.model}" for a in self.accounts for role in a.roles if role != "teacher"
            ),
            "judge": self.judge.origin,
            "judge_digest": self.judge.digest,
            "mode": "live" if self.live_repeats else "replay",
            "repeats": self.repeats,
            "prices": sorted(
                f"{a.name}: {a.input_price} + {a.output_price}" for a in self.accounts if a.priced
            ),
            "max_latency_ratio": self.guardrails.latency_ratio,
            "max_cost_ratio": self.guardrails.cost_ratio,
        }

    def price_of(self, call: CallUsage) -> float:
        """What a call costs at the account's present prices."""
        account = next((a for a in self.accounts if a.name == call.account), None)
        if account is None or not account.priced:
            return call.cost
        return account.cost(call.input_tokens, call.output_tokens)

    @cached_property
    def folder(self) -> Path:
        """Of the run. In live mode the first that is not complete: a killed one goes on."""
        name = f"evaluate-{files.digest([self.used, self.inputs])[:12]}"
        runs = self.data_dir / "runs"
        if self.live_repeats is None:
            return runs / name
        opened = {one["run"] for one in known_openings(self.data_dir / OPENINGS)}
        number = 1
        while self.is_over(runs / f"{name}-live{number}", opened):
            number += 1
        return runs / f"{name}-live{number}"

    def is_over(self, folder: Path, opened: set[str]) -> bool:
        """Whether a live run came to its end, or was deleted: its answers are not asked anew."""
        return self.is_asked(folder) or (folder.name in opened and not folder.exists())

    def is_asked(self, folder: Path) -> bool:
        """Whether a run came to its end and no item failed, whatever is known of the judge since.

        A run with failed items is made again by the same command: what was answered is known, what
        failed is asked anew.
        """
        summary = folder / "summary.json"
        if not (summary.is_file() and files.meta_path(summary).is_file()):
            return False
        meta = files.read_meta(summary, made_by=_MADE_BY)
        return meta.get("counts", {}).get("failed") == 0

    def is_complete(self, folder: Path) -> bool:
        """Whether all of a run's files are there as they would be made now, and no item failed."""
        summary = folder / "summary.json"
        if not files.is_finished(summary, settings=self.used, inputs=self.sources):
            return False
        there = {
            name: files.sha256(path) if (path := folder / name).is_file() else ""
            for name in RUN_FILES
        }
        meta = files.read_meta(summary, made_by=_MADE_BY)
        return self.is_asked(folder) and meta.get("files") == there

    @cached_property
    def judge_models(self) -> list[str]:
        return sorted({a.model for a in self.accounts if "judge" in a.roles})

    @cached_property
    def gold_input(self) -> dict[str, str]:
        """The gold set by hash: what a check of the judge depends on."""
        return {self.gold.path.name: files.sha256(self.gold.path)}

    @cached_property
    def judge_figures(self) -> dict[str, Any]:
        """What is known of the judge that scores."""
        found = any_check(self.data_dir, self.judge, self.judge_models, self.gold_input)
        return found or {
            "checked": False,
            "why": "not checked against the person's picks; evaluate_pipeline.py --check-judge "
            "does it",
        }


def without_twins(programs: dict[str, Path]) -> dict[str, Path]:
    """The programs without those that are the very same as an earlier one: a twin settles nothing
    and widens every interval."""
    first: dict[str, str] = {}
    for name, path in programs.items():
        digest = files.sha256(path) if path.is_file() else name
        if (twin := first.setdefault(digest, name)) != name:
            print(f"{name} is the same program as {twin} and is left out", file=sys.stderr)
    return {name: programs[name] for name in first.values()}


# ---------------------------------------------------------------------- programs and openings


def made(path: Path) -> dict[str, Any]:
    """How a program was made, from its meta file; UserError where that has another form."""
    meta = files.read_meta(path, made_by="optimize_pipeline.py")
    kinds = {"seen": dict, "judge": dict, "settings": dict, "chunks": list}
    damaged = [n for n, kind in kinds.items() if not isinstance(meta.get(n, kind()), kind)]
    if not damaged and not all(map(is_pairs_of_scores, meta.get("seen", {}).values())):
        damaged = ["seen"]
    if damaged:
        place = files.meta_path(path)
        raise UserError(f"{place}: {damaged[0]} is damaged; rerun optimize_pipeline.py")
    return meta


def is_pairs_of_scores(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(score, int | float) for score in pair)
        for pair in value
    )


def open_test_set(data_dir: Path, run_name: str) -> list[dict[str, str]]:
    """The openings of the test set up to this run's own, which is counted once, before any call."""

    path = data_dir / OPENINGS
    with one_at_a_time(path.with_name(f"{path.name}.lock")):
        known = known_openings(path)
        if run_name not in [opening["run"] for opening in known]:
            known.append({"at": f"{datetime.now(UTC):%Y-%m-%d}", "run": run_name})
            files.write_json(path, known)
    own = [opening["run"] for opening in known].index(run_name)
    return known[: own + 1]


def known_openings(path: Path) -> list[dict[str, str]]:
    """The openings so far; UserError where the file has another form."""
    known = files.read_json(path, made_by=None) if path.exists() else []
    if not isinstance(known, list) or not all(
        isinstance(one, dict) and isinstance(one.get("run"), str) for one in known
    ):
        raise UserError(f"{path}: not a list of openings; restore or delete it")
    return known


# ---------------------------------------------------------------------- what the rows come to


def summarise(plan: Evaluation, rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows say, by the verdict's rule."""
    return verdict.summarise(
        rows,
        baseline=BASELINE,
        candidates=list(plan.programs),
        gold_items=len(plan.gold.items),
        test_items=len(plan.items),
        seed=plan.seed,
        repeats=plan.repeats,
        seen={name: seen_by(path, plan.judge) for name, path in plan.programs.items()},
        guardrails=plan.guardrails,
    )


def seen_by(path: Path, judge: Judge) -> list[tuple[float, float]]:
    """(original's score, the program's) on the train and dev items it was made with; nothing where
    another judge gave them, which would compare judges."""
    if not path.exists():
        return []
    meta = made(path)
    if meta.get("settings", {}).get("judge_digest") != judge.digest:
        return []
    seen = meta.get("seen", {})
    return [(one, other) for side in ("train", "dev") for one, other in seen.get(side, [])]


def origin_of(name: str, path: Path, plan: Evaluation) -> dict[str, Any]:
    """How a program was made, whether its judge was trusted then, and what it does differently."""
    meta = made(path)
    judge = meta.get("judge", {})
    programs = {arm.name: arm.program for arm in plan.arms if arm.program is not None}
    return {
        "optimizer": meta.get("settings", {}).get("optimizer", ""),
        "rehearsal": bool(meta.get("rehearsal")),
        "judge_checked": judge.get("checked", False),
        "judge_trusted": judge.get("trusted", False),
        "judge_why": judge.get("why", "nothing is known of the judge it was optimised with"),
        "changes": list(difference(programs["original"], programs[name])),
    }


def health(plan: Evaluation, rows: Sequence[Row]) -> dict[str, Any]:
    """Each arm's questions, and gold's, as a set."""
    gold = [
        Item(i.gold_question, i.chunk_text, i.query_type, i.query_format, i.document_id or "")
        for i in plan.items
    ]
    found = {"gold": set_health(gold, gold=None)}
    for arm in plan.arms:
        written = [
            Item(
                row["question"],
                row["chunk_text"],
                row["query_type"],
                row["query_format"],
                row["document"],
            )
            for row in rows
            if row["arm"] == arm.name and row["repeat"] == 0
        ]
        found[arm.name] = set_health(written, gold=gold)
    return found


def judged_by(judge: dict[str, Any]) -> str:
    """What has to be said of the judge in the same breath as the verdict."""
    if not judge["checked"]:
        return " The judge was not checked against the person's picks."
    if not judge["trusted"]:
        return " The judge failed its check."
    return " The judge is trusted in part only." if judge["in_part"] else ""


def failed_items(summary: dict[str, Any]) -> int:
    """Items without a score, or not compared side by side, in the original or in a candidate."""
    arms = [summary["baseline"], *summary["candidates"]]
    pairwise = [c["pairwise"]["failed"] for c in summary["comparisons"] if c["pairwise"]]
    return max(*(summary["arms"][arm]["failed"] for arm in arms), *pairwise, 0)
