"""A search keeps its workers at work, comes to the same whatever interrupts it, and ends when it is meant to.

The pool is one in simulated time: its work is known beforehand, so that each moment can be worked out by hand.
"""

import io
import json
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from toolkit.errors import DataError, ToolkitError
from toolkit.tuning.progress import LONG, StudyProgressBar
from toolkit.tuning.search import FoldDone, Result, Search, Step, StopConditions, message_from_json, message_json
from toolkit.tuning.space import Choice, Integers
from toolkit.tuning.study import Proposal, Study
from toolkit.tuning.trial import Fold, Trial
from toolkit.tuning.worker_pool import Event

SPACE = {"epochs": Integers(1, 10**6), "optimizer": Choice(("adam",))}
ONE_POINT = {"epochs": Choice((5,)), "optimizer": Choice(("adam",))}
RANDOM_ONLY = 10**9  # start-up trials: more than any study here has

Happening = tuple[float, str, Any]  # seconds after the start of its task, and an event's kind and value
Script = Callable[[Proposal], list[Happening]]


# --- a pool whose work is known beforehand ------------------------------------------------------


class Clock:
    """Seconds that pass when somebody waits."""

    now = 0.0

    def __call__(self):
        return self.now


class Pool:
    """Workers in simulated time. A task is what happens in the course of it."""

    def __init__(self, size, clock):
        self.size, self.clock = size, clock
        self.at_work = {}
        self.started = []  # when, and which task
        self.last_words = []  # of those that are stopped, with the key instead of the seconds
        self.interrupted_at = float("inf")

    @property
    def n_idle(self):
        return self.size - len(self.at_work)

    def start(self, key, task):
        assert self.n_idle > 0
        assert key not in self.at_work
        self.started.append((self.clock.now, key))
        self.at_work[key] = deque((self.clock.now + seconds, kind, value) for seconds, kind, value in task)

    def wait(self, timeout):
        assert self.at_work, "no worker is busy"
        until = float("inf") if timeout is None else self.clock.now + timeout
        moment = min(happenings[0][0] for happenings in self.at_work.values())
        self.clock.now = min(moment, until, self.interrupted_at)
        if self.clock.now == self.interrupted_at:
            raise KeyboardInterrupt
        return [event for key in list(self.at_work) for event in self._due(key)]

    def stop(self):
        words = [event(*happening) for happening in self.last_words]
        ended = {one.key for one in words if one.kind != "progress"}
        events = [*words, *(Event(key, "stopped") for key in self.at_work if key not in ended)]
        self.at_work.clear()
        return events

    def _due(self, key):
        while key in self.at_work and self.at_work[key][0][0] <= self.clock.now:
            _, kind, value = self.at_work[key].popleft()
            if kind != "progress":
                del self.at_work[key]
            yield event(key, kind, value)


def event(key, kind, value):
    """As it comes from a worker: messages have passed through JSON."""
    if kind in ("progress", "done"):
        value = json.loads(json.dumps(message_json(value)))
    return Event(key, kind, value)


def fold(accuracy, seconds=1.0, epochs=1):
    curve = tuple({"epoch": number, "val_accuracy": accuracy} for number in range(1, epochs + 1))
    return Fold(curve, 1, seconds, 80)


def complete(proposal, accuracy, seconds=1.0):
    folds = (fold(accuracy, seconds / 2),) * 2
    return Result(Trial(proposal.number, proposal.settings, "complete", folds, seconds))


def course(seconds, accuracy=None):
    """Trials that take so many seconds each and come to these accuracies, or else to one that falls."""

    def script(proposal):
        number = proposal.number
        reached = (accuracy or {}).get(number, 1 / (2 + number))
        return [(seconds.get(number, 1.0), "done", complete(proposal, reached, seconds.get(number, 1.0)))]

    return script


