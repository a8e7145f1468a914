"""A replay raises the alerts that its parts raise by hand, and that a running monitor would have raised."""

import csv
import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from support.prediction_fixtures import answers, baseline_of
from toolkit.cli import terminal
from toolkit.errors import DataError, PredictionStoreError, SettingsError
from toolkit.monitoring.alerting.findings import evaluate_window
from toolkit.monitoring.alerting.state import AlertState
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.pipeline import replay_source
from toolkit.monitoring.pipeline.replay import replay
from toolkit.monitoring.pipeline.worker import MonitorConfig, MonitoringWorker
from toolkit.monitoring.stats.detector_set import DetectorSet
from toolkit.monitoring.store.export import export
from toolkit.monitoring.store.labels import LabelRows
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.rolling import RollingWindows

BASELINE = baseline_of(2000, np.random.default_rng(1))
CLASSES = BASELINE.classes
SHIFT = 1500
START = 1.7e9


def stream(n, *shifts, seed=2):
    """Probabilities and truth of ``n`` predictions; half of the answers from and up to such places are guessed."""
    rng = np.random.default_rng(seed)
    probabilities, truth = answers(n, rng)
    guessed = rng.random(n) < 0.5
    guesses = rng.integers(0, len(CLASSES), n)
    for start, stop in shifts:
        truth[start:stop] = np.where(guessed, guesses, truth)[start:stop]
    return probabilities, truth


def columns_of(probabilities, truth=None, late=None, **more):
    """The columns of a file, one prediction a second; labels come ``late`` seconds later, or without a time."""
    n = len(probabilities)
    columns = {"time": (START + np.arange(n)).tolist()}
    columns |= {f"probability_{name}": probabilities[:, k].astype(float).tolist() for k, name in enumerate(CLASSES)}
    if truth is not None:
        columns["label"] = [CLASSES[k] for k in truth]
    if late is not None:
        columns["label_time"] = (START + np.arange(n) + late).tolist()
    return columns | more


def write(path, columns):
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path, row_group_size=700)
        return path
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


def by_hand(probabilities, truth, thresholds):
    """The alerts of the parts in the short window, fed one prediction and then its label at a time."""
    n = len(probabilities)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float32)
    bins = ReferenceBins(CLASSES, BASELINE)
    rolling, detectors = RollingWindows(bins), DetectorSet(BASELINE, thresholds.max_false_alarms_per_million)
    states, active, events, alarms = {}, {}, [], {}
    for i in range(n):
        part = slice(i, i + 1)
        rows = Predictions(
            CLASSES, START + np.arange(n)[part], predicted[part], confidence[part], np.array([-1]),
            probabilities=probabilities[part], sequence=1 + np.arange(n)[part],
        )  # fmt: skip
        rolling.add(rows)
        for event in (2 * i + 1, 2 * i + 2):
            found = detectors.update(rows) if event % 2 else detectors.update_labels(predicted[part], truth[part])
            if event % 2 == 0:
                rolling.label(
                    [i + 1], old=[-1], new=truth[part], predicted=predicted[part], confidence=confidence[part]
                )
            first_alarms = [entry for entry in found if not states.get(entry.metric, AlertState()).evidence]
            alarms |= dict(found)
            if not (first_alarms or event % 100 == 0):
                continue
            for finding in evaluate_window(rolling.counts("short"), bins, thresholds, "short", alarms):
                key, now = finding.metric, float(rows.time[-1])
                states[key], change = states.get(key, AlertState()).advance(
                    finding, active.get(key), now, alarm=key in alarms, intervals=int(event % 100 == 0)
                )
                if change:
                    active[key] = change.applied(active.get(key), now)
                    events.append((i + 1, now, *change, key))
            alarms = {}
    return events, detectors.evidence


def events_of(result, window="short"):
    return [(e.position, e.time, e.event, e.level, e.status, e.metric) for e in result.events if e.window == window]


@pytest.fixture(scope="module")
def shifted():
    return stream(4000, (SHIFT, 4000))


