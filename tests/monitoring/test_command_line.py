"""The command line of monitoring.py."""

import gc
import json
import signal
import sys
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

import monitoring
from support import scripts
from support.monitored_streams import feed
from toolkit.cli.settings import run_script


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line in this process, where it is imported already."""
    on_sigterm = signal.getsignal(signal.SIGTERM)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["monitoring.py", *words])
        with pytest.raises(SystemExit) as end:
            run_script(monitoring.main)
        return CompletedProcess(words, end.value.code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, on_sigterm)
    gc.unfreeze()


def test_the_command_line_says_what_the_monitor_says(monitor, run, monkeypatch):
    feed(monitor, 500, np.random.default_rng(10), strength=0.5)
    monitor.close()
    report = scripts.run_script("monitoring.py", "report", "--store", "m.db", "--plot", "accuracy.png")
    assert (report.returncode, report.stderr) == (0, "")
    worst = next(alert for alert in monitor.active_alerts() if alert.level == "immediate")
    assert report.stdout.startswith(f"{worst.level.upper()} ({worst.status}): {worst.message}\n\n")
    assert "Model version 1, short window" in report.stdout
    assert "confidence_distribution  drift" in report.stdout
    assert Path("accuracy.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setenv("MONITORING_STORE", "m.db")
    as_json = json.loads(run("report", "--window", "medium", "--json").stdout)
    assert as_json["metrics"] == monitor.calculate_metrics("medium")
    assert as_json["drift"] == monitor.detect_drift("medium").to_dict()
    alerts = json.loads(run("alerts", "--store", "m.db", "--json", "--level", "immediate").stdout)
    assert alerts == [alert.to_dict() for alert in monitor.alerts(level="immediate")]
    text = run("alerts", "--store", "m.db", "--since", "2023-11-14T00:00Z").stdout
    assert "IMMEDIATE (confirmed)  accuracy of version 1, short window" in text
    for line in (alerts[0]["message"], *(f"  {line}" for line in alerts[0]["details"].splitlines())):
        assert f"\n  {line}\n" in text
    assert run("alerts", "--store", "m.db", "--since", "2033-01-01").stdout == "No alerts.\n"


def test_a_mistyped_store_empties_no_file(run):
    Path("kept.csv").write_text("of another day")
    result = run("export", "kept.csv", "--store", "typo.db")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "monitoring.py: error: the store typo.db holds no predictions\n"
    assert Path("kept.csv").read_text() == "of another day"
    assert run("labels", "--store", "typo.db").stderr == "No predictions have been logged in typo.db yet.\n"


def test_acknowledge_export_and_labels(monitor, run):
    feed(monitor, 400, np.random.default_rng(10), strength=0.5)
    unlabelled = monitor.log_predictions(
        np.eye(3)[[0, 1, 2, 0] * 25], sources=[f"{i}\n.jpg" for i in range(99)] + [None]
    )
    monitor.close()
    number = monitor.alerts()[0].id
    done = run("alerts", "--store", "m.db", "--acknowledge", str(number), "--by", "ada")
    assert done.stdout == f"alert {number} is acknowledged: no reminders unless it escalates\n"
    assert f"acknowledged by ada  [{number}]" in run("alerts", "--store", "m.db").stdout
    assert run("export", "p.csv", "--store", "m.db", "--probabilities").stdout == "500 predictions written to p.csv\n"
    rows = Path("p.csv").read_text().splitlines()
    assert len(rows) == 501
    assert rows[0].startswith('"id","time","source",')
    assert sum(r"\n.jpg" in row for row in rows) == 99
    assert run("export", "q.csv", "--store", "m.db", "--since", "2999-01-01").stdout.startswith("0 predictions")
    assert rows[0].endswith('"probability_bird","probability_cat","probability_dog"')
    lines = [line.split("  ") for line in run("labels", "--store", "m.db", "--count", "30").stdout.splitlines()]
    wanted = [words[0] for words in lines]
    assert wanted == monitor.labels_wanted(30)
    assert len(set(wanted) & set(unlabelled)) == 30
    names = monitor.sources(wanted)
    assert [words[1:] for words in lines] == [[names[one]] if one in names else [] for one in wanted]
    assert all(names[one] == rf"{unlabelled.index(one)}\n.jpg" for one in names)
    monitor.record_feedback_many(dict.fromkeys(monitor.labels_wanted(100), "cat"), source="audit")
    done = run("labels", "--store", "m.db")
    assert (done.stdout, done.stderr) == (
        "", "nothing is left to label: enough of the sample is labelled already\n"
    )  # fmt: skip


def test_replay_with_other_thresholds(monitor, baseline, run):
    feed(monitor, 600, np.random.default_rng(10), strength=0.8)
    monitor.export("p.parquet", probabilities=True)
    monitor.close()
    Path("baseline.npz").write_bytes(baseline.to_bytes())
    once, again = (json.loads(run("replay", *words, "--json").stdout) for words in (
        ("p.parquet", "--baseline", "baseline.npz"), ("m.db", "--immediate", "0.9", "--critical", "0.8")
    ))  # fmt: skip
    assert once["n"] == again["n"] == 600
    assert {event["metric"] for event in once["events"]} >= {"accuracy", "confidence_distribution"}
    assert "immediate" in {event["level"] for event in once["events"]}
    assert {event["level"] for event in again["events"]} == {"warning"}
    assert "600 predictions" in run("replay", "p.parquet", "--store", "m.db").stdout


def test_the_command_line_on_an_empty_folder(tmp_path, run):
    assert run("report").stdout == "No predictions have been logged in sqlite:///monitoring.db yet.\n"
    assert run("alerts").stdout == "No alerts.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "a.txt"), "an export must end in .parquet or .csv, got a.txt"),
        (("alerts", "--acknowledge", "7"), "no alert 7 is active in sqlite:///monitoring.db"),
        (("replay", "no.parquet", "--baseline", "no.npz"), "--baseline no.npz cannot be read: No such file"),
        (("replay", "no.parquet"), "no.parquet cannot be read: No such file or directory"),
        (("replay", "one.csv"), "one.csv can only be replayed with a baseline that holds images"),
        (("replay", "no.csv", "--warning", "0.3"), "the levels must grow from warning over critical to immediate"),
        (("replay", "a.csv", "--ignore", "recall"), "ignore must be one of accuracy, confidence_distribution, "),
        (("labels", "--count", "0"), "--count must be at least 1, got 0"),
        (("report", "--store", "broken.db"), "the store broken.db cannot be opened: file is not a database"),
        (("alerts", "--store", "broken.db"), "the store broken.db cannot be opened: file is not a database"),
        (("report", "--store", "no/m.db"), "the store cannot be at no/m.db: the folder no does not exist"),
        (("report", "--plot", "no/a.png"), "--plot no/a.png cannot be written: "),
        (("alerts", "--since", "soon"), "--since must be a time such as 2026-11-24T08:00Z, got soon"),
        (("report", "--bogus"), "unknown argument --bogus"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, message, run):
    Path("one.csv").write_text("time,predicted_class,confidence\n0,a,0.5\n")
    Path("broken.db").write_bytes(b"not a database" * 1000)
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"monitoring.py: error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_mistyped_subcommand_is_one_line():
    done = scripts.run_script("monitoring.py", "reprot")
    assert scripts.error_line(done).startswith("monitoring.py: error: unknown subcommand reprot; there are: report, ")
    assert done.stderr.count("\n") == 1
