"""Bundles that are proved in a process of their own: it leaves a conversion, or says what is wrong, or is stopped."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from support import LONGEST_WAIT, ROOT, ColourNetwork, colour_baseline, colour_card
from toolkit.errors import BundleError
from toolkit.program import Bundle, Program, save_bundle, shelve_bundle
from toolkit.serving.conversion import is_kept
from toolkit.serving.engines import prepare
from toolkit.serving.rehearsal import Rehearsal


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    program = Program(ColourNetwork(strength=1.0))
    baseline = colour_baseline(program)
    digest = save_bundle(folder, program, colour_card(accuracy=baseline.accuracy), baseline, model_id="m-1")
    return shelve_bundle(folder, digest)


def refuse(*_: object) -> None:
    raise AssertionError("the program is needed")


def test_what_was_rehearsed_is_prepared_without_its_program(bundle, tmp_path):
    cache = tmp_path / "converted"
    Rehearsal("auto", 1, cache)(bundle, threading.Event(), id)
    assert is_kept(bundle, cache)
    engine = prepare(replace(bundle, program=refuse, export=refuse), "openvino", threads=1, cache=cache)
    assert engine.name.startswith("OpenVINO")


def test_what_is_kept_is_not_rehearsed_again_and_what_torch_runs_never_is(bundle, tmp_path):
    (tmp_path / "nothing").write_text("a process would fail on this")
    for choice in ("torch",):
        Rehearsal(choice, 1, tmp_path / "nothing")(bundle, threading.Event(), id)
    Rehearsal("auto", 1, tmp_path / "nothing")(replace(bundle, folder=None), threading.Event(), id)
    cache = tmp_path / "converted"
    prepare(bundle, "openvino", threads=1, cache=cache)
    Rehearsal("auto", 1, cache)(replace(bundle, folder=tmp_path / "gone"), threading.Event(), id)


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


def test_what_is_wrong_is_said_in_the_words_of_the_check(bundle, tmp_path):
    with pytest.raises(BundleError, match="the bundle was altered: its digest is"):
        Rehearsal("auto", 1, tmp_path)(replace(bundle, digest="f" * 64), threading.Event(), id)


def rehearsing() -> list[psutil.Process]:
    """Of the children of this process, which may have others, those that rehearse."""
    children = psutil.Process().children()
    return [child for child in children if child.is_running() and "toolkit.serving.rehearsal" in child.cmdline()]


def test_a_process_that_is_killed_says_how(bundle, tmp_path):
    def kill() -> None:
        while not (found := rehearsing()):
            time.sleep(0.01)
        found[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(BundleError, match="the process that tried it ended with SIGKILL"):
        Rehearsal("auto", 1, tmp_path)(bundle, threading.Event(), id)
    killer.join()


def test_a_process_that_does_not_get_its_share_has_workers_rest_until_it_is_done(bundle, tmp_path):
    resting, priorities = [], []

    def starve() -> None:
        while not (found := rehearsing()):
            time.sleep(0.01)
        priorities.append(found[0].nice())
        found[0].suspend()
        while not resting or max(resting) < 3:
            time.sleep(0.01)
        found[0].resume()

    starving = threading.Thread(target=starve)
    starving.start()
    Rehearsal("auto", 1, tmp_path)(bundle, threading.Event(), resting.append)
    starving.join()
    assert is_kept(bundle, tmp_path)
    assert priorities == [psutil.Process().nice()]
    assert resting[-1] == 0


def test_a_service_that_ends_does_not_wait_for_it(bundle, tmp_path):
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(BundleError, match="the service ends"):
        Rehearsal("auto", 1, tmp_path)(bundle, stopping, id)
    assert rehearsing() == []
    assert not is_kept(bundle, Path(tmp_path))


def test_it_ends_with_the_process_that_asked_for_it(bundle, tmp_path):
    cache, pid = tmp_path / "converted", tmp_path / "pid"
    words = f"{sys.executable} -m toolkit.serving.rehearsal {bundle.folder} {bundle.digest} auto 1 {cache}"
    asking = subprocess.Popen(
        ["sh", "-c", f"{words} $$ & echo $! > {pid}; wait"], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while not pid.exists() or not pid.read_text().strip():
        time.sleep(0.01)
    orphan = psutil.Process(int(pid.read_text()))
    asking.kill()
    asking.wait()
    _, alive = psutil.wait_procs([orphan], timeout=LONGEST_WAIT)
    assert not alive
    assert not is_kept(bundle, cache)