class Scene:
    """A search with all that takes part in it, and the log of what happened in which order."""

    def __init__(self, study=None, workers=1):
        self.log = []
        self.entries = []
        self.clock = Clock()
        self.pool = Pool(workers, self.clock)
        self.study = study or Study(SPACE, 0, RANDOM_ONLY, record=self.record)

    def record(self, entry):
        self.entries.append(entry)
        ((what, content),) = entry.items()
        self.log.append((what, content["number"]))

    def run(self, script, trials, timeout=None, patience=None):
        Search(
            self.study,
            StopConditions(trials, timeout, patience),
            self.pool,
            script,
            self,
            StudyProgressBar(self.study, trials, 2),
            keep=lambda result: self.log.append(("keep", result.trial.number)),
            forget=lambda trial: self.log.append(("forget", trial.number)),
            clock=self.clock,
        ).run()

    # What a mirror does.

    def begun(self, proposal):
        self.log.append(("begun", proposal.number))

    def fold(self, proposal, number, fold):
        self.log.append((f"fold {number}", proposal.number))

    def stopped(self, proposal):
        self.log.append(("stopped", proposal.number))

    def ended(self, trial, best):
        assert best is self.study.best
        self.log.append(("ended", trial.number))

    # What came of it.

    def numbers(self, what):
        return [number for name, number in self.log if name == what]

    @property
    def ends(self):
        return [(trial.number, trial.state) for trial in self.study.trials]


# --- trial after trial --------------------------------------------------------------------------


def test_one_worker_does_one_trial_after_another():
    """What it came to is kept before it counts, and what it would have gone on with is removed after that."""
    scene = Scene()
    scene.run(course({0: 3.0, 1: 2.0}), trials=2)
    assert scene.log == [
        ("asked", 0), ("begun", 0), ("keep", 0), ("told", 0), ("forget", 0), ("ended", 0),
        ("asked", 1), ("begun", 1), ("keep", 1), ("told", 1), ("forget", 1), ("ended", 1),
    ]  # fmt: skip
    assert scene.pool.started == [(0.0, 0), (3.0, 1)]
    asked = Study(SPACE, 0, RANDOM_ONLY)
    assert [trial.settings for trial in scene.study.trials] == [asked.ask().settings for _ in range(2)]


def test_who_is_idle_is_given_the_next_trial_at_once():
    scene = Scene(workers=2)
    scene.run(course({0: 10.0, 1: 4.0, 2: 4.0, 3: 4.0, 4: 2.0}), trials=5)
    assert scene.pool.started == [(0.0, 0), (0.0, 1), (4.0, 2), (8.0, 3), (10.0, 4)]
    assert scene.ends == [(1, "complete"), (2, "complete"), (0, "complete"), (3, "complete"), (4, "complete")]


def test_several_that_end_at_once_are_all_replaced():
    scene = Scene(workers=3)
    scene.run(course(dict.fromkeys(range(7), 2.0)), trials=7)
    assert scene.pool.started == [(0.0, 0), (0.0, 1), (0.0, 2), (2.0, 3), (2.0, 4), (2.0, 5), (4.0, 6)]


def test_no_more_are_begun_than_were_asked_for():
    scene = Scene(workers=4)
    scene.run(course({}), trials=3)
    assert scene.numbers("asked") == [0, 1, 2]
    assert sorted(scene.ends) == [(number, "complete") for number in range(3)]
    scene.run(course({}), trials=3)
    assert scene.numbers("asked") == [0, 1, 2]


def test_settings_that_are_known_cost_nothing(capsys):
    """They take no worker and no time; those that came up before the first one had ended do."""
    scene = Scene(workers=2)
    scene.study = Study(ONE_POINT, 0, RANDOM_ONLY, record=scene.record)
    scene.run(course({0: 2.0, 1: 5.0}), trials=6)
    assert scene.pool.started == [(0.0, 0), (0.0, 1)]
    assert scene.clock.now == 5.0
    assert scene.ends == [(number, "complete") for number in (0, 2, 3, 4, 5, 1)]
    assert [trial.images for trial in scene.study.trials] == [160, 0, 0, 0, 0, 160]
    of_third = [name for name, number in scene.log if number == 2]
    assert of_third == ["asked", "keep", "told", "forget", "ended"]
    assert capsys.readouterr().out.count("as trial 1, which had the same settings\n") == 4


