"""Names of images: one printable line of bounded length."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import SettingsError
from toolkit.monitoring.base.image_names import MAX_LENGTH, image_name, image_names


@given(st.text(alphabet=st.characters(codec=None), max_size=2 * MAX_LENGTH))
def test_image_name_of_any_text_is_one_printable_line(text):
    name = image_name(text)
    assert (name is None) == (text == "")
    if name is not None:
        assert name.isprintable()
        assert 0 < len(name) <= MAX_LENGTH
        name.encode()
        assert image_name(name) == name
        if text.isprintable() and len(text) <= MAX_LENGTH:
            assert name == text


def test_image_name_escapes_unprintable_characters():
    assert image_name("a\r\nb\0\x1b[2J\u202egpj.\udce9") == r"a\r\nb\x00\x1b[2J\u202egpj.\udce9"
    assert image_name("été/猫 1.jpg") == "été/猫 1.jpg"
    assert image_name(Path("a/b.jpg")) == "a/b.jpg"


def test_image_name_cuts_out_the_middle_of_long_names():
    name = image_name("https://example.org/" + "x" * 5000 + "/cat.jpg")
    assert name.startswith("https://example.org/xx")
    assert name.endswith("xx/cat.jpg")
    assert name.count("...") == 1
    assert len(name) == MAX_LENGTH


@pytest.mark.parametrize("wrong", [5, b"a.jpg", ["a.jpg"], 1.5, True])
def test_image_name_refuses_other_types(wrong):
    with pytest.raises(SettingsError, match=r"^source must be a text such as a file name, got "):
        image_name(wrong)
    with pytest.raises(SettingsError, match=r"^sources\[1\] must be a text such as a file name, got "):
        image_names(["a", wrong], 2)


def test_image_names_require_one_for_each_prediction():
    assert image_names(["a", None, "", "b\n"], 4) == ["a", None, None, r"b\n"]
    with pytest.raises(SettingsError, match=r"^2 sources are needed, one for each prediction, got 3$"):
        image_names(["a", "b", "c"], 2)
    with pytest.raises(SettingsError, match=r"^2 sources are needed, one for each prediction, got str$"):
        image_names("ab", 2)
