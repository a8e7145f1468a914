"""Views: whoever looks, whenever they began, counts and hears the same."""

from dataclasses import replace

import numpy as np
import pytest

from support.prediction_fixtures import baseline_of, window_of
from toolkit.monitoring.alerting.checkpoints import commit
from toolkit.monitoring.base.predictions import WINDOWS
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.pipeline import stream_state as module
from toolkit.monitoring.pipeline.stream_state import StreamState
from toolkit.monitoring.plots.timeline import timeline
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore
from toolkit.monitoring.store.rollups import delete_expired, write_due_rollups
from toolkit.monitoring.windows import rolling as rings

K = 3
BASELINE = baseline_of(400, np.random.default_rng(1), K)
MODEL = ModelVersion("1", BASELINE.classes, BASELINE, served_at=1.0)
BUDGET = Thresholds(max_false_alarms_per_million=1000)


def predictions_of(n, seed, first=1, model=MODEL, **more):
    window = window_of(n, np.random.default_rng(seed), K, labelled=0, **more)
    names = list(window.statistics)
    return [
        LoggedPrediction(
            first + i,
            float(window.time[i]),
            model,
            window.probabilities[i],
            {name: float(window.statistics[name][i]) for name in names},
            float(window.latency[i]) if np.isfinite(window.latency[i]) else None,
        )
        for i in range(n)
    ]


def tell(store, ids, seed, source="audit"):
    rng = np.random.default_rng(seed)
    store.labels.insert({int(i): MODEL.classes[int(rng.integers(K))] for i in ids}, source, 1.0)


def figures(view):
    view.refresh()
    return {name: view.counts(name) for name in WINDOWS}


def same(one, other):
    assert figures(one) == figures(other)
    assert one.evidence == pytest.approx(other.evidence)


def save(store):
    """Note that everything was evaluated."""
    commit(store, MODEL, *StreamState(store, MODEL, BUDGET).refresh().progress(), 1.0)


def make(view):
    return lambda rows: view.bins.count(rows).to_bytes()


def test_a_view_that_follows_and_one_that_comes_late_agree(store):
    following = StreamState(store, MODEL, BUDGET)
    assert figures(following)["long"].n == 0
    rng = np.random.default_rng(2)
    for step in range(6):
        store.write(predictions_of(300, step, first=1 + 300 * step))
        figures(following)
        tell(store, rng.choice(np.arange(1, 1 + 300 * (step + 1)), 60, replace=False), step)  # changes some labels
        late = StreamState(store, MODEL, BUDGET)
        assert figures(late) == figures(following)
    assert figures(following)["short"].n == 1000
    assert figures(following)["long"].n == 1800
    assert figures(following)["long"].n_labels > 200


def test_rollups_stand_in_for_what_the_windows_no_longer_hold(file_store, monkeypatch):
    monkeypatch.setattr(module, "MAX_WINDOW", 2000)
    monkeypatch.setattr(rings, "MAX_WINDOW", 2000)
    monkeypatch.setattr("toolkit.monitoring.store.rollups.MIN_ROWS", 2000)
    monkeypatch.setitem(WINDOWS, "medium", 2000)
    following = StreamState(file_store, MODEL, BUDGET)
    file_store.write(predictions_of(5300, 3))
    tell(file_store, range(1, 5301, 7), 1)
    whole = figures(following)
    assert write_due_rollups(file_store, MODEL, make(following)) == 5
    assert figures(StreamState(file_store, MODEL, BUDGET)) == whole
    tell(file_store, range(1, 5301, 11), 2)  # the rollups are stale now, and are not written again
    assert figures(StreamState(file_store, MODEL, BUDGET)) == figures(following)
    assert figures(following)["long"].n_labels > whole["long"].n_labels
    assert write_due_rollups(file_store, MODEL, make(following)) == 5
    assert delete_expired(file_store, keep_rows=2000) == 3000
    assert figures(StreamState(file_store, MODEL, BUDGET)) == figures(following)


def test_rollups_of_another_reference_are_left_out_and_that_is_said(file_store, monkeypatch, caplog):
    monkeypatch.setattr(module, "MAX_WINDOW", 1000)
    file_store.write(predictions_of(3000, 4))
    save(file_store)
    write_due_rollups(file_store, MODEL, make(StreamState(file_store, replace(MODEL, baseline=None), BUDGET)))
    monkeypatch.setattr(rings, "MAX_WINDOW", 1000)
    assert figures(StreamState(file_store, MODEL, BUDGET))["long"].n == 1000
    assert "1000 predictions of version 1 are left out: they were counted in the bins of another" in caplog.text


def test_labels_of_complaints_are_kept_and_not_counted(store):
    view = StreamState(store, MODEL, BUDGET)
    store.write(predictions_of(50, 5, broken=0))
    tell(store, range(1, 51), 1, source="complaint")
    assert figures(view)["long"].n_labels == 0
    tell(store, range(1, 11), 1, source="audit")
    tell(store, range(1, 6), 2, source="complaint")
    assert figures(view)["long"].n_labels == 10
    same(view, StreamState(store, MODEL, BUDGET))
    write_due_rollups(store, MODEL, make(view))
    assert figures(StreamState(store, MODEL, BUDGET))["long"].n_correct == figures(view)["long"].n_correct


