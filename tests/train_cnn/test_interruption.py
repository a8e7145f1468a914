"""Trainings that are stopped, killed, or lose their disk or server, and their resumption."""

import os
import random
import re
import shlex
import shutil
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from support import ROOT
from support.forked_processes import Ended
from support.paused_training import pause_at_step, save_each_epoch
from support.servers import MlflowServer
from support.training_runs import EPOCHS, STEPS, STORY, Place, fill, last_line, require_same
from toolkit.tracking.connection import mlflow
from toolkit.training.checkpointing.checkpoint import Checkpoint, open_checkpoint

KILLS = int(os.environ.get("KILLS", "3"))


@dataclass(frozen=True)
class Stopped:
    """A training that was sent a signal in the middle of an epoch, its checkpoint, and its resumption."""

    run: mlflow.entities.Run
    ended: Ended
    checkpoint: Path
    resumed: Ended


@pytest.fixture(scope="module")
def stopped(place, forked):
    """A training stopped by Ctrl-C and resumed by the printed command."""
    words = ("train_cnn.py", *STORY, "--experiment-name", "stopped")
    pause = partial(pause_at_step, 2 * STEPS + 20)
    script = forked.start(*words, folder=place.folder, prepare=pause, **place.variables)
    script.wait_for_pause()
    os.kill(script.pid, signal.SIGINT)
    script.go_on()
    ended = script.end()
    run = place.run_of("stopped")
    kept = shutil.copy(place.folder / "checkpoints" / f"{run.info.run_id}.resume.pt", place.folder / "stopped.pt")
    line = last_line(ended.out).removeprefix(f"stopped; resume with: python {ROOT}{os.sep}")
    resumed = forked.start(*shlex.split(line), folder=place.folder, **place.variables).end()
    return Stopped(run, ended, Path(kept), resumed)


def test_a_stopped_training_saves_its_step_and_says_how_to_resume(place, stopped):
    run, ended = stopped.run, stopped.ended
    assert (ended.status, ended.err) == (130, "train_cnn.py: interrupted\n")
    assert run.info.status == "KILLED"
    assert not run.outputs.model_outputs
    assert last_line(ended.out) == f"stopped; resume with: python {ROOT / 'train_cnn.py'} --resume {run.info.run_id}"
    values = open_checkpoint(str(stopped.checkpoint), place.folder).phases["final"].values
    done = [int(number) for number in re.findall(r"^epoch +(\d+)/", ended.out, re.MULTILINE)]
    assert done == [epoch["epoch"] for epoch in values["history"]]
    assert values["step"] == 20


def test_a_resumed_training_comes_to_the_same_result(place, whole, stopped):
    resumed, run = stopped.resumed, place.run_of("stopped")
    assert (resumed.status, resumed.err) == (0, "")
    assert resumed.out.startswith(f"resuming run {run.info.run_id}\n")
    printed = stopped.ended.out + resumed.out
    assert re.findall(r"^epoch +(\d+)/", printed, re.MULTILINE) == [str(epoch + 1) for epoch in range(EPOCHS)]
    require_same(place, run, place.folder / "checkpoints" / f"{run.info.run_id}.pt", place, "my training")


# --- kills --------------------------------------------------------------------------------------


@dataclass
class Chance:
    """Kills scripts at random moments, a number of times in all."""

    generator: random.Random
    longest: float  # seconds
    left: int = KILLS

    def strike(self, script):
        """Kill a script at some moment; whether it was still running."""
        if not self.left:
            return False
        script.process.join(self.generator.uniform(0, self.longest))
        if not script.running:
            return False
        os.kill(script.pid, signal.SIGKILL)
        self.left -= script.end().status == -signal.SIGKILL
        return True


def survive(place, forked, folder, chance):
    """Start a training, and resume it each time that it is killed, until it is complete."""
    experiment = folder.name
    begin = (*STORY[2:], "--data", str(place.folder / "colours"), "--experiment-name", experiment)
    words, status = begin, -1
    while status:
        script = forked.start(
            "train_cnn.py", *words, folder=folder, **place.variables, XDG_CACHE_HOME=str(folder / "cache")
        )
        chance.strike(script)
        ended = script.end()
        status = ended.status
        if status == 2:
            assert words == ("--resume",)
            assert ended.err == (
                "train_cnn.py: error: there is no interrupted training in checkpoints/; --resume has nothing to"
                " resume\n"
            )
            if any(run.info.status == "FINISHED" for run in place.runs(experiment)):
                return  # it was killed when all was done
            words = begin
        else:
            assert (status, ended.err) in ((0, ""), (-signal.SIGKILL, ""))
            words = ("--resume",)


