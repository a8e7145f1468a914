"""The time that a client may take to send a request and to read its answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds for clients that are slow or send nothing, so that they do not hold connections for ever.

    Parameters
    ----------
    header
        From the opening of a connection, or the first byte of a further request, to the end of the request's headers.
    body
        For a whole body to arrive, and for an answer to be read.
    read
        Between two pieces of a body.
    """

    header: float = 10.0
    body: float = 30.0
    read: float = 10.0


DEFAULT_TIMEOUTS = Timeouts()
