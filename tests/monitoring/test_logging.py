"""Predictions logged one by one and many at once."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from monitoring import ModelMonitor, MonitorConfig, new_prediction_id
from support import MAX_WAIT_S
from support.monitored_streams import answers
from toolkit.errors import SettingsError, UnknownPrediction


def test_what_was_logged_is_measured(monitor):
    ids = [monitor.log_prediction(p, latency_ms=ms) for p, ms in (([0.5, 0.25, 0.25], 1), ([0.25, 0.75, 0.0], 3))]
    monitor.record_feedback(ids[0], "bird")
    monitor.record_feedback(ids[1], "dog")
    metrics = monitor.calculate_metrics("short")
    assert (metrics["n"], metrics["n_labels"], metrics["accuracy"]) == (2, 2, 0.5)
    assert metrics["mean_confidence"] == 0.625
    assert metrics["class_shares"] == {"bird": 0.5, "cat": 0.5, "dog": 0.0}
    assert metrics["latency_ms"] == {"median": pytest.approx(1, rel=0.033), "p95": pytest.approx(3, rel=0.033)}
    assert metrics["model_version"] == "1"
    assert metrics["reference_n"] == 2000
    json.dumps(monitor.calculate_metrics(), allow_nan=False)


def test_the_windows_are_the_last_predictions(monitor):
    monitor.log_predictions([[1, 0, 0]] * 1100 + [[0, 1, 0]] * 300)
    metrics = monitor.calculate_metrics()
    assert [metrics[name]["n"] for name in ("short", "medium", "long")] == [1000, 1400, 1400]
    assert metrics["short"]["class_shares"]["cat"] == 0.3


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.5, 0.5], r"3 probabilities are needed, one for each class, got shape \(2,\)"),
        ([[0.2, 0.3, 0.5]], r"got shape \(1, 3\)"),
        ([7.3, -2.0, 0.1], "must lie between 0 and 1, got -2: are these logits?"),
        ([0.2, 0.2, 0.2], "must add up to 1, got 0.6"),
        (["a", "b", "c"], "must be numbers"),
        ({"cat": 0.5, "dog": 0.5}, "the classes are bird, cat, dog"),
    ],
)
def test_what_is_no_prediction_is_refused(monitor, probabilities, message):
    with pytest.raises(SettingsError, match=message):
        monitor.log_prediction(probabilities)


def test_an_id_made_earlier_can_be_used_and_a_malformed_one_not(monitor):
    name = new_prediction_id()
    assert monitor.log_prediction({"dog": 1, "cat": 0, "bird": 0}, prediction_id=name, time=5.0) == name
    assert monitor.calculate_metrics("short")["since"] == 5.0
    with pytest.raises(UnknownPrediction, match="an id has 16 hex digits"):
        monitor.log_prediction([1, 0, 0], prediction_id="mine")


def test_non_finite_probabilities_are_counted_and_left_out(monitor):
    monitor.log_prediction([np.nan, 0.5, 0.5])
    monitor.log_prediction([np.inf, 0, 0])
    monitor.log_prediction([1, 0, 0])
    metrics = monitor.calculate_metrics("short")
    assert (metrics["n"], metrics["non_finite"], metrics["mean_confidence"]) == (3, 2, 1.0)


def test_threads_log_at_the_same_time_and_nothing_is_lost(monitor):
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: monitor.log_prediction([0.2, 0.3, 0.5]), range(2000)))
    assert monitor.calculate_metrics("long")["n"] == len(set(ids)) == 2000
    assert monitor.writer_stats() == {"queued": 0, "written": 2000, "dropped": 0, "lost": 0, "write_errors": 0}


def test_a_notebook_needs_no_baseline_and_no_class_names():
    with ModelMonitor("m.db") as monitor:
        name = monitor.log_prediction([0.1, 0.9])
        assert monitor.record_feedback(name, "1")
        assert monitor.detect_drift().drifted is None
        assert monitor.calculate_metrics("short")["accuracy"] == 1.0


def test_a_tight_loop_loses_nothing(caplog):
    with ModelMonitor("m.db", classes=["cat", "dog"]) as monitor:
        ids = [monitor.log_prediction([0.25, 0.75]) for _ in range(15_000)]
        assert monitor.calculate_metrics("long")["n"] == 15_000
        assert monitor.writer_stats() == {"queued": 0, "written": 15_000, "dropped": 0, "lost": 0, "write_errors": 0}
        assert monitor.record_feedback_many(dict.fromkeys(ids[::1000], "dog")) == 15
    assert not caplog.records


def test_drop_when_full_drops_counts_and_logs(caplog):
    with ModelMonitor("m.db", classes=["cat", "dog"]) as monitor:
        monitor.log_prediction([0.25, 0.75])
    with sqlite3.connect("m.db", isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")  # the store does not take anything
        with ModelMonitor("m.db", classes=["cat", "dog"], config=MonitorConfig(drop_when_full=True)) as monitor:
            for _ in range(3):
                monitor.log_predictions([[0.25, 0.75]] * 5000)
            monitor.log_prediction([0.25, 0.75])
            dropped = monitor.writer_stats()["dropped"]
            assert 4000 <= dropped <= 5001
            connection.execute("ROLLBACK")
            metrics = monitor.calculate_metrics("long")
    connection.close()
    assert metrics["n"] == 15_002 - dropped
    assert caplog.messages.count("predictions arrive faster than they are stored: some are dropped") == 1


def test_many_are_logged_at_once_as_if_one_by_one(baseline):
    rng = np.random.default_rng(11)
    rows, _ = answers(2500, rng)
    rows[7] = np.nan
    brightness, latency, times = rng.random(2500), rng.random(2500) * 9, 1.7e9 + np.arange(2500.0)
    names = [f"{place}.jpg" for place in range(2500)]
    with ModelMonitor("one.db", baseline, model_version="1") as one, ModelMonitor("all.db", baseline) as many:
        ids = [
            one.log_prediction(row, statistics={"brightness": b}, latency_ms=ms, time=moment, source=name)
            for row, b, ms, moment, name in zip(rows, brightness, latency, times, names, strict=True)
        ]
        assert many.log_predictions(
            rows, statistics={"brightness": brightness}, latency_ms=latency, times=times, sources=names,
            prediction_ids=ids, model_version="1",
        ) == ids  # fmt: skip
        assert one.export("one.csv", probabilities=True) == 2500
        many.flush(MAX_WAIT_S)
        with ModelMonitor("all.db", model_version="1") as beside:
            assert beside.export("all.csv", probabilities=True) == 2500
    assert Path("one.csv").read_text() == Path("all.csv").read_text()


def test_many_logged_at_once_are_evaluated(monitor):
    monitor.log_predictions(answers(11_000, np.random.default_rng(13), strength=0.5)[0])
    assert monitor.flush(MAX_WAIT_S)
    assert "confidence_distribution" in {alert.metric for alert in monitor.alerts()}


def test_many_get_ids_of_their_own_in_order(monitor):
    before = monitor.log_prediction([1, 0, 0])
    ids = monitor.log_predictions([{"dog": 1, "cat": 0, "bird": 0}] * 12_000)
    after = monitor.log_prediction([1, 0, 0])
    assert [before, *ids, after] == sorted({before, *ids, after})
    assert monitor.flush(MAX_WAIT_S)
    assert monitor.record_feedback_many(dict.fromkeys(ids[-3:], "dog")) == 3
    metrics = monitor.calculate_metrics("long")
    assert (metrics["n"], metrics["n_labels"], metrics["accuracy"]) == (12_002, 3, 1.0)
    assert monitor.log_predictions([]) == monitor.log_predictions(np.zeros((0, 3))) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"probabilities": [[1, 0, 0], [0.5, 0.1, 0]]}, r"^probabilities\[1\] must add up to 1, got 0.6$"),
        ({"statistics": {"brightness": [1.0]}}, r"^statistics\['brightness'\] must be 2 numbers, one for each image"),
        ({"latency_ms": [1, "slow"]}, r"^latency_ms\[1\] must be a number, got 'slow'$"),
        ({"times": ["2026-11-24", "soon"]}, r"^times\[1\] must be a time such as 2026-11-24T08:00Z, got soon$"),
        ({"sources": ["a.jpg"]}, "^2 sources are needed, one for each prediction, got 1$"),
        ({"prediction_ids": [new_prediction_id()]}, "^2 prediction ids are needed, got 1$"),
    ],
)
def test_of_many_with_something_wrong_none_is_logged(monitor, more, message):
    with pytest.raises(SettingsError, match=message):
        monitor.log_predictions(**{"probabilities": [[1, 0, 0], [0, 1, 0]]} | more)
    with pytest.raises(UnknownPrediction, match="there is no prediction 'mine'"):
        monitor.log_predictions([[1, 0, 0]], prediction_ids=["mine"])
    assert monitor.calculate_metrics("long")["n"] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"latency_ms": "slow"}, "latency_ms must be a number, got 'slow'"),
        ({"statistics": {"a": "x"}}, r"statistics\['a'\] must be a number, got 'x'"),
        ({"time": float("nan")}, "time must lie between the years 1970 and 3000, in seconds since 1970, got nan"),
        ({"time": "soon"}, "time must be a time such as 2026-11-24T08:00Z, got soon"),
        ({"source": 5}, "source must be a text such as a file name, got int"),
    ],
)
def test_a_refused_prediction_loses_no_other(monitor, more, message):
    monitor.log_prediction([1, 0, 0])
    with pytest.raises(SettingsError, match=f"^{message}$"):
        monitor.log_prediction([1, 0, 0], **more)
    monitor.log_prediction([1, 0, 0], time="2026-11-24T08:00Z", latency_ms=np.float32(2), statistics={"a": None})
    metrics = monitor.calculate_metrics("long")
    assert (metrics["n"], metrics["until"]) == (2, datetime(2026, 11, 24, 8, tzinfo=UTC).timestamp())
    assert monitor.writer_stats()["lost"] == 0


def test_a_repeated_id_is_stored_once_and_logged(monitor, caplog):
    name = monitor.log_prediction([1, 0, 0])
    monitor.flush(MAX_WAIT_S)
    monitor.log_predictions([[0, 1, 0], [0, 0, 1]], prediction_ids=[name, new_prediction_id()])
    assert monitor.calculate_metrics("long")["class_shares"] == {"bird": 0.5, "cat": 0.0, "dog": 0.5}
    assert caplog.messages == ["1 predictions were not stored: the store has others with their ids already"]
