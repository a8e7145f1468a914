"""A crew does its tasks whatever becomes of its workers, tells what became of each task, and leaves nobody behind."""

import multiprocessing
import multiprocessing.forkserver
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from toolkit.errors import SettingsError, ToolkitError
from toolkit.tuning import crew as module
from toolkit.tuning.crew import Crew, Event, Say

LONG = 60.0  # seconds: more than anything here takes


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    """A server that other tests can use as well: one that a crew starts does not pass on the signals of a group."""
    multiprocessing.set_forkserver_preload(["pytest", "psutil", "toolkit.tuning.crew"])
    multiprocessing.forkserver.ensure_running()


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew(1, work) as alone:
        yield alone


@pytest.fixture
def pair() -> Iterator[Crew]:
    with Crew(2, work) as two:
        yield two


# What workers do: a task is one of these with its arguments.


def work(task: tuple[Any, ...], say: Say) -> Any:
    function, *arguments = task
    return function(say, *arguments)


def plainly(_: Say, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


PID = (plainly, os.getpid)


def count(say: Say, upto: int, then: Callable[..., Any] = abs, *arguments: Any) -> Any:
    for number in range(upto):
        say(number)
    return then(*arguments or [-upto])


def fail(_: Say, error: BaseException) -> None:
    raise error


def die(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(LONG)


def rest(say: Say) -> None:
    say(os.getpid())
    time.sleep(LONG)


def touch_and_rest(name: str) -> None:
    Path(name).touch()
    time.sleep(LONG)


def finish_the_step(say: Say, then: Callable[..., Any], *arguments: Any) -> Any:
    """Like a training: on SIGTERM it comes to the end of its step."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    say(os.getpid())
    while not asked:
        time.sleep(0.001)
    signal.signal(signal.SIGTERM, before)
    say("saved")
    return then(*arguments)


def hear_nothing(say: Say) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(os.getpid())
    time.sleep(LONG)


def local_error(_: Say) -> None:
    class Odd(Exception):
        pass

    raise Odd("first line\nsecond line")


class Picky(Exception):
    """One that pickle makes, but cannot make again."""

    def __init__(self, name: str, value: int) -> None:
        super().__init__(f"{name} is {value}")


def be_picky(_: Say, name: str, value: int) -> None:
    raise Picky(name, value)


class OnlyThere:
    """Something that can be loaded in the process that made it alone."""

    def __reduce__(self) -> Any:
        return only_in, (os.getpid(),)


def only_in(pid: int) -> OnlyThere:
    if os.getpid() != pid:
        raise LookupError("not here")
    return OnlyThere()


def say_only_there(say: Say) -> str:
    say(OnlyThere())
    return "went on"


def say_a_lock(say: Say) -> None:
    say(threading.Lock())


def say_in_pieces(say: Say, pieces: int, size: int) -> int:
    for number in range(pieces):
        say(bytes([number]) * size)
    Path("told").touch()
    return pieces


def say_to_the_last(say: Say, size: int) -> None:
    try:
        while True:
            say(bytes(size))
    finally:
        say("the last")


def exit_with(status: int) -> None:
    sys.exit(status)


def interrupt() -> None:
    raise KeyboardInterrupt


def talk_on(say: Say) -> None:
    """Leave a thread behind that goes on saying something."""

    def talk() -> None:
        while True:
            say("still here")
            time.sleep(0.001)

    threading.Thread(target=talk, daemon=True).start()


def leave_a_child(say: Say) -> None:
    """Fork, and be killed before the child, which holds all that was open, has ended."""
    if child := os.fork():
        say(child)
        die(signal.SIGKILL)
    time.sleep(LONG)


def close_the_line(say: Say) -> None:
    """Go on without a way to tell anything."""
    say(os.getpid())
    os.closerange(3, 256)
    time.sleep(LONG)


# What the parent sees.


def heard(crew: Crew, *keys: int) -> list[Event]:
    """All that happens until these tasks have ended."""
    events: list[Event] = []
    while not set(keys) <= {event.key for event in events if event.kind != "said"}:
        events += crew.wait(LONG) or pytest.fail(f"nothing more within {LONG} s after {events}")
    return events


def outcome(crew: Crew, *task: Any, key: int = 0) -> Event:
    """How one task ends."""
    crew.start(key, task)
    return next(event for event in heard(crew, key) if event.key == key and event.kind != "said")


def first_said(crew: Crew) -> Any:
    (event,) = crew.wait(LONG)
    assert event.kind == "said"
    return event.value


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- tasks --------------------------------------------------------------------------------------


def test_what_is_said_and_done_comes_in_order(crew: Crew) -> None:
    crew.start(3, (count, 500))
    assert heard(crew, 3) == [*(Event(3, "said", number) for number in range(500)), Event(3, "done", 500)]


def test_workers_work_side_by_side_and_are_used_again(pair: Crew) -> None:
    assert pair.idle == 2
    pair.start(0, (rest,))
    pair.start(1, PID)
    events = heard(pair, 1)
    pids = {event.key: event.value for event in [*events, *([] if len(events) > 1 else pair.wait(LONG))]}
    assert len(set(pids.values())) == 2
    assert pair.idle == 1
    assert outcome(pair, *PID, key=2) == Event(2, "done", pids[1])


def test_nobody_is_started_before_there_is_work() -> None:
    with Crew(3, work) as crew:
        assert outcome(crew, *PID).value in {child.pid for child in multiprocessing.active_children()}
        assert len(multiprocessing.active_children()) == 1
    assert not multiprocessing.active_children()


def test_no_more_tasks_than_workers(crew: Crew) -> None:
    crew.start(0, (rest,))
    with pytest.raises(RuntimeError, match=r"^all 1 workers are at work$"):
        crew.start(1, PID)


@pytest.mark.parametrize("size", [0, -1])
def test_a_crew_has_a_worker(size: int) -> None:
    with pytest.raises(SettingsError, match=rf"^the number of workers must be at least 1, got {size}$"):
        Crew(size, work)


def test_waiting_ends_with_the_time_or_when_nothing_can_come(crew: Crew) -> None:
    assert crew.wait(None) == []
    crew.start(0, (rest,))
    assert first_said(crew)
    assert crew.wait(0) == []
    assert crew.wait(0.001) == []


def test_a_task_that_cannot_be_pickled_takes_no_worker(crew: Crew) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        crew.start(0, threading.Lock())
    assert crew.idle == 1
    assert outcome(crew, *PID).kind == "done"


def test_whatever_is_mixed_each_task_ends_once_and_last() -> None:
    """Sixty tasks in an order drawn with a seed, three at a time; a fifth of them kill their worker."""
    kinds = [
        ((count, 5), "done", 5),
        ((count, 5, fail, None, ValueError("no")), "raised", 5),
        ((count, 5, os._exit, 4), "crashed", 5),
        ((count, 5, sys.exit, 143), "stopped", 5),
        ((count, 300), "done", 300),
    ]
    planned = 12 * kinds
    random.Random(0).shuffle(planned)
    events: list[Event] = []
    with Crew(3, work) as crew:
        for key, (task, _, _) in enumerate(planned):
            while not crew.idle:
                events += crew.wait(LONG)
            crew.start(key, task)
        while crew.idle < 3:
            events += crew.wait(LONG)
    for key, (_, kind, said) in enumerate(planned):
        own = [event for event in events if event.key == key]
        assert [event.value for event in own[:-1]] == list(range(said))
        assert [event.kind for event in own] == [*["said"] * said, kind]


# --- where a worker is --------------------------------------------------------------------------


def test_a_worker_is_where_its_parent_is(crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that the parent is in at the start of each task; with its modules' places and its variables."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLOUR", "blue")
    monkeypatch.delenv("PYTHONPATH")
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        monkeypatch.chdir(folder)
        assert outcome(crew, plainly, os.getcwd).value == str(folder)
    assert outcome(crew, plainly, os.getenv, "COLOUR").value == "blue"
    assert outcome(crew, plainly, os.getenv, "PYTHONPATH").value is None
    assert outcome(crew, plainly, eval, "__import__('sys').path").value == sys.path


def test_a_worker_is_in_a_session_of_its_own_and_ignores_ctrl_c(crew: Crew) -> None:
    pid = outcome(crew, *PID).value
    assert outcome(crew, plainly, os.getsid, 0).value == pid
    assert outcome(crew, plainly, os.kill, pid, signal.SIGINT).kind == "done"
    assert outcome(crew, *PID).value == pid


# --- exceptions ---------------------------------------------------------------------------------


def test_an_exception_comes_back_as_it_is_and_the_worker_lives_on(crew: Crew) -> None:
    pid = outcome(crew, *PID).value
    event = outcome(crew, fail, SettingsError("--lr must be at most 1, got 5"), key=4)
    assert (event.key, event.kind) == (4, "raised")
    assert type(event.value) is SettingsError
    assert str(event.value) == "--lr must be at most 1, got 5"
    (note,) = event.value.__notes__
    assert note.startswith("in a worker: Traceback")
    assert "in fail" in note
    assert outcome(crew, *PID).value == pid


@pytest.mark.parametrize(
    ("task", "text"),
    [((local_error,), "Odd: first line"), ((be_picky, "lr", 5), "Picky: lr is 5")],
    ids=["its type has no name", "its type refuses"],
)
def test_an_exception_that_cannot_be_pickled_comes_in_words(crew: Crew, task: tuple[Any, ...], text: str) -> None:
    event = outcome(crew, *task)
    assert event.kind == "raised"
    assert type(event.value) is RuntimeError
    assert str(event.value) == text
    assert event.value.__notes__[0].startswith("in a worker: Traceback")


@pytest.mark.parametrize("task", [(plainly, threading.Lock), (say_a_lock,)], ids=["result", "said"])
def test_what_cannot_be_pickled_fails_the_task(crew: Crew, task: tuple[Any, ...]) -> None:
    pid = outcome(crew, *PID).value
    event = outcome(crew, *task)
    assert event.kind == "raised"
    assert "cannot pickle '_thread.lock' object" in str(event.value)
    assert outcome(crew, *PID).value == pid


def test_what_only_the_worker_can_read_does_no_harm(crew: Crew) -> None:
    event = outcome(crew, plainly, OnlyThere)
    assert event.kind == "raised"
    assert str(event.value) == "it cannot be read: LookupError: not here"
    crew.start(1, (say_only_there,))
    said, done = heard(crew, 1)
    assert (said.kind, str(said.value)) == ("said", "it cannot be read: LookupError: not here")
    assert done == Event(1, "done", "went on")


# --- workers that die ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ((die, signal.SIGKILL), "its process was killed by SIGKILL, perhaps because memory ran out"),
        ((die, signal.SIGSEGV), "its process was killed by SIGSEGV"),
        ((die, signal.SIGRTMIN + 1), f"its process was killed by signal {signal.SIGRTMIN + 1}"),
        ((os._exit, 3), "its process ended with status 3"),
        ((exit_with, 3), "its process ended with status 3"),
        ((os._exit, 0), "its process ended with status 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_worker_that_dies_is_replaced_and_what_it_said_is_kept(
    crew: Crew, how: tuple[Callable[[int], None], int], words: str
) -> None:
    before = outcome(crew, *PID).value
    crew.start(1, (count, 200, *how))
    assert heard(crew, 1) == [*(Event(1, "said", number) for number in range(200)), Event(1, "crashed", words)]
    after = outcome(crew, *PID)
    assert after.kind == "done"
    assert after.value != before
    assert gone(before)


def test_a_death_does_not_touch_the_others(pair: Crew) -> None:
    pair.start(0, (finish_the_step, PID[1]))
    pid = first_said(pair)
    assert outcome(pair, plainly, os._exit, 1, key=1).kind == "crashed"
    os.kill(pid, signal.SIGTERM)
    assert heard(pair, 0) == [Event(0, "said", "saved"), Event(0, "done", pid)]


def test_a_worker_that_died_idle_is_replaced_without_a_word(crew: Crew) -> None:
    pid = outcome(crew, *PID).value
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not multiprocessing.active_children())
    after = outcome(crew, *PID, key=1)
    assert after.kind == "done"
    assert after.value != pid


def test_the_death_of_a_worker_is_seen_while_a_child_of_its_lives(crew: Crew) -> None:
    crew.start(0, (leave_a_child,))
    said, crashed = heard(crew, 0)
    assert crashed.value == "its process was killed by SIGKILL, perhaps because memory ran out"
    assert not gone(said.value)
    os.kill(said.value, signal.SIGKILL)


def test_a_worker_that_cannot_be_heard_any_more_is_ended(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.05)
    crew.start(0, (close_the_line,))
    said, crashed = heard(crew, 0)
    assert crashed.kind == "crashed"
    assert gone(said.value)


def test_a_thread_that_outlives_its_task_is_not_heard(crew: Crew) -> None:
    crew.start(0, (talk_on,))
    assert heard(crew, 0)[-1] == Event(0, "done", None)
    crew.start(1, (plainly, time.sleep, 0.02))
    assert heard(crew, 1) == [Event(1, "done", None)]
    assert crew.wait(0) == []


def test_workers_that_are_no_forks_do_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems that cannot fork."""
    monkeypatch.setattr(module, "METHOD", "spawn")
    with Crew(1, work) as crew:
        pid = outcome(crew, *PID).value
        crew.start(1, (count, 2, die, signal.SIGKILL))
        words = "its process was killed by SIGKILL, perhaps because memory ran out"
        assert heard(crew, 1) == [Event(1, "said", 0), Event(1, "said", 1), Event(1, "crashed", words)]
        crew.start(2, (rest,))
        assert crew.stop()[-1] == Event(2, "stopped")
    assert gone(pid)


# --- stopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ((rest,), [Event(0, "stopped")]),
        ((finish_the_step, exit_with, 143), [Event(0, "said", "saved"), Event(0, "stopped")]),
        ((finish_the_step, interrupt), [Event(0, "said", "saved"), Event(0, "stopped")]),
        ((finish_the_step, abs, -7), [Event(0, "said", "saved"), Event(0, "done", 7)]),
        ((finish_the_step, os._exit, 9), [Event(0, "said", "saved"), Event(0, "stopped")]),
        ((finish_the_step, fail, None, OSError(5, "read")), [Event(0, "said", "saved"), Event(0, "stopped")]),
    ],
    ids=["anywhere", "SystemExit", "KeyboardInterrupt", "done", "crashed", "raised"],
)
def test_stopping_waits_for_a_step_and_tells_how_each_ended(
    crew: Crew, task: tuple[Any, ...], expected: list[Event]
) -> None:
    crew.start(0, task)
    pid = first_said(crew)
    assert crew.stop() == expected
    assert gone(pid)
    assert outcome(crew, *PID).value != pid


