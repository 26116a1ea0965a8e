"""Many agents in one process: their connections, and when each sends its keepalive.

Two ways to send. In a *closed loop*, a fixed number of keepalives are under way, and each answer
lets the next agent send: it finds the rate at which a master is busy. At a *steady rate* each agent
follows the policy of a real one, by the same code (`Schedule`, `Addresses`), after failures too: it
finds what a number of agents costs, and what they do when their master is gone.

Every agent has a connection and, on Linux, a loopback address of its own. One epoll loop without
asyncio: a keepalive costs this process less than it costs any master.
"""

import heapq
import math
import os
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from bench.zmtp import COUNTER, GREETING, READY, Broken, Call, Incoming, outcome
from kontrol.agent.addresses import Addresses
from kontrol.agent.schedule import Schedule
from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import Keepalive

# An agent goes on over the same connection after these: see `kontrol.agent.connection`.
REFUSALS = frozenset(
    {
        *("InvalidRecord", "Conflict", "Stale", "Gone", "NotWritten"),
        *("TooManyPods", "TooManyBytes", "TooManyJoins"),
    }
)
_MOST_EVENTS = 512
_READ = 65536
_PER_DECADE = 100  # buckets of a histogram: 2.3 % apart
_BIN = 0.1  # seconds in which acknowledgements are counted, for the highest rate


def record(number: int) -> str:
    """Return the keepalive of one agent, as long as a real one's."""
    more: dict[str, JSON] = {
        "port": 8000,
        "node": f"node-{number % 200}.example",
        "version": "1.0.0",
    }
    return Keepalive(
        app="bench",
        id=f"bench-{number:06d}",
        ip=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
        key="x",
        role="bench",
        payload=COUNTER.decode(),
        nonce=f"{number + 1:024x}",
        n=int(COUNTER),
        more=more,
    ).encode()


