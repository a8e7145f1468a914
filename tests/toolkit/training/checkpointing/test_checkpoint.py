"""Progress and weights on disk: whole or not there, and nothing in them is run."""

import os
import pickle
import resource
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from support.tiny_networks import context, elsewhere
from toolkit.errors import DataError, SettingsError
from toolkit.training.checkpointing.checkpoint import Checkpoint, load_weights_file, open_checkpoint, save_weights
from toolkit.training.loop import TrainState


def checkpoint(folder, run_id="run", value=0.0, size=3):
    """A run with one training, all of whose numbers are the same."""
    stages = {"final": TrainState({"value": value}, {"weights": torch.full((size,), value)})}
    return Checkpoint(folder, run_id, {"value": value}, stages)


def value_of(found):
    """The number that a checkpoint consists of, when it is whole."""
    progress = found.phases["final"]
    (value,) = set(progress.tensors["weights"].tolist())
    assert found.metadata == progress.facts == {"value": value}
    return value


def test_a_run_under_way_is_refused_by_its_process_and_is_not_the_last_interrupted_one(tmp_path):
    checkpoint(tmp_path, "older", 1.0).save()
    checkpoint(tmp_path, "running", 2.0).save()
    with checkpoint(tmp_path, "running").held():
        with pytest.raises(SettingsError) as caught, ExitStack() as hold:
            open_checkpoint("running", tmp_path, hold)
        assert str(caught.value) == "run running is being trained by this process; wait for it or stop it"
        assert value_of(open_checkpoint("running", tmp_path)) == 2.0  # who does not train it may look
        with ExitStack() as hold:
            assert value_of(open_checkpoint("last", tmp_path, hold)) == 1.0
            with pytest.raises(SettingsError, match=r"^run running is being trained by "), ExitStack() as another:
                open_checkpoint("last", tmp_path, another)
    with ExitStack() as hold:
        assert value_of(open_checkpoint("last", tmp_path, hold)) == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["older.resume.pt", "running.resume.pt"]


# --- progress -----------------------------------------------------------------------------------


def test_what_is_saved_comes_back(tmp_path):
    folder = tmp_path / "deep" / "checkpoints"
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    tensors = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "sums": torch.ones(1, 2).double()}
    stages = {
        "fold 1": TrainState({"best_val_accuracy": float("nan"), "stopping": [-float("inf")]}, {}),
        "final": TrainState({"step": 3}, tensors),
    }
    saved = Checkpoint(folder, "abc", {"settings": {"seed": 0}}, stages, [["val_loss", 0.5, 1]])
    saved.save()
    assert [entry.name for entry in folder.iterdir()] == ["abc.resume.pt"]

    found = open_checkpoint("abc", folder)
    assert (found.folder, found.run_id, found.metadata) == (folder, "abc", {"settings": {"seed": 0}})
    assert found.pending_metrics == [["val_loss", 0.5, 1]]
    assert list(found.phases) == ["fold 1", "final"]
    assert repr(found.phases["fold 1"].facts) == repr(stages["fold 1"].facts)
    assert found.phases["final"].facts == {"step": 3}
    assert torch.equal(found.phases["final"].tensors["sums"], tensors["sums"])
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(found.phases["final"].tensors["network"])
    assert torch.equal(other.weight, network.weight)
    moments = torch.optim.AdamW(other.parameters())
    moments.load_state_dict(found.phases["final"].tensors["optimizer"])
    assert all(
        torch.equal(moments.state[mine][name], optimizer.state[its][name])
        for mine, its in zip(other.parameters(), network.parameters(), strict=True)
        for name in ("step", "exp_avg", "exp_avg_sq")
    )


def test_finished_weights_take_the_place_of_the_progress(tmp_path):
    run = checkpoint(tmp_path)
    run.save()
    path = run.finish({"bias": torch.ones(2)}, {"epochs": 3})
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]
    weights, description = load_weights_file(path)
    assert torch.equal(weights["bias"], torch.ones(2))
    assert description == {"epochs": 3}


def test_last_is_the_one_written_last(tmp_path):
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
    assert (found.run_id, found.folder) == ("b", Path("there")), "it goes on where it lies"


def test_without_one_it_says_what_there_is(tmp_path):
    for folder in ("missing", "."):
        with pytest.raises(
            SettingsError,
            match=rf"^there is no interrupted training in {folder}/; --resume has nothing to go on from$",
        ):
            open_checkpoint("last", Path(folder))
    with pytest.raises(SettingsError, match=r"a run's id or a checkpoint file, got x; in \./ there are: none$"):
        open_checkpoint("x", Path())
    for name in ("b", "a"):
        checkpoint(tmp_path, name).save()
    message = r"^--resume must be last, a run's id or a checkpoint file, got c; in \./ there are: a, b$"
    with pytest.raises(SettingsError, match=message):
        open_checkpoint("c", Path())


