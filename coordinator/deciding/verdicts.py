"""Verdicts on contributions, remembered so that a repeated contribution gets the same answer.

The one idea: a verdict is remembered for as long as its contribution may come again. An actor that is here may repeat one of
its last few; any actor, here or back after a loss, may repeat a contribution that it keeps until a snapshot holds it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

from shoal.protocol.messages import Contribute, Failed, TaskName, Verdict

Judged: TypeAlias = OrderedDict[TaskName, Verdict]
JUDGED = 8  # verdicts remembered for an actor, beside one for each task that it may hold: more than it can have unacknowledged


@dataclass(slots=True)
class Verdicts:
    """The remembered verdicts, by session. most: tasks that an actor may hold.

    last: verdicts for actors that are here, on contributions that they do not keep. accepted: on contributions that actors keep
    until a snapshot holds them, for actors that are here and for those that are gone. Two memories, because kept contributions
    must not delay the forgetting of the others.
    """

    most: int = 0
    last: dict[bytes, Judged] = field(default_factory=dict)
    accepted: dict[bytes, Judged] = field(default_factory=dict)
    kept: int = 0  # newest version in a snapshot; an actor may offer again a contribution to a later version

    def join(self, session: bytes) -> None:
        self.last[session] = OrderedDict()

    def part(self, session: bytes) -> None:
        """Forget verdicts on contributions that an actor does not keep: it may come back with others, unaware of a verdict."""
        del self.last[session]

    def on(self, session: bytes, message: Contribute | Failed) -> Verdict | None:
        """Return the remembered verdict on this attempt of an actor that is here, or None."""
        memories = (self.accepted.get(session), self.last[session])
        known = (memory.get(message.task) for memory in memories if memory)
        return next((verdict for verdict in known if verdict and verdict.attempt == message.attempt), None)

    def remember(self, session: bytes, verdict: Verdict) -> None:
        here = session in self.last
        if verdict.onto < 0 and not here:
            return  # an actor that is gone will repeat only contributions that it keeps
        memory = self.last[session] if verdict.onto < 0 else self.accepted.setdefault(session, OrderedDict())
        memory[verdict.task] = verdict
        memory.move_to_end(verdict.task)  # an earlier attempt's verdict stood further up
        while here and len(memory) > JUDGED + self.most and next(iter(memory.values())).onto < self.kept:
            memory.popitem(last=False)

    def forget(self, kept: int) -> None:
        """Forget the verdicts of gone actors on contributions to versions up to `kept`: a snapshot holds these versions."""
        self.kept = max(0, kept)
        for session in [one for one in self.accepted if one not in self.last]:
            judged = self.accepted[session]
            for task in [task for task, verdict in judged.items() if verdict.onto < kept]:
                del judged[task]
            if not judged:
                del self.accepted[session]
