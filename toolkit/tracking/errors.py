"""Reasons for failures of MLflow, in a few words on one line.

Common failures have messages of their own: the server cannot be reached, is no MLflow server or gives no permission;
the database is locked, read-only or of another version; the disk is full. Others have the library's first line.
"""

import re
from http import HTTPStatus

from toolkit.errors import first_line
from toolkit.redaction import redact_passwords

MAX_REASON_LENGTH = 200  # characters of a library's message
PREAMBLE_RE = re.compile(r"occurring prematurely\)\n|##### File .* #####\n")  # before each of several failures
STATUS_RE = re.compile(
    r"(?:error code |too many |^)(\d{3}) (?:!= 200|error responses|Client Error|Server Error)", re.MULTILINE
)
TEXT_RE = re.compile(r"Response (?:body: '|text: )([^<{\n'][^<{\n]*?)'?$", re.MULTILINE)  # neither a web page nor JSON
NOT_MLFLOW = "the response is not MLflow's: another program, or a proxy that asks for a login"
UNKNOWN_USER = "user or password is wrong or missing; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
ERROR_PATTERNS = {  # the first match counts
    r"ProxyError": "the proxy that http_proxy or all_proxy names cannot be reached",
    r"refused": "connection refused",
    r"timed out": "no answer in time",
    r"[Ff]ailed to resolve": "unknown host",
    r"Connection (aborted|broken)": "the connection broke off",
    r"not in a valid JSON format|Expecting value: line 1|INTERNAL_ERROR: Response: ": NOT_MLFLOW,
    r"database is locked": "the database is locked by another program",
    r"readonly database": "the database file cannot be written",
    r"Can't locate revision": "the database was made by a newer MLflow than the one that is installed here",
    r"disk is full|No space left on device": "the disk is full",
    r"[Qq]uota exceeded": "the disk quota is used up",
}


def reason_of(error: Exception) -> str:
    """The reason for the failure of a request to MLflow or its files.

    >>> reason_of(OSError("[Errno 111] Connection refused"))
    'connection refused'
    >>> reason_of(OSError("API request to endpoint /x failed with error code 503 != 200. Response body: ''"))
    'the server answers with status 503'
    >>> reason_of(OSError("http://ada:secret@host: certificate verify failed"))
    'http://ada:***@host: certificate verify failed'
    """
    text = PREAMBLE_RE.split(str(error))[:2][-1]  # the first of several files
    if answer := STATUS_RE.search(text):
        return _status_reason(int(answer[1]), text)
    line = first_line(Exception(text)) if text else first_line(error)
    for pattern, reason in ERROR_PATTERNS.items():
        if re.search(pattern, line):
            return reason
    line = redact_passwords(line.rpartition("(Caused by ")[2])
    return line if len(line) <= MAX_REASON_LENGTH else line[:MAX_REASON_LENGTH] + "..."


def _status_reason(status: int, text: str) -> str:
    """The meaning of an HTTP status, with the server's own message if there is one."""
    if status == HTTPStatus.UNAUTHORIZED:
        return UNKNOWN_USER
    meaning = "no permission" if status == HTTPStatus.FORBIDDEN else f"the server answers with status {status}"
    message = TEXT_RE.search(text)
    return f"{meaning}: {message[1][:MAX_REASON_LENGTH]}" if message and message[1] != "Permission denied" else meaning
