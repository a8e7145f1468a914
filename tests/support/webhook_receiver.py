"""A server on this machine that a webhook posts to."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(ThreadingHTTPServer):
    """A server that keeps what it is sent and answers as planned, in the end always with 200.

    An answer is a status, a status with headers, or a function that gives one when it is time.
    """

    daemon_threads = True

    def __init__(self, *answers, context=None, port=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.answers, self.requests, self.moments = list(answers), [], []
        self.came = threading.Event()
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.server_port}/hook?channel=alerts"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request, client_address):
        """Clients that hang up are what these tests are about."""

    @property
    def events(self):
        return [json.loads(body)["event"] for _, _, body in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.moments.append(time.monotonic())
        server.requests.append((self.path, dict(self.headers), body))
        answer = server.answers.pop(0) if server.answers else 200
        server.came.set()
        answer = answer() if callable(answer) else answer
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    do_GET = do_POST  # noqa: N815  # what a followed redirect would send

    def log_message(self, *_):
        pass
