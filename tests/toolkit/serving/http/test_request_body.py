"""Images of requests: forms as a real client encodes them, raw bodies, JSON, and invalid bodies."""

import asyncio
import base64
import json
import tempfile

import httpx
import numpy as np
import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.images.decoding import load_image
from toolkit.serving.http.request_body import (
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    VALUES_OVERHEAD,
    VALUES_PER_IMAGE,
    from_pixels,
    load_json,
    parse_image,
    parse_images,
    values_of_pixels,
)
from toolkit.serving.problems import INVALID, MALFORMED, UNDECODABLE, UNSUPPORTED_MEDIA_TYPE, Problem

IMAGE = bytes(range(256)) * 5
TEXT = base64.b64encode(IMAGE).decode()


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


def one(request):
    return asyncio.run(parse_image(request))()


def many(request, max_images=4, size=None):
    return [read() for read in asyncio.run(parse_images(request, max_images, size))]


def sent(value):
    """A request with this value as JSON."""
    return request(json.dumps(value).encode(), "application/json")


def problem(work):
    with pytest.raises(Problem) as caught:
        work()
    return caught.value


# One image


@pytest.mark.parametrize("step", [1, 7, 1000, 10**6])
def test_a_form_gives_the_bytes_of_its_file(step):
    assert one(form([("file", ("cat.jpg", IMAGE, "image/jpeg"))], step=step)) == IMAGE


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\con", "a" * 3000, "é\u202e.jpg", " ", '"; drop'])
def test_file_name_and_declared_type_do_not_matter(name):
    files = [("file", (name, IMAGE, "text/html"))]
    assert one(form(files, data={"comment": "my cat"})) == IMAGE


def test_an_upload_has_its_file_name():
    read = asyncio.run(parse_image(form([("file", ("my cat.jpg", IMAGE, "text/html"))])))
    assert (read(), read.name) == (IMAGE, "my cat.jpg")


@pytest.mark.parametrize("content_type", ["image/png", "image/x-unheard-of", "IMAGE/JPEG; q=1",
                                          "application/octet-stream", "", None])  # fmt: skip
def test_a_raw_body_is_the_image(content_type):
    assert one(request(IMAGE, content_type)) == IMAGE


@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])  # one line, and lines of 76 characters
def test_json_holds_base64(encode):
    body = json.dumps({"image": encode(IMAGE).decode()}).encode()
    assert one(request(body, "application/json; charset=utf-8")) == IMAGE


ENTRIES = [TEXT, {"b64": TEXT}, {"image": {"b64": TEXT}}, {"image": TEXT}]  # as they stand in lists


@pytest.mark.parametrize(
    "value",
    [{"image": TEXT}, {"inputs": TEXT}, *({name: [entry]} for name in ("inputs", "instances") for entry in ENTRIES)],
)
def test_the_json_of_other_servers_is_accepted(value):
    assert one(sent(value)) == IMAGE
    assert many(sent(value)) == [IMAGE]


def test_base64_may_be_url_safe_and_unpadded():
    assert set("-_") <= set(base64.urlsafe_b64encode(IMAGE).decode())
    for data in (IMAGE, IMAGE[:-1], IMAGE[:-2]):
        for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
            assert one(sent({"image": text})) == one(sent({"image": text.rstrip("=")})) == data
            assert one(sent({"image": "data:image/png;base64," + text.rstrip("=")})) == data


@pytest.mark.parametrize("more", [{}, {"params": {}}, {"params": None}])
def test_the_json_of_mlflow_clients_is_accepted(more):
    for value in (
        {"inputs": [TEXT] * 4},
        {"dataframe_split": {"index": [0, 1, 2, 3], "columns": ["image"], "data": [[TEXT]] * 4}},
        {"dataframe_split": {"data": [[{"b64": TEXT}]] * 4}},
        {"dataframe_records": [{"image": TEXT}] * 4},
    ):
        assert many(sent(value | more)) == [IMAGE] * 4


