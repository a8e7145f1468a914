"""Children as real processes: they exchange JSON with their parent, end with it, and leave no process behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support import MAX_WAIT_S, ROOT, wait_until
from toolkit.system.subprocesses import Child, module_command, module_environment, start, stop

# A module that a child runs: it answers each message by what the message names.
ANSWERS = """
import os, signal, sys, threading, time
from toolkit.system.subprocesses import Parent

def leave_a_fork():
    if child := os.fork():
        return child
    time.sleep(600)

parent = Parent()
while message := parent.receive():
    parent.send(eval(message))
"""
# A program with one child of that module, which it starts and names before anything else happens.
PROGRAM = """
import sys, time
from toolkit.system.subprocesses import Child
child = Child("answers")
child.send("os.getpid()")
print(next(child.messages()), flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "answers.py").write_text(ANSWERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def child():
    one = Child("answers")
    yield one
    one.close()


def ask(child, *messages):
    """The answers to some messages, after which the child ends."""
    for message in (*messages, None):
        child.send(message)
    return list(child.messages())


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_messages_go_both_ways_in_order_whatever_their_size_and_signs(child):
    answers = ask(child, *map(str, range(200)), "'ä\\n' * 300_000", "{'a': [None, 0.1, True]}")
    assert answers == [*range(200), "ä\n" * 300_000, {"a": [None, 0.1, True]}]
    assert child.close(MAX_WAIT_S) == 0


def test_what_is_printed_is_no_message_and_goes_to_standard_error(capfd):
    child = Child("answers")
    assert ask(child, "print('printed')", "os.write(1, b'raw\\n')", "os.system('echo echoed')") == [None, 4, 0]
    assert child.close(MAX_WAIT_S) == 0
    assert capfd.readouterr() == ("", "printed\nraw\nechoed\n")


def test_a_quiet_child_prints_nothing(capfd):
    child = Child("answers", {"COLOUR": "blue"}, discard_stderr=True)
    assert ask(child, "print('printed')", "os.environ['COLOUR']") == [None, "blue"]
    child.close(MAX_WAIT_S)
    assert capfd.readouterr() == ("", "")


def test_a_value_that_json_lacks_is_an_error_and_not_sent(child):
    with pytest.raises(TypeError, match="Path is not JSON serializable"):
        child.send(Path())
    assert ask(child, "1") == [1]


def test_a_message_that_the_end_cuts_short_is_left_out(child):
    cut = "parent._output.write(b'[1, 2') and os.kill(os.getpid(), signal.SIGKILL)"
    assert ask(child, "1", cut) == [1]
    child.send("nothing happens")
    assert child.close(MAX_WAIT_S) == -signal.SIGKILL


def test_a_message_is_sent_whole_before_a_signal_ends_the_child(child):
    child.send("[signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))] and None")
    child.send("'x' * 3_000_000")
    messages = child.messages()
    assert next(messages) is None
    assert child.process.stdout.peek(1)  # it has begun to send
    child.process.terminate()
    assert next(messages) == "x" * 3_000_000
    assert list(messages) == []
    assert child.close(MAX_WAIT_S) == 7


def test_the_end_of_a_child_is_seen_while_a_fork_of_its_lives(child):
    (fork,) = ask(child, "leave_a_fork()")
    assert not gone(fork)
    assert child.close(MAX_WAIT_S) == 0
    os.kill(fork, signal.SIGKILL)


def test_a_child_is_in_a_session_of_its_own(child):
    assert ask(child, "os.getsid(0)", "os.getpid()") == [child.process.pid] * 2


def test_closing_kills_what_does_not_end_by_itself(child):
    child.send("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    child.send("time.sleep(600)")
    assert child.close(0.01) == -signal.SIGKILL


def test_a_child_ends_when_its_parent_is_killed():
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=module_environment(), text=True
    )
    assert program.stdout
    with program, program.stdout:
        pid = int(program.stdout.readline())
        assert not gone(pid)
        program.kill()
        wait_until(lambda: gone(pid))


def test_stopping_is_polite_first_and_by_force_after_the_grace(tmp_path):
    heard = tmp_path / "heard"
    polite = f"import signal, sys; signal.signal(15, lambda *_: open({str(heard)!r}, 'w') and sys.exit(5));"
    deaf = "import signal; signal.signal(15, signal.SIG_IGN);"
    ready = "print('ready', flush=True); import time; time.sleep(600)"
    children = [
        start([sys.executable, "-c", code + ready], module_environment(), stdout=subprocess.PIPE)
        for code in (polite, deaf, polite)
    ]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
    stop(children[1:2], 0.1)
    stop(children, MAX_WAIT_S)  # of one nothing is left to wait for
    assert [child.returncode for child in children] == [5, -signal.SIGKILL, 5]
    assert heard.exists()
    for child in children:
        for pipe in (child.stdin, child.stdout):
            assert pipe
            pipe.close()


def test_a_module_of_the_project_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "errors.py").write_text("raise SystemExit('a file of the folder that it is started in')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shows.py").write_text("import sys, toolkit.errors; print(toolkit.errors.__file__, *sys.argv[1:])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = module_command("shows", "--this")
    ended = subprocess.run(command, env=module_environment(), capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(ROOT / "toolkit" / "errors.py"), "--this"]
    assert module_environment({"COLOUR": "blue"})["COLOUR"] == "blue"
