"""The connections that serve as sessions' lines for arrays.

The one idea: a Want goes over the same connection as its Chunk, so that the end of the connection is the end of both.
"""

from __future__ import annotations


class Lanes:
    """The connections that carry sessions' arrays and the requests for them: one for each session."""

    def __init__(self) -> None:
        self.by_session: dict[bytes, bytes] = {}
        self._sessions: dict[bytes, bytes] = {}  # by peer

    def take(self, session: bytes, peer: bytes) -> None:
        """Make this connection the session's line from now on."""
        self.forget(session)
        self.lost(peer)
        self.by_session[session], self._sessions[peer] = peer, session

    def forget(self, session: bytes) -> None:
        if peer := self.by_session.pop(session, None):
            del self._sessions[peer]

    def lost(self, peer: bytes) -> None:
        """Forget a lost connection; the session opens another and says Ready on it."""
        if session := self._sessions.get(peer):
            self.forget(session)