@pytest.mark.parametrize(
    "value",
    [
        {"inputs": [TEXT], "params": {"top_k": 1}},
        {"inputs": [TEXT], "instances": [TEXT]},
        {"params": {}},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[TEXT, TEXT]]}},
        {"dataframe_split": {"columns": ["image"]}},
        {"dataframe_split": [[TEXT]]},
        {"dataframe_split": {"data": [TEXT]}},
        {"dataframe_records": [{"image": TEXT, "other": 1}]},
    ],
)
def test_ignored_members_are_refused(value):
    assert problem(lambda: many(sent(value))).problem_type is INVALID


@pytest.mark.parametrize(
    "charset",
    ["undefined", "idna", "punycode", "utf-16", "utf-7", "hex", "rot13", "no-such", "unicode_escape", "", '"undefined"',
     '"a;b"', "é", "utf-8; charset=undefined"],
)  # fmt: skip
@pytest.mark.parametrize("place", ["; boundary=b; charset={}", "; CHARSET = {} ; boundary=b"])
def test_the_charset_of_a_form_does_not_matter(charset, place):
    head = 'Content-Disposition: form-data; name="{}"{}\r\n\r\n'
    body = (
        f"--b\r\n{head.format('note', '')}é\r\n--b\r\n".encode()
        + head.format("file", '; filename="é.png"').encode()
        + IMAGE
        + b"\r\n--b--\r\n"
    )
    assert one(request(body, "multipart/form-data" + place.format(charset))) == IMAGE


@pytest.mark.parametrize(
    "name", ["filename*=UTF-8''a%20b.png", "filename*0=a; filename*1=b", "FILENAME* = x", 'filename="a"; filename*=b']
)
def test_a_part_with_any_file_name_is_a_file(name):
    body = f'--b\r\nContent-Disposition: form-data; name="file"; {name}\r\n\r\n'.encode() + IMAGE + b"\r\n--b--\r\n"
    assert one(request(body, "multipart/form-data; boundary=b")) == IMAGE


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:;base64,", " DATA:text/html;charset=x;BASE64,\n"])
def test_a_data_url_is_its_base64(head):
    assert one(sent({"image": head + TEXT})) == IMAGE
    assert many(sent({"instances": [{"b64": head + TEXT}] * 4})) == [IMAGE] * 4


@pytest.mark.parametrize("text", ["data:image/png,QUJD", "data:base64,QUJD", "http://elsewhere/a.png", "QUJDR", "QU=JD",
                                  "/etc/passwd.jpg", "data:image/png;base64,data:;base64,QUJD"])  # fmt: skip
def test_other_urls_are_not_fetched(text):
    assert problem(lambda: one(sent({"image": text}))).problem_type is UNDECODABLE
    assert problem(lambda: many(sent({"inputs": [text]}))).problem_type is UNDECODABLE


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
        (b'{"inputs": "QUJD", "instances": ["QUJD"]}', INVALID),
        (b'{"instances": "QUJD"}', INVALID),
        (b'{"inputs": {"image": "QUJD", "b64": "QUJD"}}', INVALID),
        (b'{"inputs": [{"b64": {"image": "QUJD"}}]}', INVALID),
        (b'{"inputs": [["QUJD"]]}', INVALID),
        (b'{"inputs": [[[[0, 0, 0]]]]}', INVALID),
        (b'{"inputs": [7]}', INVALID),
        (b'{"inputs": []}', INVALID),
        (b'{"inputs": ["QUJD", "QUJD"]}', INVALID),
        (b'{"img": "QUJD"}', INVALID),
        (b'{"image": "QUJDR"}', UNDECODABLE),
        (b'{"image": "QU%D"}', UNDECODABLE),
        (b'{"image": "\\ud800"}', UNDECODABLE),
        ('{"image": "QUJDé"}'.encode(), UNDECODABLE),
    ],
)
def test_invalid_json_bodies_are_refused(body, kind):
    assert problem(lambda: one(request(body, "application/json"))).problem_type is kind


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "images/png", "multipart/mixed", "json"])
def test_other_media_types_are_refused(content_type):
    assert problem(lambda: one(request(IMAGE, content_type))).problem_type is UNSUPPORTED_MEDIA_TYPE
    assert problem(lambda: many(request(IMAGE, content_type))).problem_type is UNSUPPORTED_MEDIA_TYPE


