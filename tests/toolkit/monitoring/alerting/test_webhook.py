"""The webhook against real servers on this machine: what arrives, what is tried again, and that sending never waits."""

import base64
import datetime
import hashlib
import hmac
import ipaddress
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from support import MAX_WAIT_S, wait_until
from support.servers import free_port
from support.webhook_receiver import Receiver
from toolkit.errors import SettingsError
from toolkit.monitoring.alerting import webhook as webhooks
from toolkit.monitoring.alerting.notifiers import Notification
from toolkit.monitoring.alerting.webhook import (
    MAX_RETRY_AFTER_S,
    WebhookNotifier,
    parse_response,
    redacted_url,
    require_safe,
)

NOTIFICATION = Notification(
    7, "raised", "critical", "confirmed", "3", "accuracy", "short", 0.12, "Accuracy fell.", 60.0, 60.0
)
SECRET = "open sesame"


def delivered(receiver, *notifications, secret=SECRET, **settings):
    """Send notifications to a receiver, wait until all are dealt with, and return the counts."""
    webhook = WebhookNotifier(receiver.url, secret, **{"first_pause": 0.01, "timeout": MAX_WAIT_S, **settings})
    for notification in notifications or [NOTIFICATION]:
        webhook.send(notification)
    assert webhook.flush(MAX_WAIT_S)
    webhook.close()
    return webhook.stats()


def counts(sent=0, failed=0, dropped=0, waiting=0):
    return {"sent": sent, "failed": failed, "dropped": dropped, "waiting": waiting}


# What arrives


def test_a_notification_arrives_as_json_with_its_headers():
    with Receiver() as receiver:
        assert delivered(receiver, secret=None) == counts(sent=1)
    [(path, headers, body)] = receiver.requests
    assert path == "/hook?channel=alerts"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == NOTIFICATION.to_dict()
    assert headers["webhook-id"] == f"msg_{hashlib.sha256(body).hexdigest()[:32]}"
    assert "webhook-signature" not in headers


def signature(key, headers, body):
    """The signature of a request, as https://www.standardwebhooks.com describes it."""
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def test_the_signature_of_the_specifications_own_example():
    headers = {"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330"}
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(key, headers, b'{"test": 2432232314}') == expected