def test_a_training_killed_at_random_comes_to_the_same_result(place, whole, forked, tmp_path):
    chance = Chance(random.Random(20), longest=0.7 * whole.seconds)
    attempts = 0
    while chance.left:
        folder = tmp_path / f"killed {attempts}"
        folder.mkdir()
        survive(place, forked, folder, chance)
        runs = place.runs(folder.name)
        finished = [run for run in runs if run.info.status == "FINISHED"]
        assert len(finished) == 1
        assert not any(run.data.metrics for run in runs if run not in finished)  # killed before its first checkpoint
        left = [path.name for path in (folder / "checkpoints").iterdir()]
        for run in runs:  # of one that was killed before its first checkpoint, half of that and its lock are left
            if run not in finished:
                left = [name for name in left if not name.startswith(f".{run.info.run_id}.resume.pt.")]
        assert left == [f"{finished[0].info.run_id}.pt"]
        require_same(place, finished[0], folder / "checkpoints" / left[0], place, "my training")
        attempts += 1


# --- a full disk, a lost server -----------------------------------------------------------------


def test_a_full_disk_is_only_a_warning(place, whole, forked):
    words = (*STORY, "--experiment-name", "full", "--checkpoint-dir", "full")
    pause = partial(pause_at_step, 2 * STEPS + 20)
    script = forked.start("train_cnn.py", *words, folder=place.folder, prepare=pause, **place.variables)
    script.wait_for_pause()
    (place.folder / "full").rename(place.folder / "before")
    (place.folder / "full").write_text("no folder: nothing can be written into it, not even by root")
    script.go_on()
    ended = script.end()
    run = place.run_of("full")
    assert (ended.status, ended.err) == (0, "")
    why = "cannot be written: [Errno 17] File exists: 'full'"
    progress, weights = re.findall(r"^warning: the checkpoint full/(.*)$", ended.out, re.MULTILINE)
    consequence = "training goes on, and could only be resumed from an earlier epoch"
    assert progress == f"{run.info.run_id}.resume.pt {why}; {consequence}"
    assert weights == f"{run.info.run_id}.pt {why}"
    require_same(place, run, None, place, "my training")


@dataclass(frozen=True)
class Outage:
    """Two trainings with a server that was killed: it came back during one, and after the other."""

    place: Place
    back: Ended
    lost: Ended
    left: mlflow.entities.Run  # of the lost one, when the server was there again
    resumed: Ended


def save_and_pause(*steps):
    save_each_epoch()
    pause_at_step(*steps)


