"""Pictures out of requests: forms as a real client encodes them, raw bodies, JSON, and everything that is wrong."""

import asyncio
import base64
import json
import tempfile

import httpx
import numpy as np
import pytest
from fastapi import Request

from toolkit.serving.formats import (
    LARGEST_FIELD,
    MOST_FIELDS,
    PICTURE_BODY,
    pictures_body,
    read_picture,
    read_pictures,
)
from toolkit.serving.problems import INVALID, MALFORMED, MEDIA, UNDECODABLE, Problem

PICTURE = bytes(range(256)) * 5


def request(body, content_type=None, step=1000):
    """A request whose body arrives in steps of so many bytes."""
    pieces = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False
    feed = iter(messages)

    async def receive():
        return next(feed)

    headers = [(b"content-type", content_type.encode("latin-1"))] if content_type is not None else []
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}, receive)


def form(files=(), data=None, step=1000):
    """A form as httpx encodes it."""
    encoded = httpx.Request("POST", "http://test", files=list(files), data=data)
    return request(encoded.read(), encoded.headers["Content-Type"], step)


def one(asked):
    return asyncio.run(read_picture(asked))()


def many(asked, most=4):
    return [read() for read in asyncio.run(read_pictures(asked, most))]


def problem(work):
    with pytest.raises(Problem) as caught:
        work()
    return caught.value


# One picture


@pytest.mark.parametrize("step", [1, 7, 1000, 10**6])
def test_a_form_gives_the_bytes_of_its_file_however_they_arrive(step):
    assert one(form([("file", ("cat.jpg", PICTURE, "image/jpeg"))], step=step)) == PICTURE


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\con", "a" * 3000, "é\u202e.jpg", " ", '"; drop'])
def test_neither_file_name_nor_declared_type_matters(name):
    files = [("file", (name, PICTURE, "text/html"))]
    assert one(form(files, data={"comment": "my cat"})) == PICTURE


@pytest.mark.parametrize("content_type", ["image/png", "image/x-unheard-of", "IMAGE/JPEG; q=1",
                                          "application/octet-stream", "", None])  # fmt: skip
def test_a_raw_body_is_the_picture(content_type):
    assert one(request(PICTURE, content_type)) == PICTURE


@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])  # one line, and lines of 76 characters
def test_json_holds_base64(encode):
    body = json.dumps({"image": encode(PICTURE).decode()}).encode()
    assert one(request(body, "application/json; charset=utf-8")) == PICTURE


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", MALFORMED),
        (b"{", MALFORMED),
        (b"\xff\xfe{}", MALFORMED),
        (b"[" * 100_000, MALFORMED),
        (b'{"a":' * 100_000, MALFORMED),
        (b'{"image": ' + b"1" * 10_000 + b"}", MALFORMED),  # more digits than Python reads
        (b"null", INVALID),
        (b"[]", INVALID),
        (b"{}", INVALID),
        (b'{"image": null}', INVALID),
        (b'{"image": ["QUJD"]}', INVALID),
        (b'{"image": "QUJD", "url": "http://elsewhere"}', INVALID),
        (b'{"img": "QUJD"}', INVALID),
        (b'{"image": "QUJ"}', UNDECODABLE),
        (b'{"image": "QU-D"}', UNDECODABLE),
        (b'{"image": "\\ud800"}', UNDECODABLE),
        ('{"image": "QUJDé"}'.encode(), UNDECODABLE),
    ],
)
def test_json_that_is_wrong_is_said_to_be(body, kind):
    assert problem(lambda: one(request(body, "application/json"))).kind is kind


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "images/png", "multipart/mixed", "json"])
def test_other_types_are_not_taken_for_pictures(content_type):
    assert problem(lambda: one(request(PICTURE, content_type))).kind is MEDIA
    assert problem(lambda: many(request(PICTURE, content_type))).kind is MEDIA


# Forms that are wrong

FILE = ("file", ("a.png", PICTURE, "image/png"))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda: form([("picture", FILE[1])]), "no file in the field 'file'"),
        (lambda: form(data={"file": "text"}, files=[("other", FILE[1])]), "no file in the field 'file'"),
        (lambda: form([FILE, FILE]), "at most 1 file$"),
        (lambda: form([FILE, ("other", FILE[1])]), "at most 1 file$"),
    ],
)
def test_a_form_needs_exactly_one_file_of_that_name(asked, words):
    found = problem(lambda: one(asked()))
    assert found.kind is INVALID
    assert words.rstrip("$") in found.detail


