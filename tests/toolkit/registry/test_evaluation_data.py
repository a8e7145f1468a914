"""A folder of labelled images: what counts as one, and what programs answer about them."""

import hashlib
import io
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from support.colours import COLOURS, ColourNetwork, colour_card, colour_image
from toolkit.bundle.baseline import Baseline
from toolkit.bundle.program import Bundle, Program
from toolkit.errors import DataError
from toolkit.images.decoding import load_image
from toolkit.registry import evaluation_data as module
from toolkit.registry.evaluation_data import BATCH, LabelledImage, predict_all, read_labelled
from toolkit.training.data.catalogue import open_catalogue


def fill(folder, *names, data=b""):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def listed(folder):
    return [(image.label, str(image.path.relative_to(folder))) for image in read_labelled(folder)]


def bundle(card=None, strength=8.0, program=None):
    card = card or colour_card()
    nothing = Baseline(card.classes, np.zeros((0, len(card.classes))), np.zeros(0))
    return Bundle(card, nothing, "", program or Program(ColourNetwork(strength)).eval())


# --- a folder -----------------------------------------------------------------------------------


def test_each_sub_folder_is_a_class(tmp_path):
    folder = fill(
        tmp_path, "dog/b.JPG", "dog/a.png", "cat/old/tabby/c.webp", "cat/notes.txt", "cat/.hidden.png", "cat/._a.jpg",
        ".git/x.png", "beside.png", "cat/.thumbnails/c.png",
    )  # fmt: skip
    assert listed(folder) == [("cat", "cat/old/tabby/c.webp"), ("dog", "dog/a.png"), ("dog", "dog/b.JPG")]


def test_only_test_is_read_of_train_val_and_test(tmp_path, capsys):
    folder = fill(tmp_path / "photos", "train/cat/1.png", "val/cat/2.png", "Test/cat/3.png", "Test/dog/4.png")
    assert listed(folder) == [("cat", "Test/cat/3.png"), ("dog", "Test/dog/4.png")]
    assert capsys.readouterr().out == f"of {folder} only Test/ is used: versions may have been trained on the rest\n"
    only = fill(tmp_path / "only", "test/cat/1.png")
    assert listed(only) == [("cat", "test/cat/1.png")]
    classes = fill(tmp_path / "classes", "test/1.png", "train/2.png", "quiz/3.png")
    assert [label for label, _ in listed(classes)] == ["quiz", "test", "train"]
    assert not capsys.readouterr().out


def test_other_names_of_parts_and_unicode_forms_of_classes(tmp_path):
    """What a training on this folder calls its classes, and held out, is what is measured."""
    names = ("seg_train/seg_train/e\u0301te\u0301/1.png", "seg_test/seg_test/e\u0301te\u0301/2.png", "__MACOSX/._1.png")
    folder = fill(tmp_path / "photos", *names)
    (image,) = read_labelled(folder)
    assert (image.label, image.path.name) == ("été", "2.png")
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin"))
    fill(latin, os.fsdecode(b"caf\xe9/1.png"), os.fsdecode(b"a\nb/2.png"))
    assert [image.label for image in read_labelled(latin)] == ["a\\nb", "caf\\xe9"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "the folder {folder} does not exist"),
        (("1.png",), "the folder {folder} holds no sub-folders; it needs one sub-folder of images a class"),
        (("cat/notes.txt",), "the folder {folder} holds no images in sub-folders; their names end in .avif, .bmp, "),
        (("train/cat/1.png", "val/cat/1.png"), "the folder {folder} holds train, val and no test with folders "),
        (("test/1.png", "train/2.png"), "the folder {folder} holds only 'test' and 'train', and no folders in there, "),
        (("test/cat/1.png", "dog/1.png"), "the folder {folder} holds 'dog' next to 'test', so what is a class is "),
    ],
)
def test_a_folder_that_cannot_be_used(tmp_path, names, message):
    folder = fill(tmp_path / "photos", *names)
    with pytest.raises(DataError) as caught:
        read_labelled(folder)
    assert str(caught.value).startswith(message.format(folder=folder))
    assert "\n" not in str(caught.value)
    (tmp_path / "cat.png").touch()
    with pytest.raises(DataError, match=r"cat\.png is a file; give a folder with one sub-folder of images a class$"):
        read_labelled(tmp_path / "cat.png")


# --- answers ------------------------------------------------------------------------------------


def test_predictions_are_those_of_single_images(colour_folder):
    """Two sizes, more than one batch, and one program that makes mistakes."""
    labelled = read_labelled(colour_folder)
    assert len(labelled) > BATCH
    good, weak = bundle(), bundle(colour_card(classes=("red", "green", "blue"), size=8), strength=0.5)
    answers = predict_all([good, weak], labelled)
    for model, found in zip((good, weak), answers, strict=True):
        names = model.card.classes
        assert found.classes == names
        assert found.labels.tolist() == [names.index(image.label) for image in labelled]
        contents = [image.path.read_bytes() for image in labelled]
        assert found.hashes.tolist() == [hashlib.sha256(data).hexdigest() for data in contents]
        one_by_one = [
            model.predict(load_image(data, model.card.image_size).pixels[None])[0].astype(np.float16)
            for data in contents
        ]
        assert np.abs(found.probabilities - np.stack(one_by_one)).max() < 1e-3
    assert sorted(answers[0].hashes) == sorted(open_catalogue(str(colour_folder)).hashes), "as a training has them"
    assert answers[0].accuracy == 1
    assert answers[1].accuracy == pytest.approx(1 / 3), "its classes are in another order, so only green is right"