@pytest.fixture(scope="module")
def outage(place, forked, tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    shutil.copy(place.folder / "mlflow.db", server.folder)  # a first start is slow
    elsewhere = replace(place, uri=server.url)
    server.start()
    try:
        scripts = []
        for name, steps in (("back", (2 * STEPS + 20, 5 * STEPS + 20)), ("lost", (2 * STEPS + 20,))):
            words = ("train_cnn.py", *STORY, "--experiment-name", name)
            pause = partial(save_and_pause, *steps)
            scripts.append(forked.start(*words, folder=place.folder, prepare=pause, **elsewhere.variables))
            scripts[-1].wait_for_pause()
        back, lost = scripts
        server.kill()
        back.go_on()
        back.wait_for("MLflow cannot take the metrics")
        back.wait_for_pause()
        lost.go_on()
        ended = lost.end()
        server.start()
        left = elsewhere.run_of("lost")
        back.go_on()
        line = ended.err.rpartition(f" python {ROOT}{os.sep}")[2]
        resumed = forked.start(*shlex.split(line), folder=place.folder, **elsewhere.variables)
        yield Outage(elsewhere, back.end(), ended, left, resumed.end())
    finally:
        server.kill()


GONE = "MLflow cannot take the metrics: connection refused; training goes on, they are kept and will be sent later\n"
BACK = "MLflow takes the metrics again; those that were kept have been sent\n"


def test_a_lost_server_says_how_to_resume(outage):
    lost = outage.lost
    assert lost.status == 2
    assert lost.out.count(GONE) == lost.out.count("MLflow") == 1
    assert f"\nepoch   {EPOCHS}/{EPOCHS}  " in lost.out
    assert re.fullmatch(
        r"train_cnn\.py: error: cannot find an earlier bundle: connection refused; the training is saved: resume it"
        rf" when MLflow answers again: python {ROOT}/train_cnn\.py --resume {outage.left.info.run_id}\n",
        lost.err,
    )
    assert outage.left.info.status == "RUNNING"


def test_resuming_after_a_lost_server_finishes_the_run(place, whole, outage):
    resumed = outage.resumed
    assert (resumed.status, resumed.err) == (0, "")
    assert "epoch " not in resumed.out.replace("best epoch ", "")
    run = outage.place.run_of("lost")
    assert run.info.run_id == outage.left.info.run_id
    require_same(outage.place, run, place.folder / "checkpoints" / f"{run.info.run_id}.pt", place, "my training")


def test_metrics_are_complete_when_the_server_comes_back(place, whole, outage):
    back = outage.back
    assert (back.status, back.err) == (0, "")
    assert (back.out.count(GONE), back.out.count(BACK)) == (1, 1)
    run = outage.place.run_of("back")
    require_same(outage.place, run, place.folder / "checkpoints" / f"{run.info.run_id}.pt", place, "my training")


# --- what cannot be resumed ---------------------------------------------------------------------


@pytest.fixture
def interrupted(store, stopped, monkeypatch):
    """The checkpoint of an interrupted training, in the folder where it was begun."""
    monkeypatch.chdir(store.folder)
    return open_checkpoint(str(stopped.checkpoint), Path("checkpoints"))


def require_refused(ended, message):
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"train_cnn.py: error: {message}\n"


def test_resume_refuses_changed_settings(store, interrupted, command_line, monkeypatch):
    rest = f"when run {interrupted.run_id} began and cannot become"
    path = str(store.folder / "stopped.pt")
    leave = "leave it out, or start a run without --resume"
    require_refused(
        command_line("--resume", path, "--learning-rate", "0.1"), f"--learning-rate was 0.003 {rest} 0.1; {leave}"
    )
    monkeypatch.setenv("TRAIN_EPOCHS", "20")
    require_refused(command_line("--resume", path, "--seed", "3"), f"--epochs was {EPOCHS} {rest} 20; {leave}")


def test_resume_refuses_changed_images(store, interrupted, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "colours", count=41)
    require_refused(
        command_line("--resume", str(store.folder / "stopped.pt")),
        f"the images of colours have changed since run {interrupted.run_id} was interrupted, so it cannot be"
        " resumed; start a run without --resume",
    )


def test_resume_refuses_other_weights(store, interrupted, command_line, tmp_path):
    interrupted.metadata["weights"] = "file mine.pth (0123456789ab)"
    other = Checkpoint(tmp_path, interrupted.run_id, interrupted.metadata, interrupted.phases)
    other.save()
    require_refused(
        command_line("--resume", str(other.path)),
        f"run {other.run_id} began with file mine.pth (0123456789ab) weights, and here --weights auto gives random"
        " ones, so it cannot be resumed",
    )


def test_resume_refuses_files_that_are_no_checkpoint(store, interrupted, whole, command_line, tmp_path, monkeypatch):
    run_id = store.run_of("my training").info.run_id
    finished = f"checkpoints/{run_id}.pt"
    require_refused(
        command_line("--resume", finished),
        f"the checkpoint {finished} cannot be read: it is not of an interrupted training",
    )
    Path("notes").write_text("nothing that torch wrote")
    ended = command_line("--resume", "notes")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith("train_cnn.py: error: the checkpoint notes cannot be read: ")
    monkeypatch.chdir(tmp_path)
    none = "there is no interrupted training in checkpoints/; --resume has nothing to resume"
    require_refused(command_line("--resume"), none)
    require_refused(command_line("--resume", "last"), none)
    replace(interrupted, folder=tmp_path / "checkpoints").save()
    require_refused(
        command_line("--resume", run_id),
        f"--resume must be last, a run's id or a checkpoint file, got {run_id}; in checkpoints/ there are:"
        f" {interrupted.run_id}",
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run_id": "f" * 32}, f"cannot reopen run '{'f' * 32}': "),
        ({"settings": {"eras": 3}}, "run {run} was started by another version of train_cnn.py\n"),
        (
            {"weights": "ImageNet"},
            "run {run} began with ImageNet weights, and here --weights auto gives random ones, so it cannot be resumed",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_resume_refuses_a_foreign_checkpoint(changed, message, interrupted, command_line, tmp_path):
    metadata = {name: changed.get(name, value) for name, value in interrupted.metadata.items()}
    run_id = str(changed.get("run_id", interrupted.run_id))
    foreign = replace(interrupted, folder=tmp_path, run_id=run_id, metadata=metadata)
    foreign.save()
    ended = command_line("--resume", str(foreign.path))
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(f"train_cnn.py: error: {message.format(run=run_id)}")
