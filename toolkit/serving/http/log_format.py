"""Lines of the access log and of other logs, as JSON or for a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


class JsonOrTextFormatter(logging.Formatter):
    """Formatter of log records as JSON lines, or as text for a terminal."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = getattr(record, "request", {})
        moment = datetime.fromtimestamp(record.created, UTC)
        traceback = self.formatException(record.exc_info) if record.exc_info else None
        if self.as_json:
            values = {"time": moment.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
            values |= {"message": record.getMessage(), **facts} | ({"traceback": traceback} if traceback else {})
            return json.dumps(values)
        text = _readable(facts) if facts else f"{record.levelname.lower()}: {record.getMessage()}"
        return f"{moment.astimezone():%H:%M:%S} {text}" + (f"\n{traceback}" if traceback else "")


def _readable(facts: dict[str, Any]) -> str:
    path = facts["path"].encode("unicode_escape").decode()  # no control characters on a terminal
    extras = [f"v{facts['version']}"] if "version" in facts else []
    extras += [facts["problem"]] if "problem" in facts else []
    return " ".join([facts["method"], path, str(facts["status"]), f"{facts['ms']} ms", *extras, facts["request_id"]])


def log_to_stderr() -> None:
    """Set up the logging of a process that only serves; called by ``main``, never by an import."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonOrTextFormatter(as_json=not sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("toolkit.serving", "serve_model"):
        logging.getLogger(name).setLevel(logging.INFO)
