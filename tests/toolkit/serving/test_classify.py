"""One picture from bytes to probabilities."""

import numpy as np
import pytest

from support import COLOURS, colour_picture
from toolkit.images import Limits, load_picture
from toolkit.serving.classify import STAGES, Classified, classify
from toolkit.serving.problems import FORMAT, PICTURE_TOO_LARGE, UNDECODABLE, Problem


def read(data):
    return lambda: data


def test_the_answer_is_that_of_the_bundle_on_the_decoded_picture(make_model):
    model = make_model(strength=0.4)
    for seed, colour in enumerate(COLOURS * 3):
        data = colour_picture(colour, seed, size=40 + seed)
        done = classify(model, read(data), Limits(), waited_ms=2.5)
        wanted = model.bundle.predict(load_picture(data, 16).pixels[None])[0]
        np.testing.assert_array_equal(done.probabilities, wanted)
        assert done.best(1) == [(colour, float(wanted.max()))]
        assert (done.picture.width, done.picture.height) == (40 + seed, 40 + seed)
        assert done.finite
        assert done.model is model


def test_the_total_is_the_sum_of_the_stages(make_model):
    timings = classify(make_model(), read(colour_picture("red")), Limits(), waited_ms=123.4).timings_ms
    assert tuple(timings) == STAGES
    assert timings["queue"] == 123.4
    assert timings["total"] == pytest.approx(timings["queue"] + timings["decode"] + timings["infer"], abs=0.002)
    assert min(timings.values()) > 0


def test_of_equal_classes_the_first_is_best(make_model):
    model = make_model(row=[0.25, 0.5, 0.25])
    done = classify(model, read(colour_picture("red")), Limits(), 0)
    assert done.best(3) == [("green", 0.5), ("blue", 0.25), ("red", 0.25)]
    assert done.best(2) == done.best(3)[:2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_no_number_makes_the_answer_unusable(make_model, bad):
    model = make_model(row=[0.5, bad, 0.5])
    assert not classify(model, read(colour_picture("red")), Limits(), 0).finite
    picture = load_picture(colour_picture("red"), 16)
    assert Classified(model, picture, np.array([0.0, 1.0, 0.0], np.float32), {}).finite


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", UNDECODABLE, "the file is empty"),
        (b"<html>not found</html>", UNDECODABLE, "not a picture"),
        (colour_picture("red")[:200], UNDECODABLE, "broken"),
        (b"%PDF-1.7 ...", FORMAT, "PDF is not supported"),
        (colour_picture("red", size=51), PICTURE_TOO_LARGE, "51 x 51 pixels, at most 2,500"),
    ],
)
def test_a_picture_that_cannot_be_used_is_a_problem_of_its_kind(make_model, data, kind, words):
    with pytest.raises(Problem, match=words) as caught:
        classify(make_model(), read(data), Limits(max_pixels=2500), 0)
    assert caught.value.kind is kind


def test_what_reading_raises_goes_through(make_model):
    def broken():
        raise Problem(FORMAT, "from the reader")

    with pytest.raises(Problem, match="from the reader"):
        classify(make_model(), broken, Limits(), 0)