def test_each_trial_is_a_line(capsys):
    Scene().run(course({}, {0: 0.5, 1: 0.75, 2: 0.25}), trials=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:47] for line in lines] == [
        "trial   1/3  mean accuracy 0.5000 (spread 0.000",
        "trial   2/3  mean accuracy 0.7500 (spread 0.000",
        "trial   3/3  mean accuracy 0.2500 (spread 0.000",
    ]
    assert [line.endswith("  best") for line in lines] == [True, True, False]


def test_what_happens_in_a_trial_is_passed_on():
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

    scene = Scene()
    scene.run(script, trials=1)
    assert scene.log[1:6] == [("begun", 0), ("fold 0", 0), ("fold 1", 0), ("keep", 0), ("told", 0)]


def test_messages_survive_a_round_through_json():
    result = complete(Study(SPACE, 0, RANDOM_ONLY).ask(), 0.5)
    for message in (Step(1, 2, 0.25), FoldDone(1, fold(0.1, 7.0, epochs=3)), result):
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
        ("stopped", None, "its process was told to stop"),
    ],
)
def test_a_trial_whose_process_fails_has_failed_and_the_search_goes_on(kind, value, reason):
    def script(proposal):
        if proposal.number == 1:
            return [(1.0, "progress", FoldDone(0, fold(0.5, 7.0))), (2.0, kind, value)]
        return course({})(proposal)

    scene = Scene()
    scene.run(script, trials=3)
    assert scene.ends == [(0, "complete"), (1, "failed"), (2, "complete")]
    failed = scene.study.trials[1]
    assert (failed.reason, failed.folds, failed.seconds) == (reason, (fold(0.5, 7.0),), 7.0)
    assert [name for name, number in scene.log if number == 1][-4:] == ["keep", "told", "forget", "ended"]


def test_what_concerns_all_trials_ends_the_search():
    """The others are stopped, and one that has just ended counts."""

    def script(proposal):
        error = DataError("the images of colours have changed since the study began")
        return [(2.0, "error", error)] if proposal.number == 1 else course({0: 9.0, 2: 9.0})(proposal)

    scene = Scene(workers=3)
    asked = Study(SPACE, 0, RANDOM_ONLY)
    scene.pool.last_words = [(0, "done", complete(asked.ask(), 0.5))]
    with pytest.raises(DataError, match=r"^the images of colours have changed since the study began$"):
        scene.run(script, trials=5)
    assert scene.ends == [(0, "complete")]
    assert scene.numbers("stopped") == [1, 2]
    assert list(scene.study.under_way) == [1, 2]
    assert scene.numbers("asked") == [0, 1, 2]


def test_workers_that_cannot_be_started_end_the_search():
    scene = Scene(workers=2)
    start = scene.pool.start

    def refuse(key, task):
        if key == 1:
            raise ToolkitError("no worker process can be started: too many open files")
        start(key, task)

    scene.pool.start = refuse
    with pytest.raises(ToolkitError, match=r"^no worker process can be started"):
        scene.run(course({}), trials=2)
    assert scene.numbers("stopped") == [0, 1]
    assert not scene.pool.at_work


# --- limits -------------------------------------------------------------------------------------


def test_when_the_time_is_up_what_is_under_way_is_stopped_and_kept(capsys):
    scene = Scene(workers=2)
    scene.run(course({0: 3.0, 1: 100.0, 2: 4.0, 3: 50.0}), trials=9, timeout=10)
    assert scene.clock.now == 10.0
    assert scene.pool.started == [(0.0, 0), (0.0, 1), (3.0, 2), (7.0, 3)]
    assert scene.ends == [(0, "complete"), (2, "complete")]
    assert scene.numbers("stopped") == list(scene.study.under_way) == [1, 3]
    assert scene.numbers("forget") == [0, 2]
    assert capsys.readouterr().out.endswith("\nthe time is up after 2 of 9 trials\n")