def test_each_file_is_read_once(colour_folder, monkeypatch):
    read = Counter()
    original = Path.read_bytes

    def observed(path):
        read[path] += 1
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", observed)
    labelled = read_labelled(colour_folder)
    predict_all([bundle(), bundle(colour_card(size=8)), bundle()], labelled)
    assert set(read) == {image.path for image in labelled}
    assert set(read.values()) == {1}


def test_unknown_classes_are_left_out_of_a_models_predictions(colour_folder, capsys):
    fill(colour_folder, "Red/1.png", data=colour_image("red", seed=1))
    fill(colour_folder, "zebra/1.png", "zebra/2.png", data=colour_image("red", seed=2))
    narrow = bundle(colour_card(classes=("blue", "green", "violet")))
    whole, part = predict_all([bundle(), narrow], read_labelled(colour_folder))
    assert (whole.size, part.size) == (120, 80)
    assert [part.classes[label] for label in sorted(set(part.labels.tolist()))] == ["blue", "green"]
    assert capsys.readouterr().out.splitlines() == [
        "left out 3 images of classes no model knows: Red, zebra",
        "some models do not know these classes, and are not measured on them: red",
    ]


def test_a_model_without_known_classes_has_no_predictions(colour_folder):
    strange = bundle(colour_card(classes=("cat", "dog", "owl")))
    known, none = predict_all([bundle(), strange], read_labelled(colour_folder))
    assert (known.size, none.size) == (120, 0)
    assert np.isnan(none.accuracy)


def test_no_known_class_names_both_lists(tmp_path):
    labelled = [LabelledImage("Red", tmp_path / "1.png"), LabelledImage("zebra", tmp_path / "2.png")]
    message = "^no model knows a class of the images, Red, zebra; the models know: red, blue, green$"
    with pytest.raises(DataError, match=message):
        predict_all([bundle()], labelled)


def test_broken_images_are_skipped_and_the_first_are_named(colour_folder, capsys):
    fill(colour_folder, "blue/a.png", "red/b.png", "red/c.png", data=b"noise")
    fill(colour_folder, "green/empty.jpg")
    labelled = read_labelled(colour_folder)
    (colour_folder / "blue" / "0.png").unlink()
    (answers,) = predict_all([bundle()], labelled)
    assert answers.size == 119
    (line,) = capsys.readouterr().out.splitlines()
    gone, noise, empty = colour_folder / "blue/0.png", colour_folder / "blue/a.png", colour_folder / "green/empty.jpg"
    assert line.startswith(f"skipped 5 images: {gone}: it cannot be read: No such file or directory; {noise}: not an ")
    assert line.endswith(f"; {empty}: the file is empty; and 2 more")
    with pytest.raises(DataError, match=r"^not one image can be used: .*a\.png: not an image"):
        predict_all([bundle()], [LabelledImage("blue", noise)])


def test_exact_duplicates_count_once_under_the_first_class(colour_folder, capsys):
    again = (colour_folder / "green" / "0.png").read_bytes()
    fill(colour_folder, "green/again.png", "red/again.png", data=again)
    (answers,) = predict_all([bundle()], read_labelled(colour_folder))
    assert answers.size == 120
    assert len(set(answers.hashes.tolist())) == 120
    place = answers.hashes.tolist().index(hashlib.sha256(again).hexdigest())
    assert COLOURS[answers.labels[place]] == "green"
    assert capsys.readouterr().out == "left out 2 exact duplicates, 1 of them under another class\n"


# --- while it runs ------------------------------------------------------------------------------


def many(folder, count):
    """As many different images of one colour, of 8 x 8 pixels."""
    fill(folder, "red/0.png", data=colour_image("red", size=8))
    for number in range(count):
        (folder / "red" / f"{number}.png").write_bytes(colour_image("red", seed=number, size=8))
    return read_labelled(folder)


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "IMAGES_A_LINE", 25)
    monkeypatch.setattr(module, "BATCH", 16)
    labelled = many(tmp_path, 80)
    predict_all([bundle()], labelled)
    assert capsys.readouterr() == ("".join(f"evaluated {n} of 80 images\n" for n in (32, 64, 80)), "")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    predict_all([bundle()], labelled)
    assert "evaluating: " in terminal.getvalue()
    assert "/80 " in terminal.getvalue()
    assert not capsys.readouterr().out
    monkeypatch.setattr(module, "IMAGES_A_LINE", 1)
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    predict_all([bundle()], labelled)
    assert 8 <= len(capsys.readouterr().out.splitlines()) <= 10


class Interrupting(torch.nn.Module):
    """Is interrupted as by Ctrl-C when it is first asked."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, images):
        self.asked += len(images)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return torch.full((len(images), 3), 1 / 3)


def test_an_interrupt_stops_at_once(tmp_path):
    program, threads = Interrupting(), torch.get_num_threads()
    labelled = many(tmp_path, 2 * BATCH + 1)
    with pytest.raises(KeyboardInterrupt):
        predict_all([bundle(program=program)], labelled)
    assert program.asked == BATCH
    assert torch.get_num_threads() == threads
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_an_interrupt_while_decoding_stops_too(tmp_path, monkeypatch):
    """Of the batch that is being decoded only what has begun is finished."""
    labelled, begun = many(tmp_path, BATCH), []
    original = module.load_image

    def slow(data, size):
        begun.append(size)
        if len(begun) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return original(data, size)

    monkeypatch.setattr(module, "load_image", slow)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        predict_all([bundle()], labelled)
    assert len(begun) < BATCH / 2
