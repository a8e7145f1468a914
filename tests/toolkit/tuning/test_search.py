"""A search keeps its workers busy, has the same result whatever interrupts it, and ends by its stop conditions.

The pool runs in simulated time: its work is known beforehand, so that each moment can be worked out by hand.
"""

import json
from collections import deque
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from support.trials import fold
from toolkit.errors import DataError, ToolkitError
from toolkit.tuning.search import (
    FoldDone,
    Result,
    Search,
    SearchConfig,
    SearchHooks,
    Step,
    message_from_json,
    message_json,
)  # fmt: skip
from toolkit.tuning.space import Choice, Integers
from toolkit.tuning.study import Study, StudyConfig
from toolkit.tuning.trial import Trial
from toolkit.tuning.worker_pool import Event

SPACE = {"epochs": Integers(1, 10**6), "optimizer": Choice(("adam",))}
ONE_POINT = {"epochs": Choice((5,)), "optimizer": Choice(("adam",))}
RANDOM_ONLY = 10**9  # start-up trials: more than any study here has


# --- a pool with known work ---------------------------------------------------------------------


class Clock:
    """Simulated seconds."""

    now = 0.0

    def __call__(self):
        return self.now


class Pool:
    """Workers in simulated time. A task is a list of events: seconds after its start, kind and value."""

    def __init__(self, size, clock):
        self.size, self.clock = size, clock
        self.running = {}
        self.started = []  # when, and which task
        self.events_at_stop = []  # with the key instead of the seconds
        self.interrupted_at = float("inf")

    @property
    def n_idle(self):
        return self.size - len(self.running)

    def start(self, key, task):
        assert self.n_idle > 0
        assert key not in self.running
        self.started.append((self.clock.now, key))
        self.running[key] = deque((self.clock.now + seconds, kind, value) for seconds, kind, value in task)

    def wait(self, timeout):
        assert self.running, "no worker is busy"
        until = float("inf") if timeout is None else self.clock.now + timeout
        moment = min(events[0][0] for events in self.running.values())
        self.clock.now = min(moment, until, self.interrupted_at)
        if self.clock.now == self.interrupted_at:
            raise KeyboardInterrupt
        return [event for key in list(self.running) for event in self._due(key)]

    def stop(self):
        last = [event(*values) for values in self.events_at_stop]
        ended = {one.key for one in last if one.kind != "progress"}
        events = [*last, *(Event(key, "stopped") for key in self.running if key not in ended)]
        self.running.clear()
        return events

    def _due(self, key):
        while key in self.running and self.running[key][0][0] <= self.clock.now:
            _, kind, value = self.running[key].popleft()
            if kind != "progress":
                del self.running[key]
            yield event(key, kind, value)


def event(key, kind, value):
    """An event as a worker sends it: messages have passed through JSON."""
    if kind in ("progress", "done"):
        value = json.loads(json.dumps(message_json(value)))
    return Event(key, kind, value)


def complete(proposal, accuracy, seconds=1.0):
    folds = (fold(accuracy, seconds=seconds / 2),) * 2
    return Result(Trial(proposal.number, proposal.settings, "complete", folds, seconds))


def scripted(seconds, accuracy=None):
    """Trials with these durations and accuracies; the default accuracy falls."""

    def script(proposal):
        number = proposal.number
        reached = (accuracy or {}).get(number, 1 / (2 + number))
        return [(seconds.get(number, 1.0), "done", complete(proposal, reached, seconds.get(number, 1.0)))]

    return script


