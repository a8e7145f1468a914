"""Weights on disk: whole or not there, and nothing in them is run."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from toolkit.errors import DataError
from toolkit.training.checkpoints import load_checkpoint, save_checkpoint


def test_what_is_saved_rebuilds_the_network(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.pt"
    network = torch.nn.Linear(3, 2)
    save_checkpoint(path, torch.nn.Linear(3, 2), {"epoch": 1})
    save_checkpoint(path, network, {"epoch": 2, "classes": ("cat", "dog")})
    weights, description = load_checkpoint(path)
    assert description == {"epoch": 2, "classes": ["cat", "dog"]}
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(weights)
    assert torch.equal(other.weight, network.weight)
    assert [entry.name for entry in path.parent.iterdir()] == ["run.pt"]


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


def test_what_is_no_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    trap = pickle.dumps({"weights": Trap(), "description": "{}"})
    torch.save({"weights": {"a": torch.zeros(1)}, "description": Trap()}, tmp_path / "zip.pt")
    for name, data in {"trap.pt": trap, "noise.pt": b"\x80\x04noise", "empty.pt": b""}.items():
        (tmp_path / name).write_bytes(data)
    torch.save({"weights": {}}, tmp_path / "half.pt")
    for name in ("trap.pt", "zip.pt", "noise.pt", "empty.pt", "half.pt", "missing.pt"):
        with pytest.raises(DataError, match=rf"^the checkpoint {name} cannot be read: ") as caught:
            load_checkpoint(Path(name))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"^the checkpoint taken/run\.pt cannot be written: .*File exists"):
        save_checkpoint(Path("taken/run.pt"), torch.nn.Linear(3, 2), {})
    (tmp_path / "busy" / "run.pt").mkdir(parents=True)
    with pytest.raises(DataError, match=r"^the checkpoint busy/run\.pt cannot be written: "):
        save_checkpoint(Path("busy/run.pt"), torch.nn.Linear(3, 2), {})
    assert [entry.name for entry in (tmp_path / "busy").iterdir()] == ["run.pt"]
