"""Webhooks: notifications posted as JSON objects of their fields and their ``key``."""

import atexit
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import ssl
import threading
import time
from collections import defaultdict, deque
from typing import NamedTuple
from urllib.parse import urlsplit

from toolkit.errors import SettingsError, first_line
from toolkit.monitoring.alerting.notifiers import EXIT_TIMEOUT_S, Notification, Notifier

logger = logging.getLogger(__name__)

MAX_PAUSE_S, MAX_RETRY_AFTER_S = 300, 3600  # of back-off, and that a receiver may ask for
MAX_REASON_LENGTH = 200  # characters of what is logged
THREAD_NAME = "alert-webhook"


class Outcome(NamedTuple):
    """The result of an attempt: an empty ``reason`` when delivered, else why not and whether to retry."""

    reason: str = ""
    again: bool = False
    retry_after: float = 0.0  # seconds that the receiver asks for


class WebhookNotifier(Notifier):
    """Post notifications to an address, those of one alert in their order, in a thread of its own.

    An attempt that fails, or is answered with 429 or 5xx, is repeated after pauses that grow to five minutes, or that
    the receiver asks for. Any other answer is final. Redirects are not followed, proxies are not used, and
    certificates are checked against the authorities that the system trusts.

    Parameters
    ----------
    url
        ``https://...``, or ``http://...`` on this machine. Only its host is ever logged: a path is often a key.
    secret
        Signs each request as in https://www.standardwebhooks.com, whose libraries verify it: ``whsec_`` and base64
        of a key, or any other text as it is. No signature when None.
    timeout
        Seconds for an attempt to connect and get an answer.
    first_pause
        Seconds before the first repetition; each further pause is twice as long.
    give_up_after
        Seconds after which a notification is given up, which is logged; less than the six hours between reminders.
    capacity
        Notifications that may wait; more are dropped and counted.

    Raises
    ------
    SettingsError
        When the address is none that alerts may be sent to, or the secret is empty or not base64.

    Examples
    --------
    >>> WebhookNotifier("https://hooks.example.com/services/T0/B0/key", secret="open sesame")
    WebhookNotifier('https://hooks.example.com')
    """

    def __init__(
        self, url: str, secret: str | None = None, *, timeout: float = 10.0, first_pause: float = 1.0,
        give_up_after: float = 4 * 3600.0, capacity: int = 1_000,
    ) -> None:  # fmt: skip
        import urllib3  # takes as long to import as numpy, and few have a webhook

        require_safe(url)
        self._url, self._origin, self._signing_key = url, redacted_url(url), signing_key(secret)
        self._timeout = urllib3.Timeout(total=timeout)
        self._first_pause, self._give_up_after, self._capacity = first_pause, give_up_after, capacity
        self._changed = threading.Condition()
        # By alert: bodies, with the monotonic time at which each has to be given up; the first is being sent.
        self._queues: dict[str, deque[tuple[bytes, float]]] = defaultdict(deque)
        self._threads: dict[str, threading.Thread] = {}
        self._closing, self._deadline = threading.Event(), 0.0  # monotonic; when the threads have to be gone
        self._failing = False
        self._counts = {"sent": 0, "failed": 0, "dropped": 0}
        logging.getLogger("urllib3.connectionpool").addFilter(_is_of_another_thread)  # it logs the path

    def __repr__(self) -> str:
        return f"WebhookNotifier({self._origin!r})"

    def send(self, notification: Notification) -> None:
        """Queue a notification, or drop and count it when the queue is full."""
        key, body = notification.key, json.dumps(notification.to_dict(), allow_nan=False).encode()
        with self._changed:
            if self._waiting() >= self._capacity:
                self._counts["dropped"] += 1
                return
            self._queues[key].append((body, time.monotonic() + self._give_up_after))
            if key not in self._threads or not self._threads[key].is_alive():  # as in a forked process
                if self._closing.is_set():
                    self._closing = threading.Event()
                run = threading.Thread(target=self._run, args=(key, self._closing), name=THREAD_NAME, daemon=True)
                run.start()
                self._threads[key] = run
                atexit.register(self.close)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing is waiting; return False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting(), timeout)

    def stats(self) -> dict[str, int]:
        """Notifications delivered, given up, dropped because the queue was full, and waiting."""
        with self._changed:
            return self._counts | {"waiting": self._waiting()}

    def close(self) -> None:
        """Try what is waiting once more and stop, within two seconds; what is left counts as failed."""
        with self._changed:
            threads, self._deadline = list(self._threads.values()), time.monotonic() + EXIT_TIMEOUT_S
            self._closing.set()
        for thread in threads:
            thread.join(max(0.0, self._deadline - time.monotonic()))
        atexit.unregister(self.close)

    def _waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    # In the thread of an alert

    def _run(self, key: str, closing: threading.Event) -> None:
        while True:
            with self._changed:
                queue = self._queues[key]
                if self._is_over(closing):
                    self._counts["failed"] += len(queue)
                    queue.clear()
                if not queue:
                    del self._queues[key], self._threads[key]  # under the lock: a later ``send`` starts another
                    self._changed.notify_all()
                    return
                body, deadline = queue[0]
            outcome = self._deliver(body, deadline, closing)
            with self._changed:
                queue.popleft()
                self._counts["failed" if outcome.reason else "sent"] += 1
                self._changed.notify_all()
            if outcome.again and not closing.is_set():
                about = key, self._give_up_after, self._origin, outcome.reason
                logger.error("the alert %s was given up after %.0f s: not delivered to %s: %s", *about)

    def _deliver(self, body: bytes, deadline: float, closing: threading.Event) -> Outcome:
        """Try until it is delivered, refused or too old, or once more when closing; return the last outcome."""
        pause = self._first_pause
        while True:
            last = closing.is_set()
            outcome = self._attempt(body)
            if not outcome.again or last or time.monotonic() >= deadline:
                return outcome
            closing.wait(max(pause, outcome.retry_after))
            if self._is_over(closing):
                return outcome
            pause = min(2 * pause, MAX_PAUSE_S)

    def _is_over(self, closing: threading.Event) -> bool:
        return closing.is_set() and time.monotonic() >= self._deadline

    def _attempt(self, body: bytes) -> Outcome:
        try:
            outcome = self._post(body)
        except Exception as error:  # noqa: BLE001  # sockets, TLS and HTTP each raise kinds of their own
            outcome = Outcome(_printable(first_line(error).replace(self._url, self._origin)), again=True)
        with self._changed:
            began, ended = outcome.reason and not self._failing, self._failing and not outcome.reason
            self._failing = bool(outcome.reason)
        if began:
            logger.error("alerts cannot be delivered to %s: %s", self._origin, outcome.reason)
        elif ended:
            logger.warning("alerts are delivered to %s again", self._origin)
        return outcome

    def _post(self, body: bytes) -> Outcome:
        import urllib3

        name, now = f"msg_{hashlib.sha256(body).hexdigest()[:32]}", str(int(time.time()))  # a name for all attempts
        headers = {
            "Content-Type": "application/json", "Connection": "close", "User-Agent": "image-classifier-alerts",
            "webhook-id": name, "webhook-timestamp": now,
        }  # fmt: skip
        if self._signing_key is not None:
            signature = hmac.digest(self._signing_key, f"{name}.{now}.".encode() + body, "sha256")
            headers["webhook-signature"] = f"v1,{base64.b64encode(signature).decode()}"
        # Per request, so that renewed authorities are seen.
        context = ssl.create_default_context() if self._origin.lower().startswith("https") else None
        with urllib3.PoolManager(timeout=self._timeout, retries=False, ssl_context=context) as pool:
            answer = pool.request("POST", self._url, body=body, headers=headers, redirect=False, preload_content=False)
            answer.close()  # unread, however long it is
        return parse_response(answer.status, answer.headers.get("Retry-After"))