@pytest.mark.parametrize("task", [(rest,), (finish_the_step, exit_with, 143), (finish_the_step, interrupt)])
def test_a_sigterm_of_someone_else_stops_a_task_as_well(crew: Crew, task: tuple[Any, ...]) -> None:
    crew.start(0, task)
    os.kill(first_said(crew), signal.SIGTERM)
    assert heard(crew, 0)[-1] == Event(0, "stopped")


def test_stopping_touches_no_idle_worker(pair: Crew) -> None:
    assert pair.stop() == []
    pair.start(0, (rest,))
    assert first_said(pair)
    pid = outcome(pair, *PID, key=1).value
    assert pair.stop() == [Event(0, "stopped")]
    assert pair.idle == 2
    assert outcome(pair, *PID, key=2).value == pid


def test_what_was_said_before_stopping_is_kept(crew: Crew) -> None:
    crew.start(0, (count, 100, touch_and_rest, "told"))
    wait_until(Path("told").exists)
    assert crew.stop() == [*(Event(0, "said", number) for number in range(100)), Event(0, "stopped")]


def test_a_worker_that_is_only_starting_can_be_stopped(pair: Crew) -> None:
    pair.start(0, (rest,))
    pair.start(1, (rest,))
    assert sorted(event.key for event in pair.stop() if event.kind == "stopped") == [0, 1]