# Forms that are wrong

FILE = ("file", ("a.png", IMAGE, "image/png"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: form([("image", FILE[1])]), "no file in the field 'file'"),
        (lambda: form(data={"file": "text"}, files=[("other", FILE[1])]), "no file in the field 'file'"),
        (lambda: form([FILE, FILE]), "at most 1 file$"),
        (lambda: form([FILE, ("other", FILE[1])]), "at most 1 file$"),
    ],
)
def test_a_form_needs_exactly_one_file_of_that_name(make, words):
    found = problem(lambda: one(make()))
    assert found.problem_type is INVALID
    assert words.rstrip("$") in found.detail


@pytest.mark.parametrize(
    "make",
    [
        lambda: form([FILE], data={"note": "x" * (MAX_FIELD_BYTES + 1)}),
        lambda: form([FILE], data={f"note{number}": "x" for number in range(MAX_FIELDS + 1)}),
        lambda: request(b"anything", "multipart/form-data"),
        lambda: request(b"no boundary in here", "multipart/form-data; boundary=x"),
        lambda: request(b"--x\r\n\r\nno name\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        lambda: request(b"--x\r\nBroken\xff header\r\n\r\n", "multipart/form-data; boundary=x"),
        lambda: request(b"--x", "multipart/form-data; boundary=" + "x" * 5000),
    ],
)
def test_an_invalid_form_is_malformed(make):
    assert problem(lambda: one(make())).problem_type is MALFORMED


@pytest.mark.parametrize("step", [1, 10**6])
def test_a_truncated_form_is_malformed(step):
    encoded = httpx.Request("POST", "http://test", files=[("file", ("a.png", b"abc", "image/png"))])
    body, content_type = encoded.read().rstrip(b"\r\n"), encoded.headers["Content-Type"]
    assert one(request(body, content_type, step)) == b"abc"
    for length in range(len(body)):
        found = problem(lambda length=length: one(request(body[:length], content_type, step)))
        assert (found.problem_type, found.detail) == (
            MALFORMED,
            "the form cannot be read: it ends before its last boundary.",
        )


def test_other_fields_of_a_form_are_limited():
    fields = {f"note{number}": "x" * MAX_FIELD_BYTES for number in range(MAX_FIELDS)}
    assert one(form([FILE], data=fields)) == IMAGE


# Many images


def test_a_batch_keeps_the_order_and_ignores_other_fields():
    files = [("files", (f"{number}.png", bytes([number]) * 100, "image/png")) for number in range(4)]
    assert many(form(files, data={"files": "text"})) == [bytes([number]) * 100 for number in range(4)]


def test_the_size_of_a_batch_is_limited():
    files = [("files", FILE[1])] * 5
    assert "at most 4 files" in problem(lambda: many(form(files))).detail
    found = problem(lambda: many(form([FILE])))
    assert (found.problem_type, "'files'" in found.detail) == (INVALID, True)


def test_a_batch_of_json_keeps_the_order_and_the_limits():
    texts = [base64.b64encode(bytes([number])).decode() for number in range(5)]
    assert many(sent({"instances": texts[:4]})) == [b"\0", b"\1", b"\2", b"\3"]
    assert problem(lambda: one(sent({"instances": texts[:2]}))).detail == "the JSON body must hold one image"
    for wrong in (texts, []):
        found = problem(lambda wrong=wrong: many(sent({"instances": wrong})))
        assert (found.problem_type, found.detail) == (INVALID, "the JSON body must hold from 1 to 4 images")


def test_invalid_base64_fails_alone_in_a_batch():
    reads = asyncio.run(parse_images(sent({"inputs": [TEXT, "QUJDR", {"b64": TEXT}]}), 4))
    assert (reads[0](), reads[2]()) == (IMAGE, IMAGE)
    assert problem(reads[1]).problem_type is UNDECODABLE


def test_a_raw_image_is_a_batch_only_where_pixels_are():
    for content_type in ("image/jpeg", "application/x-image", None):
        assert many(request(IMAGE, content_type), size=16) == [IMAGE]
        assert (
            problem(lambda content_type=content_type: many(request(IMAGE, content_type))).problem_type
            is UNSUPPORTED_MEDIA_TYPE
        )


# Pixels


@pytest.mark.parametrize("size", [1, 2, 3, 16, 64])
def test_pixels_arrive_unchanged_nested_and_flat(size):
    pixels = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), np.uint8)
    for lists in (pixels.tolist(), [one.ravel().tolist() for one in pixels]):
        reads = many(sent({"inputs": lists}), 2, size)
        np.testing.assert_array_equal([load_image(data, size).pixels for data in reads], pixels)