class FakeSearch:
    """A search with its pool, clock and journal, and a log of the calls."""

    def __init__(self, study=None, workers=1):
        self.log = []
        self.entries = []
        self.clock = Clock()
        self.pool = Pool(workers, self.clock)
        self.study = study or Study(StudyConfig(SPACE, 0, RANDOM_ONLY), record=self.record)

    def record(self, entry):
        self.entries.append(entry)
        ((kind, content),) = entry.items()
        self.log.append((kind, content["number"]))

    def run(self, script, trials, timeout=None, patience=None, final_seconds=0.0):
        Search(
            self.study,
            SearchConfig(trials, 2, timeout, patience),
            self.pool,
            SearchHooks(
                script,
                lambda result: self.log.append(("on_result", result.trial.number)),
                lambda trial: self.log.append(("cleanup", trial.number)),
                lambda _: final_seconds,
            ),
            self,
            self.clock,
        ).run()

    # The methods of a logger.

    def on_trial_start(self, proposal):
        self.log.append(("start", proposal.number))

    def on_fold_end(self, proposal, number, fold):
        self.log.append((f"fold {number}", proposal.number))

    def on_trial_interrupted(self, proposal):
        self.log.append(("interrupted", proposal.number))

    def on_trial_end(self, trial, best):
        assert best is self.study.best
        self.log.append(("end", trial.number))

    # The results.

    def numbers(self, call):
        return [number for name, number in self.log if name == call]

    @property
    def ends(self):
        return [(trial.number, trial.state) for trial in self.study.trials]


# --- trial after trial --------------------------------------------------------------------------


def test_one_worker_does_one_trial_after_another():
    """A result is saved before it counts, and the files to resume from are removed after that."""
    fake = FakeSearch()
    fake.run(scripted({0: 3.0, 1: 2.0}), trials=2)
    assert fake.log == [
        ("proposal", 0), ("start", 0), ("on_result", 0), ("result", 0), ("cleanup", 0), ("end", 0),
        ("proposal", 1), ("start", 1), ("on_result", 1), ("result", 1), ("cleanup", 1), ("end", 1),
    ]  # fmt: skip
    assert fake.pool.started == [(0.0, 0), (3.0, 1)]
    asked = Study(StudyConfig(SPACE, 0, RANDOM_ONLY))
    assert [trial.settings for trial in fake.study.trials] == [asked.ask().settings for _ in range(2)]


@pytest.mark.parametrize(
    ("workers", "seconds", "started"),
    [
        (2, [10.0, 4.0, 4.0, 4.0, 2.0], [0.0, 0.0, 4.0, 8.0, 10.0]),
        (3, [2.0] * 7, [0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 4.0]),
    ],
)
def test_an_idle_worker_gets_the_next_trial_at_once(workers, seconds, started):
    fake = FakeSearch(workers=workers)
    fake.run(scripted(dict(enumerate(seconds))), trials=len(seconds))
    assert fake.pool.started == [(moment, number) for number, moment in enumerate(started)]
    assert {state for _, state in fake.ends} == {"complete"}


def test_no_more_trials_are_started_than_configured():
    fake = FakeSearch(workers=4)
    fake.run(scripted({}), trials=3)
    assert fake.numbers("proposal") == [0, 1, 2]
    assert sorted(fake.ends) == [(number, "complete") for number in range(3)]
    fake.run(scripted({}), trials=3)
    assert fake.numbers("proposal") == [0, 1, 2]


def test_known_settings_cost_nothing(capsys):
    """Repeated settings take no worker and no time once their first trial has ended."""
    fake = FakeSearch(workers=2)
    fake.study = Study(StudyConfig(ONE_POINT, 0, RANDOM_ONLY), record=fake.record)
    fake.run(scripted({0: 2.0, 1: 5.0}), trials=6)
    assert fake.pool.started == [(0.0, 0), (0.0, 1)]
    assert fake.clock.now == 5.0
    assert fake.ends == [(number, "complete") for number in (0, 2, 3, 4, 5, 1)]
    assert [trial.images for trial in fake.study.trials] == [160, 0, 0, 0, 0, 160]
    of_third = [name for name, number in fake.log if number == 2]
    assert of_third == ["proposal", "on_result", "result", "cleanup", "end"]
    assert capsys.readouterr().out.count("as trial 1, which had the same settings\n") == 4


def test_each_trial_is_a_line(capsys):
    FakeSearch().run(scripted({}, {0: 0.5, 1: 0.75, 2: 0.25}), trials=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:47] for line in lines] == [
        "trial   1/3  mean accuracy 0.5000 (spread 0.000",
        "trial   2/3  mean accuracy 0.7500 (spread 0.000",
        "trial   3/3  mean accuracy 0.2500 (spread 0.000",
    ]
    assert [line.endswith("  best") for line in lines] == [True, True, False]