def test_closing_ends_the_deaf_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when an exception has left the context."""
    monkeypatch.setattr(module, "GRACE", 0.05)
    crew, pids = Crew(3, work), []

    def use() -> None:
        with crew:
            for key, task in enumerate([hear_nothing, rest, hear_nothing]):
                crew.start(key, (task,))
                pids.append(first_said(crew))
            raise ToolkitError("no")

    with pytest.raises(ToolkitError, match=r"^no$"):
        use()
    assert len(pids) == 3
    assert all(map(gone, pids))
    assert crew.wait(None) == []
    crew.close()


# --- big messages -------------------------------------------------------------------------------


def test_big_messages_pass_while_nobody_looks(crew: Crew) -> None:
    crew.start(0, (say_in_pieces, 3, 10_000_000))
    wait_until(Path("told").exists)  # the worker has not waited for us
    *said, done = heard(crew, 0)
    assert [event.value for event in said] == [bytes([number]) * 10_000_000 for number in range(3)]
    assert done == Event(0, "done", 3)


def test_big_tasks_and_results_pass(crew: Crew) -> None:
    task = os.urandom(1_000_000) * 50
    assert outcome(crew, plainly, bytes, task).value == task


def test_a_stop_cuts_no_message_short(crew: Crew) -> None:
    """What a worker is just telling comes whole, and what it says after SIGTERM comes after it."""
    for _ in range(5):
        crew.start(0, (say_to_the_last, 3_000_000))
        *said, last, end = crew.wait(LONG) + crew.stop()
        assert {event.value for event in said} == {bytes(3_000_000)}
        assert (last, end) == (Event(0, "said", "the last"), Event(0, "stopped"))


# --- parents ------------------------------------------------------------------------------------

SCRIPT = """
import os
import signal
import sys
import time
from dataclasses import dataclass

