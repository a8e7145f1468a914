"""Names that are no text, or act on what shows them: what is shown can be written anywhere, and acts on nothing."""

import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import ROOT
from toolkit.cli.safe_names import class_name, display_name, printable

NAMES = {
    b"caf\xe9": "caf\\xe9",  # Latin-1
    "été".encode(): "été",
    b"\x83\x97\x83b\x83v": "\\x83\\x97\\x83b\\x83v",  # Shift-JIS
    b"two\nlines\tand more\r": "two\\nlines\\tand more\\r",
    b"\x1b[2Jred\x07\x7f": "\\x1b[2Jred\\x07\\x7f",
    "\u202egnp.tac\u2066\u200e".encode(): "\\u202egnp.tac\\u2066\\u200e",
    "next\u0085line\u2028end".encode(): "next\\x85line\\u2028end",
    "猫 می\u200cخواهم 👩\u200d🚀".encode(): "猫 می\u200cخواهم 👩\u200d🚀",
    rb"back\slash": r"back\slash",
}


@pytest.mark.parametrize(("name", "text"), NAMES.items())
def test_a_name_of_the_file_system_is_shown_as_text(name, text):
    assert display_name(os.fsdecode(name)) == text
    assert display_name(Path("pets") / os.fsdecode(name)) == f"pets/{text}"
    assert json.loads(json.dumps(display_name(os.fsdecode(name)), ensure_ascii=False).encode()) == text


@given(st.binary(max_size=40))
def test_whatever_its_bytes_are_a_name_is_one_line_of_valid_unicode(name):
    text = display_name(os.fsdecode(name))
    text.encode()
    assert len(text.splitlines()) <= 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert display_name(text) == text


@given(st.text(), st.sampled_from(["ascii", "latin-1", "utf-8", "cp932", None]))
def test_lines_can_be_written_in_any_encoding(text, encoding):
    found = printable(text, encoding)
    found.encode(encoding or "utf-8")
    assert "\x1b" not in found
    assert found.count("\n") == text.count("\n")


def test_a_class_is_one_in_whatever_way_its_accents_are_written():
    for form in ("NFC", "NFD"):
        assert class_name(unicodedata.normalize(form, "Müsli été 한국")) == "Müsli été 한국"
    assert class_name(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


def test_names_are_utf_8_in_the_c_locale(tmp_path):
    """A service manager or a cron job often runs in the C locale."""
    (tmp_path / "été").mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import os; from pathlib import Path;"
        f" from toolkit.cli.safe_names import class_name, display_name; (name,) = os.listdir({str(tmp_path)!r});"
        " print(sys.getfilesystemencoding(), ascii(class_name(name)), ascii(display_name(Path('pets', name))))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    options = ["-X", "utf8=0"]
    done = subprocess.run([sys.executable, *options, "-c", code], env=environment, capture_output=True, check=True)
    encoding, of, path = done.stdout.decode().split()
    assert encoding != "utf-8"
    assert (of, path) == (ascii("été"), ascii("pets/été"))
