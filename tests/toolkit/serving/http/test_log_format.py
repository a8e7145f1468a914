"""Lines of the log, as JSON and for a terminal."""

import json
import logging
import re
import sys

import pytest

from toolkit.serving.http.log_format import JsonOrTextFormatter


def record(request=None, message="hello %s", error=None):
    made = logging.LogRecord("serve", logging.WARNING, __file__, 1, message, ("you",), error)
    made.created = 1_700_000_000.25
    if request:
        made.request = request
    return made


FIELDS = {"request_id": "abc", "method": "GET", "path": "/a\x1b[31m\n/b", "status": 503, "ms": 1.5}


def test_json_lines_are_one_object_each():
    line = JsonOrTextFormatter(as_json=True).format(record())
    assert json.loads(line) == {"time": "2023-11-14T22:13:20.250+00:00", "level": "warning", "message": "hello you"}
    line = JsonOrTextFormatter(as_json=True).format(record(FIELDS | {"version": "3", "problem": "full"}))
    assert "\n" not in line
    assert json.loads(line).items() >= (FIELDS | {"version": "3", "problem": "full"}).items()


def test_text_lines_escape_control_characters():
    text = JsonOrTextFormatter(as_json=False).format(record(FIELDS | {"version": "3", "problem": "full"}))
    assert re.fullmatch(r"\d\d:13:20 GET /a\\x1b\[31m\\n/b 503 1.5 ms v3 full abc", text)
    assert JsonOrTextFormatter(as_json=False).format(record()).endswith(" warning: hello you")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_is_part_of_its_line(as_json):
    try:
        raise ValueError("what happened")
    except ValueError:
        line = JsonOrTextFormatter(as_json).format(record(error=sys.exc_info()))
    text = json.loads(line)["traceback"] if as_json else line
    assert "Traceback" in text
    assert "ValueError: what happened" in text