# --- weights ------------------------------------------------------------------------------------


def test_what_is_saved_rebuilds_the_network(tmp_path):
    path = tmp_path / "deep" / "run.pt"
    network = torch.nn.Linear(3, 2)
    save_weights(path, torch.nn.Linear(3, 2).state_dict(), {"epoch": 1})
    save_weights(path, network.state_dict(), {"epoch": 2, "classes": ("cat", "dog")})
    weights, description = load_weights_file(path)
    assert description == {"epoch": 2, "classes": ["cat", "dog"]}
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(weights)
    assert torch.equal(other.weight, network.weight)
    assert [entry.name for entry in path.parent.iterdir()] == ["run.pt"]


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
        written("pickle.pt", pickle.dumps({"stages": {}, "weights": Trap(), "description": "{}"})),
        written("trap.pt", {"stages": {"final": Trap()}, "weights": {"bias": Trap()}, "description": "{}"}),
    ]


def test_what_is_no_checkpoint_is_refused_in_one_line_and_never_run(tmp_path):
    for path in no_checkpoints(tmp_path):
        message = rf"^the checkpoint {path} cannot be read: it is broken, or holds more than weights and text$"
        with pytest.raises(DataError, match=message):
            open_checkpoint(str(path), tmp_path)
        with pytest.raises(DataError, match=message):
            load_weights_file(path)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(DataError, match=r"^the checkpoint missing\.pt cannot be read: .*No such file"):
        load_weights_file(Path("missing.pt"))


@pytest.mark.parametrize(
    "content",
    [
        {"weights": {"bias": torch.ones(1)}, "description": "{}"},  # finished weights
        {"stages": {}, "description": "{}"},
        {"stages": {}, "description": "[]"},
        {"stages": {}, "description": "not JSON"},
        {"stages": {}, "description": '{"run_id": "a", "about": {}, "unsent": [], "stages": []}'},
        {"stages": {}, "description": '{"run_id": "a", "about": {}, "unsent": [], "stages": {"final": {}}}'},
    ],
)
def test_a_file_of_something_else_is_no_interrupted_training(content, tmp_path):
    path = written("other.pt", content)
    with pytest.raises(DataError, match=r"^the checkpoint other\.pt cannot be read: it is not of an interrupted train"):
        open_checkpoint(str(path), tmp_path)


@pytest.mark.parametrize("content", [{"weights": {}}, {"description": "{}"}, {"weights": {}, "description": "[1]"}])
def test_a_file_of_something_else_holds_no_weights(content):
    with pytest.raises(DataError, match=r"^the checkpoint other\.pt cannot be read: it holds no weights with a descr"):
        load_weights_file(written("other.pt", content))


# --- what cannot be written ---------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"^the checkpoint taken/run\.pt cannot be written: .*File exists"):
        save_weights(Path("taken/run.pt"), {}, {})
    (tmp_path / "busy" / "run.pt").mkdir(parents=True)
    with pytest.raises(DataError, match=r"^the checkpoint busy/run\.pt cannot be written: "):
        save_weights(Path("busy/run.pt"), {}, {})
    assert [entry.name for entry in (tmp_path / "busy").iterdir()] == ["run.pt"]


def save_on_a_full_disk(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        checkpoint(folder, value=2.0, size=500_000).save()
    except DataError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "saved"


def test_a_full_disk_leaves_the_former_file_and_no_litter(tmp_path):
    checkpoint(tmp_path, value=1.0).save()
    said = elsewhere(save_on_a_full_disk, tmp_path)
    assert said == f"the checkpoint {tmp_path}/run.resume.pt cannot be written: [Errno 27] File too large"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.resume.pt"]
    assert value_of(open_checkpoint("run", tmp_path)) == 1.0


def save_for_ever(folder):
    value = 0.0
    while True:
        value += 1
        checkpoint(folder, value=value, size=2_000_000).save()


def test_who_is_killed_while_saving_leaves_the_former_file(tmp_path):
    """Each time in the middle of a file, which has another name until it is whole."""
    for _ in range(3):
        writer = context().Process(target=save_for_ever, args=(tmp_path,))
        writer.start()
        before = time.monotonic()
        try:
            while not ((tmp_path / "run.resume.pt").exists() and (tmp_path / ".run.resume.pt.partial").exists()):
                assert time.monotonic() < before + 60
        finally:
            writer.kill()
            writer.join()
        assert value_of(open_checkpoint("last", tmp_path)) >= 1.0
        assert len(list(tmp_path.glob("*.resume.pt"))) == 1
