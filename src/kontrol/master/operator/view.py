"""What a master shows to operators, and their requests: what REST and the commands are built on.

All of it is JSON. What must be known without the store comes from the mirrors; the rest is read
from the store on request, so that nothing is kept in memory only to be shown.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import NamedTuple

from kontrol import __version__
from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.desired import Expected
from kontrol.ensemble.ensemble import digest_of
from kontrol.master.leader.counts import Counts
from kontrol.master.leader.requests import Kind
from kontrol.master.master import Master
from kontrol.master.operator import desired
from kontrol.master.operator.notices import read_notice
from kontrol.master.operator.problems import free_space, problems
from kontrol.master.operator.story import (
    Facts,
    Problem,
    due,
    passed,
    plan_now,
    reports,
    usual,
)
from kontrol.master.records.fields import HIGHEST_RUN
from kontrol.master.records.masters import OperatorAnswer
from kontrol.master.records.runs import Head, Running
from kontrol.store.protocol import (
    KeyValue,
    NoSpace,
    Range,
    Store,
    StoreError,
    Unavailable,
)

_SHOWN = 5  # runs in the status
_RUNS = 20  # from which the usual duration is computed
_CONNECT = 0.5  # seconds to connect to the leader
_BEHIND = 0.25  # seconds for a mirror that is behind to catch up
_NEWEST = 20  # keys of states, some of which may have no valid run number
_TIMEOUT = 1.5  # seconds for the store's answers: people wait, and may try another master next
_SHORT_TIMEOUT = 1.0  # the same while it is unresponsive
_NONE = digest_of(())


class _Read(NamedTuple):
    """What the store has at one revision; `entries` of the ledger, the newest first."""

    running: Running | None
    applied: Head | None
    published: dict[str, JSON] | None
    entries: tuple[dict[str, JSON], ...]
    revision: int
    notices: tuple[Problem, ...] = ()
    live: int = 0  # pods with live facts


class View:
    """One master as its operators see it. Methods that read the store raise `StoreError`."""

    def __init__(self, master: Master, store: Store, *, wall: Callable[[], str]) -> None:
        """`wall` returns the date and time, RFC 3339."""
        self._master = master
        self._store = store
        self._keys = master.keys
        self._records = master.records
        self._wall = wall
        self._moved = asyncio.Event()
        master.mirror.cache.listen(lambda _: self._moved.set())

    @property
    def counts(self) -> Counts:
        """What this master has counted since it started."""
        return self._master.counts

    async def pods(self, *, live: bool) -> list[dict[str, JSON]]:
        """The ordered pods, as the callback sees them; without `live`, without live facts.

        So they are, too, if the store does not answer.
        """
        if live:
            with contextlib.suppress(StoreError):
                async with self._bounded():
                    return await self._master.pods_with_facts()
        return self._master.pods()

    @property
    def digest(self) -> str:
        """The digest of the ensemble."""
        return self._master.mirror.ensemble.digest

    def leader(self) -> dict[str, JSON] | None:
        """The leader's id, address, fingerprint and term."""
        return self._master.leader_record

    async def state(self) -> dict[str, JSON]:
        """Return the state, the run that returned it (0 if none), and the last acknowledged run."""
        newest = Range(
            self._keys.states, prefix=True, descending=True, limit=_NEWEST, keys_only=True
        )
        async with self._bounded():
            state, states, applied = await asyncio.gather(
                self._master.state(),
                self._store.range(newest),
                self._first(Range(self._keys.applied)),
            )
        head = self._records.head(applied) if applied else None
        numbers = (self._keys.number(kv.key) for kv in states.kvs)
        run = next((n for n in numbers if n is not None), 0)
        return {"run": run, "state": state, "acknowledged": head.run if head else 0}

    async def runs(self, limit: int) -> list[dict[str, JSON]]:
        """Return the last entries of the ledger, the newest first."""
        async with self._bounded():
            return await self._last(limit)

    async def run(self, number: int) -> dict[str, JSON] | None:
        """Return one entry of the ledger; `state_kept`: whether its state can be restored."""
        async with self._bounded():
            entry, state = await asyncio.gather(
                self._first(Range(self._keys.run(number))),
                self._first(Range(self._keys.state_of(number), keys_only=True)),
            )
        found = None if entry is None else self._records.entry(entry)
        return None if found is None else {**found, "state_kept": state is not None}

    async def ask(
        self, kind: Kind, by: str, *, run: int | None = None, pod: str = "", timeout: float = 10.0
    ) -> dict[str, JSON]:
        """Have the leader do something; see `Requests.ask`.

        Raises `Unavailable` soon if the store does not answer, and `NoSpace` with the fix.
        """
        if run is not None and run > HIGHEST_RUN:  # no request can hold it
            refusal = OperatorAnswer(
                f"there was no run {run}: no run has so high a number", refused=True
            )
            return {"request": "", "done": True, **refusal.public()}
        async with self._bounded():
            found = await self._store.range(Range(self._keys.plan, keys_only=True))
        try:
            return await self._master.requests.ask(kind, by, run=run, pod=pod, timeout=timeout)
        except NoSpace:
            fix = free_space(found.header.revision)
            raise NoSpace(f"it does not store the request. To fix that, {fix}") from None

    async def spec(self) -> dict[str, JSON] | None:
        """Return the desired state, and which client set each key when; None if it is damaged."""
        async with self._bounded():
            return desired.shown(await self._master.desired.read())

    async def set_spec(
        self,
        key: str,
        value: bytes | None,
        by: str,
        *,
        expected: Expected | None = None,
        timeout: float = 10.0,
    ) -> dict[str, JSON]:
        """Set a key of the desired state, or unset it: see `desired.change`. Raises `NoSpace`."""
        return await desired.change(
            self._master.desired, key, value, by, expected=expected, timeout=timeout
        )

    def ready(self) -> list[dict[str, JSON]]:
        """Return whether this master can accept keepalives: checks with `name`, `ok`, `detail`."""
        age = self._age()
        confirmed = "never" if age is None else f"{age:.1f} s ago"
        return [
            {
                "name": "mirror",
                "ok": self._master.mirror.cache.complete.is_set(),
                "detail": f"revision {self._master.mirror.cache.revision}",
            },
            {
                "name": "etcd",
                "ok": self._master.mirror.cache.current,
                "detail": f"confirmed {confirmed}",
            },
        ]

    async def status(self) -> dict[str, JSON]:
        """Return the state of the tier; without the store, what the mirrors had last."""
        master = self._master
        time = self._wall()
        now = datetime.fromisoformat(time)
        error = ""
        alarms: tuple[str, ...] = ()
        silent: float | None = None
        refuses = False
        read = _Read(None, None, None, (), 0)
        try:
            async with self._bounded():
                read, alarms, silent, refuses = await asyncio.gather(
                    self._read(), self._store.alarms(), self._silence(), self._leader_refuses()
                )
                await self._catch_up(read)
        except StoreError as failed:
            error = str(failed)
        # From here on nothing is awaited, so that the status is of one moment.
        leader, candidates = self.leader(), master.candidates
        ensemble, applied, running = master.mirror.ensemble, read.applied, read.running
        damper, clock = master.mirror.damper, asyncio.get_running_loop().time()
        under_way = (
            running is not None
            and not running.ended
            and leader is not None
            and running.term == leader.get("term")
            and reports(candidates, silent=silent, refuses=refuses)
        )
        plan = plan_now(
            read.published,
            running,
            applied,
            under_way=under_way,
            reason=due(
                applied,
                running,
                digest=ensemble.digest,
                none=_NONE,
                fingerprint=candidates[0].fingerprint if candidates else "",
                desired=bool(master.desired.seen.since(applied.spec if applied else None)),
            ),
            quiet=None if damper.ripe is None else max(0.0, damper.ripe - clock),
            now=now,
        )
        shown = None if running is None else running.known()
        if shown is not None and running is not None and under_way:
            shown["age"] = self._run_age(running, now)
        facts = Facts(
            etcd=error or ("" if master.mirror.cache.current else "its watch does not report"),
            alarms=alarms,
            revision=read.revision,
            leader=leader,
            candidates=candidates,
            plan=plan,
            running=shown,
            pods=len(ensemble),
            left_out=master.mirror.left_out,
            limited=master.registry.quota.limited(clock),
            max_pods=master.config.bounds.pods,
            conflicts=master.registry.senders.conflicts(),
            flips=master.registry.senders.flips(),
            notices=(*self._master.behind(), *read.notices),
            silent=silent,
            refuses=refuses,
            waiting=self._waiting(read),
            usual=usual(read.entries),
            runs=read.entries[:1],
            damper_max=master.config.damper_max,
            now=now,
            applied=applied,
        )
        return {
            "version": __version__,
            "namespace": master.config.namespace,
            "app": master.config.app,
            "master": master.config.id,
            "time": time,
            "etcd": {
                "ok": not facts.etcd,
                "error": facts.etcd,
                "seconds": self._age(),
                "alarms": list(alarms),
            },
            "ttl": master.ttl,
            "leader": None if leader is None else {**leader, "last_seen_seconds": silent},
            "candidates": [one.known() for one in candidates],
            "ensemble": {
                "pods": len(ensemble),
                "live": read.live,
                "roles": dict(sorted(Counter(pod.role for pod in ensemble).items())),
                "digest": ensemble.digest,
            },
            "plan": plan,
            "running": shown,
            "changes_waiting_seconds": facts.waiting,
            "usual_run_seconds": facts.usual,
            "applied": None if applied is None else applied.shown(),
            "current": applied is not None and applied.digest == ensemble.digest,
            "runs": list(read.entries[:_SHOWN]),
            "problems": [{"kind": p.kind, "what": p.what, "fix": p.fix} for p in problems(facts)],
        }

    async def _read(self) -> _Read:
        """Read what belongs together at one revision."""
        keys, records = self._keys, self._records
        answer = await self._store.txn(
            [],
            [
                Range(keys.running),
                Range(keys.applied),
                Range(keys.plan),
                Range(keys.runs, prefix=True, descending=True, limit=_RUNS),
                Range(keys.notices, prefix=True),
                Range(keys.live, prefix=True, limit=1, keys_only=True),
            ],
        )
        running, applied, published, runs, notices = (answer.range(i).kvs for i in range(5))
        run = records.running(running[0]) if running else None
        return _Read(
            None if run is None or run.withdrawn else run,
            records.head(applied[0]) if applied else None,
            records.plan(published[0]) if published else None,
            tuple(entry for kv in runs if (entry := records.entry(kv)) is not None),
            answer.header.revision,
            tuple(
                problem
                for kv in notices
                if kv.key != self._master.notices.key
                for problem in read_notice(kv)
            ),
            answer.range(5).count,
        )

    async def _silence(self) -> float | None:
        """Return for how many seconds the leader has not refreshed its lease, None if none leads.

        Rounded up to whole seconds.
        """
        term, candidates = self._master.election.term, self._master.election.candidates
        if not candidates:
            return None
        if term is not None and term.held:
            return 0.0  # it is this master, and etcd has confirmed it
        left, granted = await self._store.remaining(candidates[0].lease)
        return float(max(0, granted - left)) if granted else self._master.config.fover

    async def _leader_refuses(self) -> bool:
        """Return whether the leader's host refuses connections to its port: its process has ended.

        Its lease shows that too, but seconds later. If this master is not reached at its own
        address either (addresses are translated), a refusal means nothing.
        """
        config, candidates = self._master.config, self._master.candidates
        if not candidates or self._master.election.term is not None or not config.port:
            return False
        leader = candidates[0]
        if not leader.port or not await _refuses(leader.address, leader.port):
            return False
        return not await _refuses(config.address, config.port)

    async def _catch_up(self, read: _Read) -> None:
        """Wait a little if the mirror is behind the pods of a run that was read from the store."""
        seen = max(
            (one.revision or 0 for one in (read.applied, read.running) if one is not None),
            default=0,
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BEHIND):
                while self._master.mirror.cache.revision < seen:
                    self._moved.clear()
                    await self._moved.wait()

    def _waiting(self, read: _Read) -> float | None:
        """Return for how many seconds changes have waited for a run, None if there are none."""
        mirror, run = self._master.mirror, read.running
        last: Running | Head | None = run if run is not None and not run.ended else read.applied
        digest = last.digest if last else _NONE
        if mirror.ensemble.digest == digest:
            return None
        revision = last.revision if last else 0
        since = None if revision is None else mirror.history.after(revision, digest)
        return None if since is None else asyncio.get_running_loop().time() - since

    def _run_age(self, running: Running, now: datetime) -> float | None:
        """Return for how many seconds a run has been under way; exactly on the leader itself."""
        since, term = self._master.counts.running_since, self._master.election.term
        if since is not None and term is not None and term.number == running.term:
            return asyncio.get_running_loop().time() - since
        return passed(running.started, now)

    def _age(self) -> float | None:
        """Return the seconds since the store confirmed the mirror as complete, None if never."""
        age = self._master.mirror.cache.age
        return None if age == float("inf") else round(age, 1)

    @contextlib.asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Bound the time of reads, since people wait for them. Raises `Unavailable`."""
        seconds = _TIMEOUT if self._master.mirror.cache.current else _SHORT_TIMEOUT
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise Unavailable(f"no answer within {seconds:g} s") from None

    async def _last(self, limit: int) -> list[dict[str, JSON]]:
        request = Range(self._keys.runs, prefix=True, descending=True, limit=limit)
        found = (await self._store.range(request)).kvs
        return [entry for kv in found if (entry := self._records.entry(kv)) is not None]

    async def _first(self, request: Range) -> KeyValue | None:
        kvs = (await self._store.range(request)).kvs
        return kvs[0] if kvs else None


async def _refuses(address: str, port: int) -> bool:
    """Return whether a host refuses connections to a port; no answer does not count."""
    try:
        async with asyncio.timeout(_CONNECT):
            _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False
