"""The checkpoint and the MLflow run after each moment at which a training may be stopped."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from support.disk import full_disk
from support.tiny_networks import load_weights
from toolkit.errors import DataError, TrackingError
from toolkit.tracking.connection import connect
from toolkit.tracking.run import Run
from toolkit.training.checkpointing.checkpoint import Checkpoint, open_checkpoint
from toolkit.training.checkpointing.manager import CheckpointManager
from toolkit.training.loop import TrainState

METADATA = {"settings": {"epochs": 3}}
AWAY = TrackingError("cannot log metrics: connection refused")


@pytest.fixture
def checkpoint(run):
    return Checkpoint(Path("checkpoints"), run.id, METADATA)


def state(accuracy=0.5, weights=10):
    """The state of a training, as far as a manager reads it."""
    values = {
        "history": [], "best_epoch": 2, "best_val_accuracy": accuracy, "stopped_early": False, "seconds": 1.5,
        "images": 8,
    }  # fmt: skip
    return TrainState(values, {"network": {"weight": torch.ones(weights)}, "val_logits": torch.full((4, 3), accuracy)})


def values(run, name):
    return [point.value for point in run.client.get_metric_history(run.id, name)]


# --- after an epoch -----------------------------------------------------------------------------


def test_a_checkpoint_holds_the_metrics_sent_next(run, checkpoint):
    run.metrics({"loss": 0.25}, step=1)
    pending = run.pending
    CheckpointManager(checkpoint, run).save_callback("final")(state(0.75))
    assert values(run, "loss") == [0.25]
    found = open_checkpoint(run.id, Path("checkpoints"))
    assert (found.metadata, [tuple(entry) for entry in found.pending_metrics]) == (METADATA, pending)
    assert found.phases["final"].values["best_val_accuracy"] == 0.75
    # A run killed between the two sends them again, and they are there once.
    again = Run.reopen(run.client, run.id)
    again.load_pending(found.pending_metrics)
    again.flush()
    assert values(run, "loss") == [0.25]


def test_metrics_that_cannot_be_sent_stay_in_the_checkpoint(client, tmp_path, capsys):
    own = tmp_path / "own.db"
    own.write_bytes(Path(client.tracking_uri.removeprefix("sqlite:///").partition("?")[0]).read_bytes())
    run = Run(connect(f"sqlite:///{own}"), "training", role="final", name="away")
    save = CheckpointManager(Checkpoint(Path("checkpoints"), run.id, METADATA), run).save_callback("final")
    own.rename(tmp_path / "gone.db")
    for step in (1, 2):
        run.metrics({"loss": 1 / step}, step)
        save(state())
    entries = open_checkpoint(run.id, Path("checkpoints")).pending_metrics
    assert [(name, value, step) for name, value, _, step in entries] == [("loss", 1.0, 1), ("loss", 0.5, 2)]
    assert capsys.readouterr().out.count("training goes on") == 1


def test_a_full_disk_is_reported_once_and_keeps_the_former_file(run, checkpoint, capsys):
    save = CheckpointManager(checkpoint, run).save_callback("final")
    save(state(0.1))
    with full_disk(20_000):
        save(state(0.2, weights=100_000))
        save(state(0.3, weights=100_000))
        said = capsys.readouterr().out
        assert said.startswith(f"warning: the checkpoint checkpoints/{run.id}.resume.pt cannot be written: ")
        assert said.endswith("; training goes on, and could only be resumed from an earlier epoch\n")
        assert said.count("\n") == 1
    assert [path.name for path in Path("checkpoints").iterdir()] == [f"{run.id}.resume.pt"]
    assert open_checkpoint("last", Path("checkpoints")).phases["final"].values["best_val_accuracy"] == 0.1
    save(state(0.4, weights=100_000))
    assert open_checkpoint("last", Path("checkpoints")).phases["final"].values["best_val_accuracy"] == 0.4
    assert capsys.readouterr().out == ""
    with full_disk(20_000):
        save(state(0.5, weights=100_000))
    assert capsys.readouterr().out.count("warning: ") == 1  # it was all right in between


def test_a_read_only_manager_writes_nothing(checkpoint):
    checkpoint.phases["final"] = state(0.75)
    follower = CheckpointManager(checkpoint, read_only=True)
    follower.save_callback("final")(state(0.9))
    follower.finish(nn.Linear(1, 1), {})
    assert follower.state("final") is checkpoint.phases["final"]
    assert follower.state("fold 1") is None
    assert checkpoint.phases["final"].values["best_val_accuracy"] == 0.75
    assert not Path("checkpoints").exists()


def test_a_checkpoint_is_saved_without_a_run(checkpoint):
    CheckpointManager(checkpoint).save_callback("fold 1")(state(0.9))
    again = open_checkpoint(checkpoint.run_id, checkpoint.folder)
    assert again.phases["fold 1"].values["best_val_accuracy"] == 0.9
    assert again.pending_metrics == []


# --- folds --------------------------------------------------------------------------------------


def test_a_complete_fold_keeps_its_metrics_without_weights(run, checkpoint):
    checkpoints = CheckpointManager(checkpoint, run)
    checkpoints.save_callback("fold 1")(state(0.75, weights=100_000))
    before = checkpoint.path.stat().st_size
    assert checkpoints.finished("fold 1") is None  # it may be in the middle
    checkpoints.mark_complete("fold 1")
    checkpoints.save_callback("fold 2")(state(0.5))
    assert checkpoint.path.stat().st_size < before / 10
    found = CheckpointManager(open_checkpoint(run.id, Path("checkpoints")))
    fold = found.finished("fold 1")
    assert fold is not None
    assert (fold.best_epoch, fold.best_val_accuracy, fold.seconds) == (2, 0.75, 1.5)
    assert np.array_equal(fold.val_logits, np.full((4, 3), 0.75, np.float32))
    assert found.finished("fold 2") is found.finished("fold 3") is None


def test_a_fold_is_logged_once_across_a_resumption(run, checkpoint):
    logged = []
    checkpoints = CheckpointManager(checkpoint, run)
    checkpoints.save_callback("fold 1")(state())
    checkpoints.mark_complete("fold 1")
    checkpoints.log_once("fold 1", lambda: logged.append("fold 1"))
    checkpoints.save_callback("fold 2")(state())
    later = CheckpointManager(open_checkpoint(run.id, Path("checkpoints")), run)
    later.log_once("fold 1", lambda: logged.append("fold 1 again"))
    later.log_once("fold 2", lambda: logged.append("fold 2"))
    assert logged == ["fold 1", "fold 2"]


def test_without_a_checkpoint_a_fold_is_logged_at_once():
    logged = []
    checkpoints = CheckpointManager()
    checkpoints.mark_complete("fold 1")
    checkpoints.log_once("fold 1", lambda: logged.append("fold 1"))
    assert logged == ["fold 1"]
    with pytest.raises(TrackingError):
        checkpoints.log_once("fold 2", lambda: (_ for _ in ()).throw(AWAY))


def test_a_lost_server_defers_folds_in_order(run, checkpoint):
    logged = []
    away = [True]

    def log(name):
        if away[0]:
            raise AWAY
        logged.append(name)

    checkpoints = CheckpointManager(checkpoint, run)
    for name in ("fold 1", "fold 2"):
        checkpoints.save_callback(name)(state())
        checkpoints.log_once(name, lambda name=name: log(name))
    with pytest.raises(TrackingError, match="connection refused"):
        checkpoints.flush_deferred()
    assert logged == []
    checkpoints.save_callback("fold 3")(state())
    phases = open_checkpoint(run.id, Path("checkpoints")).phases
    assert not any(phase.values.get("logged") for phase in phases.values())
    away[0] = False
    checkpoints.log_once("fold 3", lambda: log("fold 3"))
    checkpoints.flush_deferred()
    assert logged == ["fold 1", "fold 2", "fold 3"]


# --- the end ------------------------------------------------------------------------------------


def test_a_complete_run_leaves_only_its_weights(run, checkpoint):
    network = nn.Linear(3, 2)
    checkpoints = CheckpointManager(checkpoint, run)
    checkpoints.save_callback("final")(state())
    (checkpoint.folder / f".{run.id}.resume.pt.partial").write_text("half of one, by a process that was killed")
    checkpoints.finish(network, {"classes": ["cat", "dog"]})
    assert [path.name for path in Path("checkpoints").iterdir()] == [f"{run.id}.pt"]
    weights, description = load_weights(Path("checkpoints") / f"{run.id}.pt")
    assert torch.equal(weights["weight"], network.weight)
    assert description == {"classes": ["cat", "dog"]}


def test_unwritable_weights_are_only_a_warning(run, checkpoint, capsys):
    with full_disk(20_000):
        CheckpointManager(checkpoint, run).finish(nn.Linear(1000, 100), {})
    assert capsys.readouterr().out.startswith(f"warning: the checkpoint checkpoints/{run.id}.pt cannot be written: ")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_a_stopped_run_says_how_to_resume(stop, run, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_cnn.py", "--epochs", "3"])
    checkpoints = CheckpointManager(checkpoint, run)
    with pytest.raises(type(stop)), checkpoints.resumable():
        raise stop
    assert capsys.readouterr().out == ""  # there is no checkpoint
    checkpoints.save_callback("final")(state())
    with pytest.raises(type(stop)), checkpoints.resumable():
        raise stop
    assert capsys.readouterr().out == f"stopped; resume with: python train_cnn.py --resume {run.id}\n"


def test_a_lost_server_says_how_to_resume(run, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_cnn.py"])
    checkpoints = CheckpointManager(checkpoint, run)
    with pytest.raises(TrackingError, match=r"^cannot log metrics: connection refused$"), checkpoints.resumable():
        raise AWAY
    checkpoints.save_callback("final")(state())
    with pytest.raises(TrackingError) as caught, checkpoints.resumable():
        raise AWAY
    assert str(caught.value) == (
        "cannot log metrics: connection refused; the training is saved: resume it when MLflow answers again:"
        f" python train_cnn.py --resume {run.id}"
    )
    with pytest.raises(DataError, match=r"^a class is gone$"), checkpoints.resumable():
        raise DataError("a class is gone")


def test_the_resume_command_names_folder_and_processes(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["my tools/train_cnn.py"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    checkpoints = CheckpointManager(Checkpoint(Path("big disk"), run.id, METADATA), run)
    checkpoints.save_callback("final")(state())
    with pytest.raises(SystemExit), checkpoints.resumable():
        sys.exit(143)
    words = shlex.split(capsys.readouterr().out.removeprefix("stopped; resume with: "))
    assert words[:4] == ["torchrun", "--nproc-per-node", "2", "my tools/train_cnn.py"]
    assert words[4:] == ["--resume", run.id, "--checkpoint-dir", "big disk"]