def test_a_shift_is_found_and_stays(shifted, tmp_path):
    thresholds = Thresholds(max_false_alarms_per_million=10)
    result = replay(write(tmp_path / "stream.csv", columns_of(*shifted)), BASELINE, thresholds)
    raised = result.events[0]
    assert (raised.event, raised.metric) == ("raised", "accuracy")
    assert SHIFT < raised.position < SHIFT + 500
    assert {event.level for event in result.active_alerts if event.metric == "accuracy"} == {"immediate"}
    assert (result.n, result.n_labels, result.since, result.until) == (4000, 4000, START, START + 3999)


def test_alerts_are_raised_and_cleared_where_the_parts_do_so(tmp_path):
    thresholds, shifts = Thresholds(max_false_alarms_per_million=10), [(400, 900), (2800, 3300)]
    recorded = stream(5300, *shifts, seed=5)
    result = replay(write(tmp_path / "stream.csv", columns_of(*recorded)), BASELINE, thresholds)
    events, evidence = by_hand(*recorded, thresholds)
    assert events_of(result) == events
    assert result.evidence == pytest.approx(evidence)
    ends = [(e.event, e.position) for e in result.events if e.metric == "accuracy" and e.window == "short"]
    assert [event for event, _ in ends if event in ("raised", "cleared")] == ["raised", "cleared"] * 2
    assert result.active_alerts == ()


@pytest.mark.parametrize("seed", range(2))
def test_a_class_that_is_still_broken_is_not_cleared_for_few_labels(seed, tmp_path):
    """A tenth is labelled, so that some windows of 1,000 show nothing; afterwards it clears, once."""
    rng = np.random.default_rng(seed)
    probabilities, truth = answers(16_000, rng)
    predicted = probabilities.argmax(axis=1)
    fault = slice(1000, 10_000)
    broken = (predicted == 2) & (rng.random(len(truth)) < 0.35)
    truth[fault] = np.where(broken, 0, truth)[fault]
    columns = columns_of(probabilities, truth)
    unlabelled = rng.random(len(truth)) >= 0.1
    columns["label"] = ["" if unknown else name for unknown, name in zip(unlabelled, columns["label"], strict=True)]
    result = replay(write(tmp_path / "stream.csv", columns), BASELINE, Thresholds())
    happened = [event for event in result.events if event.metric == "accuracy" and event.event in ("raised", "cleared")]
    assert (happened[0].event, happened[0].window) == ("raised", "short")
    for window in ("short", "medium"):
        story = [event.event for event in happened if event.window == window]
        assert story in ([], ["raised"], ["raised", "cleared"])
    assert all(event.position > fault.stop for event in happened if event.event == "cleared")


def test_a_running_monitor_raises_the_same_alerts(shifted, tmp_path):
    thresholds, model = Thresholds(max_false_alarms_per_million=10), ModelVersion("1", CLASSES, BASELINE, served_at=1.0)
    store, notifications = PredictionStore(str(tmp_path / "m.db")), []
    store.versions.register(model)
    notifiers = SimpleNamespace(send=lambda sent, react: notifications.append(sent))
    worker = MonitoringWorker(store, thresholds, notifiers, MonitorConfig(clock=lambda: START))
    probabilities, truth = shifted
    for start in range(0, len(truth), 50):
        ids = range(start + 1, start + 51)
        store.write([LoggedPrediction(i, START + i - 1, model, probabilities[i - 1]) for i in ids])
        store.labels.insert({i: CLASSES[truth[i - 1]] for i in ids}, "audit", START + start + 49)
        worker.evaluate_now(model)
    result = replay(tmp_path / "m.db", None, thresholds, repeat_interval=600.0)
    written = [
        (alert.time, alert.level, alert.status, alert.metric, alert.window, alert.message)
        for alert in reversed(store.alerts.find())
    ]
    store.close()
    events = [event for event in result.events if event.event != "reminder"]
    assert [(e.event, e.level, e.status, e.metric, e.window) for e in events] == [
        (n.event, n.level, n.status, n.metric, n.window) for n in notifications
    ]
    assert written == [
        (e.time, e.level, e.status, e.metric, e.window, e.message) for e in events if e.event != "cleared"
    ]
    assert {event.event for event in result.events} >= {"raised", "reminder"}
    assert result.evidence == pytest.approx(worker.stream(model).evidence)