sys.path.insert(0, "{shelf}")
from toolkit.tuning.crew import Crew


@dataclass(frozen=True)
class Found:
    preloaded: bool
    imported: int


class Wrong(Exception):
    pass


def work(task, say):
    if task == "raise":
        raise Wrong("indeed")
    if task == "rest":
        asked = []
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        say((os.getpid(), os.getppid()))
        while not asked:
            time.sleep(0.001)
        sys.exit(143)
    preloaded = "helper" in sys.modules
    import helper
    print("printed there")
    return Found(preloaded, helper.VALUE)


def ended(crew):
    events = []
    while crew.idle < 2:
        events += crew.wait(60)
    return [event for event in events if event.kind != "said"]


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Crew(2, work, preload=["helper"]) as crew:
            for key, task in enumerate(["find", "raise"]):
                crew.start(key, task)
                print(*ended(crew))
            try:
                for key in (2, 3):
                    crew.start(key, "rest")
                    (event,) = crew.wait(60)
                    print("rests", *event.value, flush=True)
                {then}
            except KeyboardInterrupt:
                print(*sorted(crew.stop(), key=lambda event: event.key))
    except KeyboardInterrupt:
        print("interrupted")


if __name__ == "__main__":
    main()
"""

Starter = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """A function that starts a real script, in a session of its own and from another folder than the script's."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "elsewhere").mkdir()
    started = []

    def run(then: str = "crew.wait(60)", helper: str = "") -> subprocess.Popen[str]:
        (tmp_path / "shelf" / "helper.py").write_text(f"VALUE = 5\n{helper}")
        (tmp_path / "script.py").write_text(SCRIPT.format(shelf=tmp_path / "shelf", then=then))
        script = subprocess.Popen(
            [sys.executable, "-W", "error", "../script.py"],
            cwd=tmp_path / "elsewhere",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            text=True,
            start_new_session=True,
        )
        started.append(script)
        return script

    yield run
    for script in started:
        script.kill()
        script.communicate()