def test_progress_is_logged():
    def script(proposal):
        first, second = fold(0.5), fold(0.75)
        result = Result(Trial(proposal.number, proposal.settings, "complete", (first, second), 4.0))
        return [
            (1.0, "progress", Step(0, 1, 0.5)),
            (2.0, "progress", FoldDone(0, first)),
            (3.0, "progress", Step(1, 1, 0.5)),
            (4.0, "progress", FoldDone(1, second)),
            (4.0, "done", result),
        ]

    fake = FakeSearch()
    fake.run(script, trials=1)
    assert fake.log[1:6] == [("start", 0), ("fold 0", 0), ("fold 1", 0), ("on_result", 0), ("result", 0)]


def test_messages_survive_a_round_through_json():
    result = complete(Study(StudyConfig(SPACE, 0, RANDOM_ONLY)).ask(), 0.5)
    for message in (Step(1, 2, 0.25), FoldDone(1, fold(0.1, 0.2, 0.3, seconds=7.0)), result):
        assert message_from_json(json.loads(json.dumps(message_json(message)))) == message
    logits = np.array([[0.1, -np.inf], [1e-40, 3.0]], np.float32)
    trial, back = message_from_json(json.loads(json.dumps(message_json(Result(result.trial, logits)))))
    assert trial == result.trial
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, logits)


# --- trials that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("failed", "its process was killed by SIGKILL", "its process was killed by SIGKILL"),
        ("stopped", None, "its process was terminated"),
    ],
)
def test_a_failed_worker_fails_its_trial_and_the_search_continues(kind, value, reason):
    def script(proposal):
        if proposal.number == 1:
            return [(1.0, "progress", FoldDone(0, fold(0.5, seconds=7.0))), (2.0, kind, value)]
        return scripted({})(proposal)

    fake = FakeSearch()
    fake.run(script, trials=3)
    assert fake.ends == [(0, "complete"), (1, "failed"), (2, "complete")]
    failed = fake.study.trials[1]
    assert (failed.reason, failed.folds, failed.seconds) == (reason, (fold(0.5, seconds=7.0),), 7.0)
    assert [name for name, number in fake.log if number == 1][-4:] == ["on_result", "result", "cleanup", "end"]


def test_a_toolkit_error_ends_the_search():
    """The other trials are stopped, and one that has just ended counts."""

    def script(proposal):
        error = DataError("the images of colours have changed since the study began")
        return [(2.0, "error", error)] if proposal.number == 1 else scripted({0: 9.0, 2: 9.0})(proposal)

    fake = FakeSearch(workers=3)
    asked = Study(StudyConfig(SPACE, 0, RANDOM_ONLY))
    fake.pool.events_at_stop = [(0, "done", complete(asked.ask(), 0.5))]
    with pytest.raises(DataError, match=r"^the images of colours have changed since the study began$"):
        fake.run(script, trials=5)
    assert fake.ends == [(0, "complete")]
    assert fake.numbers("interrupted") == [1, 2]
    assert list(fake.study.under_way) == [1, 2]
    assert fake.numbers("proposal") == [0, 1, 2]


def test_workers_that_cannot_be_started_end_the_search():
    fake = FakeSearch(workers=2)
    start = fake.pool.start

    def refuse(key, task):
        if key == 1:
            raise ToolkitError("no worker process can be started: too many open files")
        start(key, task)

    fake.pool.start = refuse
    with pytest.raises(ToolkitError, match=r"^no worker process can be started"):
        fake.run(scripted({}), trials=2)
    assert fake.numbers("interrupted") == [0, 1]
    assert not fake.pool.running


# --- limits -------------------------------------------------------------------------------------


