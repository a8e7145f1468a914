"""Copies of the versions that served last: kept by the registry's cache, verified when they are loaded."""

import json
import shutil
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support import MAX_WAIT_S
from support.bundles import SavedBundle
from support.colours import ColourNetwork
from support.disk import full_disk
from toolkit.bundle.files import CARD, PROGRAM, digest_of
from toolkit.bundle.program import load_bundle
from toolkit.errors import TrackingError
from toolkit.registry.bundles import download_cached
from toolkit.serving.models.engines import TorchEngine
from toolkit.serving.models.local_cache import INDEX_FILE, MAX_COPIES, LocalModelCache
from toolkit.serving.models.manager import ModelManager, ModelManagerConfig

VERSIONS = 4
STORE = SimpleNamespace(tracking_uri="sqlite:///unused.db")  # bundles in a folder need no server


@dataclass(frozen=True)
class Version:
    version: int
    digest: str
    name: str = "colours"
    stage: str = "Production"
    run_id: str = "r" * 32


@pytest.fixture(scope="module")
def shelves(tmp_path_factory):
    """Folders of real bundles that differ in their cards alone, by number of version."""
    folder = tmp_path_factory.mktemp("bundles")
    card = SavedBundle(folder / "1", ColourNetwork()).card
    for number in range(2, VERSIONS + 1):
        other = shutil.copytree(folder / "1", folder / str(number))
        (other / CARD).write_text(card.model_copy(update={"code_version": str(number)}).model_dump_json())
    return folder


class Registry:
    """A source that fetches as the real one does, and may be away."""

    def __init__(self, shelves):
        self.shelves, self.away, self.download, self.wanted = shelves, False, [], 1

    def version(self, number):
        return Version(number, digest_of(self.shelves / str(number)))

    contradiction = ""

    def find(self):
        if self.away:
            raise TrackingError("no answer")
        return self.version(self.wanted)

    def load(self, release, cache=None):
        self.download.append((release.version, cache))
        with download_cached(STORE, str(self.shelves / str(release.version)), release.digest, cache) as folder:
            return load_bundle(folder, release.digest)


@pytest.fixture
def registry(shelves):
    return Registry(shelves)


@pytest.fixture
def copies():
    return LocalModelCache(Path("kept") / "copies", "colours", "Production")


def serve(registry, copies, *numbers):
    """Start a service, and let it serve versions one after the other."""
    manager = ModelManager(
        registry, lambda model: None, ModelManagerConfig(1000, prepare=TorchEngine, local_cache=copies)
    )
    for registry.wanted in numbers:
        assert manager.poll() == "loaded"
    return manager


def start_without_registry(registry, copies):
    registry.away = True
    manager = ModelManager(
        registry, lambda model: None, ModelManagerConfig(1000, prepare=TorchEngine, local_cache=copies)
    )
    assert manager.poll() == "unreachable"
    return manager


def load_all(copies):
    return [(kept.version, bundle.digest) for kept, bundle in copies.load_last_served()]


def test_an_empty_cache_has_no_copies(copies, caplog):
    assert load_all(copies) == []
    assert not copies.folder.exists()
    assert caplog.text == ""


def test_the_last_copy_answers_without_the_registry(registry, copies):
    serve(registry, copies, 1, 2)
    manager = start_without_registry(registry, LocalModelCache(copies.folder, "colours", "Production"))
    wanted = registry.version(2)
    assert (manager.model.release.version, manager.model.bundle.digest) == (2, wanted.digest)
    assert (manager.model.release.run_id, manager.model.release.stage) == (wanted.run_id, wanted.stage)
    assert manager.describe().source == "last good copy"
    image = np.full((1, 16, 16, 3), 90, np.uint8)
    bundle = load_bundle(registry.shelves / "2", wanted.digest)
    np.testing.assert_array_equal(manager.model.engine.infer(image), bundle.predict(image))
    registry.away, registry.download = False, []
    assert manager.poll() == "unchanged"
    assert registry.download == []
    assert manager.describe().source == "registry"


def test_a_version_that_was_only_prepared_does_not_answer(registry, copies):
    serve(registry, copies, 1)
    copies.load(registry, registry.version(2))
    assert (copies.folder / registry.version(2).digest).is_dir()
    assert [version for version, _ in load_all(copies)] == [1]


def test_the_newest_two_are_kept_and_nothing_else_is_removed(registry, copies):
    copies.folder.mkdir(parents=True)
    (copies.folder / "incoming-a1b2c3d4").mkdir()  # a kill left it
    (copies.folder / "photos").mkdir()
    (copies.folder / ("0" * 64)).write_text("no folder")
    serve(registry, copies, 1, 2, 3, 4, 3)
    kept = [registry.version(number).digest for number in (3, 4)]
    assert len(kept) == MAX_COPIES
    assert load_all(copies) == [(3, kept[0]), (4, kept[1])]
    assert {path.name for path in copies.folder.iterdir()} == {INDEX_FILE, "photos", "0" * 64, *kept}


