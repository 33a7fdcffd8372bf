"""The sockets between a pool and the actors of its machine: what `coordinator/deciding/near.py` decides is done here.

The one idea: one thread waits for answers, for ended processes and for callers, and for nothing else: a pool that waits does
nothing.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from shoal.actors.near import PACKET, ROOM
from shoal.coordinator.deciding.near import Cut, Give, Near, Rob, Stop
from shoal.coordinator.deciding.plans.tickets import Tickets
from shoal.protocol.calls import Answer, Call, pack_task
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.marks import Marks
from shoal.protocol.shared import SHORT, Segment
from shoal.protocol.wake import Wake
from shoal.runs.crew import Crew
from shoal.tasks.reserve import Reserve

HELD_UP = 1.0  # seconds between two looks at processes that somebody may have stopped
TIMED = 0.05  # seconds between two looks at calls whose time may be up
TOKENS = 1 << 16  # bytes that a pipe holds, and more than the tokens of an actor


@dataclass(slots=True, eq=False)
class Line:
    """The way to an actor. tokens: read end and write end of its pipe. pid: 0 until it has said so."""

    socket: socket.socket
    pid: int = 0
    tokens: tuple[int, int] = (-1, -1)

    def close(self) -> None:
        self.socket.close()
        for descriptor in self.tokens:
            if descriptor >= 0:
                os.close(descriptor)


class Nearby:
    """calls: the calls of a task, by its index. done: takes in the answers of a task. cut: takes back what a process has not
    claimed of the piece that it is at (its id, index of the task), and says whether it could. unsent: gives up the calls of a
    task, for which there is no memory or no descriptor."""

    def __init__(
        self,
        plan: Tickets,
        path: Path,
        crew: Crew,
        marks: Marks,
        clock: Callable[[], float],
        calls: Callable[[int], Sequence[Call]],
        done: Callable[[int, Sequence[Answer]], None],
        cut: Callable[[int, int], bool],
        unsent: Callable[[int], None],
    ) -> None:
        self.near = Near(plan)
        self.path = path
        self._crew, self._marks, self._clock, self._calls, self._done, self._cut = crew, marks, clock, calls, done, cut
        self.wake = Wake()
        self.answering = 0  # process whose answers are taken in
        self._unsent = unsent
        self._lines: dict[int, Line] = {}  # by descriptor
        self._by_pid: dict[int, Line] = {}
        self._sent: dict[int, Segment] = {}  # index of a task -> memory of its calls, while it is out
        self._buffer = bytearray(2 * PACKET)
        self._stopped: set[int] = set()  # processes that were found stopped at the last look
        self._look_at = clock() + HELD_UP
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(4_096)
        self._listener.setblocking(False)
        self.reserve = Reserve()
        self.short = ""  # why new actors are not let in; "": they are
        self._poll = select.poll()
        for descriptor in (self.wake.out, self._listener.fileno(), crew.pool.fileno()):
            self._poll.register(descriptor, select.POLLIN)

    def close(self) -> None:
        """Close all lines, at which the actors end."""
        for line in self._lines.values():
            line.close()
        for index in list(self._sent):
            self._arrived(index)
        self._listener.close()
        self.reserve.close()
        self.wake.close()

    def run(self, ends: Callable[[], str], nudged: Callable[[], bool], timed: Callable[[], bool]) -> str:
        """Turn until `ends` gives a reason, and return it. nudged: takes in what callers want. timed: whether the time of a
        call is counted."""
        while not (why := ends()):
            self._wait(timed())
            nudged()
            self.give()
        return why

    def give(self) -> None:
        """Do what is decided now."""
        for effect in self.near.turn(self._clock()):
            match effect:
                case Give(pid, task, certain):
                    self._give(self._by_pid[pid], task.index, task.words, certain)
                case Rob(pid):
                    self.near.robbed(pid, self._tokens_of(self._by_pid[pid]))
                case Stop(pid):
                    self._marks.stop(pid)
                case Cut(pid, index):
                    if self._cut(pid, index):
                        self.near.cut(pid)

    def dismiss(self, many: int) -> list[int]:
        """Let at most so many actors leave that have no task. Returns their process ids."""
        idle = [pid for pid, one in self.near.actors.items() if not one.tasks][:many]
        for pid in idle:
            del self.near.actors[pid]
            self._forget(self._by_pid.pop(pid))
        return idle

    def evict(self, index: int) -> None:
        """End the process that has a task which nobody wants any more."""
        if (pid := self.near.withdraw(index)) is not None:
            self._crew.evict([pid])

    def _wait(self, timed: bool) -> None:
        now = self._clock()
        # at least once in HELD_UP seconds: a Ctrl-C can end a caller between its word that there is news and the wake
        wait = min(max(0.0, self._look_at - now), TIMED if timed else HELD_UP)
        if (due := self.near.due(now)) is not None:
            wait = min(wait, due)
        ready = self._poll.poll(int(1_000 * wait) + 1)
        for descriptor, _ in ready:
            if (line := self._lines.get(descriptor)) is not None:
                self._hear(line)
            elif descriptor == self.wake.out:
                self.wake.clear()
            elif descriptor == self._listener.fileno():
                self._meet()
            else:
                for pid in self._crew.gone():
                    self._ended(pid)
        if self._clock() >= self._look_at:
            self._look()

    def _meet(self) -> None:
        with suppress(BlockingIOError):
            while (its := self._accepted()) is not None:
                its.setblocking(False)
                its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
                self._lines[its.fileno()] = Line(its)
                self._poll.register(its.fileno(), select.POLLIN)

    def _accepted(self) -> socket.socket | None:
        """The next actor's socket; None if the program holds all descriptors. Raises BlockingIOError if there is none."""
        if self.reserve.full():  # else an actor that cannot share its pipe would end, and another after it
            for _ in range(2):
                try:
                    return self._listener.accept()[0]
                except OSError as why:
                    if why.errno not in (errno.EMFILE, errno.ENFILE):
                        raise
                    self.reserve.spend(1)
        self._wait_for_descriptors()
        return None

    def _wait_for_descriptors(self) -> None:
        """Let no actor in before the next look: the program holds all descriptors."""
        if not self.short:
            self._poll.unregister(self._listener.fileno())
        self.short = SHORT

    def _hear(self, line: Line) -> None:
        """Take in what an actor said, which is one message, or its end."""
        if not line.pid:
            self._begun(line)
            return
        try:
            many = line.socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except ConnectionError:
            many = 0
        if many:
            self._answered(line, memoryview(self._buffer)[:many])
        else:
            self._ended(line.pid)

    def _begun(self, line: Line) -> None:
        try:
            with self.reserve.lent():
                said, descriptors, _, _ = socket.recv_fds(line.socket, 64, 2)
        except ConnectionError:
            said, descriptors = b"", []
        if len(descriptors) != 2:
            self._forget(line)
            return
        line.pid, line.tokens = int(said), (descriptors[0], descriptors[1])
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._by_pid[line.pid] = line
        self.near.came(line.pid)

    def _answered(self, line: Line, data: Any) -> None:
        said = msgpack.unpackb(data, max_bin_len=len(data), max_array_len=len(data))
        if isinstance(said, dict):
            try:
                with self.reserve.lent():
                    segment = Segment.open(tuple(said["at"]))
            except ProtocolError:  # it has ended, and its answers with it; else they will never be read
                with suppress(ProcessLookupError):
                    os.kill(line.pid, signal.SIGKILL)
                return
            said = msgpack.unpackb(segment.view(), max_bin_len=segment.handle[2], max_array_len=segment.handle[2])
            segment.close()
            held = True
        else:
            held = said[1]
        index, _, rows = said
        self._arrived(index)
        self.answering = line.pid
        if self.near.answered(line.pid, index, self._clock()):
            self._done(index, [Answer(*row) for row in rows])
        if held:
            with suppress(OSError):  # it has ended, and so has its hold on the memory
                line.socket.send(msgpack.packb(index))

    def _arrived(self, index: int) -> None:
        """Give back the memory of a task's calls, which nobody reads any more."""
        if segment := self._sent.pop(index, None):
            segment.close()

    def _ended(self, pid: int) -> None:
        """Take in the end of a process, once all that it said is taken in."""
        if (line := self._by_pid.pop(pid, None)) is None:
            return
        with suppress(OSError):
            while many := line.socket.recv_into(self._buffer):
                self._answered(line, memoryview(self._buffer)[:many])
        self._forget(line)
        for out in self.near.actors[pid].tasks:
            self._arrived(out.task.index)
        ran = self._marks.ran(pid)
        self.near.ended(pid, ran[1:], f"ended (process {pid})")
        if pid in self._crew.pool.alive:  # it may have closed its line and compute on, and would never be replaced
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _forget(self, line: Line) -> None:
        self._poll.unregister(line.socket.fileno())
        del self._lines[line.socket.fileno()]
        line.close()

    def _give(self, line: Line, index: int, words: Any, certain: int) -> None:
        calls = self._calls(index)
        data = pack_task(index, words, certain, calls)
        if len(data) > PACKET:
            try:
                segment = Segment.create(len(data))
            except UserError:
                self.near.refused(line.pid)
                self._unsent(index)
                return
            self._sent[index] = segment
            segment.write(data)
            data = msgpack.packb({"at": segment.handle})
        try:
            if len(calls) > certain:
                os.write(line.tokens[1], b"." * (len(calls) - certain))
            line.socket.send(data)
        except BlockingIOError:  # it has room for all tasks that an actor is given: it reads nothing, and its tasks come back
            self._crew.evict([line.pid])
        except OSError:
            pass  # it has ended: its line will say so, and its tasks are given to others

    def _tokens_of(self, line: Line) -> int:
        try:
            return len(os.read(line.tokens[0], TOKENS))
        except BlockingIOError:
            return 0

    def _look(self) -> None:
        """End processes with a task that were found stopped twice in a row (SIGSTOP): nobody may wake them."""
        self._look_at = self._clock() + HELD_UP
        if self.short and self.reserve.full():
            self.short = ""
            self._poll.register(self._listener.fileno(), select.POLLIN)
        stopped = {pid for pid, one in self.near.actors.items() if one.tasks and _stopped(pid)}
        self._crew.evict(list(stopped & self._stopped))
        self._stopped = stopped


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] == "T"
    except OSError:
        return False