class Histogram:
    """Counts of durations, in buckets that are each a little wider than the one before."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[int(_PER_DECADE * math.log10(max(seconds, 1e-6)))] += 1

    def percentile(self, share: float) -> float:
        """Return seconds below which `share` (0 to 1) of all lie; 0 if there are none."""
        left = share * self.counts.total()
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return math.pow(10, bucket / _PER_DECADE)
        return 0.0


@dataclass(slots=True)
class Tally:
    """What came of keepalives. `late` had no answer in the time of an attempt.

    `broken` counts connections that ended or could not be made.
    """

    sent: int = 0
    acknowledged: int = 0
    late: int = 0
    broken: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    times: Histogram = field(default_factory=Histogram)
    bins: Counter[int] = field(default_factory=Counter)

    def peak(self) -> float:
        """Return the most acknowledgements in a second, from one tenth of a second on."""
        width = round(1 / _BIN)
        return max((sum(self.bins[at + i] for i in range(width)) for at in self.bins), default=0)


class Agent:
    """One of the crowd. `host` is where it last connected to."""

    __slots__ = (
        *("acknowledged", "addresses", "call", "changes", "connected", "deadline", "due", "host"),
        "incoming",
        *("marked", "number", "schedule", "sent", "socket", "waiting"),
    )

    def __init__(self, number: int, schedule: Schedule, addresses: Addresses) -> None:
        self.number = number
        self.call = Call("ping", record(number))
        self.changes = 0
        self.schedule = schedule
        self.addresses = addresses
        self.host = ""
        self.socket: socket.socket | None = None
        self.incoming = Incoming()
        self.connected = False  # TCP is; `incoming.ready` says the same of ZMTP
        self.marked = False  # not acknowledged since `Crowd.mark`
        self.waiting = False  # an attempt is under way
        self.deadline = 0.0  # of that attempt
        self.sent = 0.0
        self.acknowledged = time.monotonic()  # when the keepalive was sent that was last so
        self.due = 0.0


class Pace(Protocol):
    """Decides what agents do when something happens to them."""

    def answered(self, agent: Agent, error: str, now: float) -> None:
        """Act on an answer; `error` is "" for an acknowledgement."""

    def failed(self, agent: Agent, now: float) -> None:
        """Act on an attempt that failed; the connection is closed."""

    def late(self, agent: Agent, now: float) -> None:
        """Act on an attempt that has no answer in time; the connection is open."""

    def turn(self, now: float) -> float:
        """Do what is due; return when the next is."""


class Crowd:
    """Agents from number `first` on, and their connections to `hosts` at `port`."""

    def __init__(
        self, *, hosts: Sequence[str], port: int, first: int, agents: int, ttl: float, seed: int
    ) -> None:
        self.tally = Tally()
        self.left = 0
        """How many agents were not acknowledged since `mark`."""
        self.port = port
        random = Random(seed)
        self.agents = []
        for number in range(first, first + agents):
            addresses = Addresses(lambda _: None)
            addresses.learn(hosts)
            self.agents.append(Agent(number, Schedule(ttl, random.random), addresses))
        self._epoll = select.epoll()
        self._open: dict[int, Agent] = {}
        self._calls = first << 32
        self._attempts: deque[tuple[float, Agent]] = deque()  # all last equally long

    def mark(self) -> None:
        """Count in `left` the agents that are not acknowledged from now on."""
        self.left = len(self.agents)
        for agent in self.agents:
            agent.marked = True

    # What paces do.

    def attempt(self, agent: Agent, now: float) -> None:
        """Send a keepalive, over a new connection if there is none."""
        agent.waiting = True
        agent.sent = now
        agent.deadline = now + agent.schedule.attempt
        self._attempts.append((agent.deadline, agent))
        if agent.socket is None:
            self._connect(agent)
        elif agent.incoming.ready:
            self._send(agent)

    def close(self, agent: Agent) -> None:
        """Close the agent's connection."""
        agent.waiting = False
        if agent.socket is not None:
            del self._open[agent.socket.fileno()]
            agent.socket.close()
            agent.socket = None

    # What happens.

    def run(self, pace: Pace, until: Callable[[float], bool], wake: int | None = None) -> None:
        """Run until `until` says so, or file descriptor `wake` can be read."""
        if wake is not None:
            self._epoll.register(wake, select.EPOLLIN)
        try:
            while True:
                now = time.monotonic()
                self._expire(pace, now)
                due = pace.turn(now)
                if until(now):
                    return
                if self._attempts:
                    due = min(due, self._attempts[0][0])
                timeout = min(max(due - now, 0.0), 0.5)
                events = self._epoll.poll(timeout, _MOST_EVENTS)
                now = time.monotonic()
                for fd, _ in events:
                    if fd == wake:
                        return
                    self._happened(self._open[fd], pace, now)
        finally:
            if wake is not None:
                self._epoll.unregister(wake)

    def end(self) -> None:
        """Close every connection."""
        for agent in list(self._open.values()):
            self.close(agent)
        self._epoll.close()

    def _expire(self, pace: Pace, now: float) -> None:
        while self._attempts and self._attempts[0][0] <= now:
            deadline, agent = self._attempts.popleft()
            if agent.waiting and agent.deadline == deadline:
                self.tally.late += 1
                pace.late(agent, now)

    def _connect(self, agent: Agent) -> None:
        agent.host = agent.addresses.choose() or ""
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        own = agent.number + 1
        if agent.host.startswith("127."):
            made.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT, linux/in.h
            made.bind((f"127.{16 + (own >> 16)}.{own >> 8 & 255}.{own & 255}", 0))
        agent.socket = made
        agent.incoming = Incoming()
        agent.connected = False
        self._open[made.fileno()] = agent
        made.connect_ex((agent.host, self.port))
        self._epoll.register(made, select.EPOLLIN | select.EPOLLOUT)

    def _happened(self, agent: Agent, pace: Pace, now: float) -> None:
        found = agent.socket
        assert found is not None
        try:
            if not agent.connected:
                if number := found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(number, os.strerror(number))
                agent.connected = True
                self._epoll.modify(found, select.EPOLLIN)
                found.send(GREETING + READY)
                return
            data = found.recv(_READ)
            if not data:
                raise ConnectionResetError
            ready = agent.incoming.ready
            answers = agent.incoming.feed(data)
            if agent.incoming.owed:
                found.send(agent.incoming.owed)
                agent.incoming.owed = b""
            if not ready and agent.incoming.ready and agent.waiting:
                self._send(agent)
        except (OSError, Broken):
            self._broke(agent, pace, now)
            return
        for answer in answers:
            error = outcome(answer)
            if error is not None and agent.waiting:
                self._answered(agent, error, pace, now)

    def _broke(self, agent: Agent, pace: Pace, now: float) -> None:
        self.tally.broken += 1
        waiting = agent.waiting
        self.close(agent)
        if waiting:  # else it connects for its next keepalive, as a real one does
            pace.failed(agent, now)

    def _send(self, agent: Agent) -> None:
        assert agent.socket is not None
        self._calls += 1
        self.tally.sent += 1
        # A keepalive always has room: the one before it was answered.
        agent.socket.send(agent.call.number(self._calls))

    def _answered(self, agent: Agent, error: str, pace: Pace, now: float) -> None:
        agent.waiting = False
        tally = self.tally
        if error:
            tally.refused[error] += 1
        else:
            tally.acknowledged += 1
            agent.acknowledged = agent.sent
            tally.times.add(now - agent.sent)
            tally.bins[int(now / _BIN)] += 1
            if agent.marked:
                agent.marked = False
                self.left -= 1
        pace.answered(agent, error, now)