def test_a_restart_downloads_nothing_and_keeps_the_order(registry, copies):
    serve(registry, copies, 1, 2)
    emptied = Registry(Path("nowhere"))
    emptied.version = registry.version
    serve(emptied, copies, 2)
    assert [version for version, _ in load_all(copies)] == [2, 1]


def test_an_altered_copy_is_removed_and_the_previous_answers(registry, copies, caplog):
    serve(registry, copies, 1, 2)
    altered = copies.folder / registry.version(2).digest
    (altered / PROGRAM).write_bytes(b"altered")
    manager = start_without_registry(registry, copies)
    assert manager.model.version == "1"
    assert "the copy of version 2 is not used: the bundle was altered" in caplog.text
    assert not altered.exists()
    assert [version for version, _ in load_all(copies)] == [1]
    shutil.rmtree(copies.folder / registry.version(1).digest)
    assert start_without_registry(registry, copies).model is None


def test_an_intact_copy_that_cannot_be_loaded_stays(registry, copies, monkeypatch):
    serve(registry, copies, 1)

    def short_of_memory(path):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("toolkit.bundle.program._load_program", short_of_memory)
        assert start_without_registry(registry, copies).model is None
    assert start_without_registry(registry, copies).model is not None


@pytest.mark.parametrize(
    "note",
    [
        "",
        "{}",
        '[{"name": "colours"}]',
        json.dumps(
            [{"name": "colours", "version": 1, "stage": "Production", "run_id": "", "digest": "../../precious"}]
        ),
    ],
)
def test_an_invalid_index_is_ignored(copies, caplog, note):
    precious = Path("precious")
    precious.mkdir()
    copies.folder.mkdir(parents=True)
    (copies.folder / INDEX_FILE).write_text(note)
    assert load_all(copies) == []
    assert precious.exists()
    assert "the index of local copies cannot be read" in caplog.text


@pytest.mark.parametrize(("name", "stage"), [("cats", "Production"), ("colours", "Staging")])
def test_a_copy_of_something_else_does_not_answer(registry, copies, name, stage):
    serve(registry, copies, 1)
    assert load_all(LocalModelCache(copies.folder, name, stage)) == []


@pytest.mark.parametrize("trouble", ["full from the start", "full at the index", "not to be written to"])
def test_a_disk_that_cannot_be_written_costs_one_warning(registry, caplog, trouble):
    copies = LocalModelCache(Path("kept"), "colours", "Production")
    with ExitStack() as stack:
        if trouble == "full from the start":
            stack.enter_context(full_disk(100))
        elif trouble == "full at the index":
            for number in (1, 2, 3):
                registry.load(registry.version(number), copies.folder)
            stack.enter_context(full_disk(10))
        else:
            Path("kept").write_text("a file, so nothing can be in it")
        manager = serve(registry, copies, 1, 2, 3)
    assert manager.model.version == "3"
    assert len([line for line in caplog.messages if line.startswith("no copy of version")]) == 1
    if trouble == "not to be written to":
        Path("kept").unlink()
    registry.wanted = 2
    manager.poll()
    assert [version for version, _ in load_all(copies)] == [2]


def test_a_source_that_leaves_no_copy_is_warned_of(registry, copies, caplog):
    bundle = load_bundle(registry.shelves / "1", registry.version(1).digest)
    registry.load = lambda release, cache=None: bundle
    serve(registry, copies, 1)
    assert "no copy of version 1 is kept on this machine: its source kept none" in caplog.text


def test_a_download_of_another_process_is_not_removed():
    """The second writes the index and removes copies while the first is downloading."""
    folder = Path("kept") / "Production"
    versions = [Version(number, f"{number}" * 64) for number in (1, 2)]
    fetching, go_on = threading.Event(), threading.Event()

    class Slow:
        def load(self, release, cache=None):
            incoming = cache / "incoming-abc"
            incoming.mkdir()
            fetching.set()
            assert go_on.wait(MAX_WAIT_S)
            incoming.rename(cache / release.digest)
            return release.digest

    first, second = (LocalModelCache(folder, "colours", "Production") for _ in range(2))
    (folder / versions[0].digest).mkdir(parents=True)
    loaded = []
    fetch = threading.Thread(target=lambda: loaded.append(first.load(Slow(), versions[1])))
    note = threading.Thread(target=second.mark_served, args=(versions[0],))
    fetch.start()
    assert fetching.wait(MAX_WAIT_S)
    note.start()
    note.join(0.2)
    go_on.set()
    for thread in (fetch, note):
        thread.join()
    assert loaded == [versions[1].digest]
    first.mark_served(versions[1])
    assert {path.name for path in folder.iterdir()} >= {versions[0].digest, versions[1].digest}
