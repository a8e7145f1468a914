"""Promises of every notifier: the log, a webhook, one of a program's own, a reaction.

Each test sees an implementation as the rest of the program does: through ``Notifiers``, and by what arrives.
"""

import json
import logging
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from support import MAX_WAIT_S, wait_until
from support.webhook_receiver import Receiver
from toolkit.monitoring.alerting.notifiers import LogNotifier, Notification, Notifier, Notifiers, logger
from toolkit.monitoring.alerting.webhook import WebhookNotifier


class Kept(Notifier):
    """Notifier of a program's own, which keeps what it gets."""

    def __init__(self, deliver=lambda: None):
        self.arrived, self._deliver = [], deliver

    def send(self, notification):
        self._deliver()
        self.arrived.append((notification.metric, notification.event))


# Each implementation is a context that gives its Notifiers, and a function that returns what arrived, as alerts and
# events. On arrival ``deliver`` is called, which may take its time or raise.


@contextmanager
def log(caplog, deliver, others):
    class Kept(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    def arrived():
        return [(re.findall(r"alert-\d+", text)[0], re.findall("raised|escalated|reminder|cleared", text)[0])
                for text in messages]  # fmt: skip

    messages, handler = [], Kept()
    logger.addHandler(handler)
    logger.propagate = False  # pytest-xdist cannot send a captured log that holds a lone surrogate
    with caplog.at_level(logging.INFO, logger.name):
        yield Notifiers({"it": LogNotifier(), **others}), arrived
    logger.propagate = True
    logger.removeHandler(handler)


@contextmanager
def webhook(caplog, deliver, others):
    def answer():
        try:
            deliver()
        except OSError:
            return 404
        return 200

    def arrived():
        bodies = [json.loads(body) for _, _, body in receiver.requests]
        return [(body["metric"], body["event"]) for body in bodies]

    with Receiver(*[answer] * 1000) as receiver:
        yield Notifiers({"it": WebhookNotifier(receiver.url, first_pause=0.01), **others}), arrived


@contextmanager
def program(caplog, deliver, others):
    kept = Kept(deliver)
    yield Notifiers({"it": kept, **others}), lambda: kept.arrived


@contextmanager
def reaction(caplog, deliver, others):
    arrived = []

    def react(notification):
        arrived.append((notification.metric, notification.event))
        deliver()

    yield Notifiers(others, react), lambda: arrived


@pytest.fixture
def opened(caplog):
    """Begins an implementation, and ends it with the test."""
    contexts = []

    def begin(implementation, deliver=lambda: None, **others):
        contexts.append(implementation(caplog, deliver, others))
        return contexts[-1].__enter__()

    yield begin
    for context in contexts:
        context.__exit__(None, None, None)


every_one = pytest.mark.parametrize("implementation", [log, webhook, program, reaction])
every_sink = pytest.mark.parametrize("implementation", [log, webhook, program])  # a reaction is to the worst alone


def notification(number, event="raised", **values):
    """One of the worst kind, of an alert of its own for each number."""
    name = f"alert-{number}"
    worst = Notification(
        number, event, "immediate", "confirmed", "3", name, "short", 0.3, f"{name} {event}.", 60.0, 60.0
    )
    return replace(worst, **values)


def raised(n):
    return [(f"alert-{number}", "raised") for number in range(n)]


def eventually(arrived, expected):
    """Wait until as much has arrived, and check that it is what was expected, in any order."""
    wait_until(lambda: len(arrived()) >= len(expected))
    assert Counter(arrived()) == Counter(expected)


@every_one
def test_each_alert_arrives_once(opened, implementation):
    notifiers, arrived = opened(implementation)
    for number in range(10):
        notifiers.send(notification(number))
    eventually(arrived, raised(10))
    notifiers.close()
    assert len(arrived()) == 10


@every_sink
def test_one_alert_keeps_its_order_among_others(opened, implementation):
    events = ["raised", "escalated", "reminder", "cleared"]
    notifiers, arrived = opened(implementation)
    for event in events:
        for number in range(3):
            notifiers.send(notification(number, event))
    eventually(arrived, [(f"alert-{number}", event) for number in range(3) for event in events])
    for number in range(3):
        assert [event for name, event in arrived() if name == f"alert-{number}"] == events


@every_one
@pytest.mark.parametrize(
    "values",
    [
        *({"value": value} for value in (None, float("nan"), float("inf"), np.float32(0.5))),
        *({"message": f"alert-0 raised {text}"} for text in ("\n\r\0", "\x1b[31m", "café 🐱", "\udc80", "%s %d {}")),
        {"details": "a\n" * 100_000},
    ],
)
def test_whatever_is_in_a_notification_it_arrives(opened, implementation, values):
    notifiers, arrived = opened(implementation)
    notifiers.send(notification(0, **values))
    eventually(arrived, raised(1))


@pytest.mark.parametrize("implementation", [webhook, reaction])
def test_slow_delivery_delays_neither_sender_nor_others(opened, implementation):
    gate, beside = threading.Event(), Kept()
    notifiers, arrived = opened(implementation, lambda: gate.wait(MAX_WAIT_S), beside=beside)
    for number in range(3):
        notifiers.send(notification(number))
    assert beside.arrived == raised(3)
    gate.set()
    eventually(arrived, raised(3))


@pytest.mark.parametrize("implementation", [webhook, program, reaction])
def test_failures_are_logged_once_and_harm_no_other(opened, implementation, caplog):
    def fail():
        raise OSError("no such channel")

    beside = Kept()
    notifiers, arrived = opened(implementation, fail, beside=beside)
    for _ in range(3):
        notifiers.send(notification(0))
    if implementation is not program:  # it fails before it is there
        eventually(arrived, raised(1) * (1 if implementation is reaction else 3))
    notifiers.close()
    assert beside.arrived == raised(1) * 3
    assert notifiers.stats().get("it", {"failed": 3})["failed"] == 3
    assert len(caplog.records) == 1


@every_sink
def test_notifications_of_many_threads_arrive_and_are_counted(opened, implementation):
    notifiers, arrived = opened(implementation)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: notifiers.send(notification(number)), range(40)))
    eventually(arrived, raised(40))
    notifiers.close()
    counts = notifiers.stats()["it"]
    assert counts.pop("sent") == 40
    assert set(counts) <= {"failed", "dropped", "waiting"}
    assert not any(counts.values())


@every_one
def test_closing_may_be_repeated_and_sending_begins_anew(opened, implementation):
    notifiers, arrived = opened(implementation)
    notifiers.close()
    for number in range(2):
        notifiers.send(notification(number))
        notifiers.close()
        notifiers.close()
    eventually(arrived, raised(2))
    notifiers.close()
