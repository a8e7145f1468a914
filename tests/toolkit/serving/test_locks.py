"""Who holds a lock and who waits; and what the processes of one service do one after the other."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support import LONGEST_WAIT, ColourNetwork, colour_baseline, colour_card
from toolkit.program import Bundle, Program, save_bundle, shelve_bundle
from toolkit.serving.conversion import Conversion, is_kept
from toolkit.serving.lastgood import LastGood
from toolkit.serving.locks import alone
from toolkit.serving.rehearsal import Rehearsal

HOLDER = """
import sys
from pathlib import Path
from toolkit.serving.locks import alone
with alone(Path("lock"), 0) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_given_back_when_its_holder_is_killed(tmp_path):
    words = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": tmp_path, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER], **words) as holder:
        assert holder.stdout.readline() == "True\n"
        with alone(tmp_path / "lock", 0.1) as held:
            assert not held
        holder.send_signal(signal.SIGKILL)
        with alone(tmp_path / "lock", 60) as held:
            assert held


def test_threads_wait_for_each_other(tmp_path):
    inside, most = [], []

    def work():
        with alone(tmp_path / "new" / "lock", 60) as held:
            inside.append(held)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_who_cannot_have_a_lock_goes_on_without_it(tmp_path):
    (tmp_path / "file").touch()
    with alone(tmp_path / "file" / "lock", 60) as held:
        assert not held
    stopping = threading.Event()
    stopping.set()
    with alone(tmp_path / "lock", 60), alone(tmp_path / "lock", 60, stopping) as held:
        assert not held


# What is done under one


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    program = Program(ColourNetwork(strength=1.0))
    baseline = colour_baseline(program)
    digest = save_bundle(folder, program, colour_card(accuracy=baseline.accuracy), baseline, model_id="m-1")
    return shelve_bundle(folder, digest)


def test_of_several_that_convert_a_bundle_one_does(bundle, tmp_path):
    made = []

    class Counted(Conversion):
        def _convert(self):
            made.append(self)
            return super()._convert()

    conversions = [Counted(bundle, lambda: bundle.predict, tmp_path) for _ in range(3)]
    for one in conversions:
        one.answers = bundle.baseline.probabilities[:1]
        assert one._kept is None
    threads = [threading.Thread(target=lambda one=one: one.model) for one in conversions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert is_kept(bundle, tmp_path)


def test_of_several_that_rehearse_a_bundle_one_does(bundle, tmp_path):
    rehearsed = []

    class Counted(Rehearsal):
        def _rehearse(self, *words):
            rehearsed.append(self)
            super()._rehearse(*words)

    rehearsals = [Counted("auto", 1, tmp_path) for _ in range(3)]
    threads = [threading.Thread(target=one, args=(bundle, threading.Event(), id)) for one in rehearsals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rehearsed) == 1
    assert is_kept(bundle, tmp_path)


class Release:
    name, stage, run_id = "colours", "Production", "r" * 32

    def __init__(self, version: int) -> None:
        self.version, self.digest = version, f"{version}" * 64


def test_what_one_process_fetches_another_does_not_remove():
    """The second notes what serves, and removes what is left over, while the first is still fetching."""
    folder = Path("kept") / "Production"
    fetching, go_on = threading.Event(), threading.Event()

    class Slow:
        def load(self, release, cache=None):
            incoming = cache / "incoming-abc"
            incoming.mkdir()
            fetching.set()
            assert go_on.wait(LONGEST_WAIT)
            incoming.rename(cache / release.digest)
            return release.digest

    first, second = (LastGood(folder, "colours", "Production") for _ in range(2))
    (folder / Release(1).digest).mkdir(parents=True)
    loaded = []
    fetch = threading.Thread(target=lambda: loaded.append(first.load(Slow(), Release(2))))
    note = threading.Thread(target=second.keep, args=(Release(1),))
    fetch.start()
    assert fetching.wait(LONGEST_WAIT)
    note.start()
    note.join(0.2)
    go_on.set()
    for thread in (fetch, note):
        thread.join()
    assert loaded == [Release(2).digest]
    first.keep(Release(2))
    assert {path.name for path in folder.iterdir()} >= {Release(1).digest, Release(2).digest}
