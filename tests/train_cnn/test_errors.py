"""Input that is refused, on the command line and in Python."""

import numpy as np
import pytest

from support.colours import COLOURS
from support.forked_processes import Ended
from support.image_folders import fill_colours
from support.servers import free_port
from toolkit.errors import DataError
from train_cnn import TrainSettings, load_images, train


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning-rate", "5"], "--learning-rate must be at most 1, got 5"),
        (["--folds", "1"], "--folds must be 0 (no cross-validation) or at least 2, got 1"),
        (
            ["--register", "cats/dogs"],
            "--register must be letters, digits, spaces and any of . _ - only, got 'cats/dogs'",
        ),
        (["--data", "mnits"], "the folder mnits does not exist, and no data set has that name; there are: mnist, "),
        (["--data", "pairs"], "no class has a second image to validate on; add images or make a val/ folder"),
        (
            ["--data", "{colours}", "--folds", "50"],
            "class '{class}' has {count} images to cross-validate on, fewer than the 50 folds; add images or lower",
        ),
        (
            ["--data", "{colours}", "--group-by", "(red"],
            "--group-by must be a number or a regular expression, got (red (missing ), unterminated subpattern at",
        ),
        (
            ["--data", "{colours}", "--group-by", "0"],
            "--group-by must be at least 1 as a number of folders below the class's, got 0",
        ),
        (["--data", "{colours}", "--group-by", "1"], "--group-by 1 matches none of the "),
        (["--data", "{colours}", "--cache-dir", "file"], "the image cache file cannot be used: "),
        (
            ["--model-type", "resnet18", "--weights", "file", "--data", "{colours}"],
            "--weights file cannot be read: ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(words, message, store, command_line, tmp_path):
    (tmp_path / "file").write_text("no weights, no folder")
    for part in ("train", "test"):  # of each class one image is held out, and one is left
        fill_colours(tmp_path / "pairs" / part, 1, "red", "blue")
    colours = str(store.folder / "colours")
    experiment = f"refused {tmp_path.name}"
    small = [] if "--data" not in words else ["--image-size", "16", "--epochs", "1", "--experiment-name", experiment]
    ended = command_line(*[word.format(colours=colours) for word in words], *small)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert store.runs(experiment) == []
    images, divided = load_images(TrainSettings(data=colours), 16)
    counts = np.bincount(images.labels[divided.development])
    smallest = {"class": COLOURS[counts.argmin()], "count": counts.min()}
    assert ended.err.splitlines()[-1].startswith(f"train_cnn.py: error: {message.format(**smallest)}")


def test_an_unreachable_server_is_reported_before_reading_images(command_line, monkeypatch):
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert command_line("--data", "missing") == Ended(
        "",
        f"train_cnn.py: error: MLflow at {uri} does not answer: connection refused; start it with: mlflow server\n",
        2,
    )


def test_train_raises_the_same_errors_in_python(store):
    with pytest.raises(DataError, match=r"^the folder \./missing does not exist$"):
        train(TrainSettings(data="./missing"))