def test_timeout_stops_running_trials_and_keeps_them(capsys):
    fake = FakeSearch(workers=2)
    fake.run(scripted({0: 3.0, 1: 100.0, 2: 4.0, 3: 50.0}), trials=9, timeout=10)
    assert fake.clock.now == 10.0
    assert fake.pool.started == [(0.0, 0), (0.0, 1), (3.0, 2), (7.0, 3)]
    assert fake.ends == [(0, "complete"), (2, "complete")]
    assert fake.numbers("interrupted") == list(fake.study.under_way) == [1, 3]
    assert fake.numbers("cleanup") == [0, 2]
    assert capsys.readouterr().out.endswith("\nthe time is up after 2 of 9 trials\n")


def test_a_trial_that_ends_when_it_is_stopped_counts():
    fake = FakeSearch()
    last = complete(Study(StudyConfig(SPACE, 0, RANDOM_ONLY)).ask(), 0.5)
    fake.pool.events_at_stop = [(0, "progress", FoldDone(1, fold(0.5))), (0, "done", last)]
    fake.run(scripted({0: 20.0}), trials=2, timeout=10)
    assert fake.log == [
        ("proposal", 0), ("start", 0), ("fold 1", 0), ("on_result", 0), ("result", 0), ("cleanup", 0), ("end", 0)
    ]  # fmt: skip


def test_no_trial_starts_at_the_timeout(capsys):
    fake = FakeSearch()
    fake.run(scripted({0: 10.0}), trials=2, timeout=10)
    assert (fake.ends, fake.numbers("proposal")) == ([(0, "complete")], [0])
    assert capsys.readouterr().out.endswith("\nthe time is up after 1 of 2 trials\n")


def test_a_time_budget_leaves_the_time_for_the_final_training():
    """The last 4 of 10 seconds are kept as soon as there is a best trial."""
    fake = FakeSearch()
    fake.run(scripted({0: 5.0, 1: 5.0}), trials=2, timeout=10, final_seconds=4.0)
    assert (fake.clock.now, fake.ends) == (6.0, [(0, "complete")])
    slow = FakeSearch()
    slow.run(scripted({0: 9.0}), trials=2, timeout=10, final_seconds=4.0)
    assert (slow.clock.now, slow.ends) == (9.0, [(0, "complete")]), "without any it may take all of it"


def test_no_timeout_message_when_all_trials_are_done(capsys):
    FakeSearch().run(scripted({0: 10.0}), trials=1, timeout=10)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_study_patience_ends_the_search(capsys):
    fake = FakeSearch()
    fake.run(scripted({}, {0: 0.5, 1: 0.75, 2: 0.75, 3: 0.5, 4: 0.25, 5: 1.0}), trials=9, patience=3)
    assert fake.ends == [(number, "complete") for number in range(5)]
    assert capsys.readouterr().out.endswith("\nnone better than the best in 3 trials, after 5 of 9 trials\n")


def test_study_patience_waits_for_running_trials():
    """Two trials have ended since the best one when no more are started; then the slow one is better."""
    fake = FakeSearch(workers=2)
    accuracy = {0: 0.75, 1: 0.875, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.5, 6: 1.0}
    fake.run(scripted({1: 20.0}, accuracy), trials=9, patience=2)
    assert fake.pool.started == [(0.0, 0), (0.0, 1), (1.0, 2), (2.0, 3), (20.0, 4), (20.0, 5)]
    assert [number for number, _ in fake.ends] == [0, 2, 3, 1, 4, 5]


def test_study_patience_needs_a_complete_trial():
    fake = FakeSearch()
    fake.run(lambda _: [(1.0, "failed", "it died")], trials=4, patience=1)
    assert fake.ends == [(number, "failed") for number in range(4)]


# --- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_stops_running_trials_and_counts_the_last_result():
    fake = FakeSearch(workers=2)
    fake.pool.interrupted_at = 5.0
    asked = Study(StudyConfig(SPACE, 0, RANDOM_ONLY))
    points = [asked.ask() for _ in range(2)]
    fake.pool.events_at_stop = [
        (0, "progress", FoldDone(0, fold(0.5))), (1, "done", complete(points[1], 0.5)),
    ]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        fake.run(scripted({0: 9.0, 1: 9.0}), trials=9)
    counted = [(call, 1) for call in ("on_result", "result", "cleanup", "end")]
    assert fake.log[4:] == [("fold 0", 0), *counted, ("interrupted", 0)]
    assert fake.study.under_way == {0: points[0]}


