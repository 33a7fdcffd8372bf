"""What was said of contributions, remembered so that one that comes again gets the same answer.

The one idea: a verdict is remembered for as long as its contribution may come again. From an actor that is here, that is one
of the last few; and from any, gone and back again, it is what it keeps until a snapshot holds it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

from shoal.protocol.messages import Contribute, Failed, TaskName, Verdict

Judged: TypeAlias = OrderedDict[TaskName, Verdict]
JUDGED = 8  # remembered an actor, beside as many as it can have tasks: more than it can have unacknowledged


@dataclass(slots=True)
class Verdicts:
    """By session. most: tasks that an actor may hold.

    last: of who is here, on what it does not keep. accepted: of the same, on what it keeps until a snapshot holds it; of who is
    gone that is in `parted`. Two memories, because what is kept must not hold up the forgetting of the rest.
    """

    most: int = 0
    last: dict[bytes, Judged] = field(default_factory=dict)
    accepted: dict[bytes, Judged] = field(default_factory=dict)
    parted: dict[bytes, Judged] = field(default_factory=dict)
    kept: int = 0  # the newest version that is in a snapshot; what is for later ones may be offered again by who has it

    def join(self, session: bytes) -> None:
        self.last[session] = OrderedDict()
        self.accepted[session] = self.parted.pop(session, OrderedDict())

    def part(self, session: bytes) -> None:
        """It may come back with what was accepted of it, and not know that it was."""
        del self.last[session]
        if accepted := self.accepted.pop(session):
            self.parted[session] = accepted

    def on(self, session: bytes, message: Contribute | Failed) -> Verdict | None:
        """What was said of this attempt to who is here, if that is remembered."""
        known = (self.accepted[session].get(message.task), self.last[session].get(message.task))
        return next((verdict for verdict in known if verdict and verdict.attempt == message.attempt), None)

    def remember(self, session: bytes, verdict: Verdict) -> None:
        memory = (self.last if verdict.onto < 0 else self.accepted).get(session)
        if memory is None:  # it is gone, and will ask again only about what it keeps
            if verdict.onto >= 0:
                self.parted.setdefault(session, OrderedDict())[verdict.task] = verdict
            return
        memory[verdict.task] = verdict
        memory.move_to_end(verdict.task)  # where an earlier attempt's was
        while len(memory) > JUDGED + self.most and next(iter(memory.values())).onto < self.kept:
            memory.popitem(last=False)

    def forget(self, kept: int) -> None:
        """What versions to this one are made of is in a snapshot."""
        self.kept = max(0, kept)
        for session, judged in list(self.parted.items()):
            for task in [task for task, verdict in judged.items() if verdict.onto < kept]:
                del judged[task]
            if not judged:
                del self.parted[session]
