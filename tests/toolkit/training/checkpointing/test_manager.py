"""What is on disk and in the store after each moment at which a training may be stopped."""

import resource
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.errors import DataError, TrackingError
from toolkit.tracking.connection import connect
from toolkit.tracking.run import Run
from toolkit.training.checkpointing.checkpoint import Checkpoint, load_weights_file, open_checkpoint
from toolkit.training.checkpointing.manager import CheckpointManager
from toolkit.training.loop import TrainState

ABOUT = {"settings": {"epochs": 3}}
AWAY = TrackingError("cannot log metrics: connection refused")


@pytest.fixture
def checkpoint(run):
    return Checkpoint(Path("checkpoints"), run.id, ABOUT)


def reached(accuracy=0.5, weights=10):
    """How far a training has come, as far as anybody but the training looks at it."""
    facts = {
        "history": [], "best_epoch": 2, "best_val_accuracy": accuracy, "stopped_early": False, "seconds": 1.5
    }  # fmt: skip
    return TrainState(facts, {"network": {"weight": torch.ones(weights)}, "val_logits": torch.full((4, 3), accuracy)})


@contextmanager
def no_room(size=20_000):
    """No file can grow beyond so many bytes: the system refuses to write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def values(run, name):
    return [point.value for point in run.client.get_metric_history(run.id, name)]


# --- after an epoch -----------------------------------------------------------------------------


def test_progress_is_on_disk_with_the_figures_that_are_sent_next(run, checkpoint):
    run.metrics({"loss": 0.25}, step=1)
    pending = run.pending
    CheckpointManager(checkpoint, run).save_callback("final")(reached(0.75))
    assert values(run, "loss") == [0.25]
    found = open_checkpoint(run.id, Path("checkpoints"))
    assert (found.metadata, [tuple(entry) for entry in found.pending_metrics]) == (ABOUT, pending)
    assert found.phases["final"].facts["best_val_accuracy"] == 0.75
    # So whoever is killed between the two sends them again, and they are there once.
    again = Run.reopen(run.client, run.id)
    again.load_pending(found.pending_metrics)
    again.flush()
    assert values(run, "loss") == [0.25]


def test_figures_that_cannot_be_sent_are_in_the_checkpoint(client, tmp_path, capsys):
    own = tmp_path / "own.db"
    own.write_bytes(Path(client.tracking_uri.removeprefix("sqlite:///").partition("?")[0]).read_bytes())
    run = Run(connect(f"sqlite:///{own}"), "training", role="final", name="away")
    keep = CheckpointManager(Checkpoint(Path("checkpoints"), run.id, ABOUT), run).save_callback("final")
    own.rename(tmp_path / "gone.db")
    for step in (1, 2):
        run.metrics({"loss": 1 / step}, step)
        keep(reached())
    entries = open_checkpoint(run.id, Path("checkpoints")).pending_metrics
    assert [(name, value, step) for name, value, _, step in entries] == [("loss", 1.0, 1), ("loss", 0.5, 2)]
    assert capsys.readouterr().out.count("training goes on") == 1


def test_a_full_disk_is_told_once_and_leaves_what_was_there(run, checkpoint, capsys):
    keep = CheckpointManager(checkpoint, run).save_callback("final")
    keep(reached(0.1))
    with no_room():
        keep(reached(0.2, weights=100_000))
        keep(reached(0.3, weights=100_000))
        said = capsys.readouterr().out
        assert said.startswith(f"warning: the checkpoint checkpoints/{run.id}.resume.pt cannot be written: ")
        assert said.endswith("; training goes on, and could be taken up again only from before\n")
        assert said.count("\n") == 1
    assert [path.name for path in Path("checkpoints").iterdir()] == [f"{run.id}.resume.pt"]
    assert open_checkpoint("last", Path("checkpoints")).phases["final"].facts["best_val_accuracy"] == 0.1
    keep(reached(0.4, weights=100_000))
    assert open_checkpoint("last", Path("checkpoints")).phases["final"].facts["best_val_accuracy"] == 0.4
    assert capsys.readouterr().out == ""
    with no_room():
        keep(reached(0.5, weights=100_000))
    assert capsys.readouterr().out.count("warning: ") == 1  # it was all right in between


def test_a_process_that_keeps_no_records_only_reads(checkpoint):
    checkpoint.phases["final"] = reached(0.75)
    follower = CheckpointManager(checkpoint, writes=False)
    follower.save_callback("final")(reached(0.9))
    follower.finish(nn.Linear(1, 1), {})
    assert follower.progress("final") is checkpoint.phases["final"]
    assert follower.progress("fold 1") is None
    assert checkpoint.phases["final"].facts["best_val_accuracy"] == 0.75
    assert not Path("checkpoints").exists()


def test_without_a_run_progress_is_kept_all_the_same(checkpoint):
    CheckpointManager(checkpoint).save_callback("fold 1")(reached(0.9))
    again = open_checkpoint(checkpoint.run_id, checkpoint.folder)
    assert again.phases["fold 1"].facts["best_val_accuracy"] == 0.9
    assert again.pending_metrics == []


# --- folds --------------------------------------------------------------------------------------


def test_of_a_closed_training_its_figures_are_kept_and_its_weights_are_not(run, checkpoint):
    keeper = CheckpointManager(checkpoint, run)
    keeper.save_callback("fold 1")(reached(0.75, weights=100_000))
    before = checkpoint.path.stat().st_size
    assert keeper.finished("fold 1") is None  # it may be in the middle
    keeper.mark_complete("fold 1")
    keeper.save_callback("fold 2")(reached(0.5))
    assert checkpoint.path.stat().st_size < before / 10
    found = CheckpointManager(open_checkpoint(run.id, Path("checkpoints")))
    fold = found.finished("fold 1")
    assert fold is not None
    assert (fold.best_epoch, fold.best_val_accuracy, fold.seconds) == (2, 0.75, 1.5)
    assert np.array_equal(fold.val_logits, np.full((4, 3), 0.75, np.float32))
    assert found.finished("fold 2") is found.finished("fold 3") is None


def test_a_fold_is_logged_once_also_when_the_run_is_taken_up_again(run, checkpoint):
    logged = []
    keeper = CheckpointManager(checkpoint, run)
    keeper.save_callback("fold 1")(reached())
    keeper.mark_complete("fold 1")
    keeper.log_once("fold 1", lambda: logged.append("fold 1"))
    keeper.save_callback("fold 2")(reached())
    later = CheckpointManager(open_checkpoint(run.id, Path("checkpoints")), run)
    later.log_once("fold 1", lambda: logged.append("fold 1 again"))
    later.log_once("fold 2", lambda: logged.append("fold 2"))
    assert logged == ["fold 1", "fold 2"]


def test_without_a_checkpoint_a_fold_is_logged_at_once():
    logged = []
    keeper = CheckpointManager()
    keeper.mark_complete("fold 1")
    keeper.log_once("fold 1", lambda: logged.append("fold 1"))
    assert logged == ["fold 1"]
    with pytest.raises(TrackingError):
        keeper.log_once("fold 2", lambda: (_ for _ in ()).throw(AWAY))


def test_a_lost_server_delays_the_log_of_a_fold_and_keeps_the_order(run, checkpoint):
    logged = []
    away = [True]

    def log(name):
        if away[0]:
            raise AWAY
        logged.append(name)

    keeper = CheckpointManager(checkpoint, run)
    for name in ("fold 1", "fold 2"):
        keeper.save_callback(name)(reached())
        keeper.log_once(name, lambda name=name: log(name))
    with pytest.raises(TrackingError, match="connection refused"):
        keeper.flush_deferred()
    assert logged == []
    keeper.save_callback("fold 3")(reached())
    stages = open_checkpoint(run.id, Path("checkpoints")).phases
    assert not any(stage.facts.get("logged") for stage in stages.values())
    away[0] = False
    keeper.log_once("fold 3", lambda: log("fold 3"))
    keeper.flush_deferred()
    assert logged == ["fold 1", "fold 2", "fold 3"]


# --- the end ------------------------------------------------------------------------------------


def test_a_complete_run_leaves_its_weights_alone(run, checkpoint):
    network = nn.Linear(3, 2)
    keeper = CheckpointManager(checkpoint, run)
    keeper.save_callback("final")(reached())
    (checkpoint.folder / f".{run.id}.resume.pt.partial").write_text("half of one, by a process that was killed")
    keeper.finish(network, {"classes": ["cat", "dog"]})
    assert [path.name for path in Path("checkpoints").iterdir()] == [f"{run.id}.pt"]
    weights, description = load_weights_file(Path("checkpoints") / f"{run.id}.pt")
    assert torch.equal(weights["weight"], network.weight)
    assert description == {"classes": ["cat", "dog"]}


def test_weights_that_cannot_be_left_are_no_failure(run, checkpoint, capsys):
    with no_room():
        CheckpointManager(checkpoint, run).finish(nn.Linear(1000, 100), {})
    assert capsys.readouterr().out.startswith(f"warning: the checkpoint checkpoints/{run.id}.pt cannot be written: ")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_whoever_stops_a_run_is_told_how_to_go_on(
    stop, run, checkpoint, monkeypatch,
    capsys,
):  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train_cnn.py", "--epochs", "3"])
    keeper = CheckpointManager(checkpoint, run)
    with pytest.raises(type(stop)), keeper.resumable():
        raise stop
    assert capsys.readouterr().out == ""  # there is nothing to go on with
    keeper.save_callback("final")(reached())
    with pytest.raises(type(stop)), keeper.resumable():
        raise stop
    assert capsys.readouterr().out == f"stopped; go on with: python train_cnn.py --resume {run.id}\n"


def test_a_lost_server_ends_with_how_to_finish(run, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_cnn.py"])
    keeper = CheckpointManager(checkpoint, run)
    with pytest.raises(TrackingError, match=r"^cannot log metrics: connection refused$"), keeper.resumable():
        raise AWAY
    keeper.save_callback("final")(reached())
    with pytest.raises(TrackingError) as caught, keeper.resumable():
        raise AWAY
    assert str(caught.value) == (
        "cannot log metrics: connection refused; what was trained is kept: go on, when MLflow answers again, with"
        f" python train_cnn.py --resume {run.id}"
    )
    with pytest.raises(DataError, match=r"^a class is gone$"), keeper.resumable():
        raise DataError("a class is gone")


def test_the_command_holds_for_any_folder_and_any_number_of_processes(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["my tools/train_cnn.py"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    keeper = CheckpointManager(Checkpoint(Path("big disk"), run.id, ABOUT), run)
    keeper.save_callback("final")(reached())
    with pytest.raises(SystemExit), keeper.resumable():
        sys.exit(143)
    words = shlex.split(capsys.readouterr().out.removeprefix("stopped; go on with: "))
    assert words[:4] == ["torchrun", "--nproc-per-node", "2", "my tools/train_cnn.py"]
    assert words[4:] == ["--resume", run.id, "--checkpoint-dir", "big disk"]
