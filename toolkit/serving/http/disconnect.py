"""Clients that leave before they are answered: nobody works for them any longer."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnectMiddleware:
    """ASGI middleware that cancels what is done for a client that has left.

    From the moment when the application has received the whole body until its answer begins, the
    connection is watched. When the client leaves in that time, the task that answers it is
    cancelled, and ``ClientDisconnect`` is raised to whoever counts requests further out. Once an
    answer has begun, nothing is cancelled any more.

    An application that never receives the body of its request is not watched.

    Parameters
    ----------
    app
        What answers.

    Examples
    --------
    >>> async def app(scope, receive, send):
    ...     await receive()
    ...     try:
    ...         await asyncio.sleep(3600)
    ...     finally:
    ...         print("the place is free again")
    >>> messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"an image"}]
    >>> async def receive():
    ...     return messages.pop()
    >>> asyncio.run(Departures(app)({"type": "http"}, receive, None))
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
        visit = _Connection(receive, send, task)
        requests = task.cancelling()  # of others, to cancel this very task
        try:
            await self.app(scope, visit.receive, visit.send)
        except asyncio.CancelledError:
            if visit.disconnected and task.uncancel() <= requests:
                raise ClientDisconnect from None
            raise
        finally:
            visit.end()


class _Connection:
    """One request: the messages of its connection, and whether its client has left without an answer."""

    def __init__(self, receive: Receive, send: Send, task: asyncio.Task[None]) -> None:
        self._receive, self._send, self._task = receive, send, task
        self._response_started = False
        self._next: asyncio.Task[Message] | None = None  # what comes after the body, while it is waited for
        self.disconnected = False

    async def receive(self) -> Message:
        if self._next is not None:  # the application asks for it as well; to cancel its question changes nothing
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

    def end(self) -> None:
        if self._next is not None:
            self._next.cancel()