@pytest.mark.parametrize(
    ("secret", "key"),
    [(SECRET, SECRET.encode()), ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", None), ("é\udc80", b"\xc3\xa9\x80")],
)
def test_a_request_is_signed_with_the_secret(secret, key):
    before = int(time.time())
    with Receiver() as receiver:
        delivered(receiver, secret=secret)
    [(_, headers, body)] = receiver.requests
    assert before <= int(headers["webhook-timestamp"]) <= time.time()
    assert headers["webhook-signature"] == signature(key or base64.b64decode(secret[6:]), headers, body)


# What is tried again


def test_what_may_pass_is_tried_again():
    with Receiver(503, 502, 500, 429) as receiver:
        assert delivered(receiver) == counts(sent=1)
    assert len(receiver.requests) == 5


def test_retry_after_is_kept_with_the_same_id_and_a_fresh_signature():
    with Receiver((429, {"Retry-After": "1"})) as receiver:
        assert delivered(receiver) == counts(sent=1)
    assert receiver.moments[1] - receiver.moments[0] >= 1
    first, second = (headers for _, headers, _ in receiver.requests)
    assert first["webhook-id"] == second["webhook-id"]
    assert int(first["webhook-timestamp"]) < int(second["webhook-timestamp"])
    assert second["webhook-signature"] == signature(SECRET.encode(), second, receiver.requests[1][2])


def test_pauses_grow():
    with Receiver(500, 500, 500) as receiver:
        assert delivered(receiver, first_pause=0.02) == counts(sent=1)
    pauses = [later - earlier for earlier, later in zip(receiver.moments, receiver.moments[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, [0.02, 0.04, 0.08], strict=True))


def test_a_receiver_that_comes_back_gets_what_waited():
    port = free_port()
    webhook = WebhookNotifier(f"http://127.0.0.1:{port}/", first_pause=0.02)
    webhook.send(NOTIFICATION)
    assert not webhook.flush(0.05)
    with Receiver(port=port) as receiver:
        assert webhook.flush(MAX_WAIT_S)
        webhook.close()
    assert webhook.stats() == counts(sent=1)
    assert receiver.events == ["raised"]


def test_a_failing_alert_delays_no_other_and_keeps_its_order():
    other = replace(NOTIFICATION, metric="non_finite")
    all_wait = threading.Event()
    with Receiver(lambda: all_wait.wait(MAX_WAIT_S) and 500, 200, 500) as receiver:
        webhook = WebhookNotifier(receiver.url, first_pause=0.01)
        webhook.send(NOTIFICATION)
        assert receiver.came.wait(MAX_WAIT_S)
        for notification in (replace(NOTIFICATION, event="cleared"), other):
            webhook.send(notification)
        wait_until(lambda: len(receiver.requests) == 2)  # the other alert does not wait for the first
        all_wait.set()
        assert webhook.flush(MAX_WAIT_S)
        webhook.close()
    assert webhook.stats() == counts(sent=3)
    arrived = [(json.loads(body)["metric"], json.loads(body)["event"]) for _, _, body in receiver.requests]
    failed_twice = [("accuracy", "raised"), ("non_finite", "raised"), ("accuracy", "raised"), ("accuracy", "raised")]
    assert arrived == [*failed_twice, ("accuracy", "cleared")]


def test_only_an_overloaded_or_broken_receiver_may_recover():
    for status in (200, 201, 202, 204, 299):
        assert parse_response(status, None) == ("", False, 0.0)
    for status in (429, 500, 502, 503, 504, 599):
        assert parse_response(status, None) == (f"answered {status}", True, 0.0)
    for status in (101, 301, 302, 307, 308, 400, 401, 403, 404, 410, 422):
        outcome = parse_response(status, "5")
        assert outcome.reason.startswith(f"answered {status}")
        assert not outcome.again


LATEST = MAX_RETRY_AFTER_S
RETRY_AFTER = [
    ("0", 0), ("120", 120), (" 7 ", 7), ("86400", LATEST), ("999999999", LATEST), ("9" * 5000, 0),
    (formatdate(0, usegmt=True), 0), (formatdate(4e9, usegmt=True), LATEST),
    *((nonsense, 0) for nonsense in ("-5", "soon", "", "1.5", "²", "Tue, 99 Nov 2023 99:00:00 GMT")),
]  # fmt: skip


@pytest.mark.parametrize(("header", "seconds"), RETRY_AFTER)
def test_the_receiver_says_when_to_come_again_within_bounds(header, seconds):
    assert parse_response(503, header).retry_after == seconds


def test_a_date_to_come_again_is_counted_from_now():
    assert 50 < parse_response(503, formatdate(time.time() + 60, usegmt=True)).retry_after <= 60


# What is given up


@pytest.mark.parametrize("status", [404, 301, 303, 308])
def test_a_refusal_is_final_and_a_redirect_is_not_followed(status, caplog):
    with Receiver() as elsewhere, Receiver((status, {"Location": elsewhere.url})) as receiver:
        assert delivered(receiver) == counts(failed=1)
    assert len(receiver.requests) == 1
    assert elsewhere.requests == []
    assert f"answered {status}{', and redirects are not followed' if status < 400 else ''}" in caplog.text


def test_an_old_notification_is_given_up_and_logged(caplog):
    with Receiver(500, 500) as receiver:
        assert delivered(receiver, give_up_after=0) == counts(failed=1)
    assert len(receiver.requests) == 1
    text = caplog.messages[-1]
    assert text.startswith("the alert 3/accuracy/short was given up after 0 s: not delivered to http://127.0.0.1:")
    assert text.endswith(": answered 500")


def test_unreachable_receivers_and_no_http(caplog):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_babble, args=(listening,))
        thread.start()
        babbler = f"http://127.0.0.1:{listening.getsockname()[1]}/key"
        for url in (f"http://127.0.0.1:{free_port()}/key", f"https://{'a' * 64}.example/key", babbler):
            webhook = WebhookNotifier(url, give_up_after=0)
            webhook.send(NOTIFICATION)
            assert webhook.flush(MAX_WAIT_S)
            webhook.close()
            assert webhook.stats() == counts(failed=1)
        thread.join()
    refused, no_name, babble = [record.getMessage() for record in caplog.records][::2]
    assert "Connection refused" in refused
    assert "too long" in no_name
    assert r"\x1b[31m220 ready" in babble
    assert "key" not in caplog.text


def _babble(listening):
    connection, _ = listening.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"\x1b[31m220 ready\r\n")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_receiver_times_out(scheme, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        webhook = WebhookNotifier(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.05, give_up_after=0)
        webhook.send(NOTIFICATION)
        assert webhook.flush(MAX_WAIT_S)
        webhook.close()
    assert webhook.stats() == counts(failed=1)
    assert "timed out" in caplog.text or "without response" in caplog.text


def test_the_body_of_an_answer_is_not_awaited():
    gone = threading.Event()

    def drip(listening):
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            gone.wait(MAX_WAIT_S)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        webhook = WebhookNotifier(f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout=MAX_WAIT_S)
        webhook.send(NOTIFICATION)
        assert webhook.flush(MAX_WAIT_S)
        gone.set()
        webhook.close()
        thread.join()
    assert webhook.stats() == counts(sent=1)


# Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The path of a self-signed certificate for 127.0.0.1 with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_that_nobody_vouches_for_is_refused(tls, caplog):
    with Receiver(context=tls) as receiver:
        assert delivered(receiver, give_up_after=0) == counts(failed=1)
    assert receiver.requests == []
    assert "certificate verify failed" in caplog.text


def test_a_trusted_certificate_is_valid_for_its_own_name_only(tls, certificate, monkeypatch, caplog):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Receiver(context=tls) as receiver:
        assert delivered(receiver) == counts(sent=1)
        receiver.url = receiver.url.replace("127.0.0.1", "localhost")
        assert delivered(receiver, give_up_after=0) == counts(failed=1)
    assert len(receiver.requests) == 1
    assert "not valid for 'localhost'" in caplog.text


# Sending never waits


def test_send_never_waits_and_a_full_queue_drops_and_counts():
    hanging = threading.Event()
    with Receiver(lambda: hanging.wait(MAX_WAIT_S) and 200) as receiver:
        webhook = WebhookNotifier(receiver.url, capacity=3)
        webhook.send(NOTIFICATION)
        assert receiver.came.wait(MAX_WAIT_S)
        for _ in range(5):
            webhook.send(NOTIFICATION)  # returns although nothing moves
        assert webhook.stats() == counts(waiting=3, dropped=3)
        hanging.set()
        assert webhook.flush(MAX_WAIT_S)
        webhook.close()
    assert webhook.stats() == counts(sent=3, dropped=3)


def test_close_ends_a_long_pause_and_tries_once_more(caplog, monkeypatch):
    monkeypatch.setattr(webhooks, "EXIT_TIMEOUT_S", MAX_WAIT_S)
    with Receiver((503, {"Retry-After": "3600"}), 200, 500) as receiver:
        webhook = WebhookNotifier(receiver.url)
        for number in range(3):
            webhook.send(replace(NOTIFICATION, id=number))
        wait_until(lambda: caplog.records)  # the first attempt has failed
        webhook.close()
    assert webhook.stats() == counts(sent=2, failed=1)
    assert len(receiver.requests) == 4
    assert not [thread for thread in threading.enumerate() if thread.name == "alert-webhook"]


def test_close_does_not_wait_for_a_receiver_that_hangs(monkeypatch):
    monkeypatch.setattr(webhooks, "EXIT_TIMEOUT_S", 0.1)
    hanging = threading.Event()
    with Receiver(lambda: hanging.wait(MAX_WAIT_S) and 200) as receiver:
        webhook = WebhookNotifier(receiver.url, timeout=600)
        webhook.send(NOTIFICATION)
        assert receiver.came.wait(MAX_WAIT_S)
        webhook.close()  # returns although the answer never comes
        hanging.set()
        assert webhook.flush(MAX_WAIT_S)


def test_a_process_that_just_ends_still_sends_what_waits():
    words = (
        "import sys\n"
        "from toolkit.monitoring.alerting import webhook\n"
        "webhook.EXIT_TIMEOUT_S = 600\n"
        "values = 7, 'raised', 'critical', 'confirmed', '3', 'accuracy', 'short', 0.1, '', 0.0, 0.0\n"
        "webhook.WebhookNotifier(sys.argv[1]).send(webhook.Notification(*values))\n"
    )
    with Receiver() as receiver:
        subprocess.run([sys.executable, "-c", words, receiver.url], check=True)
    assert receiver.events == ["raised"]


# What is said of it


def test_failure_and_recovery_are_logged_once_without_secrets(caplog):
    with Receiver(500, 503, 429) as receiver, caplog.at_level(logging.DEBUG):
        delivered(receiver)
        webhook = WebhookNotifier(receiver.url, SECRET)
    place = receiver.url.split("/hook")[0]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("toolkit.")] == [
        f"alerts cannot be delivered to {place}: answered 500",
        f"alerts are delivered to {place} again",
    ]
    assert "/hook" not in caplog.text
    assert SECRET not in caplog.text
    assert repr(webhook) == f"WebhookNotifier('{place}')"


