"""One POST: which addresses are allowed, what an answer means, and that the signature is what it says."""

import subprocess
import sys
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import SettingsError
from toolkit.monitoring.posting import LONGEST_RETRY_AFTER, judged, origin, parse_address, sign, verify

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://x", "ftp://x"),
        ("http://example.com/hook", "http://example.com"),
        ("http://192.168.1.5:8080/", "http://192.168.1.5:8080"),
        ("http://127.0.0.1.example.com/", "http://127.0.0.1.example.com"),
        ("http://localhost.example.com/", "http://localhost.example.com"),
        ("http://2130706433/", "http://2130706433"),
        ("file:///etc/passwd", "file://"),
        ("example.com/hook", "example.com"),
        ("https://", "https://"),
        ("https:/example.com", "https:"),
        ("https://[::1", "https://[::1"),
        ("https://example.com:99999", "https://example.com:99999"),
        ("https://example.com:0", "https://example.com:0"),
        ("https://example.com:key/", "https://example.com:key"),
        ("https://example.com\n.evil/", r"https://example.com\n.evil"),
        ("https://exämple.com/", r"https://ex\xe4mple.com"),
        ("https://example.com/a b", "https://example.com"),
        ("", ""),
    ],
)
def test_an_address_that_alerts_may_not_go_to_gets_one_clear_line(url, shown):
    with pytest.raises(SettingsError) as caught:
        parse_address(url)
    assert str(caught.value) == f"webhook must be an https address, or http on this machine, got {shown}"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "HTTPS://EXAMPLE.COM:8443/services/T0/B0?token=1",
        "http://localhost/",
        "http://127.0.0.1:9000/x",
        "http://127.8.9.10/",
        "http://[::1]:9000/",
    ],
)
def test_https_anywhere_and_http_on_this_machine_are_allowed(url):
    assert parse_address(url).geturl().lower() == url.lower()


def test_a_user_and_password_in_the_address_are_refused_and_not_shown():
    with pytest.raises(SettingsError, match="without user and password") as caught:
        parse_address("https://me:hunter2@example.com/")
    assert "hunter2" not in str(caught.value)
    assert origin("http://me:hunter2@example.com/hunter2?hunter2#hunter2") == "http://example.com"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_two_hundred_and_something_is_delivered(status):
    assert judged(status, None, NOW) == ("", False, 0.0)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 599])
def test_what_may_pass_is_tried_again(status):
    assert judged(status, None, NOW) == (f"answered {status}", True, 0.0)


@pytest.mark.parametrize("status", [101, 301, 302, 307, 308, 400, 401, 403, 404, 410, 422])
def test_any_other_answer_is_final(status):
    outcome = judged(status, "5", NOW)
    assert outcome.reason.startswith(f"answered {status}")
    assert not outcome.again


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("86400", LONGEST_RETRY_AFTER),
        ("999999999", LONGEST_RETRY_AFTER),
        ("9" * 5000, 0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0),
        ("Tue, 14 Nov 2099 22:00:00 GMT", LONGEST_RETRY_AFTER),
        ("-5", 0),
        ("soon", 0),
        ("", 0),
        ("1.5", 0),
        ("²", 0),
        ("Tue, 99 Nov 2023 99:00:00 GMT", 0),
    ],
)
def test_the_receiver_says_when_to_come_again_within_bounds(header, seconds):
    assert judged(503, header, NOW).retry_after == seconds


def test_the_signature_is_that_of_an_independent_computation():
    """RFC 2104 by hand: H((K ^ opad) . H((K ^ ipad) . text))."""
    key = b"open sesame".ljust(64, b"\0")
    text = b'1700000000.{"event": "raised"}'
    inner = sha256(bytes(byte ^ 0x36 for byte in key) + text).digest()
    outer = sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest()
    assert sign("open sesame", "1700000000", b'{"event": "raised"}') == f"sha256={outer}"


@given(st.text(min_size=1), st.binary(), st.integers(0, 2**40), st.integers(-300, 300))
def test_what_was_signed_is_verified_for_five_minutes(secret, body, moment, age):
    timestamp = str(moment)
    signature = sign(secret, timestamp, body)
    assert verify(secret, timestamp, signature, body, now=moment + age)
    assert not verify(secret, timestamp, signature, body, now=moment + 301)
    assert not verify(secret, timestamp, signature, body, now=moment - 301)
    assert not verify(secret + "x", timestamp, signature, body, now=moment)
    assert not verify(secret, str(moment + 1), signature, body, now=moment)
    assert not verify(secret, timestamp, signature, body + b" ", now=moment)


@given(st.text(), st.text(), st.binary())
def test_nonsense_is_refused_and_never_raises(timestamp, signature, body):
    assert not verify("open sesame", timestamp, signature, body, now=NOW)


def test_watching_a_model_needs_none_of_the_heavy_libraries():
    heavy = {"torch", "mlflow", "scipy", "pandas", "sklearn", "requests"}
    words = "import sys, toolkit.monitoring.webhook, toolkit.monitoring.states; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True).stdout.split()
    assert not heavy & set(loaded)
