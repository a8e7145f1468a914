"""The state of a stream is the same in every process, whenever it began."""

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
from toolkit.monitoring.store.predictions import LoggedPrediction
from toolkit.monitoring.store.rollups import delete_expired, write_due_rollups

K = 3
BASELINE = baseline_of(400, np.random.default_rng(1), K)
MODEL = ModelVersion("1", BASELINE.classes, BASELINE, served_at=1.0)
BUDGET = Thresholds(max_false_alarms_per_million=1000)


def predictions_of(n, seed, first=1, model=MODEL, **more):
    window = window_of(n, np.random.default_rng(seed), K, labelled=0, **more)
    columns = zip(window.time.tolist(), window.probabilities, window.latency.tolist(), strict=True)
    statistics = [
        dict(zip(window.statistics, row, strict=True)) for row in zip(*window.statistics.values(), strict=True)
    ]
    return [
        LoggedPrediction(first + i, time, model, probabilities, statistics[i], latency)
        for i, (time, probabilities, latency) in enumerate(columns)
    ]


def label(store, ids, seed, source="audit"):
    rng = np.random.default_rng(seed)
    store.labels.insert({int(i): MODEL.classes[int(rng.integers(K))] for i in ids}, source, 1.0)


def counts_of(state):
    state.refresh()
    return {name: state.counts(name) for name in WINDOWS}


def same(one, other):
    assert counts_of(one) == counts_of(other)
    assert one.evidence == pytest.approx(other.evidence)


def save(store):
    """Note that everything was evaluated."""
    commit(store, MODEL, *StreamState(store, MODEL, BUDGET).refresh().progress(), 1.0)


def make(state):
    return lambda rows: state.bins.count(rows).to_bytes()


def test_a_following_and_a_late_state_agree(store):
    following = StreamState(store, MODEL, BUDGET)
    assert counts_of(following)["long"].n == 0
    rng = np.random.default_rng(2)
    for step in range(3):
        store.write(predictions_of(400, step, first=1 + 400 * step))
        some = [rng.choice(np.arange(1, 1 + 400 * (step + 1)), 60, replace=False).tolist() for _ in range(3)]
        counts_of(following)
        label(store, some[0], step, source="user")
        counts_of(following)
        store.labels.insert_drawn(some[1], 1.0)
        label(store, some[2], 9 + step, source="user")  # changes some labels
        assert counts_of(StreamState(store, MODEL, BUDGET)) == counts_of(following)
    whole = counts_of(following)["long"]
    assert (counts_of(following)["short"].n, whole.n) == (1000, 1200)
    assert 20 < whole.strata[3].sum() < whole.n_labels
    write_due_rollups(store, MODEL, make(following))
    assert counts_of(StreamState(store, MODEL, BUDGET)) == counts_of(following)


def test_rollups_replace_rows_older_than_the_windows(file_store, small_windows):
    following = StreamState(file_store, MODEL, BUDGET)
    file_store.write(predictions_of(5300, 3))
    label(file_store, range(1, 5301, 7), 1)
    whole = counts_of(following)
    assert write_due_rollups(file_store, MODEL, make(following)) == 5
    assert counts_of(StreamState(file_store, MODEL, BUDGET)) == whole
    label(file_store, range(1, 5301, 11), 2)  # the rollups are stale now, and are not written again
    assert counts_of(StreamState(file_store, MODEL, BUDGET)) == counts_of(following)
    assert counts_of(following)["long"].n_labels > whole["long"].n_labels
    assert write_due_rollups(file_store, MODEL, make(following)) == 5
    assert delete_expired(file_store, keep_rows=2000) == 3000
    assert counts_of(StreamState(file_store, MODEL, BUDGET)) == counts_of(following)


def test_rollups_of_another_reference_are_left_out_with_a_warning(file_store, small_windows, caplog):
    file_store.write(predictions_of(3000, 4))
    save(file_store)
    write_due_rollups(file_store, MODEL, make(StreamState(file_store, replace(MODEL, baseline=None), BUDGET)))
    assert counts_of(StreamState(file_store, MODEL, BUDGET))["long"].n == 2000
    assert "1000 predictions of version 1 are left out: they were counted in the bins of another" in caplog.text


def test_labels_of_complaints_are_kept_and_not_counted(file_store):
    state = StreamState(file_store, MODEL, BUDGET)
    file_store.write(predictions_of(50, 5, broken=0))
    label(file_store, range(1, 51), 1, source="complaint")
    assert counts_of(state)["long"].n_labels == 0
    label(file_store, range(1, 11), 1, source="audit")
    label(file_store, range(1, 6), 2, source="complaint")
    assert counts_of(state)["long"].n_labels == 10
    same(state, StreamState(file_store, MODEL, BUDGET))
    write_due_rollups(file_store, MODEL, make(state))
    assert counts_of(StreamState(file_store, MODEL, BUDGET))["long"].n_correct == counts_of(state)["long"].n_correct