def test_a_trial_that_ends_when_it_is_stopped_counts():
    scene = Scene()
    last = complete(Study(SPACE, 0, RANDOM_ONLY).ask(), 0.5)
    scene.pool.last_words = [(0, "progress", FoldDone(1, fold(0.5))), (0, "done", last)]
    scene.run(course({0: 20.0}), trials=2, timeout=10)
    assert scene.log == [
        ("asked", 0), ("begun", 0), ("fold 1", 0), ("keep", 0), ("told", 0), ("forget", 0), ("ended", 0)
    ]  # fmt: skip


def test_nothing_is_begun_at_the_last_moment(capsys):
    scene = Scene()
    scene.run(course({0: 10.0}), trials=2, timeout=10)
    assert (scene.ends, scene.numbers("asked")) == ([(0, "complete")], [0])
    assert capsys.readouterr().out.endswith("\nthe time is up after 1 of 2 trials\n")


def test_when_all_trials_are_done_the_time_is_not_mentioned(capsys):
    Scene().run(course({0: 10.0}), trials=1, timeout=10)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_patience_ends_a_search_that_finds_nothing_better(capsys):
    scene = Scene()
    scene.run(course({}, {0: 0.5, 1: 0.75, 2: 0.75, 3: 0.5, 4: 0.25, 5: 1.0}), trials=9, patience=3)
    assert scene.ends == [(number, "complete") for number in range(5)]
    assert capsys.readouterr().out.endswith("\nnone better than the best in 3 trials, after 5 of 9 trials\n")


def test_patience_lets_those_under_way_end_and_one_of_them_may_be_better():
    """Two have ended since the best one when nothing more is begun; then the slow one turns out to be the best."""
    scene = Scene(workers=2)
    accuracy = {0: 0.75, 1: 0.875, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.5, 6: 1.0}
    scene.run(course({1: 20.0}, accuracy), trials=9, patience=2)
    assert scene.pool.started == [(0.0, 0), (0.0, 1), (1.0, 2), (2.0, 3), (20.0, 4), (20.0, 5)]
    assert [number for number, _ in scene.ends] == [0, 2, 3, 1, 4, 5]


def test_without_a_complete_trial_there_is_nothing_to_be_better_than():
    scene = Scene()
    scene.run(lambda _: [(1.0, "failed", "it died")], trials=4, patience=1)
    assert scene.ends == [(number, "failed") for number in range(4)]


# --- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_stops_what_is_under_way_and_keeps_what_came_in_the_last_moment():
    scene = Scene(workers=2)
    scene.pool.interrupted_at = 5.0
    asked = Study(SPACE, 0, RANDOM_ONLY)
    points = [asked.ask() for _ in range(2)]
    scene.pool.last_words = [
        (0, "progress", FoldDone(0, fold(0.5))), (1, "done", complete(points[1], 0.5)),
    ]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        scene.run(course({0: 9.0, 1: 9.0}), trials=9)
    assert scene.log[4:] == [("fold 0", 0), ("keep", 1), ("told", 1), ("forget", 1), ("ended", 1), ("stopped", 0)]
    assert scene.study.under_way == {0: points[0]}


def test_ctrl_c_again_leaves_nothing_that_looks_as_if_it_was_running():
    scene = Scene(workers=2)
    scene.pool.interrupted_at = 5.0

    def stop():
        raise KeyboardInterrupt

    scene.pool.stop = stop
    with pytest.raises(KeyboardInterrupt):
        scene.run(course({0: 9.0, 1: 9.0}), trials=9)
    assert scene.numbers("stopped") == [0, 1]


# --- taken up again -----------------------------------------------------------------------------


def taken_up(scene, workers=1):
    """Another process, that knows the journal alone."""
    again = Scene(workers=workers)
    again.entries = [*scene.entries]
    again.study = Study(SPACE, 0, RANDOM_ONLY, entries=scene.entries, record=again.record)
    return again


def test_what_was_under_way_is_begun_again_before_anything_new():
    scene = Scene(workers=3)
    slow = course({1: 100.0, 3: 100.0, 4: 100.0})
    scene.run(slow, trials=9, timeout=10)
    assert list(scene.study.under_way) == [1, 3, 4]
    again = taken_up(scene, workers=2)
    again.run(course({}), trials=7)
    assert again.pool.started == [(0.0, 1), (0.0, 3), (1.0, 4), (1.0, 5), (2.0, 6)]
    assert again.numbers("asked") == [5, 6]
    settings = {proposal.number: proposal.settings for proposal in scene.study.under_way.values()}
    assert {trial.number: trial.settings for trial in again.study.trials if trial.number in settings} == settings


