"""The service's own HTTP server, in a thread of the test."""

import signal
import threading
from contextlib import contextmanager

from support import MAX_WAIT_S
from toolkit.serving.http.server import Server, ServerConfig, listen


@contextmanager
def app_server(app, config=ServerConfig(0, 10)):  # noqa: B008  it is frozen
    """A server that runs, and its port; it must end within ``MAX_WAIT_S``."""
    listener = listen("127.0.0.1", 0)
    server = Server(app, lambda: None, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(MAX_WAIT_S)
    assert not thread.is_alive()