class ClosedLoop:
    """Keeps `under_way` keepalives under way, the agents in turn.

    With `once`, each agent is acknowledged once, and that is all. With `change`, each keepalive
    says something new.
    """

    def __init__(
        self, crowd: Crowd, under_way: int, *, once: bool = False, change: bool = False
    ) -> None:
        self._crowd = crowd
        self._next = deque(crowd.agents)
        self._once = once
        self._change = change
        self.free = under_way
        """How many more keepalives may be sent."""
        self.left = len(crowd.agents)
        """How many agents were not acknowledged yet, with `once`."""
        self.stopped = False
        """Whether to send no more."""

    def turn(self, now: float) -> float:
        """See `Pace`."""
        while self.free and self._next and not self.stopped:
            agent = self._next.popleft()
            if self._change:
                agent.changes += 1
                agent.call.change(agent.changes)
            self.free -= 1
            self._crowd.attempt(agent, now)
        return math.inf

    def answered(self, agent: Agent, error: str, now: float) -> None:
        """See `Pace`."""
        self.free += 1
        if self._once and not error:
            self.left -= 1
            return
        self._next.append(agent)
        self.turn(now)

    def failed(self, agent: Agent, now: float) -> None:
        """See `Pace`."""
        self.free += 1
        self._next.append(agent)
        self.turn(now)

    def late(self, agent: Agent, now: float) -> None:
        """See `Pace`."""
        self._crowd.close(agent)
        self.failed(agent, now)


class Steady:
    """Lets each agent send as a real one does, from anywhere in its interval on.

    But for this: one that goes to another host has no second connection to the first meanwhile.
    """

    def __init__(self, crowd: Crowd, random: Random) -> None:
        self._crowd = crowd
        self._due: list[tuple[float, int, Agent]] = []
        now = time.monotonic()
        for agent in crowd.agents:
            self._at(agent, now + random.random() * agent.schedule.ttl / 3)

    def turn(self, now: float) -> float:
        """See `Pace`."""
        due = self._due
        while due and due[0][0] <= now:
            at, _, agent = heapq.heappop(due)
            if agent.due == at:
                if agent.waiting:  # its answer was late, and is waited for no longer
                    self._crowd.close(agent)
                self._crowd.attempt(agent, now)
        return due[0][0] if due else math.inf

    def answered(self, agent: Agent, error: str, now: float) -> None:
        """See `Pace`."""
        if not error:
            self._at(agent, agent.sent + agent.schedule.acknowledged())
        elif error in REFUSALS:
            self._at(agent, now + agent.schedule.failed())
        else:
            self.failed(agent, now)

    def failed(self, agent: Agent, now: float) -> None:
        """See `Pace`."""
        agent.addresses.failed(agent.host)
        if agent.addresses.choose() != agent.host:
            self._crowd.close(agent)
        self._at(agent, now + agent.schedule.failed())

    def late(self, agent: Agent, now: float) -> None:
        """See `Pace`."""
        if not agent.connected:
            self._crowd.close(agent)
        self.failed(agent, now)
        if agent.waiting:
            until = agent.sent + agent.schedule.timeout(agent.sent - agent.acknowledged)
            self._at(agent, max(until, agent.due))

    def _at(self, agent: Agent, when: float) -> None:
        agent.due = when
        heapq.heappush(self._due, (when, agent.number, agent))
