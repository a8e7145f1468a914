"""Names of images: plain text of one line and bounded length, whatever is given."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import SettingsError
from toolkit.monitoring.base.image_names import LONGEST, source_name, source_names


@given(st.text(alphabet=st.characters(codec=None), max_size=2 * LONGEST))
def test_any_text_becomes_one_printable_line_that_can_be_stored(text):
    name = source_name(text)
    assert (name is None) == (text == "")
    if name is not None:
        assert name.isprintable()
        assert 0 < len(name) <= LONGEST
        name.encode()
        assert source_name(name) == name
        if text.isprintable() and len(text) <= LONGEST:
            assert name == text


def test_what_does_not_print_is_seen():
    assert source_name("a\r\nb\0\x1b[2J\u202egpj.\udce9") == r"a\r\nb\x00\x1b[2J\u202egpj.\udce9"
    assert source_name("été/猫 1.jpg") == "été/猫 1.jpg"
    assert source_name(Path("a/b.jpg")) == "a/b.jpg"


def test_a_long_name_keeps_both_ends():
    name = source_name("https://example.org/" + "x" * 5000 + "/cat.jpg")
    assert name.startswith("https://example.org/xx")
    assert name.endswith("xx/cat.jpg")
    assert name.count("...") == 1
    assert len(name) == LONGEST


@pytest.mark.parametrize("wrong", [5, b"a.jpg", ["a.jpg"], 1.5, True])
def test_what_is_no_text_is_refused(wrong):
    with pytest.raises(SettingsError, match=r"^source must be a text such as a file name, got "):
        source_name(wrong)
    with pytest.raises(SettingsError, match=r"^sources\[1\] must be a text such as a file name, got "):
        source_names(["a", wrong], 2)


def test_there_is_one_for_each_image():
    assert source_names(["a", None, "", "b\n"], 4) == ["a", None, None, r"b\n"]
    with pytest.raises(SettingsError, match=r"^2 sources are needed, one for each prediction, got 3$"):
        source_names(["a", "b", "c"], 2)
    with pytest.raises(SettingsError, match=r"^2 sources are needed, one for each prediction, got str$"):
        source_names("ab", 2)
