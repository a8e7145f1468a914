"""Cancellation of requests whose client has disconnected."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnectMiddleware:
    """ASGI middleware that cancels a request when its client disconnects.

    The connection is watched from the end of the body, if the application receives it, until the response begins.
    If the client disconnects in that time, the task that answers it is cancelled, and ``ClientDisconnect`` is
    raised to the middleware further out.

    Parameters
    ----------
    app
        The ASGI application behind it.

    Raises
    ------
    ClientDisconnect
        The client has disconnected before it was answered.

    Examples
    --------
    >>> async def app(scope, receive, send):
    ...     await receive()
    ...     try:
    ...         await asyncio.sleep(3600)
    ...     finally:
    ...         print("cancelled")
    >>> messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"an image"}]
    >>> async def receive():
    ...     return messages.pop()
    >>> asyncio.run(CancelOnDisconnectMiddleware(app)({"type": "http"}, receive, None))
    Traceback (most recent call last):
        ...
    starlette.requests.ClientDisconnect
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self.app(scope, receive, send)
            return
        connection = _Connection(receive, send, task)
        cancel_requests = task.cancelling()  # by others
        try:
            await self.app(scope, connection.receive, connection.send)
        except asyncio.CancelledError:
            if connection.disconnected and task.uncancel() <= cancel_requests:
                raise ClientDisconnect from None
            raise
        finally:
            connection.close()


class _Connection:
    """The messages of one request, and whether its client disconnected before the response began."""

    def __init__(self, receive: Receive, send: Send, task: asyncio.Task[None]) -> None:
        self._receive, self._send, self._task = receive, send, task
        self._response_started = False
        self._next: asyncio.Task[Message] | None = None  # the message after the body
        self.disconnected = False

    async def receive(self) -> Message:
        if self._next is not None:  # cancelling the application's wait must not cancel the watch
            return await asyncio.shield(self._next)
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body") and not self._response_started:
            self._next = asyncio.create_task(self._watch())
        return message

    async def send(self, message: Message) -> None:
        self._response_started = True
        await self._send(message)

    async def _watch(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._response_started:
            self.disconnected = True
            self._task.cancel()
        return message

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
