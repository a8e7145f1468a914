"""The state machine of an alert: every transition, and properties of any history."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import SettingsError
from toolkit.monitoring.alerting.state import (
    REPEAT_INTERVAL_S,
    ActiveAlert,
    AlertState,
    Evaluation,
    evaluations_to_clear,
)
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds

WARNING_ABOVE = 0.05
HOUR = 3600.0


def evaluation(level, status="confirmed", value=None):
    """An evaluation with a value that is typical of its level; ``calm`` and ``close`` are both ok."""
    typical = {"calm": 0.01, "close": 0.04, "warning": 0.08, "critical": 0.15, "immediate": 0.30}[level]
    reached = level if level in LEVELS else "ok"
    return Evaluation(reached, status if reached != "ok" else "", typical if value is None else value, WARNING_ABOVE)


CALM, CLOSE = evaluation("calm"), evaluation("close")
SUSPECTED, WARNING = evaluation("warning", "suspected"), evaluation("warning")
CRITICAL, IMMEDIATE = evaluation("critical"), evaluation("immediate")
UNKNOWN = Evaluation()


def live(history, alert=None, state=AlertState()):  # noqa: B008  frozen
    """Each evaluation with its time, the change, and the active alert before and after it."""
    now = 0.0
    for seen, alarm, intervals, pause, acknowledge in history:
        now += pause
        before = replace(alert, acknowledged=True) if alert and acknowledge else alert
        state, change = state.advance(seen, before, now, alarm=alarm, intervals=intervals)
        alert = change.applied(before, now) if change else before
        yield seen, alarm, now, change, before, alert


def play(*evaluations, active=None, state=AlertState(evidence=True), alarms=(), intervals=1, step=0.0):  # noqa: B008  frozen
    """Events of an alert over some evaluations, as ``level status`` or the event, ``-`` for nothing."""
    history = [(seen, number in alarms, intervals, step, False) for number, seen in enumerate(evaluations)]
    changes = [change for _, _, _, change, _, _ in live(history, active, state)]
    return [
        "-"
        if not change
        else f"{change.level} {change.status}"
        if change.event in ("raised", "escalated")
        else change.event
        for change in changes
    ]


def active(state):
    if state == "suspected":
        return ActiveAlert("warning", "suspected", 0.0)
    return ActiveAlert(state, "confirmed", 0.0) if state != "ok" else None


STATES = ("ok", "suspected", "warning", "critical", "immediate")
NOTHING = ["-"] * 4
AT_ONCE, SECOND, THIRD = ([*NOTHING[:n], "{}", *NOTHING[n + 1 :]] for n in range(3))

# From each state, for the same evaluation four times: what happens, and when. A fault that is milder is not gone.
TRANSITIONS = [
    *((state, seen, NOTHING, "") for state in STATES for seen in (CLOSE, UNKNOWN)),
    ("ok", CALM, NOTHING, ""),
    *((state, CALM, THIRD, "cleared") for state in STATES[1:]),
    *((state, IMMEDIATE, AT_ONCE, "immediate confirmed") for state in STATES[:-1]),
    ("ok", SUSPECTED, SECOND, "warning suspected"),
    *((state, WARNING, SECOND, "warning confirmed") for state in ("ok", "suspected")),
    *((state, CRITICAL, SECOND, "critical confirmed") for state in ("ok", "suspected", "warning")),
    ("ok", evaluation("immediate", "suspected"), AT_ONCE, "immediate suspected"),
    ("warning", evaluation("critical", "suspected"), SECOND, "critical suspected"),
    *((state, SUSPECTED, NOTHING, "") for state in ("suspected", "warning", "critical")),
    *((state, WARNING, NOTHING, "") for state in ("warning", "critical")),
    *((state, CRITICAL, NOTHING, "") for state in ("critical", "immediate")),
    ("critical", evaluation("warning", value=0.055), NOTHING, ""),
    ("immediate", evaluation("critical", value=0.11), NOTHING, ""),
    ("immediate", IMMEDIATE, NOTHING, ""),
]


@pytest.mark.parametrize(("state", "seen", "events", "event"), TRANSITIONS)
def test_every_way_from_a_state_to_the_next(state, seen, events, event):
    assert play(*[seen] * 4, active=active(state)) == [each.format(event) for each in events]


def test_without_an_alarm_nothing_is_raised_however_bad_it_looks():
    assert play(*[IMMEDIATE, CRITICAL] * 10, state=AlertState()) == ["-"] * 20


def test_the_alarm_itself_raises_at_once_whatever_the_level():
    assert play(WARNING, state=AlertState(), alarms=[0], intervals=0) == ["warning confirmed"]
    assert play(SUSPECTED, SUSPECTED, state=AlertState(), alarms=[0]) == ["warning suspected", "-"]
    assert play(SUSPECTED, SUSPECTED, SUSPECTED, state=AlertState(), alarms=[2]) == ["-", "-", "warning suspected"]


def test_evidence_lasts_until_three_calm_intervals():
    assert play(*[CALM] * 9, CALM, CLOSE, WARNING, WARNING, state=AlertState(), alarms=[9])[-1] == "warning confirmed"
    assert play(CALM, CALM, CALM, CALM, IMMEDIATE, state=AlertState(), alarms=[0]) == ["-"] * 5


def test_evidence_is_needed_again_after_it_cleared():
    assert play(CALM, CALM, CALM, WARNING, WARNING, active=active("warning")) == ["-", "-", "cleared", "-", "-"]
    again = play(CALM, CALM, CALM, WARNING, WARNING, active=active("warning"), alarms=[4])
    assert again[-1] == "warning confirmed"


def test_one_bad_interval_between_good_ones_is_no_alert():
    assert play(*[CRITICAL, CLOSE] * 4) == ["-"] * 8


def test_two_intervals_raise_even_if_the_level_wavers():
    assert play(WARNING, CRITICAL, CRITICAL) == ["-", "warning confirmed", "critical confirmed"]


def test_calm_intervals_must_be_consecutive():
    assert play(CALM, CALM, CLOSE, CALM, CALM, CALM, active=active("warning")) == ["-"] * 5 + ["cleared"]


def test_it_clears_with_the_certainty_with_which_it_came():
    """Few labels look calm by chance while the model fails: then it takes several windows that share none."""
    doubtful = replace(CALM, to_clear=20)
    assert play(*[doubtful] * 19, active=active("warning")) == ["-"] * 19
    assert play(*[doubtful] * 20, active=active("warning"))[-1] == "cleared"
    assert play(*[doubtful] * 5, CALM, active=active("warning"))[-1] == "cleared"  # enough labels came


@given(st.floats(0.001, 0.5), st.floats(0, 1), st.floats(0.5, 0.999))
def test_a_fault_at_the_threshold_is_seldom_missed(threshold, deviation, confidence):
    intervals = evaluations_to_clear(threshold, deviation, confidence)
    assert intervals >= 3
    rng = np.random.default_rng(0)
    windows = max(1, intervals // 10)
    calm = rng.normal(threshold, max(deviation, 1e-9), (4000, windows)) < 0.6 * threshold
    assert calm.all(axis=1).mean() <= 1 - confidence + 0.03


def test_like_before_is_calm_at_any_value():
    edge = Evaluation(value=0.06, threshold=WARNING_ABOVE, unchanged=True)
    assert play(edge, edge, edge, active=active("warning"))[-1] == "cleared"


def test_an_evaluation_counts_its_intervals():
    assert play(WARNING, intervals=2) == ["warning confirmed"]
    assert play(CALM, intervals=3, active=active("warning")) == ["cleared"]
    assert play(*[WARNING] * 5, intervals=0) == ["-"] * 5
    assert play(*[CALM] * 5, intervals=0, active=active("warning")) == ["-"] * 5


def test_too_little_data_breaks_no_run():
    assert play(WARNING, UNKNOWN, WARNING) == ["-", "-", "warning confirmed"]
    assert play(CALM, UNKNOWN, CALM, CALM, active=active("warning"))[-1] == "cleared"


def test_an_active_alert_is_repeated_at_the_interval():
    assert REPEAT_INTERVAL_S == 6 * HOUR
    events = play(*[WARNING] * 13, active=active("warning"), step=HOUR)
    assert [hour for hour, event in enumerate(events, start=1) if event == "reminder"] == [6, 12]
    assert play(*[UNKNOWN] * 6, active=active("warning"), step=HOUR)[-1] == "reminder"


def test_an_escalation_restarts_the_repeat_interval():
    events = play(*[WARNING] * 4, *[CRITICAL] * 8, active=active("warning"), step=HOUR)
    assert events == ["-"] * 5 + ["critical confirmed"] + ["-"] * 5 + ["reminder"]


def test_acknowledged_alerts_escalate_without_reminders():
    known = ActiveAlert("warning", "confirmed", 0.0, acknowledged=True)
    assert play(*[WARNING] * 20, active=known, step=HOUR) == ["-"] * 20
    assert play(*[CRITICAL] * 20, active=known, step=HOUR) == ["-", "critical confirmed"] + ["-"] * 18
    history = play(*[CALM] * 3, *[WARNING] * 10, active=known, step=HOUR, alarms=[4])
    assert history == ["-", "-", "cleared", "-", "warning confirmed"] + ["-"] * 5 + ["reminder", "-", "-"]


def test_an_alert_of_another_process_needs_three_calm_intervals():
    long_calm = AlertState(n_calm=50)
    assert play(CALM, CALM, CALM, active=active("warning"), state=long_calm) == ["-", "-", "cleared"]


def test_a_level_that_is_none_gets_one_clear_line():
    with pytest.raises(SettingsError, match="there is no level 'bad'"):
        AlertState().advance(IMMEDIATE, ActiveAlert("bad", "", 0.0), 0.0)


# Whatever happens

evaluations_seen = st.lists(
    st.tuples(
        st.sampled_from(
            [CALM, CLOSE, SUSPECTED, WARNING, CRITICAL, IMMEDIATE, UNKNOWN, evaluation("critical", "suspected")]
        ),
        st.sampled_from([False, False, True]),  # an alarm
        st.integers(0, 3),  # intervals
        st.sampled_from([0.0, HOUR, 7 * HOUR]),  # seconds since the evaluation before
        st.sampled_from([False, False, False, True]),  # acknowledged
    ),
    max_size=40,
)


@given(evaluations_seen)
def test_notifications_keep_the_interval_unless_escalated(history):
    notified_at, rank = None, None
    for _, _, now, change, before, after in live(history):
        if change is None:
            continue
        if change.event == "reminder":
            assert now - notified_at >= REPEAT_INTERVAL_S
            assert not before.acknowledged
            assert after.rank == rank
        elif change.event == "escalated":
            assert after.rank > rank
        elif change.event == "raised":
            assert before is None
        notified_at, rank = (now, after.rank) if after else (None, None)


@given(evaluations_seen)
def test_an_alarm_since_the_last_calm_is_needed(history):
    alarmed, calm = False, 0
    for (seen, alarm, _, change, before, _), (_, _, intervals, _, _) in zip(live(history), history, strict=True):
        if change and change.event == "raised":
            assert alarmed or alarm
        alarmed |= alarm or before is not None
        if seen.value is not None:
            calm = calm + intervals if seen is CALM and not alarm else 0
        if calm >= 6 and before is None:  # twice as long as needed, whichever run had begun before
            alarmed = False


@given(evaluations_seen, st.sampled_from([CALM, Evaluation(value=0.5, threshold=WARNING_ABOVE, unchanged=True)]))
def test_it_always_clears_in_the_end(history, calm):
    *_, (_, _, _, _, _, last) = live([*history, *[(calm, False, 1, 0.0, False)] * 3])
    assert last is None


@given(evaluations_seen, st.sampled_from([CALM, CLOSE, SUSPECTED, WARNING, CRITICAL, IMMEDIATE]))
def test_a_fresh_state_decides_the_same_three_intervals_later(history, seen):
    state, alert = AlertState(evidence=True), None
    for evaluation, alarm, intervals, pause, _ in history:
        state, change = state.advance(evaluation, alert, pause, alarm=alarm, intervals=intervals)
        alert = change.applied(alert, pause) if change else alert
    if alert is None:
        return
    going_on, begun_anew = (
        list(live([(seen, False, 1, 0.0, False)] * 3, alert, one))[-1][-1] for one in (state, AlertState())
    )
    if going_on is not None or begun_anew is not None:  # the first may have had time to raise what is left
        assert (going_on or begun_anew).rank == (begun_anew or going_on).rank


@given(evaluations_seen, st.integers(1, 4))
def test_runs_do_not_depend_on_how_intervals_are_cut(history, parts):
    """The same evaluation several times or once with all intervals leaves the same runs."""
    for seen, _, intervals, _, _ in history:
        one, _ = AlertState().advance(seen, None, 0.0, intervals=intervals * parts)
        many = AlertState()
        for _ in range(parts):
            many, _ = many.advance(seen, None, 0.0, intervals=intervals)
        assert many == one


def test_a_long_stream_raises_only_the_change_and_once():
    """Noise around the reference with false alarms now and then, then a drop of 15 %."""
    generator = np.random.default_rng(3)
    state, alert, events = AlertState(), None, []
    for block in range(3000):
        drop = generator.normal(0.15 if block >= 2000 else 0.0, 0.015)
        level = Thresholds().level(drop)
        seen = Evaluation(level, "confirmed" if level != "ok" else "", float(drop), WARNING_ABOVE)
        alarm = block in (100, 700, 1500, 2001)
        state, change = state.advance(seen, alert, 60.0 * block, alarm=alarm)
        alert = change.applied(alert, 60.0 * block) if change else alert
        events += [(change.event, change.level, block)] if change and change.event != "reminder" else []
    assert events == [("raised", "critical", 2001)]


# The longer window


def test_the_longer_window_is_inhibited_by_the_short_one():
    big, small = CRITICAL, evaluation("warning", "suspected")
    now_bad, now_calm = WARNING, CALM
    assert big.inhibited(now_bad, None) == big
    assert big.inhibited(now_bad, ActiveAlert("warning", "confirmed", 0.0)) == big
    assert big.inhibited(now_bad, ActiveAlert("critical", "confirmed", 0.0)).level == "ok"
    assert big.inhibited(now_calm, None).level == "ok"
    assert small.inhibited(now_bad, ActiveAlert("warning", "suspected", 0.0)).level == "ok"
    assert small.inhibited(UNKNOWN, None) == small


def test_inhibition_does_not_clear_an_active_alert():
    silent = CRITICAL.inhibited(CALM, None)
    assert silent.value == CRITICAL.value
    assert play(*[silent] * 5, active=active("critical")) == ["-"] * 5
