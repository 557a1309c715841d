"""The errors that a person can act on, and the signal that ends a run.

    UserError   one line (what, where, what to do) and an exit code; shown without a traceback
    StopRun     ends a whole run from inside a worker; deliberately no `Exception`, see below

Exit codes: 2 usage or configuration, 3 a gate says no, 4 finished with failed items, 5 budget
reached, 75 try later (folder locked, quota spent), 130 interrupted.
"""

from __future__ import annotations

from datetime import UTC, datetime

USAGE = 2
NO_GO = 3
FAILED_ITEMS = 4
BUDGET = 5
TRY_LATER = 75
INTERRUPTED = 130


class UserError(Exception):
    """What went wrong, where, and what to do, in one line: a person can act on it.

    `exit_code` is what a script ends with; 2 unless the error says otherwise.
    """

    def __init__(self, message: str, *, exit_code: int = USAGE):
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


def reason_of(error: BaseException) -> str:
    """An exception in one short line, for a failed item's row: its type, and what it says first."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class StopRun(BaseException):
    """The run as a whole cannot go on: quota spent, budget reached, no account left, interrupted.

    A `BaseException`, because DSPy's optimisers catch every `Exception` of a program and turn it
    into a score of zero (MIPROv2, GEPA and SIMBA all do). An outage must never become a score, so
    it has to pass through them.

    `until` is when the run may go on, in UTC, where waiting helps.
    """

    def __init__(self, message: str, *, exit_code: int, until: datetime | None = None):
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code
        self.until = until.astimezone(UTC) if until else None

    def __reduce__(self) -> tuple[object, ...]:
        return _stop_run, (str(self), self.exit_code, self.until)


def _stop_run(message: str, exit_code: int, until: datetime | None = None) -> StopRun:
    """How a copy, or another process, makes one again."""
    return StopRun(message, exit_code=exit_code, until=until)