def rest_of(script: subprocess.Popen[str]) -> tuple[str, str]:
    """What it still prints, until it and all that it has started have ended."""
    assert script.stdout
    assert script.stderr
    text = script.stdout.read(), script.stderr.read()
    script.wait()
    return text


def resting(script: subprocess.Popen[str]) -> list[tuple[int, int]]:
    """The ids of its workers and of the server that they were forked from, once they are at work."""
    assert script.stdout
    lines = [script.stdout.readline() for _ in range(5)]
    assert lines[:3] == [
        "printed there\n",
        "Event(key=0, kind='done', value=Found(preloaded=True, imported=5))\n",
        "Event(key=1, kind='raised', value=Wrong('indeed'))\n",
    ], rest_of(script)
    return [(int(words[1]), int(words[2])) for words in map(str.split, lines[3:])]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_all_reaches_the_script_alone_which_stops_its_workers(start: Starter, number: int) -> None:
    script = start()
    pids = {pid for pids in resting(script) for pid in pids}
    os.killpg(script.pid, number)
    out, err = rest_of(script)
    assert out == "Event(key=2, kind='stopped', value=None) Event(key=3, kind='stopped', value=None)\n"
    assert (err, script.returncode) == ("", 0)
    wait_until(lambda: all(map(gone, pids)))


