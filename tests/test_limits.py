"""The arithmetic of one account's limits: paces, slots, and what refusals teach them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from question_optimizer.limits import ROW_LENGTH, UNITS, Meter, Need, Pace, Slots

TOLERANCE = 0.05  # seconds by which a call may come early
LATE = 0.049  # seconds by which it may come late without moving those after it
ROUNDING = 1e-6

per_minutes = st.floats(1, 100_000) | st.sampled_from([1.0, 30.0, 60.0, 600.0, 1201.0, 60_000.0])
pauses = st.just(0.0) | st.floats(0, 0.1) | st.floats(0, 90)


def half() -> float:
    """A random number without randomness."""
    return 0.5


def meter_of(*per_minute: float | None) -> Meter:
    """A meter with these limits, in the order of UNITS."""
    meter = Meter()
    for pace, limit in zip(meter.paces, per_minute, strict=False):
        pace.set_limit(limit / 60 if limit else math.inf, 0.0)
    return meter


def only(unit: int, amount: float) -> Need:
    """What takes so much of one unit and nothing of the others."""
    return Need(*(amount if number == unit else 0.0 for number in range(len(UNITS))))


def distance(per_minute: float, units: float = 1.0) -> float:
    """Seconds between calls of so many units: a limit is spread over 60.1 s."""
    return units * 60.1 / per_minute


def most_in_a_minute(times: Sequence[float], amounts: Sequence[float]) -> float:
    """The most units that any 60 s hold, wherever they begin."""
    fullest, first, held = 0.0, 0, 0.0
    for last, at in enumerate(times):
        held += amounts[last]
        while at - times[first] > 60.0:
            held -= amounts[first]
            first += 1
        fullest = max(fullest, held)
    return fullest


# ---------------------------------------------------------------------- evenly paced


@settings(max_examples=200, deadline=None)
@given(
    per_minute=per_minutes,
    unit=st.integers(0, 3),
    steps=st.lists(st.tuples(pauses, st.floats(0.1, 3000)), max_size=40),
)
def test_a_call_may_start_once_all_before_it_is_paid_off_but_for_the_tolerance(
    per_minute: float, unit: int, steps: list[tuple[float, float]]
) -> None:
    """A leaky bucket: units flow out at the rate, and a call may start when it is all but empty."""
    meter, level, clock = meter_of(*[None] * unit, per_minute), 0.0, 0.0
    for wait, units in steps:
        clock += wait
        level = max(0.0, level - wait / distance(per_minute))
        ready_at = clock + max(0.0, distance(per_minute, level) - TOLERANCE)
        assert meter.ready_at(clock) == pytest.approx(ready_at, rel=1e-9, abs=1e-6)
        if meter.ready_at(clock) <= clock:
            meter.take(only(unit, units), clock)
            level += units


@settings(max_examples=200, deadline=None)
@given(
    per_minute=per_minutes,
    unit=st.integers(0, 3),
    calls=st.lists(st.tuples(pauses, st.floats(0.1, 5000)), min_size=1, max_size=60),
)
def test_no_minute_holds_more_than_the_limit_and_the_largest_call(
    per_minute: float, unit: int, calls: list[tuple[float, float]]
) -> None:
    meter, clock = meter_of(*[None] * unit, per_minute), 0.0
    times = []
    for pause, units in calls:
        clock = meter.ready_at(clock + pause)
        meter.take(only(unit, units), clock)
        times.append(clock)
    amounts = [units for _, units in calls]
    most = per_minute + max(amounts)
    assert most_in_a_minute(times, amounts) <= most * (1 + ROUNDING)


@settings(max_examples=40, deadline=None)
@given(
    per_minute=st.integers(1, 400) | st.floats(1, 400),
    late=st.lists(st.just(0.0) | st.just(LATE) | st.floats(0, LATE), min_size=1, max_size=9),
    idle=st.lists(st.just(0.0) | st.floats(0, 2), min_size=1, max_size=9),
)
def test_no_minute_holds_more_requests_than_the_limit_though_calls_be_a_little_late(
    per_minute: float, late: list[float], idle: list[float]
) -> None:
    """Sent almost 0.05 s after the time for which they were counted."""
    meter, clock = meter_of(per_minute), 0.0
    sent = []
    for number in range(int(per_minute * 2) + 3):
        clock = meter.ready_at(clock + (idle[number % len(idle)] if number % 7 == 0 else 0.0))
        meter.take(Need(), clock)
        sent.append(clock + late[number % len(late)])
    sent.sort()
    assert most_in_a_minute(sent, [1.0] * len(sent)) <= math.ceil(per_minute)


def test_a_limit_is_used_but_for_a_sixth_of_a_percent() -> None:
    meter, clock, count = meter_of(600), 0.0, 0
    while (clock := meter.ready_at(clock)) < 600:
        meter.take(Need(), clock)
        count += 1
    assert count == pytest.approx(6000 * 60 / 60.1, abs=2)


def test_what_has_no_limit_is_always_ready() -> None:
    meter = Meter()
    for _ in range(1000):
        meter.take(Need(1, 1e9, 1e9, 1e9), 5.0)
    assert meter.ready_at(5.0) == 5.0


def test_the_slowest_of_all_limits_decides() -> None:
    meter = meter_of(60, 6000, 60_000, 600)
    for need, decides in [
        (Need(1, 10, 5, 5), distance(60)),
        (Need(0, 500, 5, 5), distance(6000, 500)),
        (Need(0, 5, 9000, 5), distance(60_000, 9000)),
        (Need(0, 5, 5, 400), distance(600, 400)),
    ]:
        start = meter.ready_at(0.0) + TOLERANCE + 100.0
        meter.take(need, start)
        assert meter.ready_at(start) == pytest.approx(start + decides - TOLERANCE)


def test_a_rest_holds_everything_back_and_ends_without_stored_up_credit() -> None:
    meter = meter_of(600)
    before = meter.episode
    meter.rest(40.0)
    meter.rest(30.0)  # a shorter one changes nothing
    assert meter.ready_at(10.0) == 40.0
    assert meter.episode > before
    meter.take(Need(), 40.0)
    assert meter.ready_at(40.0) == pytest.approx(40 + distance(600) - TOLERANCE)


# ---------------------------------------------------------------------- settling


needs = st.builds(
    Need, *(st.integers(0, 5000).map(float) | st.floats(0.01, 5000) for _ in range(4))
)


@settings(max_examples=200, deadline=None)
@given(
    limits=st.lists(st.none() | per_minutes, min_size=4, max_size=4),
    before=st.lists(needs, max_size=3),
    need=needs,
)
def test_taken_and_given_back_at_once_leaves_no_trace(
    limits: list[float | None], before: list[Need], need: Need
) -> None:
    meter = meter_of(*limits)
    for earlier in before:
        meter.take(earlier, 3.0)
    meter.take(Need(1, 1, 1, 1), 3.0)
    arrivals = [pace.arrival for pace in meter.paces]
    sent = [pace.sent for pace in meter.paces]
    meter.take(need, 3.0)
    meter.adjust(need, Need(0.0), 3.0)
    assert [pace.arrival for pace in meter.paces] == pytest.approx(arrivals)
    assert [pace.sent for pace in meter.paces] == pytest.approx(sent)


@settings(max_examples=200, deadline=None)
@given(limits=st.lists(per_minutes, min_size=4, max_size=4), need=needs, used=needs)
def test_what_was_settled_counts_as_if_it_had_been_known(
    limits: list[float], need: Need, used: Need
) -> None:
    guessed, knew = meter_of(*limits), meter_of(*limits)
    guessed.take(Need(1, 1, 1, 1), 0.0)
    knew.take(Need(1, 1, 1, 1), 0.0)
    guessed.take(need, 0.0)
    guessed.adjust(need, used, 0.0)
    knew.take(used, 0.0)
    assert guessed.ready_at(0.0) == pytest.approx(knew.ready_at(0.0), rel=1e-6)


def test_credit_from_the_past_is_worth_nothing() -> None:
    meter = meter_of(60)
    meter.take(Need(), 0.0)
    meter.adjust(Need(), Need(0.0), 0.0)
    meter.take(Need(), 100.0)
    assert meter.ready_at(100.0) == pytest.approx(100 + distance(60) - TOLERANCE)


def test_a_charge_that_time_has_paid_off_cannot_be_given_back() -> None:
    meter = meter_of(60)
    meter.take(Need(), 0.0)
    meter.take(Need(), 100.0)
    meter.adjust(Need(), Need(0.0), 0.0)  # the first
    assert meter.ready_at(100.0) == pytest.approx(100 + distance(60) - TOLERANCE)


# ---------------------------------------------------------------------- new limits


@settings(max_examples=200, deadline=None)
@given(old=per_minutes, new=per_minutes, units=st.floats(1, 5000), waited=st.floats(0, 30))
def test_under_a_new_limit_what_is_owed_is_owed_in_units(
    old: float, new: float, units: float, waited: float
) -> None:
    meter = meter_of(old)
    meter.take(only(0, units), 0.0)
    meter.paces[0].set_limit(new / 60, waited)
    left = max(0.0, units - waited / distance(old))
    due = waited + distance(new, left)
    assert meter.ready_at(waited) == pytest.approx(max(waited, due - TOLERANCE), abs=1e-5, rel=1e-6)


def test_a_limit_can_come_and_go() -> None:
    meter = Meter()
    pace = meter.paces[0]
    meter.take(Need(), 0.0)
    pace.set_limit(1.0, 0.0)
    assert meter.ready_at(0.0) == 0.0
    meter.take(Need(), 0.0)
    assert meter.ready_at(0.0) > 0.9
    pace.set_limit(math.inf, 0.0)
    assert meter.ready_at(0.0) == 0.0


def test_a_new_limit_is_believed_and_what_was_learnt_of_the_old_one_forgotten() -> None:
    pace = Pace()
    pace.set_limit(10.0, 0.0)
    for clock in range(1, 60):
        pace.refused(clock, 1.0, clock)
    assert pace.rate < 6
    pace.set_limit(20.0, 60.0)
    assert pace.rate == pace.full == pytest.approx(20 * 60 / 60.1)
    assert (pace.tripped, pace.strikes) == (math.inf, 0)


# ---------------------------------------------------------------------- what refusals teach


def pace_of(per_second: float = 10.0) -> Pace:
    pace = Pace()
    pace.set_limit(per_second, 0.0)
    return pace


def test_calls_sent_before_the_last_lesson_teach_nothing_new() -> None:
    pace = pace_of()
    assert pace.refused(sent_at=9.0, wait=1.0, now=10.0)
    state = (pace.rate, pace.tolerance, pace.strikes, pace.mark, pace.sent)
    for _ in range(64):
        assert not pace.refused(sent_at=9.5, wait=1.0, now=10.5)
    assert (pace.rate, pace.tolerance, pace.strikes, pace.mark, pace.sent) == state


def test_a_single_refusal_takes_the_tolerance_and_leaves_the_rate() -> None:
    pace = pace_of()
    pace.refused(9.0, 1.0, 10.0)
    assert (pace.rate, pace.tolerance) == (pace.full, 0.0)
    pace.refused(999.0, 1.0, 1000.0)  # the next, long after
    assert pace.rate == pace.full
    pace.refused(1050.0, 1.0, 1060.0)  # and one soon after that
    assert pace.rate == pytest.approx(0.99 * pace.full)


def test_refusals_that_follow_one_another_cut_the_rate_to_what_the_server_took() -> None:
    """It took 9 a second between two refusals, where 10 were configured."""
    pace = pace_of()
    clock = 10.0
    for _ in range(3):
        pace.sent = 9.0 * 5
        clock += 5.0
        pace.refused(clock - 0.1, 1.0, clock)
    assert pace.rate == pytest.approx(9.0)


@pytest.mark.parametrize("taken_per_second", [0.1, 1.0, 5.0])
def test_no_single_cut_goes_deeper_than_fifteen_percent(taken_per_second: float) -> None:
    pace = pace_of()
    clock = 10.0
    for _ in range(30):
        before = pace.rate
        pace.sent = max(9.0, taken_per_second * 5)
        clock += 5.0
        pace.refused(clock - 0.1, 1.0, clock)
        assert 0.85 * before * (1 - ROUNDING) <= pace.rate <= before


def test_an_unknown_rate_is_learnt_from_what_was_taken_between_two_refusals() -> None:
    pace = Pace()
    pace.refused(1.0, 1.0, 2.0)
    assert pace.rate == math.inf
    pace.sent = 40.0
    pace.refused(9.0, 3.0, 10.0)
    assert pace.rate == pytest.approx(5.0)


@pytest.mark.parametrize(("since", "learnt"), [(8.74, True), (8.76, False), (3600.0, False)])
def test_an_unknown_rate_is_learnt_only_from_refusals_that_follow_one_another(
    since: float, learnt: bool
) -> None:
    pace = Pace()
    pace.refused(1.0, 1.0, 2.0)
    pace.sent = 40.0
    pace.refused(2.0 + since - 0.1, 3.0, 2.0 + since)  # within 1.25 * 3 s + 5 s
    assert pace.rate == (pytest.approx(40.0 / since) if learnt else math.inf)


def test_a_handful_of_units_says_nothing_about_an_unknown_rate() -> None:
    pace = Pace()
    pace.refused(1.0, 1.0, 2.0)
    pace.sent = 7.0
    pace.refused(9.0, 3.0, 10.0)  # it follows the first: with 8 units it would be learnt
    assert pace.rate == math.inf


events = st.lists(
    st.tuples(
        st.floats(0.001, 200),  # seconds since the last event
        st.sampled_from(["refused", "refused", "late", "accepted"]),
        st.floats(0, 70),  # Retry-After
        st.floats(0, 1000),  # units taken in between
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(limit=st.none() | st.floats(0.01, 1000), events=events)
def test_no_refusal_raises_a_rate_and_none_stops_an_account(
    limit: float | None, events: list[Any]
) -> None:
    pace = pace_of(limit) if limit else Pace()
    clock = 0.0
    for seconds, event, wait, units in events:
        clock += seconds
        pace.sent += units
        before = pace.rate
        if event == "accepted":
            pace.grow(clock, half)
            assert before <= pace.rate <= pace.full
            assert pace.rate <= 1.01 * before or pace.rate == math.inf
        else:
            pace.refused(clock - (seconds / 2 if event == "refused" else 1e4), wait, clock)
            assert pace.rate <= before
            if before < math.inf:
                assert pace.rate >= 0.85 * before * (1 - ROUNDING)
        assert pace.rate > 0 and not math.isnan(pace.rate)


def refuse_in_a_row(pace: Pace, times: int, clock: float, taken: float = 0.0) -> float:
    """Refusals 2 s apart, between which the server took so many units; returns the time."""
    for _ in range(times):
        clock += 2.0
        pace.sent = taken
        pace.refused(clock - 0.1, 1.0, clock)
    return clock


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), refusals=st.integers(1, 25), taken=st.floats(0, 20))
def test_growth_returns_to_the_limit_and_never_passes_it(
    seed: int, refusals: int, taken: float
) -> None:
    pace = pace_of()
    clock = refuse_in_a_row(pace, refusals, 10.0, taken)
    chance, rates = random.Random(seed).random, [pace.rate]
    while pace.rate < pace.full and clock < 500_000:
        clock += 25.0
        pace.grow(clock, chance)
        rates.append(pace.rate)
    assert pace.rate == pace.full
    assert rates == sorted(rates)


@pytest.mark.parametrize(("refusals", "taken"), [(12, 10.0), (12, 0.0), (60, 10.0)])
def test_after_a_bad_minute_an_account_is_back_at_its_limit_within_two_hours(
    refusals: int, taken: float
) -> None:
    pace = pace_of()
    clock = began = refuse_in_a_row(pace, refusals, 10.0, taken)
    while pace.rate < 0.99 * pace.full and clock < 500_000:
        clock += 1.0
        pace.grow(clock, half)
    assert clock - began < 7200


def test_growth_waits_between_its_steps_however_many_calls_are_accepted() -> None:
    pace = pace_of()
    clock = refuse_in_a_row(pace, 3, 10.0, taken=10.0)
    steps, before = 0, pace.rate
    for _ in range(11_000):  # in 11 s
        clock += 0.001
        pace.grow(clock, half)
        steps += pace.rate != before
        before = pace.rate
    assert steps == 2


def test_probes_near_a_rate_that_was_refused_get_rarer() -> None:
    """A server that grants 9 a second, told to us as 10: each try above costs a refusal."""
    pace, clock = pace_of(), 10.0
    for _ in range(3):
        clock += 5.0
        pace.sent = 9.0 * 5
        pace.refused(clock - 0.1, 1.0, clock)
    gaps, refused_at = [], clock
    while clock < 20_000:
        clock += 1.0
        pace.sent += min(pace.rate, 9.0)
        if pace.rate > 9.0:
            pace.refused(clock - 0.1, 1.0, clock)
            pace.refused(clock + 1.4, 1.0, clock + 1.5)
            pace.refused(clock + 2.9, 1.0, clock + 3.0)
            gaps.append(clock - refused_at)
            clock = refused_at = clock + 3.0
        else:
            pace.grow(clock, half)
    assert len(gaps) < 200
    assert sum(gaps[-3:]) > sum(gaps[:3])
    assert pace.gap == 600.0
    assert pace.rate > 8.0


# ---------------------------------------------------------------------- calls at once


def test_configured_slots_stand_until_a_refusal_and_come_back_one_by_one() -> None:
    slots = Slots()
    slots.configure(10)
    assert slots.now == 10
    slots.grow(9, 0.0)
    assert slots.now == 10  # never above what is configured
    slots.refused(6, 1.0)
    assert slots.now == 6
    before = slots.now
    for clock in range(2, 10_000):
        slots.grow(int(slots.now) - 1, float(clock))
        assert before <= slots.now <= min(10, before + 1)
        before = slots.now
    assert slots.now == 10


def test_unknown_slots_double_per_round_until_a_refusal() -> None:
    slots = Slots()
    slots.configure(None)
    assert slots.now == 8
    for expected in (16, 32, 64):
        for in_flight in range(int(slots.now) - 1, -1, -1):  # one round: all of them return
            slots.grow(max(in_flight, int(0.8 * slots.now)), 0.0)
        assert slots.now == pytest.approx(expected, abs=2)
    slots.refused(40, 1.0)
    assert slots.now == 40


def test_slots_that_are_not_used_do_not_grow() -> None:
    slots = Slots()
    slots.configure(None)
    for _ in range(100):
        slots.grow(3, 0.0)
    assert slots.now == 8


def test_the_slots_refused_last_are_tried_again_and_ever_more_rarely() -> None:
    """A server takes 20 at once."""
    slots = Slots()
    slots.configure(None)
    refused_at = []
    for clock in range(20_000):
        if int(slots.now) > 20:
            slots.refused(20, float(clock))
            refused_at.append(clock)
        else:
            slots.grow(int(slots.now) - 1, float(clock))
    assert slots.now >= 19
    gaps = [later - earlier for earlier, later in pairwise(refused_at)]
    assert gaps[-1] > 5 * gaps[0]
    assert len(refused_at) < 60


@settings(max_examples=200, deadline=None)
@given(
    most=st.none() | st.integers(1, 100),
    events=st.lists(st.tuples(st.floats(0, 100), st.booleans(), st.integers(0, 200)), max_size=60),
)
def test_slots_stay_between_one_and_what_is_configured(
    most: int | None, events: list[tuple[float, bool, int]]
) -> None:
    slots, clock = Slots(), 0.0
    slots.configure(most)
    for seconds, refused, in_flight in events:
        clock += seconds
        in_flight = min(in_flight, int(slots.now) - 1)
        before = slots.now
        if refused:
            slots.refused(in_flight, clock)
            assert slots.now <= before
        else:
            slots.grow(in_flight, clock)
            assert slots.now >= before
        assert 1 <= slots.now <= slots.most


def test_a_refusal_beside_few_is_not_about_the_number_if_more_went_well() -> None:
    slots = Slots()
    slots.configure(64)
    assert slots.explains(3)
    slots.grow(40, 0.0)
    assert not slots.explains(3)
    assert slots.explains(38)
    assert slots.explains(30)


# ---------------------------------------------------------------------- days, rows


def test_a_new_day_forgets_the_counts_and_an_older_one_does_not() -> None:
    meter = Meter()
    meter.turn_day(1000.0)
    meter.start(Need(1, 500, 400, 100))
    for same_or_older in (1000.0, 999.0):
        meter.turn_day(same_or_older)
        assert (meter.day, meter.requests_today, meter.tokens_today) == (1000.0, 1, 500)
    meter.turn_day(1001.0)
    assert (meter.day, meter.requests_today, meter.tokens_today) == (1001.0, 0, 0)


@settings(max_examples=200, deadline=None)
@given(row=st.lists(st.floats(), min_size=ROW_LENGTH, max_size=ROW_LENGTH))
def test_a_row_says_all_of_a_meter_and_nothing_else(row: list[float]) -> None:
    meter = Meter(in_flight=3.0)
    meter.read_row(row)
    assert repr(meter.row()) == repr(row)  # nan is not nan, and -0.0 is 0.0
    assert meter.in_flight == 3.0  # counted by process, elsewhere
    again = Meter()
    again.read_row([*meter.row(), 1.0, 2.0, 3.0])  # what follows belongs to others
    assert repr(again.row()) == repr(row)


def test_no_two_fields_share_a_place_in_the_row() -> None:
    row = [float(number) for number in range(ROW_LENGTH)]
    meter = Meter()
    meter.read_row(row)
    assert meter.row() == row
    assert [row[Meter.position(name)] for name in ("episode", "rests_until", "day")] == [
        meter.episode,
        meter.rests_until,
        meter.day,
    ]
    assert row[Meter.position("slots")] == meter.slots.now


def test_a_meter_that_was_never_used_survives_its_row() -> None:
    meter = Meter()
    meter.read_row(Meter().row())
    assert meter == Meter()


def test_after_a_restart_of_the_machine_no_point_in_time_is_left() -> None:
    meter = meter_of(60, 6000)
    meter.take(Need(1, 1e6), 1e9)
    meter.paces[0].refused(1e9, 1.0, 1e9)
    meter.slots.refused(3, 1e9)
    meter.rest(2e9)
    meter.forget_times()
    assert meter.ready_at(5.0) == 5.0
    assert max(value for value in meter.row() if value < math.inf) < 1e6
    assert meter.paces[0].full == pytest.approx(60 / 60.1)  # the limits themselves stay


def test_points_in_time_can_be_told_by_another_clock() -> None:
    meter, ahead = meter_of(60, 6000), meter_of(60, 6000)
    for kept, at in ((meter, 100.0), (ahead, 1100.0)):
        kept.take(Need(1, 500), at)
        kept.paces[0].refused(at, 1.0, at + 1.0)
        kept.slots.refused(3, at)
        kept.rest(at + 7.0)
    meter.shift_times(1000.0)
    assert meter.row() == pytest.approx(ahead.row())
    fresh = Meter()
    fresh.shift_times(1000.0)
    assert fresh == Meter()


def test_a_new_run_may_try_again_what_was_refused_in_an_earlier_one() -> None:
    meter = meter_of(600)
    pace, clock = meter.paces[0], 10.0
    for _ in range(9):
        clock += 2.0
        pace.refused(clock - 0.1, 1.0, clock)
    meter.slots.refused(3, clock)
    rate = pace.rate
    meter.soften()
    assert (pace.rate, pace.tolerance, pace.strikes) == (rate, TOLERANCE, 0)
    pace.grow(clock + 6.0, half)
    assert pace.rate == pytest.approx(1.01 * rate)
    before = meter.slots.now
    meter.slots.grow(2, clock + 1.0)
    assert meter.slots.now > before