def parse_response(status: int, retry_after: str | None) -> Outcome:
    """The outcome of an answer by its status and its ``Retry-After`` header, seconds or a date.

    >>> parse_response(429, "30")
    Outcome(reason='answered 429', again=True, retry_after=30.0)
    """
    from urllib3 import Retry, exceptions

    if 200 <= status < 300:
        return Outcome()
    if status != 429 and status < 500:
        return Outcome(f"answered {status}" + (", and redirects are not followed" if 300 <= status < 400 else ""))
    try:
        seconds = float(Retry(retry_after_max=MAX_RETRY_AFTER_S).parse_retry_after(retry_after or "0"))
    except (exceptions.InvalidHeader, ValueError, OverflowError):  # nonsense
        seconds = 0.0
    return Outcome(f"answered {status}", again=True, retry_after=seconds)


def require_safe(url: str) -> None:
    """Refuse an address that is neither https nor on this machine, or holds a user and password."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        near = parts.scheme == "http" and (host == "localhost" or ipaddress.ip_address(host).is_loopback)
        safe = host and parts.port != 0 and re.fullmatch(r"[!-~]+", url) and (near or parts.scheme == "https")
    except ValueError:  # a port that is no number, half an IPv6 address, a name of another machine
        safe = None
    if not safe:
        raise SettingsError(f"webhook must be an https address, or http on this machine, got {redacted_url(url)}")
    if "@" in parts.netloc:
        raise SettingsError("webhook must be an address without user and password; a secret signs what is sent")


def redacted_url(url: str) -> str:
    """Scheme and host of an address: the path, and a part before ``@``, are often a key.

    >>> redacted_url("https://hooks.example.com/services/T0/B0/key")
    'https://hooks.example.com'
    """
    beginning: str = re.findall(r"^(?:[\w+.-]+://)?[^/?#\\]*", url)[0]
    return _printable(re.sub(r"[^/]*@", "", beginning))


def signing_key(secret: str | None) -> bytes | None:
    """The key that a secret stands for: base64 after ``whsec_``, else the text itself; None without a secret."""
    if secret is None:
        return None
    try:
        encoded = secret.startswith("whsec_")
        key = base64.b64decode(secret[6:], validate=True) if encoded else secret.encode("utf-8", "surrogateescape")
    except ValueError:
        raise SettingsError("the webhook's secret must be base64 after whsec_") from None
    if not key:
        raise SettingsError("the webhook's secret must not be empty")
    return key


def _is_of_another_thread(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD_NAME


def _printable(text: str) -> str:
    return text[:MAX_REASON_LENGTH].encode("unicode_escape").decode()
