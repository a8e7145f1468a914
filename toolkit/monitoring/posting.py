"""One signed POST, and what came of it.

The headers say which attempts belong together and, when there is a secret, that this process wrote
the body: see ``verify``.
"""

import hashlib
import hmac
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPSConnection
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from toolkit.errors import SettingsError, one_line

LONGEST_RETRY_AFTER = 3600.0  # seconds that a receiver may ask for
TOLERANCE_SECONDS = 300  # age at which a signature counts as replayed
LONGEST_TEXT = 200  # characters of what is logged

ID_HEADER = "Idempotency-Key"
TIMESTAMP_HEADER = "X-Alert-Timestamp"
SIGNATURE_HEADER = "X-Alert-Signature"


class Outcome(NamedTuple):
    """What came of one attempt: no ``reason`` when it was delivered, else why not and whether to try again."""

    reason: str = ""
    again: bool = False
    retry_after: float = 0.0  # seconds that the receiver asks for


def post(address: SplitResult, body: bytes, secret: str | None, now: float, seconds: float) -> Outcome:
    """Send a JSON body once; never raises.

    Redirects are not followed, and certificates are checked.

    Parameters
    ----------
    address
        As ``parse_address`` gives it.
    secret
        Signs the request; None for no signature.
    now
        Seconds since 1970.
    seconds
        How long it may take, the look-up of the name apart.
    """
    target = (address.path or "/") + ("?" + address.query if address.query else "")
    try:
        headers = _headers(body, secret, str(int(now)))
        with _connected(address, seconds) as connection:
            connection.request("POST", target, body, headers)
            answer = connection.getresponse()
            return judged(answer.status, answer.getheader("Retry-After"), now)
    except Exception as error:  # noqa: BLE001  # sockets, TLS and HTTP each raise kinds of their own
        return Outcome(printable(one_line(error)), again=True)


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature of a body sent at a time: HMAC-SHA256 over ``timestamp.body``, in hex.

    Parameters
    ----------
    timestamp
        Whole seconds since 1970, as in the header.
    """
    message = timestamp.encode("utf-8", "replace") + b"." + body
    return "sha256=" + hmac.new(secret.encode("utf-8", "surrogateescape"), message, hashlib.sha256).hexdigest()


def verify(secret: str, timestamp: str, signature: str, body: bytes, *, now: float | None = None) -> bool:
    """Whether a request comes from who knows the secret, unaltered, within the last five minutes.

    For receivers. The comparison takes the same time however much of the signature is right. To
    ignore what comes twice within the five minutes, remember ``Idempotency-Key``.

    Parameters
    ----------
    timestamp, signature
        The headers ``X-Alert-Timestamp`` and ``X-Alert-Signature``.
    body
        The bytes as they came, before any JSON is read.
    now
        Seconds since 1970; the time of this machine when None.

    Examples
    --------
    >>> body = b'{"event": "raised"}'
    >>> signature = sign("open sesame", "1700000000", body)
    >>> verify("open sesame", "1700000000", signature, body, now=1_700_000_060)
    True
    >>> verify("open barley", "1700000000", signature, body, now=1_700_000_060)
    False
    >>> verify("open sesame", "1700000000", signature, body, now=1_700_000_301)
    False
    """
    if not hmac.compare_digest(sign(secret, timestamp, body).encode(), signature.encode("utf-8", "replace")):
        return False
    return abs((time.time() if now is None else now) - int(timestamp)) <= TOLERANCE_SECONDS  # signed: a number


def judged(status: int, retry_after: str | None, now: float) -> Outcome:
    """What an answer means.

    Parameters
    ----------
    retry_after
        The header of that name: seconds or a date.
    now
        Seconds since 1970.

    Examples
    --------
    >>> judged(204, None, 0)
    Outcome(reason='', again=False, retry_after=0.0)
    >>> judged(429, "30", 0)
    Outcome(reason='answered 429', again=True, retry_after=30.0)
    >>> judged(302, None, 0).reason
    'answered 302, and redirects are not followed'
    """
    if 200 <= status < 300:
        return Outcome()
    if status == 429 or status >= 500:
        return Outcome(f"answered {status}", True, min(max(0.0, _seconds(retry_after, now)), LONGEST_RETRY_AFTER))
    return Outcome(f"answered {status}" + (", and redirects are not followed" if 300 <= status < 400 else ""))


def parse_address(url: str) -> SplitResult:
    """The parts of an address that alerts may be sent to.

    Raises
    ------
    SettingsError
        When it is neither https nor on this machine, or holds a user and password.

    Examples
    --------
    >>> parse_address("http://localhost:8080/alerts").port
    8080
    >>> parse_address("http://example.com/alerts")
    Traceback (most recent call last):
        ...
    toolkit.errors.SettingsError: webhook must be an https address, or http on this machine, got http://example.com
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and re.fullmatch(r"[!-~]+", url) is not None
        private = parts.scheme == "https" or (parts.scheme == "http" and _is_this_machine(parts.hostname or ""))
    except ValueError:  # a port that is no number, half an IPv6 address
        usable = private = False
    if not (usable and private):
        raise SettingsError(f"webhook must be an https address, or http on this machine, got {origin(url)}")
    if "@" in parts.netloc:
        raise SettingsError("webhook must be an address without user and password; a secret signs what is sent")
    return parts


def origin(url: str) -> str:
    """Scheme and host of an address, to be shown: what follows them, or comes before an ``@``, is often a key.

    >>> origin("https://hooks.example.com/services/T0/B0/key")
    'https://hooks.example.com'
    """
    beginning = re.findall(r"^(?:[\w+.-]+://)?[^/?#\\]*", url)[0]
    return printable(re.sub(r"[^/]*@", "", beginning))


def printable(text: str) -> str:
    """Somebody else's text, fit for a line of a log.

    >>> printable("I am a\\x1b[31m teapot")
    'I am a\\\\x1b[31m teapot'
    """
    return text[:LONGEST_TEXT].encode("unicode_escape").decode()


def _headers(body: bytes, secret: str | None, timestamp: str) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "Connection": "close",
        "User-Agent": "image-classifier-alerts",
        ID_HEADER: hashlib.sha256(body).hexdigest()[:32],  # the same at each attempt
        TIMESTAMP_HEADER: timestamp,
        **({SIGNATURE_HEADER: sign(secret, timestamp, body)} if secret else {}),
    }


@contextmanager
def _connected(address: SplitResult, seconds: float) -> Iterator[HTTPConnection]:
    """A connection that is cut when its time is over, also when the answer arrives byte by byte."""
    host = address.hostname or ""
    if address.scheme == "https":
        context = ssl.create_default_context()  # made anew, so that renewed authorities are seen
        connection: HTTPConnection = HTTPSConnection(host, address.port or 443, timeout=seconds, context=context)
    else:
        connection = HTTPConnection(host, address.port or 80, timeout=seconds)
    try:
        connection.connect()
        timer = threading.Timer(seconds, _cut, [connection.sock])
        timer.daemon = True
        timer.start()
        try:
            yield connection
        finally:
            timer.cancel()
    finally:
        connection.close()


def _cut(connected: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # TLS has its own, which is not for other threads


def _seconds(retry_after: str | None, now: float) -> float:
    text = (retry_after or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - now
    except (ValueError, OverflowError):  # absent or nonsense
        return 0.0


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
