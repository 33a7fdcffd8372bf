"""Which connection is whose line for arrays.

The one idea: a question for arrays goes over the same connection as its answer, so that its end is the end of both.
"""

from __future__ import annotations


class Lanes:
    """The connections that sessions' arrays come by, and are asked for by: one a session."""

    def __init__(self) -> None:
        self.by_session: dict[bytes, bytes] = {}
        self._sessions: dict[bytes, bytes] = {}  # by peer

    def take(self, session: bytes, peer: bytes) -> None:
        """This connection is the session's from now on."""
        self.forget(session)
        self.lost(peer)
        self.by_session[session], self._sessions[peer] = peer, session

    def forget(self, session: bytes) -> None:
        if peer := self.by_session.pop(session, None):
            del self._sessions[peer]

    def lost(self, peer: bytes) -> None:
        """Nothing goes by this connection any more; another follows, and says Ready."""
        if session := self._sessions.get(peer):
            self.forget(session)
