"""A pool does its tasks whatever becomes of its workers, says how each task ended, and leaves no process behind."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from support import MAX_WAIT_S, wait_until
from toolkit.errors import PromotionRefused, SettingsError, ToolkitError
from toolkit.system.subprocesses import module_environment
from toolkit.tuning import worker_pool as module
from toolkit.tuning.worker_pool import Event, WorkerPool

WORK = f"{__name__}:work"  # each worker imports this file, so that it imports nothing slow


@pytest.fixture
def pool():
    with WorkerPool(1, WORK) as one:
        yield one


@pytest.fixture
def pair():
    with WorkerPool(2, WORK) as two:
        yield two


# What workers do: a task is the name of one of these and its arguments.


def work(task, report):
    name, *arguments = task
    return globals()[name](report, *arguments)


def evaluate(report, expression):
    return eval(expression)  # noqa: S307  of this file


def count(report, upto, then="None"):
    for number in range(upto):
        report(number)
    return evaluate(report, then)


def fail(error):
    raise error


def exit_with(status):
    sys.exit(status)


def die(number):
    os.kill(os.getpid(), number)
    time.sleep(MAX_WAIT_S)


def rest(report):
    report(os.getpid())
    time.sleep(MAX_WAIT_S)


def finish_the_step(report, then):
    """Like a training: on SIGTERM it comes to the end of its step."""
    asked = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    report(os.getpid())
    while not asked:
        time.sleep(0.001)
    signal.signal(signal.SIGTERM, before)
    report("saved")
    if then == "interrupt":  # as a training does; through eval, Python would end as if by SIGINT
        raise KeyboardInterrupt
    return evaluate(report, then)


def ignore_sigterm(report):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report(os.getpid())
    time.sleep(MAX_WAIT_S)


def local_error(_):
    class OddError(SettingsError):
        pass

    raise OddError("first line\nsecond line")


def report_a_lock(report):
    report(threading.Lock())


def report_in_pieces(report, pieces, size):
    for number in range(pieces):
        report(str(number) * size)
    Path("reported").touch()
    return pieces


def report_to_the_last(report, size):
    try:
        while True:
            report("x" * size)
    finally:
        report("the last")


def report_on(report):
    """Leave a thread behind that goes on reporting."""

    def run():
        while True:
            report("still here")
            time.sleep(0.001)

    threading.Thread(target=run, daemon=True).start()


PID = ["evaluate", "os.getpid()"]


# What the parent sees.


def events_until_the_end(pool, *keys):
    """All that happens until these tasks have ended."""
    events = []
    while not set(keys) <= {event.key for event in events if event.kind != "progress"}:
        events += pool.wait(MAX_WAIT_S) or pytest.fail(f"nothing more within {MAX_WAIT_S} s after {events}")
    return events


def outcome(pool, *task, key=0):
    """End of one task."""
    pool.start(key, task)
    return next(event for event in events_until_the_end(pool, key) if event.key == key and event.kind != "progress")


def first_report(pool):
    (event,) = pool.wait(MAX_WAIT_S)
    assert event.kind == "progress"
    return event.value


def workers():
    children = psutil.Process().children()
    return [one for one in children if one.is_running() and "toolkit.tuning.worker_pool" in one.cmdline()]


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# --- tasks --------------------------------------------------------------------------------------


def test_progress_and_the_result_come_in_order(pool):
    pool.start(3, ["count", 500, "{'a': [0.1, None]}"])
    progress = [Event(3, "progress", number) for number in range(500)]
    assert events_until_the_end(pool, 3) == [*progress, Event(3, "done", {"a": [0.1, None]})]


def test_workers_are_started_on_demand_and_reused(pair):
    assert (pair.n_idle, workers()) == (2, [])
    pair.start(0, ["rest"])
    resting = first_report(pair)
    assert [one.pid for one in workers()] == [resting]
    other = outcome(pair, *PID, key=1).value
    assert other != resting
    assert pair.n_idle == 1
    assert outcome(pair, *PID, key=2) == Event(2, "done", other)


def test_wait_ends_at_the_timeout_or_without_a_busy_worker(pool):
    assert pool.wait(None) == []
    pool.start(0, ["rest"])
    assert first_report(pool)
    assert pool.wait(0) == []
    assert pool.wait(0.001) == []


def test_a_task_that_is_not_json_takes_no_worker(pool):
    with pytest.raises(TypeError, match="Object of type lock is not JSON serializable"):
        pool.start(0, threading.Lock())
    assert pool.n_idle == 1
    assert outcome(pool, *PID).kind == "done"


def test_each_task_ends_once():
    """Forty tasks in an order drawn with a seed, three at a time; a fifth of them kill their worker."""
    kinds = [
        (["count", 5], "done", 5),
        (["count", 5, "fail(ValueError('no'))"], "failed", 5),
        (["count", 5, "os._exit(4)"], "failed", 5),
        (["count", 5, "exit_with(143)"], "stopped", 5),
        (["count", 300], "done", 300),
    ]
    planned = 8 * kinds
    random.Random(0).shuffle(planned)
    events = []
    with WorkerPool(3, WORK) as pool:
        for key, (task, _, _) in enumerate(planned):
            while not pool.n_idle:
                events += pool.wait(MAX_WAIT_S)
            pool.start(key, task)
        while pool.n_idle < 3:
            events += pool.wait(MAX_WAIT_S)
    for key, (_, kind, reports) in enumerate(planned):
        own = [event for event in events if event.key == key]
        assert [event.value for event in own[:-1]] == list(range(reports))
        assert [event.kind for event in own] == [*["progress"] * reports, kind]


def test_a_worker_inherits_folder_environment_and_module_path(pool, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLOUR", "blue")
    assert outcome(pool, "evaluate", "os.getcwd()").value == str(Path.cwd())
    assert outcome(pool, "evaluate", "os.getenv('COLOUR')").value == "blue"
    assert outcome(pool, "evaluate", "sys.path").value == sys.path


def test_big_messages_pass_while_the_parent_is_busy(pool):
    pool.start(0, ["report_in_pieces", 3, 10_000_000])
    wait_until(Path("reported").exists)
    *reports, done = events_until_the_end(pool, 0)
    assert [event.value for event in reports] == [str(number) * 10_000_000 for number in range(3)]
    assert done == Event(0, "done", 3)
    task = "'" + "y" * 10_000_000 + "'"
    assert outcome(pool, "evaluate", task).value == task[1:-1]


# --- tasks that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("fail(ValueError('no such optimizer\\nat all'))", "ValueError: no such optimizer"),
        ("fail(MemoryError())", "MemoryError: MemoryError"),
        ("threading.Lock()", "TypeError: Object of type lock is not JSON serializable"),
        ("report_a_lock(report)", "TypeError: Object of type lock is not JSON serializable"),
    ],
)
def test_an_exception_fails_the_task_and_keeps_the_worker(pool, expression, reason):
    pid = outcome(pool, *PID).value
    assert outcome(pool, "evaluate", expression, key=4) == Event(4, "failed", reason)
    assert outcome(pool, *PID).value == pid


@pytest.mark.parametrize(
    ("task", "kind", "text"),
    [
        (["evaluate", "fail(SettingsError('--lr must be at most 1, got 5'))"], SettingsError,
         "--lr must be at most 1, got 5"),
        (["evaluate", "fail(PromotionRefused('it is worse'))"], PromotionRefused, "it is worse"),
        (["local_error"], SettingsError, "first line\nsecond line"),
    ],
)  # fmt: skip
def test_a_toolkit_error_keeps_its_type(pool, task, kind, text):
    event = outcome(pool, *task)
    assert (event.kind, type(event.value), str(event.value)) == ("error", kind, text)


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ("no_such_module:work", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:no_such", "AttributeError: module 'json' has no attribute 'no_such'"),
    ],
)
def test_missing_work_fails_the_task(work, reason):
    with WorkerPool(1, work) as pool:
        assert outcome(pool) == Event(0, "failed", reason)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("die(signal.SIGKILL)", "its process was killed by SIGKILL, perhaps because memory ran out"),
        ("die(signal.SIGSEGV)", "its process was killed by SIGSEGV"),
        ("die(signal.SIGRTMIN + 1)", f"its process was killed by signal {signal.SIGRTMIN + 1}"),
        ("exit_with(3)", "its process ended with status 3"),
        ("os._exit(0)", "its process ended with status 0"),
    ],
)
def test_a_dead_worker_is_replaced_and_its_reports_are_kept(pool, how, reason):
    before = outcome(pool, *PID).value
    pool.start(1, ["count", 200, how])
    progress = [Event(1, "progress", number) for number in range(200)]
    assert events_until_the_end(pool, 1) == [*progress, Event(1, "failed", reason)]
    after = outcome(pool, *PID)
    assert after.kind == "done"
    assert after.value != before
    assert gone(before)


def test_a_dead_worker_does_not_affect_others(pair):
    pair.start(0, ["finish_the_step", "os.getpid()"])
    pid = first_report(pair)
    assert outcome(pair, "evaluate", "os._exit(1)", key=1).kind == "failed"
    os.kill(pid, signal.SIGTERM)
    assert events_until_the_end(pair, 0) == [Event(0, "progress", "saved"), Event(0, "done", pid)]


def test_a_dead_idle_worker_is_replaced_silently(pool):
    pid = outcome(pool, *PID).value
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    after = outcome(pool, *PID, key=1)
    assert after.kind == "done"
    assert after.value != pid


def test_reports_after_the_end_of_a_task_are_dropped(pool):
    pool.start(0, ["report_on"])
    assert events_until_the_end(pool, 0)[-1] == Event(0, "done", None)
    pool.start(1, ["evaluate", "time.sleep(0.02)"])
    assert events_until_the_end(pool, 1) == [Event(1, "done", None)]
    assert pool.wait(0) == []


# --- stopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (["rest"], [Event(0, "stopped")]),
        (["finish_the_step", "exit_with(143)"], [Event(0, "progress", "saved"), Event(0, "stopped")]),
        (["finish_the_step", "interrupt"], [Event(0, "progress", "saved"), Event(0, "stopped")]),
        (["finish_the_step", "7"], [Event(0, "progress", "saved"), Event(0, "done", 7)]),
        (["finish_the_step", "os._exit(9)"], [Event(0, "progress", "saved"), Event(0, "stopped")]),
        (["finish_the_step", "fail(OSError(5, 'read'))"], [Event(0, "progress", "saved"), Event(0, "stopped")]),
    ],
)
def test_stop_waits_for_a_step(pool, task, expected):
    pool.start(0, task)
    pid = first_report(pool)
    os.kill(pid, signal.SIGINT)  # which is for the parent, as Ctrl-C at a terminal is
    assert pool.stop() == expected
    assert gone(pid)
    assert outcome(pool, *PID).value != pid


@pytest.mark.parametrize("task", [["rest"], ["finish_the_step", "interrupt"]])
def test_a_foreign_sigterm_stops_a_task(pool, task):
    pool.start(0, task)
    os.kill(first_report(pool), signal.SIGTERM)
    assert events_until_the_end(pool, 0)[-1] == Event(0, "stopped")


def test_stop_keeps_idle_workers(pair):
    assert pair.stop() == []
    pair.start(0, ["rest"])
    assert first_report(pair)
    pid = outcome(pair, *PID, key=1).value
    assert pair.stop() == [Event(0, "stopped")]
    assert pair.n_idle == 2
    assert outcome(pair, *PID, key=2).value == pid


def test_a_starting_worker_can_be_stopped(pair):
    pair.start(0, ["rest"])
    pair.start(1, ["rest"])
    assert sorted(event.key for event in pair.stop() if event.kind == "stopped") == [0, 1]


def test_stop_truncates_no_message(pool):
    """A message that is on its way comes whole, and what is reported after SIGTERM comes after it."""
    for _ in range(5):
        pool.start(0, ["report_to_the_last", 3_000_000])
        *reports, last, end = pool.wait(MAX_WAIT_S) + pool.stop()
        assert {event.value for event in reports} == {"x" * 3_000_000}
        assert (last, end) == (Event(0, "progress", "the last"), Event(0, "stopped"))


def test_close_kills_workers_that_ignore_sigterm(monkeypatch):
    """Also when an exception has left the context."""
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    pool, pids = WorkerPool(3, WORK), []

    def use():
        with pool:
            for key, task in enumerate(["ignore_sigterm", "rest", "ignore_sigterm"]):
                pool.start(key, [task])
                pids.append(first_report(pool))
            raise ToolkitError("no")

    with pytest.raises(ToolkitError, match=r"^no$"):
        use()
    assert len(pids) == 3
    assert all(map(gone, pids))
    assert pool.wait(None) == []
    pool.close()


def test_a_pool_that_is_closed_right_after_work_prints_nothing(capfd):
    """SIGTERM reaches a worker while its interpreter ends."""
    for _ in range(5):
        with WorkerPool(1, WORK) as pool:
            assert outcome(pool, *PID).kind == "done"
    assert capfd.readouterr() == ("", "")


# --- programs -----------------------------------------------------------------------------------

PROGRAM = """
import signal, sys
from pathlib import Path
from toolkit.tuning.worker_pool import WorkerPool

