"""Checkpoints and weights on disk: whole or absent, and never unpickled into code."""

import os
import pickle
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from support import wait_until
from support.disk import full_disk
from support.tiny_networks import context, load_weights
from toolkit.errors import DataError, SettingsError
from toolkit.training.checkpointing.checkpoint import Checkpoint, open_checkpoint
from toolkit.training.loop import TrainState


def checkpoint(folder, run_id="run", value=0.0, size=3):
    """A run with one training, full of one number."""
    phases = {"final": TrainState({"value": value}, {"weights": torch.full((size,), value)})}
    return Checkpoint(folder, run_id, {"value": value}, phases)


def value_of(found):
    """The number in a whole checkpoint."""
    state = found.phases["final"]
    (value,) = set(state.tensors["weights"].tolist())
    assert found.metadata == state.values == {"value": value}
    return value


def test_a_locked_run_is_refused_and_passed_over_by_last(tmp_path):
    checkpoint(tmp_path, "older", 1.0).save()
    checkpoint(tmp_path, "running", 2.0).save()
    with checkpoint(tmp_path, "running").lock():
        with pytest.raises(SettingsError) as caught, ExitStack() as locks:
            open_checkpoint("running", tmp_path, locks)
        assert str(caught.value) == "run running is being trained by this process; wait for it or stop it"
        assert value_of(open_checkpoint("running", tmp_path)) == 2.0  # reading needs no lock
        with ExitStack() as locks:
            assert value_of(open_checkpoint("last", tmp_path, locks)) == 1.0
            with pytest.raises(SettingsError, match=r"^run running is being trained by "), ExitStack() as another:
                open_checkpoint("last", tmp_path, another)
    with ExitStack() as locks:
        assert value_of(open_checkpoint("last", tmp_path, locks)) == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["older.resume.pt", "running.resume.pt"]


# --- state --------------------------------------------------------------------------------------


def test_save_and_open_round_trip(tmp_path):
    folder = tmp_path / "deep" / "checkpoints"
    tensors = {"network": torch.nn.Linear(3, 2).state_dict(), "sums": torch.ones(1, 2).double()}
    phases = {
        "fold 1": TrainState({"best_val_accuracy": float("nan"), "early_stopping": [-float("inf")]}, {}),
        "final": TrainState({"step": 3}, tensors),
    }
    saved = Checkpoint(folder, "abc", {"settings": {"seed": 0}}, phases, [["val_loss", 0.5, 1]])
    saved.save()
    assert [entry.name for entry in folder.iterdir()] == ["abc.resume.pt"]

    found = open_checkpoint("abc", folder)
    assert (found.folder, found.run_id, found.metadata) == (folder, "abc", {"settings": {"seed": 0}})
    assert found.pending_metrics == [["val_loss", 0.5, 1]]
    assert list(found.phases) == ["fold 1", "final"]
    assert repr(found.phases["fold 1"].values) == repr(phases["fold 1"].values)
    assert found.phases["final"].values == {"step": 3}
    torch.testing.assert_close(dict(found.phases["final"].tensors), tensors, rtol=0, atol=0)


def test_finished_weights_replace_the_checkpoint(tmp_path):
    run = checkpoint(tmp_path)
    run.save()
    path = run.finish({"bias": torch.ones(2)}, {"epochs": 3})
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]
    weights, description = load_weights(path)
    assert torch.equal(weights["bias"], torch.ones(2))
    assert description == {"epochs": 3}


def test_last_is_the_latest(tmp_path):
    for name, written in (("b", 300), ("c", 100), ("a", 200)):
        checkpoint(tmp_path, name).save()
        os.utime(tmp_path / f"{name}.resume.pt", (written, written))
    (tmp_path / "d.pt").write_text("finished")
    assert open_checkpoint("last", tmp_path).run_id == "b"
    checkpoint(tmp_path, "c", value=1.0).save()
    assert value_of(open_checkpoint("last", tmp_path)) == 1.0


def test_a_run_is_found_by_its_id_or_its_file(tmp_path):
    checkpoint(tmp_path / "here", "a").save()
    checkpoint(tmp_path / "there", "b").save()
    assert open_checkpoint("a", Path("here")).run_id == "a"
    found = open_checkpoint("there/b.resume.pt", Path("here"))
    assert (found.run_id, found.folder) == ("b", Path("there"))