def test_other_thresholds_other_levels(shifted, tmp_path):
    path = write(tmp_path / "stream.parquet", columns_of(*shifted))
    strict, mild, deaf = (
        replay(path, BASELINE, thresholds)
        for thresholds in (
            Thresholds(max_false_alarms_per_million=100),
            Thresholds(max_false_alarms_per_million=100, warning=0.3, critical=0.5, immediate=0.7),
            Thresholds(max_false_alarms_per_million=0.001),
        )
    )
    levels = [{event.level for event in result.events if event.metric == "accuracy"} for result in (strict, mild)]
    assert "immediate" in levels[0]
    assert levels[1] == {"warning"}
    assert strict.events[0].position < deaf.events[0].position
    assert (strict.expected_false_alarms, deaf.expected_false_alarms) == pytest.approx((0.4, 0.000004))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_calm_stream_gives_nothing(tmp_path, ending):
    result = replay(write(tmp_path / f"stream{ending}", columns_of(*stream(4000))), BASELINE, Thresholds())
    assert result.events == ()
    assert all(0 < evidence < 1 for evidence in result.evidence.values())
    assert "Nothing would have been raised." in str(result)


def test_what_the_export_writes_replays_like_the_store(shifted, tmp_path, monkeypatch):
    monkeypatch.setattr(replay_source, "PAGE_SIZE", 333)
    monkeypatch.setattr(replay_source, "PAGE_BYTES", 20_000)
    store, model = PredictionStore(str(tmp_path / "m.db")), ModelVersion("1", CLASSES, BASELINE, served_at=1.0)
    probabilities, truth = shifted[0][:2500].copy(), shifted[1]
    probabilities[100:300:10, 1] = np.nan
    rng = np.random.default_rng(3)
    brightness = rng.normal(0.5, 0.1, len(probabilities))
    for i in range(0, 2500, 5):
        made = enumerate(probabilities[i : i + 5], start=i)
        store.write([LoggedPrediction(j + 1, START + j, model, row, {"brightness": brightness[j]}) for j, row in made])
        store.labels.insert({i + 1: CLASSES[truth[i]]}, "audit", START + i + 4)
    paths = [tmp_path / "m.db", tmp_path / "out.csv", tmp_path / "out.parquet"]
    for path in paths[1:]:
        export(store, path, model, probabilities=True)
    store.close()
    thresholds = Thresholds(max_false_alarms_per_million=1000)
    results = [
        replay(path, baseline, thresholds) for path, baseline in zip(paths, [None, BASELINE, BASELINE], strict=True)
    ]
    assert results[0].events
    assert results[0].n_labels == 500
    assert results[0].model_version == "1"
    assert results[1] == results[2] == results[0]


def test_a_replay_knows_drawn_labels_and_may_trust_the_others(shifted, tmp_path):
    def worst(source, thresholds):
        columns = columns_of(shifted[0][:2500], shifted[1][:2500])
        labelled = np.random.default_rng(4).random(2500) < 0.5
        columns["label"] = [name if known else None for name, known in zip(columns["label"], labelled, strict=True)]
        columns["label_source"] = [source] * 2500
        events = replay(write(tmp_path / "stream.csv", columns), BASELINE, thresholds).events
        return {event.status for event in events if (event.metric, event.level) == ("accuracy", "immediate")}

    assert worst("user", Thresholds()) == {"suspected"}
    assert "confirmed" in worst("audit: ada", Thresholds())
    assert "confirmed" in worst("user", Thresholds(trust_labels=True))


def test_classes_and_confidence_are_enough(shifted, tmp_path):
    probabilities, truth = shifted
    whole = write(tmp_path / "whole.csv", columns_of(probabilities, truth))
    answered = {
        "time": (START + np.arange(len(truth))).tolist(),
        "predicted_class": [CLASSES[k] for k in probabilities.argmax(axis=1)],
        "confidence": probabilities.max(axis=1).astype(float).tolist(),
        "label": [CLASSES[k] for k in truth],
    }
    short = write(tmp_path / "short.csv", answered)
    thresholds = Thresholds(max_false_alarms_per_million=10)
    one, other = (replay(path, BASELINE, thresholds) for path in (whole, short))
    assert events_of(other)[0] == events_of(one)[0]
    assert other.evidence == one.evidence
    assert not any("estimated" in event.message for event in other.events)


