"""Limits for connections to the server: how many there are, of one client and of all, and how long one may be idle."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from cliploc.web.clients import client_of, is_loopback

HEADER_SECONDS = 15.0  # time for a request line and its headers to arrive
KEEP_ALIVE_SECONDS = 5  # time that a connection may wait for its next request
BACKLOG = 128  # connections that may be accepted at once; twice as many open files are kept in reserve
MOST = 1000  # connections, where the system allows enough open files
SHARE = 4  # one client on another machine may have this part of them


def most_connections() -> int:
    """The number of connections: half the open files that the system allows, as each request may need a file."""
    try:
        import resource
    except ImportError:  # not on Windows
        return MOST // 2
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if allowed == resource.RLIM_INFINITY else max(16, min(MOST, (allowed - 2 * BACKLOG) // 2))


class Connection(H11Protocol):
    """One connection. It is closed if no request arrives in time; of too many, the one that was silent longest is."""

    most = MOST

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Registers the connection, and closes the one that has been silent longest where there are too many."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._heard = self.loop.time()  # when the client last sent something, or took something
        self._patience: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._give_up)
        host = self.client[0] if self.client else ""
        self._visitor = "" if is_loopback(host) else client_of(host)
        others = [one for one in self.connections if isinstance(one, Connection)]
        mine = [one for one in others if one._visitor == self._visitor] if self._visitor else []
        crowd = mine if len(mine) > self.most // SHARE else others if len(others) > self.most else []
        if crowd:
            silent = [one for one in crowd if one.waits and one is not self]
            leaving = min(silent, key=lambda one: one._heard, default=self)
            leaving.transport.abort()
            leaving.connections.discard(leaving)

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: to ask, to send the rest of a body, or to take an answer."""
        return self.idle or self.cycle.more_body or self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        """Stops the timer when a request has arrived, and starts it for an incomplete one."""
        self._heard = self.loop.time()
        super().data_received(data)
        if not self.idle:
            self._stop_waiting()
        elif self._patience is None:
            self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def pause_writing(self) -> None:
        """Notes the time: from now on the client has something to take."""
        self._heard = self.loop.time()
        super().pause_writing()

    def on_response_complete(self) -> None:
        """Notes the time: the connection is idle from now on."""
        self._heard = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the timer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self.idle:
            self.transport.abort()


def limited(most: int) -> type[Any]:
    """A connection class for a server that holds this number of connections."""
    return type("LimitedConnection", (Connection,), {"most": most})
