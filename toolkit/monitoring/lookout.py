"""Go and look at the windows when there is news, and put what is worth telling into the store."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from toolkit.monitoring.alerts import BLOCKS, Sighting, Watch, look, worth_adding
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.store import Model, PredictionStore
from toolkit.monitoring.windows import WINDOWS

logger = logging.getLogger(__name__)

FEWEST_NEWS = min(BLOCKS.values())  # predictions or labels between two automatic looks


class Lookout:
    """Look at the short and the medium window of a model version, and raise and clear alerts.

    Parameters
    ----------
    store
        Where predictions come from and alerts go.
    limits
        What counts as too much.
    clock
        Seconds since 1970, for the time of an alert.
    """

    def __init__(self, store: PredictionStore, limits: Limits, clock: Callable[[], float]) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock
        self._watch = Watch()
        self._positions: dict[tuple[str, str], int] = {}  # (version, window): where the store was at the last look
        self._looking = threading.Lock()

    def look(self, model: Model, *, automatic: bool = False) -> list[dict[str, Any]]:
        """Look at what is new, and return the alerts that this raised.

        Parameters
        ----------
        automatic
            Look only at windows of which a tenth is new, as somebody does who looks again and again;
            otherwise at each that has any news. A look without news would count the same evidence twice.
        """
        with self._looking:
            position = self._store.position(model)
            news = {name: position - self._positions.get((model.version, name), 0) for name in BLOCKS}
            due = [name for name, block in BLOCKS.items() if news[name] >= (block if automatic else 1)]
            raised: list[dict[str, Any]] = []
            for name, sighting, recent in self._sightings(model, due):
                standing = {(alert["metric"], alert["window"]): alert for alert in self._standing(model)}
                told = _grade(standing.get((sighting.metric, "short")))
                seen = sighting if name == "short" else worth_adding(sighting, recent, told)
                blocks = max(1, news[name] // BLOCKS[name])
                raised += self._act(model, seen, standing.get((sighting.metric, name)), blocks)
            self._positions |= {(model.version, name): position for name in due}
            return raised

    def _sightings(self, model: Model, due: list[str]) -> Iterator[tuple[str, Sighting, Sighting]]:
        """What the windows show that are due, each beside what the short one shows of the same metric."""
        if not due:
            return
        longest = self._store.window(model, max(WINDOWS[name] or 0 for name in due))
        recent = look(longest.last(WINDOWS["short"]), model.baseline, self._limits, "short")
        for name in due:
            found = recent if name == "short" else look(longest, model.baseline, self._limits, name)
            for sighting, now in zip(found, recent, strict=True):
                yield name, sighting, now

    def _standing(self, model: Model) -> list[dict[str, Any]]:
        return self._store.alerts(model, standing=True)

    def _act(
        self, model: Model, sighting: Sighting, standing: dict[str, Any] | None, blocks: int
    ) -> list[dict[str, Any]]:
        """Raise or clear the alert of one metric and window, if it is time."""
        decision = self._watch.decide(model.version, sighting, _grade(standing), blocks)
        if standing and decision.action == "clear":
            self._store.clear_alert(standing["id"], self._clock())
            logger.info("cleared: %s of model version %s is back to normal", sighting.metric, model.version)
        if decision.action != "raise":
            return []
        alert = {
            "time": self._clock(),
            "metric": sighting.metric,
            "window": sighting.window,
            "level": decision.level,
            "status": decision.status,
            "value": sighting.value,
            "message": sighting.message,
        }
        if not self._store.raise_alert(model, alert):
            return []  # another process has said so already
        logger.warning("%s (%s): %s", decision.level, decision.status, sighting.message)
        return self._standing(model)[:1]


def _grade(alert: dict[str, Any] | None) -> tuple[str, str] | None:
    return (alert["level"], alert["status"]) if alert else None