def test_a_second_ctrl_c_leaves_no_run_open():
    fake = FakeSearch(workers=2)
    fake.pool.interrupted_at = 5.0

    def stop():
        raise KeyboardInterrupt

    fake.pool.stop = stop
    with pytest.raises(KeyboardInterrupt):
        fake.run(scripted({0: 9.0, 1: 9.0}), trials=9)
    assert fake.numbers("interrupted") == [0, 1]


# --- resumed ------------------------------------------------------------------------------------


def resumed(fake, workers=1):
    """Another process with the same journal."""
    again = FakeSearch(workers=workers)
    again.entries = [*fake.entries]
    again.study = Study(StudyConfig(SPACE, 0, RANDOM_ONLY), entries=fake.entries, record=again.record)
    return again


def test_interrupted_trials_are_resumed_before_new_ones():
    fake = FakeSearch(workers=3)
    slow = scripted({1: 100.0, 3: 100.0, 4: 100.0})
    fake.run(slow, trials=9, timeout=10)
    assert list(fake.study.under_way) == [1, 3, 4]
    again = resumed(fake, workers=2)
    again.run(scripted({}), trials=7)
    assert again.pool.started == [(0.0, 1), (0.0, 3), (1.0, 4), (1.0, 5), (2.0, 6)]
    assert again.numbers("proposal") == [5, 6]
    settings = {proposal.number: proposal.settings for proposal in fake.study.under_way.values()}
    assert {trial.number: trial.settings for trial in again.study.trials if trial.number in settings} == settings


def test_files_of_counted_trials_are_removed():
    """A process may have been killed after the result counted and before the cleanup."""
    fake = FakeSearch()
    fake.run(scripted({}), trials=2)
    again = resumed(fake)
    again.run(scripted({}), trials=3)
    assert again.log[:3] == [("cleanup", 0), ("cleanup", 1), ("proposal", 2)]


@pytest.mark.parametrize(("trials", "started"), [(1, []), (2, [0]), (3, [0, 2]), (5, [0, 2, 3, 4])])
def test_fewer_trials_than_before_resume_no_more(trials, started):
    fake = FakeSearch(workers=3)
    fake.run(scripted({0: 100.0, 1: 9.0, 2: 100.0, 3: 100.0}), trials=9, timeout=10)
    assert fake.ends == [(1, "complete")]
    again = resumed(fake)
    again.run(scripted({}), trials=trials)
    assert again.numbers("start") == started


def test_interrupted_trials_are_resumed_when_patience_is_used_up():
    fake = FakeSearch(workers=2)
    fake.run(scripted({1: 100.0}, {0: 0.5, 2: 0.25, 3: 0.25}), trials=9, timeout=10, patience=2)
    assert [number for number, _ in fake.ends] == [0, 2, 3]
    again = resumed(fake)
    again.run(scripted({}, {1: 0.25}), trials=9, patience=2)
    assert again.numbers("start") == [1]


@budget(max_examples=15)
@given(st.lists(st.floats(0.1, 9.0), min_size=6, max_size=6), st.lists(st.floats(0.1, 12.0), max_size=6), st.data())
def test_interruptions_do_not_change_the_result_of_one_worker(seconds, timeouts, data):
    """By the timeout or by Ctrl-C; each trial restarts here and takes its full time."""
    script = scripted(dict(enumerate(seconds)))
    whole = FakeSearch()
    whole.run(script, trials=6)
    fake = FakeSearch()
    for seconds_left in timeouts:
        if data.draw(st.booleans(), label="Ctrl-C"):
            fake.pool.interrupted_at = seconds_left
            with suppress(KeyboardInterrupt):
                fake.run(script, trials=6)
        else:
            fake.run(script, trials=6, timeout=seconds_left)
        fake = resumed(fake)
    fake.run(script, trials=6)
    assert fake.entries == whole.entries
