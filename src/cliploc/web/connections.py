"""Connections to the server: not more than it can hold, and none that only waits."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0  # in which a request's lines must have come
KEEP_ALIVE_SECONDS = 5  # that a connection may wait for its next request
BACKLOG = 128  # accepted at once; the system's limit of open files is that much above ours
MOST = 1000


def most_connections() -> int:
    """How many may be open: half as many as this process may open files, as a request may need one more."""
    try:
        import resource
    except ImportError:  # not on Windows
        return MOST // 2
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if allowed == resource.RLIM_INFINITY else max(16, min(MOST, (allowed - 2 * BACKLOG) // 2))


class Connection(H11Protocol):
    """One connection. A request must come soon; where there are too many, the one that has waited longest goes."""

    most = MOST

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Makes room first."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._waiting_since = self.loop.time()
        self._patience: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._give_up)
        if len(self.connections) > self.most:
            idle = [one for one in self.connections if isinstance(one, Connection) and one.waits and one is not self]
            leaving = min(idle, key=lambda one: one._waiting_since, default=self)
            leaving.transport.abort()
            leaving.connections.discard(leaving)

    @property
    def waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Gives the rest of a request's lines as long as its first."""
        super().data_received(data)
        if not self.waits:
            self._stop_waiting()
        elif self._patience is None:
            self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def on_response_complete(self) -> None:
        """The wait for the next request begins."""
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer is left behind."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self.waits:
            self.transport.abort()


def limited(most: int) -> type[Any]:
    """The connections of a server that holds so many."""
    return type("LimitedConnection", (Connection,), {"most": most})