def test_what_counts_already_needs_nothing_to_go_on_with():
    """A process may have been killed between the two."""
    scene = Scene()
    scene.run(course({}), trials=2)
    again = taken_up(scene)
    again.run(course({}), trials=3)
    assert again.log[:3] == [("forget", 0), ("forget", 1), ("asked", 2)]


@pytest.mark.parametrize(("trials", "begun"), [(1, []), (2, [0]), (3, [0, 2]), (5, [0, 2, 3, 4])])
def test_with_fewer_trials_than_before_no_more_are_begun_again(trials, begun):
    scene = Scene(workers=3)
    scene.run(course({0: 100.0, 1: 9.0, 2: 100.0, 3: 100.0}), trials=9, timeout=10)
    assert scene.ends == [(1, "complete")]
    again = taken_up(scene)
    again.run(course({}), trials=trials)
    assert again.numbers("begun") == begun


def test_patience_that_is_over_does_not_keep_what_was_under_way_from_ending():
    scene = Scene(workers=2)
    scene.run(course({1: 100.0}, {0: 0.5, 2: 0.25, 3: 0.25}), trials=9, timeout=10, patience=2)
    assert [number for number, _ in scene.ends] == [0, 2, 3]
    again = taken_up(scene)
    again.run(course({}, {1: 0.25}), trials=9, patience=2)
    assert again.numbers("begun") == [1]


@budget(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.1, 9.0), min_size=6, max_size=6), st.lists(st.floats(0.1, 12.0), max_size=6), st.data())
def test_a_search_of_one_worker_comes_to_the_same_however_often_it_is_interrupted(seconds, timeouts, data):
    """By the time, or by Ctrl-C; each trial is begun anew here, and takes the time that it takes."""
    script = course(dict(enumerate(seconds)))
    whole = Scene()
    whole.run(script, trials=6)
    scene = Scene()
    for seconds_left in timeouts:
        if data.draw(st.booleans(), label="Ctrl-C"):
            scene.pool.interrupted_at = seconds_left
            with suppress(KeyboardInterrupt):
                scene.run(script, trials=6)
        else:
            scene.run(script, trials=6, timeout=seconds_left)
        scene = taken_up(scene)
    scene.run(script, trials=6)
    assert scene.entries == whole.entries


# --- a long fold --------------------------------------------------------------------------------


def long_fold(seconds):
    def script(proposal):
        done = fold(0.9512, seconds, epochs=12)
        result = Result(Trial(proposal.number, proposal.settings, "complete", (done, done), 2 * seconds))
        said = [(seconds * (1 + number), "progress", FoldDone(number, done)) for number in range(2)]
        return [*said, (2 * seconds, "done", result)]

    return script


def test_a_long_fold_is_a_line_where_no_bar_is_seen(capsys):
    scene = Scene()
    scene.run(long_fold(310.4), trials=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "trial   1/1  fold 1/2  accuracy 0.9512 after 12 epochs, 310 s",
        "trial   1/1  fold 2/2  accuracy 0.9512 after 12 epochs, 310 s",
    ]
    assert len(lines) == 3


def test_a_fold_of_one_epoch(capsys):
    study = Study(SPACE, 0, RANDOM_ONLY)
    study.ask()
    StudyProgressBar(study, 30, 5).fold(study.ask(), 1, fold(0.5, 31.0))
    assert capsys.readouterr().out == "trial   2/30  fold 2/5  accuracy 0.5000 after 1 epoch, 31 s\n"


def test_a_fold_that_is_not_long_is_none(capsys):
    Scene().run(long_fold(LONG), trials=1)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_on_a_terminal_the_bar_says_it(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    Scene().run(long_fold(310.0), trials=1)
    assert "fold 1/2  accuracy" not in capsys.readouterr().out