def test_a_missing_checkpoint_names_those_there_are(tmp_path):
    for folder in ("missing", "."):
        with pytest.raises(
            SettingsError,
            match=rf"^there is no interrupted training in {folder}/; --resume has nothing to resume$",
        ):
            open_checkpoint("last", Path(folder))
    with pytest.raises(SettingsError, match=r"a run's id or a checkpoint file, got x; in \./ there are: none$"):
        open_checkpoint("x", Path())
    for name in ("b", "a"):
        checkpoint(tmp_path, name).save()
    message = r"^--resume must be last, a run's id or a checkpoint file, got c; in \./ there are: a, b$"
    with pytest.raises(SettingsError, match=message):
        open_checkpoint("c", Path())


# --- what cannot be read ------------------------------------------------------------------------


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def written(name, content):
    """A file that torch wrote, or one of some bytes."""
    path = Path(name)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


def no_checkpoints(tmp_path):
    """Broken, cut off, of another program, and with a trap in them."""
    checkpoint(tmp_path, "whole").save()
    whole = (tmp_path / "whole.resume.pt").read_bytes()
    return [
        written("empty.pt", b""),
        written("noise.pt", b"\x80\x04noise"),
        written("text.pt", b"hello"),
        written("cut.pt", whole[: len(whole) // 2]),
        written("list.pt", [1, 2]),
        written("pickle.pt", pickle.dumps({"phases": {}, "weights": Trap(), "description": "{}"})),
        written("trap.pt", {"phases": {"final": Trap()}, "weights": {"bias": Trap()}, "description": "{}"}),
    ]


def test_broken_and_malicious_files_are_refused_and_not_run(tmp_path):
    for path in no_checkpoints(tmp_path):
        message = rf"^the checkpoint {path} cannot be read: it is broken, or holds more than weights and text$"
        with pytest.raises(DataError, match=message):
            open_checkpoint(str(path), tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"weights": {"bias": torch.ones(1)}, "description": "{}"},  # finished weights
        {"phases": {}, "description": "{}"},
        {"phases": {}, "description": "[]"},
        {"phases": {}, "description": "not JSON"},
        {"phases": {}, "description": '{"run_id": "a", "metadata": {}, "pending_metrics": [], "phases": []}'},
        {
            "phases": {},
            "description": '{"run_id": "a", "metadata": {}, "pending_metrics": [], "phases": {"final": {}}}',
        },
    ],
)
def test_other_contents_are_no_interrupted_training(content, tmp_path):
    path = written("other.pt", content)
    with pytest.raises(DataError, match=r"^the checkpoint other\.pt cannot be read: it is not of an interrupted train"):
        open_checkpoint(str(path), tmp_path)


# --- what cannot be written ---------------------------------------------------------------------


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"^the checkpoint taken/run\.pt cannot be written: .*File exists"):
        checkpoint(Path("taken")).finish({}, {})
    (tmp_path / "busy" / "run.pt").mkdir(parents=True)
    with pytest.raises(DataError, match=r"^the checkpoint busy/run\.pt cannot be written: "):
        checkpoint(Path("busy")).finish({}, {})
    assert [entry.name for entry in (tmp_path / "busy").iterdir()] == ["run.pt"]


def test_a_full_disk_leaves_the_former_file_alone(tmp_path):
    checkpoint(tmp_path, value=1.0).save()
    with full_disk(100_000), pytest.raises(DataError) as caught:
        checkpoint(tmp_path, value=2.0, size=500_000).save()
    assert str(caught.value) == f"the checkpoint {tmp_path}/run.resume.pt cannot be written: [Errno 27] File too large"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.resume.pt"]
    assert value_of(open_checkpoint("run", tmp_path)) == 1.0


def save_repeatedly(folder):
    value = 0.0
    while True:
        value += 1
        checkpoint(folder, value=value, size=2_000_000).save()


def test_a_kill_while_saving_leaves_the_former_file(tmp_path):
    """Each time in the middle of a file, which has another name until it is whole."""
    for _ in range(3):
        writer = context().Process(target=save_repeatedly, args=(tmp_path,))
        writer.start()
        try:
            wait_until(lambda: all((tmp_path / name).exists() for name in ("run.resume.pt", ".run.resume.pt.partial")))
        finally:
            writer.kill()
            writer.join()
        assert value_of(open_checkpoint("last", tmp_path)) >= 1.0
        assert len(list(tmp_path.glob("*.resume.pt"))) == 1