@pytest.mark.parametrize(
    "asked",
    [
        lambda: form([FILE], data={"note": "x" * (LARGEST_FIELD + 1)}),
        lambda: form([FILE], data={f"note{number}": "x" for number in range(MOST_FIELDS + 1)}),
        lambda: request(b"anything", "multipart/form-data"),
        lambda: request(b"no boundary in here", "multipart/form-data; boundary=x"),
        lambda: request(b"--x\r\n\r\nno name\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        lambda: request(b"--x\r\nBroken\xff header\r\n\r\n", "multipart/form-data; boundary=x"),
        lambda: request(b"--x", "multipart/form-data; boundary=" + "x" * 5000),
    ],
)
def test_a_form_that_cannot_be_read_is_malformed(asked):
    assert problem(lambda: one(asked())).kind is MALFORMED


@pytest.mark.parametrize("step", [1, 10**6])
def test_a_form_that_was_cut_short_is_malformed_wherever_the_cut_is(step):
    encoded = httpx.Request("POST", "http://test", files=[("file", ("a.png", b"abc", "image/png"))])
    body, content_type = encoded.read().rstrip(b"\r\n"), encoded.headers["Content-Type"]
    assert one(request(body, content_type, step)) == b"abc"
    for length in range(len(body)):
        found = problem(lambda length=length: one(request(body[:length], content_type, step)))
        assert (found.kind, found.detail) == (MALFORMED, "the form cannot be read: it ends before its last boundary.")


def test_fields_beside_the_file_may_be_as_many_and_as_long_as_said():
    fields = {f"note{number}": "x" * LARGEST_FIELD for number in range(MOST_FIELDS)}
    assert one(form([FILE], data=fields)) == PICTURE


def test_mutated_forms_are_read_or_refused_but_never_break():
    generator = np.random.default_rng(11)
    encoded = httpx.Request("POST", "http://test", files=[("files", ("a.png", b"abc", "image/png"))] * 2)
    body, content_type = encoded.read(), encoded.headers["Content-Type"]
    read, kinds = 0, []
    for _ in range(600):
        mutated = bytearray(body)
        for _ in range(generator.integers(1, 4)):
            place = int(generator.integers(len(mutated)))
            match generator.integers(3):
                case 0:
                    mutated[place] = int(generator.integers(256))
                case 1:
                    del mutated[place : place + int(generator.integers(1, 20))]
                case _:
                    mutated[place:place] = generator.bytes(int(generator.integers(1, 5)))
        try:
            assert len(many(request(bytes(mutated), content_type, step=int(generator.integers(1, 400))))) in (1, 2)
            read += 1
        except Problem as error:
            kinds.append(error.kind)
    assert set(kinds) == {MALFORMED, INVALID}
    assert min(read, len(kinds)) > 50


# Many pictures


def test_a_batch_keeps_the_order_and_leaves_other_fields_alone():
    files = [("files", (f"{number}.png", bytes([number]) * 100, "image/png")) for number in range(4)]
    assert many(form(files, data={"files": "text"})) == [bytes([number]) * 100 for number in range(4)]


def test_a_batch_has_at_most_so_many_and_at_least_one():
    files = [("files", FILE[1])] * 5
    assert "at most 4 files" in problem(lambda: many(form(files))).detail
    found = problem(lambda: many(form([FILE])))
    assert (found.kind, "'files'" in found.detail) == (INVALID, True)


def test_large_files_never_touch_the_disk(monkeypatch):
    def refuse(*_words, **_more):
        raise AssertionError("a picture was written to a file")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    data = np.random.default_rng(0).bytes(3 * 2**20)
    assert many(form([("files", ("a", data, "image/png"))], step=2**16), 1) == [data]


def test_the_description_names_what_is_read():
    assert set(PICTURE_BODY["content"]) == {
        "multipart/form-data", "image/*", "application/octet-stream", "application/json"
    }  # fmt: skip
    assert pictures_body(7)["content"]["multipart/form-data"]["schema"]["properties"]["files"]["maxItems"] == 7