@pytest.mark.parametrize(
    ("secret", "rule"), [("", "not be empty"), ("whsec_", "not be empty"), ("whsec_a/b*c", "be base64 after whsec_")]
)
def test_a_secret_that_cannot_sign_is_refused_and_not_shown(secret, rule):
    with pytest.raises(SettingsError) as caught:
        WebhookNotifier("https://example.com", secret)
    assert str(caught.value) == f"the webhook's secret must {rule}"


# Addresses


UNSAFE = [  # and what is shown of it
    ("ftp://x", "ftp://x"), ("http://example.com/hook", "http://example.com"),
    ("http://192.168.1.5:8080/", "http://192.168.1.5:8080"), ("http://2130706433/", "http://2130706433"),
    ("http://127.0.0.1.example.com/", "http://127.0.0.1.example.com"),
    ("http://localhost.example.com/", "http://localhost.example.com"), ("file:///etc/passwd", "file://"),
    ("example.com/hook", "example.com"), ("https://", "https://"), ("https:/example.com", "https:"), ("", ""),
    ("https://[::1", "https://[::1"), ("https://example.com:99999", "https://example.com:99999"),
    ("https://example.com:0", "https://example.com:0"), ("https://example.com:key/", "https://example.com:key"),
    ("https://example.com\n.evil/", r"https://example.com\n.evil"), ("https://exämple.com/", r"https://ex\xe4mple.com"),
    ("https://example.com/a b", "https://example.com"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "shown"), UNSAFE)
def test_an_unsafe_address_is_refused_in_one_line(url, shown):
    with pytest.raises(SettingsError) as caught:
        require_safe(url)
    assert str(caught.value) == f"webhook must be an https address, or http on this machine, got {shown}"


def test_https_anywhere_and_http_on_this_machine_are_allowed():
    for place in ("https://example.com", "HTTPS://EXAMPLE.COM:8443", "http://localhost", "http://127.0.0.1:9000",
                  "http://127.8.9.10", "http://[::1]:9000"):  # fmt: skip
        assert repr(WebhookNotifier(f"{place}/services/T0?token=1")) == f"WebhookNotifier('{place}')"


def test_credentials_in_the_address_are_refused_and_not_shown():
    with pytest.raises(SettingsError, match="without user and password") as caught:
        require_safe("https://me:hunter2@example.com/")
    assert "hunter2" not in str(caught.value)
    assert redacted_url("http://me:hunter2@example.com/hunter2?hunter2#hunter2") == "http://example.com"