def test_a_late_state_has_the_same_transitions_until_they_are_written(file_store):
    following = StreamState(file_store, MODEL, BUDGET)
    file_store.write(predictions_of(200, 6, broken=0))
    assert following.refresh().progress()[1] == []
    spoilt = [
        one._replace(probabilities=np.array([0.34, 0.33, 0.33], np.float16))
        for one in predictions_of(100, 7, first=201)
    ]
    file_store.write(spoilt)
    checkpoint, transitions = following.refresh().progress()
    assert ("confidence_distribution", "short") in {transition.key for transition in transitions}
    assert StreamState(file_store, MODEL, BUDGET).refresh().progress() == (checkpoint, transitions)
    assert len(commit(file_store, MODEL, checkpoint, transitions, 1.0)) == len(transitions)
    assert commit(file_store, MODEL, checkpoint, transitions, 1.0) == []
    following.written(checkpoint.position)
    assert following.progress()[1] == []
    late = StreamState(file_store, MODEL, BUDGET).refresh()
    assert late.progress() == following.progress()
    assert late.evidence == following.evidence


def test_thresholds_default_to_those_of_the_checkpoint(file_store):
    file_store.write(predictions_of(200, 6))
    state = StreamState(file_store, MODEL, BUDGET).refresh()
    assert StreamState(file_store, MODEL).refresh().thresholds == Thresholds()
    commit(file_store, MODEL, *state.progress(), 1.0)
    assert StreamState(file_store, MODEL).refresh().thresholds == BUDGET
    assert StreamState(file_store, MODEL, Thresholds()).refresh().thresholds == Thresholds()


def test_an_outdated_state_resumes_from_the_checkpoint(file_store, monkeypatch):
    monkeypatch.setattr(module, "MAX_WINDOW", 1000)
    outdated, other = StreamState(file_store, MODEL, BUDGET), StreamState(file_store, MODEL, BUDGET)
    file_store.write(predictions_of(200, 6))
    outdated.refresh()
    for step in range(4):
        file_store.write(predictions_of(500, step, first=201 + 500 * step))
        commit(file_store, MODEL, *other.refresh().progress(), 1.0)
        other.written(10_000)
    assert outdated.refresh().progress() == other.progress()
    assert counts_of(outdated)["long"] == counts_of(other)["long"]


def test_a_changed_label_adds_no_evidence(file_store):
    state = StreamState(file_store, MODEL, BUDGET)
    file_store.write(predictions_of(40, 8, broken=0))
    state.refresh()
    label(file_store, range(1, 41), 1)
    state.refresh()
    evidence = state.evidence["accuracy"]
    assert evidence > 0
    label(file_store, range(1, 41), 2)
    state.refresh()
    assert state.evidence["accuracy"] == evidence


def test_predictions_of_another_version_are_left_out(file_store):
    state = StreamState(file_store, MODEL, BUDGET)
    other = replace(MODEL, version="2")
    file_store.write([*predictions_of(30, 9), *predictions_of(20, 10, first=31, model=other)])
    assert counts_of(state)["long"].n == 30
    assert counts_of(StreamState(file_store, other, BUDGET))["long"].n == 20


def test_history_keeps_the_place_of_a_step(file_store, small_windows):
    store = file_store
    rows = predictions_of(4_000, 11, broken=0)
    store.write([one._replace(time=float(place)) for place, one in enumerate(rows)])
    wrong_from = 3_000  # from here on everything is wrong
    answered = {one.id: int(one.probabilities.argmax()) for one in rows}
    store.labels.insert(
        {i: MODEL.classes[(k + (i > wrong_from)) % K] for i, k in answered.items()}, "audit", 1.0
    )  # fmt: skip
    state = StreamState(store, MODEL, BUDGET)
    for due in (0, 4):
        if due:
            assert write_due_rollups(store, MODEL, make(state)) == due
        line = timeline(*state.history(), state.bins)
        accuracy = [point.n_correct / point.n_labels for point in line.points]
        ends = line.ends.tolist()
        assert [end for end, right in zip(ends, accuracy, strict=True) if 0 < right < 1] == []
        assert max(end for end, right in zip(ends, accuracy, strict=True) if right) == pytest.approx(wrong_from, abs=1)
        assert line.n == 4_000