def test_pixels_and_base64_may_be_mixed():
    first, second = many(sent({"instances": [[9] * 12, {"b64": TEXT}]}), size=2)
    assert (load_image(first, 2).pixels == 9).all()
    assert second == IMAGE


SQUARE = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 255]]]
WHOLE = st.integers(0, 255) | st.integers(0, 255).map(float)
LEAVES = st.integers(0, 255) | st.sampled_from(
    [-1, 256, 10**30, 10**400, 1.0, 1.5, -0.0, float("nan"), True, None, "1", float("inf"), [1], {}]
)


@pytest.mark.parametrize("wrong", [[], SQUARE[0], [SQUARE[0]], SQUARE + SQUARE, [SQUARE[0], []], [SQUARE[0], "ab"],
                                   [SQUARE[0], [[1, 2], [3, 4, 5, 6]]], [SQUARE[0], [[1, 2, 3, 4]] * 2], [0] * 11,
                                   [0] * 13, [0, SQUARE], "abcdefghijkl", {"0": 1}, None, [SQUARE]])  # fmt: skip
def test_pixels_of_another_shape_are_refused(wrong):
    found = problem(lambda: from_pixels(wrong, 2, index=5))
    wanted = "image 5 must be 2 x 2 x 3 whole numbers from 0 to 255, in nested lists or in one"
    assert (found.problem_type, found.detail) == (INVALID, wanted)


@given(values=st.lists(LEAVES, min_size=12, max_size=12) | st.lists(WHOLE, min_size=12, max_size=12))
@settings(max_examples=200, deadline=None)
def test_only_whole_numbers_to_255_are_pixels(values):
    good = all(type(value) in (int, float) and value in range(256) for value in values)
    rows = [[values[0:3], values[3:6]], [values[6:9], values[9:12]]]
    for lists in (values, rows):
        if good:
            assert load_image(from_pixels(lists, 2)(), 2).pixels.ravel().tolist() == values
        else:
            assert problem(lambda lists=lists: from_pixels(lists, 2)).problem_type is INVALID


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_value_limit_fits_the_largest_request(size):
    pixels = np.zeros((4, size, size, 3), int).tolist()
    assert len(many(sent({"inputs": pixels}), 4, size)) == 4
    longest = {"instances": [{"image": {"b64": f"data:image/png;base64,{TEXT}"}}] * 4}
    assert len(many(sent(longest))) == 4
    max_values = VALUES_OVERHEAD + 4 * (VALUES_PER_IMAGE + values_of_pixels(size))
    for body in (b"[" + b"[]," * max_values, b'{"a": [' + b"0," * max_values, b'"' + b"," * (max_values + 1)):
        assert problem(lambda body=body: many(request(body, "application/json"), 4, size)).detail == (
            "the JSON holds more values than the images of a request can have"
        )


def test_the_value_limit_is_exact():
    assert load_json(b'[{"a": 1}, 2]', 3) == [{"a": 1}, 2]
    assert problem(lambda: load_json(b'[{"a": 1}, 2]', 2)).problem_type is MALFORMED


def test_large_files_stay_in_memory(monkeypatch):
    def refuse(*_words, **_more):
        raise AssertionError("an image was written to a file")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    data = np.random.default_rng(0).bytes(3 * 2**20)
    assert many(form([("files", ("a", data, "image/png"))], step=2**16), 1) == [data]
