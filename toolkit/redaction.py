"""Texts that may be published: without passwords in addresses, without the folders of this machine."""

import re


def redact_passwords(text: str) -> str:
    """Replace passwords in addresses, before the host and in the query.

    The address may lack its scheme. Text that only resembles a password is replaced too.

    Examples
    --------
    >>> redact_passwords("no answer from http://ada:secret@host:5000/mlflow")
    'no answer from http://ada:***@host:5000/mlflow'
    >>> redact_passwords("postgresql://db/mlflow?user=ada&password=secret")
    'postgresql://db/mlflow?user=ada&password=***'
    """
    text = re.sub(r"((?:^|[\s/'\"])[^\s:/@'\"]*):[^\s/]+@", r"\1:***@", text)
    return re.sub(r"(?i)([?&;]\w*password=)[^\s&;,'\"]+", r"\1***", text)


def redact_paths(text: str) -> str:
    """Cut addresses down to their hosts and paths to their last parts; passwords go with them.

    Examples
    --------
    >>> redact_paths("MLflow at postgresql://me:secret@db/x does not answer; see /home/me/mlflow.db")
    'MLflow at postgresql://db does not answer; see .../mlflow.db'
    >>> redact_paths("MLflow at sqlite:////home/me/mlflow.db is locked")
    'MLflow at sqlite://... is locked'
    """
    text = re.sub(r"([\w+.-]+)://(?:[^@/\s]*@)?([\w.:\[\]-]*)[^\s;,'\"]*", _host, text)
    return re.sub(r"(?<![\w/:.])(?:[A-Za-z]:)?(?:[/\\][^/\\\s'\";:]+)*[/\\]([^/\\\s'\";:]+)", r".../\1", text)


def _host(address: re.Match[str]) -> str:
    return f"{address[1]}://{address[2].rstrip('.:') or '...'}"