def test_what_becomes_of_alerts_is_the_same_for_a_view_that_comes_later_until_it_is_written(store):
    following = StreamState(store, MODEL, BUDGET)
    store.write(predictions_of(200, 6, broken=0))
    assert following.refresh().progress()[1] == []
    spoilt = [
        one._replace(probabilities=np.array([0.34, 0.33, 0.33], np.float16))
        for one in predictions_of(100, 7, first=201)
    ]
    store.write(spoilt)
    checkpoint, transitions = following.refresh().progress()
    assert ("confidence_distribution", "short") in {transition.key for transition in transitions}
    assert StreamState(store, MODEL, BUDGET).refresh().progress() == (checkpoint, transitions)
    assert len(commit(store, MODEL, checkpoint, transitions, 1.0)) == len(transitions)
    assert commit(store, MODEL, checkpoint, transitions, 1.0) == []
    following.written(checkpoint.position)
    assert following.progress()[1] == []
    late = StreamState(store, MODEL, BUDGET).refresh()
    assert late.progress() == following.progress()
    assert late.evidence == following.evidence


def test_a_view_without_limits_goes_by_those_of_the_store(store):
    store.write(predictions_of(200, 6))
    view = StreamState(store, MODEL, BUDGET).refresh()
    assert StreamState(store, MODEL).refresh().thresholds == Thresholds()
    commit(store, MODEL, *view.progress(), 1.0)
    assert StreamState(store, MODEL).refresh().thresholds == BUDGET
    assert StreamState(store, MODEL, Thresholds()).refresh().thresholds == Thresholds()


def test_a_view_that_slept_goes_on_from_what_others_have_written(store, monkeypatch):
    monkeypatch.setattr(module, "MAX_WINDOW", 1000)
    sleeper, other = StreamState(store, MODEL, BUDGET), StreamState(store, MODEL, BUDGET)
    store.write(predictions_of(200, 6))
    sleeper.refresh()
    for step in range(4):
        store.write(predictions_of(500, step, first=201 + 500 * step))
        commit(store, MODEL, *other.refresh().progress(), 1.0)
        other.written(10_000)
    assert sleeper.refresh().progress() == other.progress()
    assert figures(sleeper)["long"] == figures(other)["long"]


def test_a_label_is_heard_once_and_a_second_thought_is_not(store):
    view = StreamState(store, MODEL, BUDGET)
    store.write(predictions_of(40, 8, broken=0))
    view.refresh()
    tell(store, range(1, 41), 1)
    view.refresh()
    evidence = view.evidence["accuracy"]
    assert evidence > 0
    tell(store, range(1, 41), 2)
    view.refresh()
    assert view.evidence["accuracy"] == evidence


def test_predictions_of_another_version_are_none_of_its_business(store):
    view = StreamState(store, MODEL, BUDGET)
    other = replace(MODEL, version="2")
    store.write([*predictions_of(30, 9), *predictions_of(20, 10, first=31, model=other)])
    assert figures(view)["long"].n == 30
    assert figures(StreamState(store, other, BUDGET))["long"].n == 20


def test_two_processes_that_write_are_seen_as_one(tmp_path):
    one, other = (PredictionStore(str(tmp_path / "m.db")) for _ in range(2))
    views = [StreamState(store, MODEL, BUDGET) for store in (one, other)]
    for step in range(4):
        (one, other)[step % 2].write(predictions_of(100, step, first=1 + 100 * step))
        assert figures(views[0]) == figures(views[1])
    assert figures(views[0])["long"].n == 400
    one.close()
    other.close()


def test_history_tells_a_step_where_it_was(file_store):
    store = file_store
    rows = predictions_of(12_000, 11, broken=0)
    store.write([one._replace(time=float(place)) for place, one in enumerate(rows)])
    tell_from = 9_000  # from here on everything is wrong
    answered = {one.id: int(one.probabilities.argmax()) for one in rows}
    store.labels.insert(
        {i: MODEL.classes[(k + (i > tell_from)) % K] for i, k in answered.items()}, "audit", 1.0
    )  # fmt: skip
    view = StreamState(store, MODEL, BUDGET)
    for rollups in (0, 2):
        if rollups:
            assert write_due_rollups(store, MODEL, make(view)) == 12
        line = timeline(*view.history(), view.bins)
        accuracy = [point.n_correct / point.n_labels for point in line.points]
        ends = line.ends.tolist()
        assert [end for end, right in zip(ends, accuracy, strict=True) if 0 < right < 1] == []
        assert max(end for end, right in zip(ends, accuracy, strict=True) if right) == pytest.approx(tell_from, abs=1)
        assert line.n == 12_000


def test_what_is_drawn_is_known_to_whoever_follows_and_whoever_comes_late(store):
    following = StreamState(store, MODEL, BUDGET)
    rng = np.random.default_rng(11)
    for step in range(4):
        store.write(predictions_of(300, step, first=1 + 300 * step, broken=0))
        figures(following)
        tell(store, rng.choice(np.arange(1, 1 + 300 * (step + 1)), 50, replace=False), step, source="user")
        figures(following)
        store.labels.insert_drawn(rng.choice(np.arange(1, 1 + 300 * (step + 1)), 40, replace=False).tolist(), 1.0)
        tell(store, rng.choice(np.arange(1, 1 + 300 * (step + 1)), 50, replace=False), 9 + step, source="user")
        assert figures(StreamState(store, MODEL, BUDGET)) == figures(following)
    whole = figures(following)["long"]
    assert 20 < whole.strata[3].sum() < whole.n_labels
    write_due_rollups(store, MODEL, make(following))
    assert figures(StreamState(store, MODEL, BUDGET)) == figures(following)
