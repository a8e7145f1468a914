"""Promotions by two processes at once, and by processes that are killed at any write, on a real store.

The variable PROMOTIONS says how often two race.
"""

import itertools
import os
import signal

import pytest

from model_registry import ModelRegistry
from support.forked_processes import forks
from support.servers import empty_store
from toolkit.registry.stages import Stages
from toolkit.registry.versions import ALIASES
from toolkit.tracking.connection import connect

ROUNDS = int(os.environ.get("PROMOTIONS", "10"))
PROMOTER = """
import os, signal, sqlite3, sys, time
from pathlib import Path

import sqlalchemy

from model_registry import ModelRegistry
from toolkit.errors import ToolkitError
from toolkit.registry.stages import Stages
from toolkit.tracking.connection import MlflowClient, connect

WRITES = ("set_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias",
          "transition_model_version_stage")

def hasty(connection, _):
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")

sqlalchemy.event.listen(sqlalchemy.Engine, "connect", hasty)
how, uri, names, number, writes = sys.argv[1:]
left = int(writes)

def mortal(method):
    def write(*words, **more):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return method(*words, **more)
    return write

for name in WRITES:
    setattr(MlflowClient, name, mortal(getattr(MlflowClient, name)))

client = connect(uri)
print("ready", flush=True)
for turn, model in enumerate(names.split(",")):
    while not Path(f"go-{turn}").exists():
        time.sleep(0.0005)
    try:
        if how == "registry":
            ModelRegistry(uri, model).transition_model_stage(number, "Production", reason="a race")
        else:
            stages = Stages(client, model)
            stages.move(next(each for each in stages.versions() if each.version == int(number)), "Production", "a race")
        print(f"{turn}: moved", flush=True)
    except ToolkitError as error:
        print(f"{turn}: {error}", flush=True)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("promotions")
    (folder / "mlflow.db").write_bytes(empty_store())
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def client(store):
    return connect(store)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with forks(tmp_path_factory.mktemp("forks")) as starter:
        yield starter


@pytest.fixture
def promoter(started, store, tmp_path):
    """A process that promotes a version of some models, each as soon as ``go-N`` appears."""
    (tmp_path / "promoter.py").write_text(PROMOTER)

    def start(how, models, number, *, writes=-1):
        words = [str(tmp_path / "promoter.py"), how, store, ",".join(models), str(number), str(writes)]
        return started.start(*words, folder=tmp_path)

    return start


def assert_whole(versions):
    """One is in Production, and aliases, tags, MLflow's stages and the histories say so; which one."""
    for version in versions:
        assert {version.stage} == {version.written_stage, version.mlflow_stage}, version
        assert version.transitions[-1].target == version.stage if version.transitions else version.stage == "None"
        assert ("production" in version.aliases) == (version.stage == "Production")
        assert not set(version.aliases) & (set(ALIASES.values()) - {"production"})
    (production,) = [version for version in versions if version.stage == "Production"]
    return production


def test_concurrent_promotions_leave_one_production(client, promoter, tmp_path):
    models = [f"race-{number}" for number in range(ROUNDS)]
    for model in models:
        client.create_registered_model(model)
        for _ in range(3):
            client.create_model_version(model, "/nowhere")
        stages = Stages(client, model)
        stages.move(next(each for each in stages.versions() if each.version == 1), "Production", "the first")
    racers = [promoter("stages", models, number) for number in (2, 3)]
    for racer in racers:
        racer.wait_for("ready")
    winners = []
    for turn, model in enumerate(models):
        (tmp_path / f"go-{turn}").touch()
        for racer in racers:
            racer.wait_for(f"{turn}: ")
        versions = Stages(client, model).versions()
        winners.append(assert_whole(versions).version)
        first = next(version for version in versions if version.version == 1)
        assert first.stage == "Archived"
        archivings = [entry for entry in first.transitions if entry.target == "Archived"]
        assert len(archivings) == 1, archivings
    for racer in racers:
        assert racer.end().status == 0
    assert set(winners) <= {2, 3}


def test_a_promotion_killed_at_any_write_is_repaired(client, store, promoter, tmp_path, log_colour_run):
    """The first writes are those of the promotion itself: before each, kill -9."""
    (tmp_path / "go-0").touch()
    for number, accuracy in enumerate((0.8, 0.9)):
        log_colour_run(client, f"kill-{number}", metrics={"mean_cv_accuracy": accuracy}, role="study")
    for writes in itertools.count():
        model = f"killed-{writes}"
        registry = ModelRegistry(store, model)
        for number in range(2):
            registry.register_best_model(f"kill-{number}")
        registry.transition_model_stage(1, "Production")
        ended = promoter("registry", [model], 2, writes=writes).end()
        if ended.status == 0:
            break
        assert ended.status == -signal.SIGKILL, ended.err
        assert registry.get("Production").version in (1, 2)
        assert registry.transition_model_stage(2, "Production").stage == "Production"  # the next call repairs
        assert assert_whole(registry.list_versions()).version == 2
        assert registry.rollback().version == 1
    assert writes >= 5