def test_a_label_counts_from_its_time(shifted, tmp_path):
    thresholds = Thresholds(max_false_alarms_per_million=10)
    at_once, later, never = (
        replay(write(tmp_path / "stream.csv", columns_of(*shifted, late=late)), BASELINE, thresholds)
        for late in (0, 700, 1e6)
    )
    assert events_of(at_once) == events_of(
        replay(write(tmp_path / "no_time.csv", columns_of(*shifted)), BASELINE, thresholds)
    )
    first = [
        next(e for e in result.events if e.metric == "accuracy" and e.window == "short")
        for result in (at_once, later, never)
    ]
    assert [event.position - first[0].position for event in first] == [0, 700, 4000 - first[0].position]
    assert first[2].time > START + 1e6
    assert {result.n_labels for result in (at_once, later, never)} == {4000}
    assert at_once.evidence == later.evidence == never.evidence


def test_complaints_are_no_sample(shifted, tmp_path):
    sources = ["complaint" if i >= SHIFT else "audit" for i in range(4000)]
    path = write(tmp_path / "stream.csv", columns_of(*shifted, label_source=sources))
    result = replay(path, BASELINE, Thresholds(max_false_alarms_per_million=10))
    assert result.n_labels == SHIFT
    assert "accuracy" not in {event.metric for event in result.events}


def test_one_version_is_chosen(shifted, tmp_path):
    versions = ["1" if i % 2 else "2" for i in range(4000)]
    path = write(tmp_path / "stream.csv", columns_of(*shifted, model_version=versions))
    result = replay(path, BASELINE, Thresholds(), model_version="2")
    assert (result.n, result.model_version) == (2000, "2")
    with pytest.raises(
        DataError, match=r"row 2: model_version must be '2' as before, or one of them must be chosen, got '1'$"
    ):
        replay(path, BASELINE, Thresholds())
    with pytest.raises(DataError, match=r"^.*stream.csv: no prediction is of version 3; the versions are 2, 1$"):
        replay(path, BASELINE, Thresholds(), model_version="3")


def test_non_finite_predictions_raise_an_alert(shifted, tmp_path):
    probabilities = shifted[0][:1000].copy()
    probabilities[500:] = np.nan
    result = replay(write(tmp_path / "stream.csv", columns_of(probabilities)), BASELINE, Thresholds())
    assert {event.metric for event in result.events} == {"non_finite"}
    assert [(event.event, event.level) for event in result.events if event.window == "short"] == [
        ("raised", "critical"),
        ("escalated", "immediate"),
    ]


@pytest.mark.parametrize("kind", ["seconds", "texts", "naive", "zone"])
def test_times_are_read_in_many_forms(shifted, tmp_path, kind):
    columns = columns_of(shifted[0][:200])
    moments = (np.array(columns["time"]) * 1e6).astype("datetime64[us]")
    columns["time"] = {
        "seconds": columns["time"],
        "texts": [f"{moment}Z" for moment in moments],
        "naive": pa.array(moments),
        "zone": pa.array(moments.astype("datetime64[ns]"), pa.timestamp("ns", "Europe/Berlin")),
    }[kind]
    result = replay(write(tmp_path / "stream.parquet", columns), BASELINE, Thresholds())
    assert (result.since, result.until) == (START, START + 199)


def test_it_is_ready_for_json_and_for_a_terminal(shifted, tmp_path):
    path = write(tmp_path / "stream.csv", columns_of(*shifted))
    result = replay(path, BASELINE, Thresholds(max_false_alarms_per_million=10), repeat_interval=60)
    read = json.loads(json.dumps(result.to_dict()))
    assert read["events"] == [asdict(event) for event in result.events]
    assert read["thresholds"]["max_false_alarms_per_million"] == 10
    assert len(read["active_alerts"]) == len(result.active_alerts) > 0
    lines = str(result).splitlines()
    assert lines[0] == "4,000 predictions and 4,000 labels, 2023-11-14 22:13:20 to 2023-11-14 23:19:59."
    assert " reminders are not listed." in lines[1]
    assert lines[2] == "Budget 10 false alarms per million predictions: 0.04 to be expected here at most."
    assert lines[5].split()[:2] == ["prediction", "time"]
    assert f"{result.events[0].position:,}" in lines[6]
    assert lines[7].strip() == result.events[0].message