print("once", flush=True)
signal.signal(signal.SIGTERM, signal.default_int_handler)
with WorkerPool(2, sys.argv[1]) as pool:
    for key in (0, 1):
        pool.start(key, ["finish_the_step", "exit_with(143)"])
        (event,) = pool.wait(600)
        print(event.value, flush=True)
    try:
        pool.wait(600)
    except KeyboardInterrupt:
        print(*sorted((event.key, event.kind) for event in pool.stop()))
"""


@pytest.fixture
def program(tmp_path):
    """A program without a guard for its main part, in a session of its own."""
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-W", "error", tmp_path / "program.py", WORK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=module_environment({"PYTHONPATH": path}),
        text=True,
        start_new_session=True,
    ) as started:
        yield started
        started.kill()


def busy(program):
    """Its workers, once they are busy."""
    assert program.stdout
    assert program.stdout.readline() == "once\n"
    return {int(program.stdout.readline()) for _ in range(2)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_workers_through_the_parent(program, number):
    pids = busy(program)
    os.killpg(program.pid, number)
    stopped = "(0, 'progress') (0, 'stopped') (1, 'progress') (1, 'stopped')\n"
    assert program.communicate(timeout=MAX_WAIT_S) == (stopped, "")
    assert program.returncode == 0
    assert all(map(gone, pids))


def test_the_workers_of_a_killed_parent_end(program):
    pids = busy(program)
    assert not any(map(gone, pids))
    program.kill()
    wait_until(lambda: all(map(gone, pids)))
