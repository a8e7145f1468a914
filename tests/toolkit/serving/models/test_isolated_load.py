"""Bundles are loaded in a child process first, which makes a conversion, reports errors, and can be stopped."""

import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from support import children_that_run, wait_until
from support.bundles import SavedBundle
from support.colours import ColourNetwork
from toolkit.bundle.program import open_bundle_lazily
from toolkit.errors import BundleError
from toolkit.serving.models.engines import select_engine
from toolkit.serving.models.isolated_load import IsolatedLoader
from toolkit.serving.models.openvino_cache import is_cached


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    saved = SavedBundle(tmp_path_factory.mktemp("bundle") / "bundle", ColourNetwork(strength=1.0))
    return open_bundle_lazily(saved.folder, saved.digest)


def refuse(*_):
    raise AssertionError("the program is needed")


def test_of_several_that_load_a_bundle_one_does_and_all_need_no_program_then(bundle, tmp_path):
    loaded, cache = [], tmp_path / "converted"

    class Counted(IsolatedLoader):
        def _load(self, *words):
            loaded.append(self)
            super()._load(*words)

    loaders = [Counted("auto", 1, cache) for _ in range(3)]
    threads = [threading.Thread(target=one, args=(bundle, threading.Event(), id)) for one in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1
    assert is_cached(bundle, cache)
    engine = select_engine(replace(bundle, program=refuse, export=refuse), "openvino", threads=1, cache=cache)
    assert engine.name.startswith("OpenVINO")
    IsolatedLoader("auto", 1, cache)(replace(bundle, folder=tmp_path / "gone"), threading.Event(), id)


def test_bundles_of_torch_and_those_without_a_folder_are_not_loaded(bundle, tmp_path):
    (tmp_path / "nothing").write_text("a process would fail on this")
    IsolatedLoader("torch", 1, tmp_path / "nothing")(bundle, threading.Event(), id)
    IsolatedLoader("auto", 1, tmp_path / "nothing")(replace(bundle, folder=None), threading.Event(), id)


def test_the_error_of_the_child_is_raised(bundle, tmp_path):
    with pytest.raises(BundleError, match="the bundle was altered: its digest is"):
        IsolatedLoader("auto", 1, tmp_path)(replace(bundle, digest="f" * 64), threading.Event(), id)


def loading():
    return children_that_run("toolkit.serving.models.isolated_load")


def test_a_killed_process_is_described(bundle, tmp_path):
    def kill():
        wait_until(loading)[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(BundleError, match=r"^the process that loaded it was killed by SIGKILL"):
        IsolatedLoader("auto", 1, tmp_path)(bundle, threading.Event(), id)
    killer.join()


def test_threads_pause_while_the_child_has_less_than_its_share(bundle, tmp_path):
    paused, priorities = [], []

    def starve():
        (child,) = wait_until(loading)
        priorities.append(child.nice())
        child.suspend()
        wait_until(lambda: max(paused, default=0) >= 3)
        child.resume()

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