def test_an_empty_file_is_a_replay_of_nothing(tmp_path):
    path = tmp_path / "stream.csv"
    path.write_text("time,predicted_class,confidence\n")
    result = replay(path, BASELINE, Thresholds())
    assert (result.n, result.n_labels, result.since, result.events) == (0, 0, None, ())
    assert str(result).startswith("0 predictions and 0 labels.")


def test_progress_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SILENCE_S", 0.0)
    monkeypatch.setattr(terminal, "REFRESH_S", 0.0)
    monkeypatch.setattr(replay_source, "PAGE_SIZE", 200)
    replay(write(tmp_path / "stream.parquet", columns_of(*stream(600))), BASELINE, Thresholds())
    assert "replaying: 200 of 600 predictions, 33 %, " in capsys.readouterr().out


HEAD = "time,predicted_class,confidence,label"
WHOLE = "time,probability_class 0,probability_class 1,probability_class 2"
NAMED = f"{WHOLE},predicted_class"
TOO_LATE = "time must lie between the years 1970 and 3000, in seconds since 1970, got "


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        (HEAD, "1,class 0,0.5,\n2,class 0,nan,", "row 2: confidence must lie between 0 and 1, got nan"),
        (HEAD, "1,class 0,,", "row 1: confidence must lie between 0 and 1, got nan"),
        (HEAD, "1,class 0,7.5,", "row 1: confidence must lie between 0 and 1, got 7.5"),
        (HEAD, "1,,0.5,", "row 1: confidence must be empty without a predicted_class, got 0.5"),
        (HEAD, "1,fox,0.5,", "row 1: predicted_class must be one of class 0, class 1, class 2, got 'fox'"),
        (HEAD, "1,class 0,0.5,class 4", "row 1: label must be one of class 2, class 1, class 0, got 'class 4'"),
        (HEAD, "1,class 0,much,", "row 1: confidence must be a number, got 'much'"),
        (HEAD, "\n1,class 0,0.5,\nnow,,,", "row 2: time must be a time such as 2026-11-24T08:00Z, got 'now'"),
        (HEAD, ",class 0,0.5,", "row 1: time must be given, got nan"),
        (HEAD, "1.7e12,class 0,0.5,", rf"row 1: {TOO_LATE}1.7e\+12"),
        (HEAD, "1700000000000,class 0,0.5,", rf"row 1: {TOO_LATE}1.7e\+12"),
        (HEAD, "2999-12-31,class 0,0.5,\n3000-01-01,,,", rf"row 2: {TOO_LATE}3.25e\+10"),
        (WHOLE, "1,3.2,-2,-0.2", "row 1: probability_class 0 must lie between 0 and 1, got 3.2"),
        (WHOLE, "1,0.3,0.3,0.3", "row 1: probabilities must add up to 1, got 0.9"),
        (NAMED, "1,0.5,,0.5,fox", "row 1: predicted_class must be empty without probabilities, got 'fox'"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_row(tmp_path, monkeypatch, head, rows, message):
    monkeypatch.setattr(replay_source, "PAGE_BYTES", 100)  # a row or two
    path = tmp_path / "stream.csv"
    path.write_text(f"{head}\n{rows}")
    with pytest.raises(DataError, match=f"^{path}, {message}$"):
        replay(path, BASELINE, Thresholds())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " cannot be read: Empty CSV file"),
        (f"{HEAD}\n1,class 0,0.5", " cannot be read: CSV parse error: row 1: Expected 4 columns, got 3: 1,class 0,0.5"),
        ("predicted_class,confidence\n", ": there is no column 'time'; the columns are predicted_class, confidence"),
        ("time,confidence\n", ": there is no column 'predicted_class'; the columns are .*"),
        ("time,probability_x\n", ": there is no column 'probability_class 0'; the columns are probability_x, time"),
        ("time,time,predicted_class,confidence\n", ": the column 'time' comes twice"),
        (f"{WHOLE},probability_fox\n", ": there is a column 'probability_fox', and the classes are .*"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path, text, message):
    path = tmp_path / "stream.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"^{path}{message}$"):
        replay(path, BASELINE, Thresholds())


