"""Load shedding: images for which there is no free slot are refused before they reach a route."""

from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from toolkit.serving.inference.admission import AdmissionController


class LoadSheddingMiddleware:
    """ASGI middleware that refuses an image as soon as its headers are there, when no slot is free.

    The route would refuse it as well, but only after half a millisecond of routing and of passing the error back
    through all layers, which an overloaded service cannot spare.

    Parameters
    ----------
    app
        The ASGI application behind it.
    paths
        Paths to which each POST request brings at least one image.
    admission
        Returns the controller that has the slots; None lets all requests pass.

    Raises
    ------
    Problem
        503 with ``Retry-After``.
    """

    def __init__(
        self, app: ASGIApp, paths: Collection[str], admission: Callable[[], AdmissionController | None]
    ) -> None:
        self.app = app
        self.paths = frozenset(paths)
        self.admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in self.paths and scope["method"] == "POST":
            admission = self.admission()
            if admission is not None:
                admission.require_slot(1)
        await self.app(scope, receive, send)
