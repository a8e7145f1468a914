"""Bundles are loaded in a child process first, which makes a conversion, reports errors, and can be stopped."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from support import MAX_WAIT_S
from support.colours import ColourNetwork, colour_baseline, colour_card
from toolkit.bundle.program import Program, open_bundle_lazily, save_bundle
from toolkit.errors import BundleError
from toolkit.serving.models.engines import select_engine
from toolkit.serving.models.isolated_load import IsolatedLoader
from toolkit.serving.models.openvino_cache import is_cached
from toolkit.system.subprocesses import module_environment

ASKING = """
import json, sys, time
from toolkit.system.subprocesses import Child
child = Child("toolkit.serving.models.isolated_load", discard_stderr=True)
child.send(json.loads(sys.argv[1]))
print(child.process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    program = Program(ColourNetwork(strength=1.0))
    baseline = colour_baseline(program)
    digest = save_bundle(folder, program, colour_card(accuracy=baseline.accuracy), baseline, model_id="m-1")
    return open_bundle_lazily(folder, digest)


def refuse(*_):
    raise AssertionError("the program is needed")


def test_the_engine_is_then_built_without_the_program(bundle, tmp_path):
    cache = tmp_path / "converted"
    IsolatedLoader("auto", 1, cache)(bundle, threading.Event(), id)
    assert is_cached(bundle, cache)
    engine = select_engine(replace(bundle, program=refuse, export=refuse), "openvino", threads=1, cache=cache)
    assert engine.name.startswith("OpenVINO")


def test_cached_bundles_and_those_of_torch_are_not_loaded(bundle, tmp_path):
    (tmp_path / "nothing").write_text("a process would fail on this")
    for choice in ("torch",):
        IsolatedLoader(choice, 1, tmp_path / "nothing")(bundle, threading.Event(), id)
    IsolatedLoader("auto", 1, tmp_path / "nothing")(replace(bundle, folder=None), threading.Event(), id)
    cache = tmp_path / "converted"
    select_engine(bundle, "openvino", threads=1, cache=cache)
    IsolatedLoader("auto", 1, cache)(replace(bundle, folder=tmp_path / "gone"), threading.Event(), id)


def test_of_several_that_load_a_bundle_one_does(bundle, tmp_path):
    loaded = []

    class Counted(IsolatedLoader):
        def _load(self, *words):
            loaded.append(self)
            super()._load(*words)

    loaders = [Counted("auto", 1, tmp_path) for _ in range(3)]
    threads = [threading.Thread(target=one, args=(bundle, threading.Event(), id)) for one in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1
    assert is_cached(bundle, tmp_path)


def test_the_error_of_the_child_is_raised(bundle, tmp_path):
    with pytest.raises(BundleError, match="the bundle was altered: its digest is"):
        IsolatedLoader("auto", 1, tmp_path)(replace(bundle, digest="f" * 64), threading.Event(), id)


def loading():
    """Of the children of this process, which may have others, those that load."""
    children = psutil.Process().children()
    return [
        child for child in children if child.is_running() and "toolkit.serving.models.isolated_load" in child.cmdline()
    ]


def test_a_killed_process_is_described(bundle, tmp_path):
    def kill():
        while not (found := loading()):
            time.sleep(0.01)
        found[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(BundleError, match=r"^the process that loaded it was killed by SIGKILL"):
        IsolatedLoader("auto", 1, tmp_path)(bundle, threading.Event(), id)
    killer.join()


def test_threads_pause_while_the_child_has_less_than_its_share(bundle, tmp_path):
    paused, priorities = [], []

    def starve():
        while not (found := loading()):
            time.sleep(0.01)
        priorities.append(found[0].nice())
        found[0].suspend()
        while not paused or max(paused) < 3:
            time.sleep(0.01)
        found[0].resume()

    starving = threading.Thread(target=starve)
    starving.start()
    IsolatedLoader("auto", 1, tmp_path)(bundle, threading.Event(), paused.append)
    starving.join()
    assert is_cached(bundle, tmp_path)
    assert priorities == [psutil.Process().nice()]
    assert paused[-1] == 0


def test_a_stopping_service_does_not_wait(bundle, tmp_path):
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(BundleError, match="the service is stopping"):
        IsolatedLoader("auto", 1, tmp_path)(bundle, stopping, id)
    assert loading() == []
    assert not is_cached(bundle, Path(tmp_path))


def test_the_child_ends_with_its_parent(bundle, tmp_path):
    cache = tmp_path / "converted"
    words = [str(bundle.folder), bundle.digest, "auto", 1, str(cache)]
    command = [sys.executable, "-c", ASKING, json.dumps(words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=module_environment()) as asking:
        orphan = psutil.Process(int(asking.stdout.readline()))
        asking.kill()
    _, alive = psutil.wait_procs([orphan], timeout=MAX_WAIT_S)
    assert not alive
    assert not is_cached(bundle, cache)