def test_ctrl_c_during_the_first_imports_is_quiet(start: Starter) -> None:
    helper = """
import time
from pathlib import Path
Path("importing").touch()
while not Path("go").exists():
    time.sleep(0.001)
"""
    script, folder = start(helper=helper), Path("elsewhere")
    wait_until((folder / "importing").exists)
    os.killpg(script.pid, signal.SIGINT)
    assert script.wait(LONG) == 0
    (folder / "go").touch()
    assert rest_of(script) == ("interrupted\n", "")


def test_the_workers_of_a_killed_parent_end(start: Starter) -> None:
    script = start()
    pids = {pid for pids in resting(script) for pid in pids}
    assert not any(map(gone, pids))
    script.kill()
    wait_until(lambda: all(map(gone, pids)))


def test_a_crew_outlives_the_server_that_its_workers_are_forked_from(start: Starter) -> None:
    then = "os.kill(event.value[1], signal.SIGKILL); print(*ended(crew)); crew.start(4, 'find'); print(*ended(crew))"
    script = start(then)
    pids = {pid for pids in resting(script) for pid in pids}
    out, err = rest_of(script)
    # It may be multiprocessing that finds the server dead: its new one has imported nothing, which only takes longer.
    assert re.fullmatch(r"Event\(key=4, kind='done', value=Found\(preloaded=\w+, imported=5\)\)", out.splitlines()[-1])
    assert out.count("kind='crashed'") == 2
    assert (err, script.returncode) == ("", 0)
    wait_until(lambda: all(map(gone, pids)))


def test_a_parent_without_a_file_has_a_crew() -> None:
    code = """
from operator import call
from toolkit.tuning.crew import Crew
with Crew(1, call) as crew:
    crew.start(0, callable)  # call(task, say) is task(say)
    print(crew.wait(60))
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-"], input=code, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert (ended.stdout, ended.stderr) == ("[Event(key=0, kind='done', value=True)]\n", "")
