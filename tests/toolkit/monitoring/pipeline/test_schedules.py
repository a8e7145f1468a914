"""Alerts are a function of the store: no schedule of processes, restarts and kills changes them."""

import itertools
import json
import multiprocessing
import os
import threading
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import ModelMonitor, MonitorConfig, Notifier, Thresholds
from support import MAX_WAIT_S
from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.ids import format_id
from toolkit.monitoring.store import database, schema
from toolkit.monitoring.store.predictions import PredictionStore

CLASSES = ("cat", "dog", "owl")
LIMITS = Thresholds(max_false_alarms_per_million=1000)
START = 1.7e9  # time of the first prediction, in seconds since 1970
N = 600  # predictions in the stream
KILLED = 9  # exit status


def make_stream(n, rng):
    """Probabilities of a model that is right and sure except in the second tenth, and the true classes."""
    spoilt = (np.arange(n) >= n // 10) & (np.arange(n) < n // 5)
    confidence = np.where(spoilt, rng.uniform(0.4, 0.9, n), rng.uniform(0.7, 1, n))
    called = np.where(spoilt, rng.choice(3, n, p=[0.7, 0.2, 0.1]), rng.integers(0, 3, n))
    probabilities = np.repeat((1 - confidence[:, None]) / 2, 3, axis=1)
    probabilities[np.arange(n), called] = confidence
    wrong = rng.random(n) < np.where(spoilt, 0.6, 0.1)
    return probabilities, (called + wrong * rng.integers(1, 3, n)) % 3


def make_baseline():
    probabilities, truth = make_stream(10_000, np.random.default_rng(0))
    return Baseline(CLASSES, probabilities[2000:], truth[2000:])


BASELINE = make_baseline()
PROBABILITIES, TRUTH = make_stream(N, np.random.default_rng(1))
PROBABILITIES[[5, 130, 400]] = np.nan


@pytest.fixture(scope="module", autouse=True)
def patient():
    """On the busiest machine no process gives up because another one holds the lock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "BUSY_TIMEOUT_S", MAX_WAIT_S)
        yield


class Lines(Notifier):
    """Notices as lines of a file that several processes share."""

    def __init__(self, path):
        self.path = path

    def send(self, notice):
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(asdict(notice)).encode() + b"\n")


def open_monitor(folder, **more):
    config = MonitorConfig(notifiers={"lines": Lines(folder / "notices")}, **more)
    return ModelMonitor(folder / "m.db", BASELINE, model_version="1", thresholds=LIMITS, config=config)


def log(monitor, places):
    monitor.log_predictions(
        PROBABILITIES[places],
        prediction_ids=[format_id(1 + place) for place in places],
        sources=[f"{place}.jpg" for place in places],
        times=[START + place for place in places],
    )
    assert monitor.flush(MAX_WAIT_S)


def label(monitor, labels, source="audit"):
    """Record labels, given as pairs of a place in the stream and a class."""
    monitor.record_feedback_many({format_id(1 + place): CLASSES[k] for place, k in labels}, source=source)
    assert monitor.flush(MAX_WAIT_S)


def read_store(folder):
    """Place in the stream by sequence number, and all labels in their order."""
    store = PredictionStore(str(folder / "m.db"))
    made, given = schema.predictions.c, schema.labels.c
    query = sa.select(made.sequence, made.id).order_by(made.sequence)
    places = {row.sequence: row.id - 1 for row in store.database.fetch_all(query)}
    query = sa.select(given.after, given.time, given.source, given.prediction, given.label).order_by(given.number)
    labels = store.database.fetch_all(query)
    store.close()
    return places, labels


def repeat_unbroken(source, folder):
    """Log the same predictions and labels in the same order, in one process."""
    places, labels = read_store(source)
    now, done = START, 0
    with open_monitor(folder, clock=lambda: now) as monitor:
        for about, batch in itertools.groupby(labels, lambda row: row[:3]):
            after, now, kind = about
            log(monitor, [place for sequence, place in places.items() if done < sequence <= after])
            label(monitor, [(places[row.prediction], row.label) for row in batch], kind)
            done = after
        log(monitor, [place for sequence, place in places.items() if sequence > done])


def results(folder):
    """Alerts, notices and metrics of a store, without the times of the notices."""
    with ModelMonitor(folder / "m.db") as monitor:
        alerts = [asdict(alert) | {"notified_at": None} for alert in monitor.alerts()]
        metrics = monitor.calculate_metrics()
    lines = (folder / "notices").read_text().splitlines() if (folder / "notices").exists() else []
    return alerts, sorted((json.loads(line) | {"time": None} for line in lines), key=json.dumps), metrics


def work(orders, folder, statements, pause):
    """Log, label and evaluate as ordered; die when the writer's thread has executed that many statements.

    That is never between writing an alert and sending it, nor while the main thread does so: with these pauses
    the writer's thread works only while the main thread waits for it.
    """
    if statements is not None:
        left = iter(range(statements))

        def die_in_time(*_):
            if threading.current_thread().name == "monitoring-writer" and next(left, None) is None:
                os._exit(KILLED)

        sa.event.listen(sa.Engine, "before_cursor_execute", die_in_time)
    with open_monitor(folder, evaluation_pause=pause) as monitor:
        acts = {"log": log, "label": label, "evaluate": ModelMonitor.check_alerts}
        while (order := orders.recv())[0] != "end":
            acts[order[0]](monitor, *order[1:])
            orders.send("done")


def read(orders, folder):
    """Read as a notebook does, which knows nothing but where the store is."""
    notebook = ModelMonitor(folder / "m.db", config=MonitorConfig(notifiers={"lines": Lines(folder / "notices")}))
    while orders.recv()[0] != "end":
        notebook.alerts()
        notebook.calculate_metrics()
        notebook.detect_drift(None)
        orders.send("done")


class Program:
    """A process that does what it is ordered to do, one order after the other."""

    def __init__(self, target, *about):
        self._orders, theirs = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=target, args=(theirs, *about), daemon=True)
        self._process.start()
        theirs.close()

    def order(self, *words):
        self._orders.send(words)

    def is_done(self):
        """Wait until it has done what it was ordered to do; False when it was killed on the way."""
        try:
            return self._orders.recv() == "done"
        except (EOFError, ConnectionResetError):
            self._process.join()
            assert self._process.exitcode == KILLED
            return False

    def end(self):
        self.order("end")
        self._process.join()
        assert self._process.exitcode in (0, KILLED)


class Schedule:
    """Two programs and a notebook on one store; what a killed program did not store is logged by the next."""

    def __init__(self, folder):
        self.folder = folder
        self.waiting = list(range(N))  # places in the stream that are not logged yet
        self.unlabelled, self.labelled = [], []
        self.programs = {}
        self.under_way = {}

    def step(self, name, action, amount, source, statements, pause, together):
        """Give one order, and wait until it is done unless the other program is to work at the same time."""
        self.finish(name)
        if action == "end" and name in self.programs:
            self.programs.pop(name).end()
        elif action == "read":
            if "notebook" not in self.programs:
                self.programs["notebook"] = Program(read, self.folder)
            self.programs["notebook"].order("read")
            assert self.programs["notebook"].is_done()
        elif action != "end":
            if name not in self.programs:
                self.programs[name] = Program(work, self.folder, statements, pause)
            self.under_way[name] = self.make_order(action, amount, source)
            self.programs[name].order(*self.under_way[name])
        if not together:
            self.finish_all()

    def make_order(self, action, amount, source):
        if action == "log":
            places, self.waiting = self.waiting[:amount], self.waiting[amount:]
            return action, places
        if action == "label":
            places, self.unlabelled = self.unlabelled[:amount], self.unlabelled[amount:]
            again = self.labelled[-amount // 4 :: 2]  # every other one of these with another class
            labels = [(place, TRUTH[place]) for place in places]
            return action, labels + [(place, (TRUTH[place] + place % 2) % 3) for place in again], source
        return (action,)

    def finish(self, name):
        order = self.under_way.pop(name, None)
        if order is None:
            return
        lives = self.programs[name].is_done()
        if not lives:
            del self.programs[name]
        if order[0] == "log":
            stored = set(order[1]) if lives else set(read_store(self.folder)[0].values())
            self.unlabelled += [place for place in order[1] if place in stored]
            self.waiting[:0] = [place for place in order[1] if place not in stored]
        elif order[0] == "label":
            places = [place for place, _ in order[1]]
            self.labelled += places
            self.unlabelled[:0] = [] if lives else places  # once more: perhaps they were not stored

    def finish_all(self):
        for name in list(self.under_way):
            self.finish(name)

    def complete(self):
        """Log and label the rest in a program of its own, and end all."""
        self.finish_all()
        while self.waiting or self.unlabelled:
            self.step("last", "log", 400, "", None, 0.0, together=False)
            self.step("last", "label", 400, "audit", None, 0.0, together=False)
        for program in self.programs.values():
            program.end()


STEPS = st.tuples(
    st.sampled_from(["one", "other"]),
    st.sampled_from(["log", "log", "label", "label", "evaluate", "end", "end", "read"]),
    st.integers(1, 60),
    st.sampled_from(["audit", "user", "complaint"]),
    st.none() | st.integers(0, 60),
    st.sampled_from([0.0, 1e9]),
    st.booleans(),
)


@settings(max_examples=6, deadline=None)
@given(st.lists(STEPS, min_size=20, max_size=30))
def test_no_schedule_changes_the_alerts(steps):
    with TemporaryDirectory() as here, TemporaryDirectory() as there:
        schedule = Schedule(Path(here))
        for step in steps:
            schedule.step(*step)
        schedule.complete()
        repeat_unbroken(Path(here), Path(there))
        found, expected = results(Path(here)), results(Path(there))
    assert expected[0]
    assert found == expected


@pytest.mark.parametrize("size", [40, 300])
def test_short_processes_raise_the_same_alerts(tmp_path, size):
    many, one = tmp_path / "many", tmp_path / "one"
    many.mkdir()
    one.mkdir()
    for first in range(0, 600, size):
        with open_monitor(many) as monitor:
            log(monitor, range(first, first + size))
            label(monitor, [(place, TRUTH[place]) for place in range(first, first + size)])
    repeat_unbroken(many, one)
    alerts, notices, metrics = results(many)
    assert {alert["metric"] for alert in alerts} >= {"accuracy", "prediction_distribution"}
    assert len(notices) >= len(alerts)
    assert (alerts, notices, metrics) == results(one)