def test_what_cannot_be_read_is_said_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.csv cannot be read: No such file or directory$"):
        replay(tmp_path / "nowhere.csv", BASELINE, Thresholds())
    (tmp_path / "latin.csv").write_bytes(f"{HEAD}\n1,class 0,0.5,\xe9".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.csv cannot be read: In CSV column #3: row 1: .* invalid UTF8 data$"):
        replay(tmp_path / "latin.csv", BASELINE, Thresholds())
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"torn.parquet cannot be read: Parquet magic bytes not found"):
        replay(tmp_path / "torn.parquet", BASELINE, Thresholds())
    columns = {"time": [1.0], "predicted_class": ["class 0"], "confidence": [[0.5]]}
    with pytest.raises(DataError, match=r", row 1: confidence must be a number, got '\[0.5\]'$"):
        replay(write(tmp_path / "lists.parquet", columns), BASELINE, Thresholds())
    with pytest.raises(SettingsError, match=r"can only be replayed with a baseline that holds images$"):
        replay(tmp_path / "lists.parquet", None, Thresholds())


def test_a_store_must_hold_the_version_and_the_same_classes(tmp_path):
    path = tmp_path / "m.db"
    with pytest.raises(PredictionStoreError, match=r"^the store .*m.db holds no predictions$"):
        replay(path, BASELINE, Thresholds())
    store = PredictionStore(str(path))
    store.versions.register(ModelVersion("1", ("cat", "dog")))
    store.close()
    with pytest.raises(PredictionStoreError, match=r"^there is no model version 2 in the store .*m.db; there are 1$"):
        replay(path, BASELINE, Thresholds(), model_version="2")
    with pytest.raises(SettingsError, match=r"^version 1 can only be replayed with a baseline that holds images$"):
        replay(path, None, Thresholds())
    with pytest.raises(SettingsError, match=r"^version 1 has the classes cat, dog; those of the baseline are class 0"):
        replay(path, BASELINE, Thresholds())


def parts_of(times, delays, sizes):
    """Rows cut into parts of these sizes, with a label for each that has a delay, and all of them as one list."""
    n = len(times)
    none, place = np.zeros(n, int), np.arange(n)
    rows = Predictions(("a",), np.array(times), none, np.ones(n), none, sequence=place)
    due = np.array(times) + np.array(delays)
    all_labels = LabelRows.from_columns(none, none, place, place, *[none] * 3, due, *[none] * 4)
    first, parts = 0, []
    for size in [*sizes, n]:
        part = slice(first, min(first + size, n))
        labels = all_labels.take(part)
        parts.append((rows.slice(part.start, part.stop), labels.take(~np.isnan(labels.time))))
        first = part.stop
    return parts


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 8), st.one_of(st.just(np.nan), st.just(-np.inf), st.integers(-2, 9))), max_size=30
    ),
    sizes=st.lists(st.integers(0, 9), max_size=4),
)
def test_labels_come_at_their_times_and_after_their_predictions(rows, sizes):
    times, delays = [float(time) for time, _ in rows], [float(delay) for _, delay in rows]
    found = []
    for part, labels, due in replay_source.in_order(parts_of(times, delays, sizes)):
        places = np.searchsorted(due, np.arange(part.n), side="right") + np.arange(part.n)
        merged = [(int(place), ("row", int(i))) for place, i in zip(places, part.sequence, strict=True)]
        merged += [(int(d) + j, ("label", int(i))) for j, (d, i) in enumerate(zip(due, labels.labels, strict=True))]
        found += [what for _, what in sorted(merged)]
        assert (np.diff(labels.time) >= 0).all()
    clocks = np.maximum.accumulate(times) if times else []
    expected = []  # (rows before it, label before row, time, what)
    for i, (time, delay) in enumerate(zip(times, delays, strict=True)):
        expected.append((i, 1, 0.0, ("row", i)))
        if not np.isnan(delay):
            due = max(i + 1, sum(clock <= time + delay for clock in clocks))
            expected.append((due, 0, time + delay, ("label", i)))
    expected = [what for *_, what in sorted(expected, key=lambda entry: entry[:3])]
    assert found == expected
