"""What a master shows to operators, and takes from them: the source of REST and the command line.

Everything is JSON-able. What must be known even without a store comes from the mirrors; the rest is
read when it is asked for, so that nothing is kept for the sake of being looked at.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

from kontrol import __version__
from kontrol.ensemble.canonical import JSON
from kontrol.master.leader.counts import Counts
from kontrol.master.leader.requests import Kind
from kontrol.master.master import Master
from kontrol.master.operator.problems import Facts, problems
from kontrol.master.registry.rivals import Contest
from kontrol.store.protocol import KeyValue, Range, Store, StoreError, Unavailable

_RUNS = 5  # in the status
_NEWEST = 20  # states, of which some may not be under a run's number
_PATIENCE = 1.5  # seconds for the store's answers: people wait, and may ask another master next
_HOPE = 1.0  # the same while it is silent


class View:
    """One master, for people. Methods that read the store raise `StoreError`."""

    def __init__(self, master: Master, store: Store, *, wall: Callable[[], str]) -> None:
        """`wall` tells the date and time, RFC 3339."""
        self._master = master
        self._store = store
        self._keys = master.keys
        self._records = master.records
        self._wall = wall

    @property
    def counts(self) -> Counts:
        """What this master counted since it started."""
        return self._master.counts

    def pods(self) -> list[dict[str, JSON]]:
        """The ordered pods, as the callback sees them."""
        return self._master.pods()

    @property
    def digest(self) -> str:
        """The digest of the ensemble."""
        return self._master.mirror.ensemble.digest

    def leader(self) -> dict[str, JSON] | None:
        """The leader's id, address, fingerprint and term."""
        return self._master.leader_record

    async def state(self) -> dict[str, JSON]:
        """The state, and the run that left it (0 if none did)."""
        newest = Range(
            self._keys.states, prefix=True, descending=True, limit=_NEWEST, keys_only=True
        )
        async with self._patience():
            state, states = await asyncio.gather(self._master.state(), self._store.range(newest))
        numbers = (self._keys.number(kv.key) for kv in states.kvs)
        return {"run": next((n for n in numbers if n is not None), 0), "state": state}

    async def runs(self, limit: int) -> list[dict[str, JSON]]:
        """The last entries of the ledger, the newest first."""
        async with self._patience():
            return await self._last(limit)

    async def run(self, number: int) -> dict[str, JSON] | None:
        """One entry of the ledger; `state_kept` tells whether it can be rolled back to."""
        async with self._patience():
            entry, state = await asyncio.gather(
                self._first(Range(self._keys.run(number))),
                self._first(Range(self._keys.state_of(number), keys_only=True)),
            )
        found = None if entry is None else self._records.entry(entry)
        return None if found is None else {**found, "state_kept": state is not None}

    async def ask(
        self, kind: Kind, by: str, *, run: int | None = None, timeout: float = 10.0
    ) -> dict[str, JSON]:
        """Ask the leader; see `Requests.ask`. Raises `Unavailable` soon if the store is silent."""
        async with self._patience():
            await self._first(Range(self._keys.plan, keys_only=True))
        return await self._master.requests.ask(kind, by, run=run, timeout=timeout)

    def ready(self) -> list[dict[str, JSON]]:
        """Whether this master can take keepalives: checks of `name`, `ok` and `detail`."""
        age = self._age()
        told = "never" if age is None else f"{age:.1f} s ago"
        return [
            {
                "name": "mirror",
                "ok": self._master.mirror.complete.is_set(),
                "detail": f"revision {self._master.mirror.revision}",
            },
            {
                "name": "etcd",
                "ok": self._master.mirror.current,
                "detail": f"confirmed {told}",
            },
        ]

    async def status(self) -> dict[str, JSON]:
        """The whole situation; without a store, what the mirrors knew last."""
        master, keys, records = self._master, self._keys, self._records
        running: dict[str, JSON] | None = None
        applied: dict[str, JSON] | None = None
        plan: dict[str, JSON] = {"what": "unknown"}
        runs: list[dict[str, JSON]] = []
        error, revision = "", 0
        alarms: tuple[str, ...] = ()
        try:
            async with self._patience():
                read, acknowledged, said, runs, alarms = await asyncio.gather(
                    self._store.range(Range(keys.running)),
                    self._first(Range(keys.applied)),
                    self._first(Range(keys.plan)),
                    self._last(_RUNS),
                    self._store.alarms(),
                )
            revision = read.header.revision
            run = records.running(read.kvs[0]) if read.kvs else None
            running = None if run is None or run.withdrawn else run.known()
            head = records.head(acknowledged) if acknowledged else None
            applied = head.known() if head else None
            plan = self._plan(records.plan(said) if said else None)
        except StoreError as failed:
            error = str(failed)
        candidates = master.candidates
        ensemble = master.mirror.ensemble
        age = self._age()
        leader = self.leader()
        facts = Facts(
            etcd=error or ("" if master.mirror.current else "its watch is silent"),
            alarms=alarms,
            revision=revision,
            leader=leader,
            candidates=candidates,
            plan=plan,
            running=running,
            pods=len(ensemble),
            left_out=master.mirror.left_out,
            contests=self._contests(),
            flips=master.registry.writer.flips.standing(self._now(), master.ttl),
        )
        return {
            "version": __version__,
            "namespace": master.config.namespace,
            "app": master.config.app,
            "master": master.config.id,
            "time": self._wall(),
            "etcd": {
                "ok": not facts.etcd,
                "error": facts.etcd,
                "seconds": age,
                "alarms": list(alarms),
            },
            "ttl": master.ttl,
            "leader": leader,
            "candidates": [one.known() for one in candidates],
            "ensemble": {
                "pods": len(ensemble),
                "roles": dict(sorted(Counter(pod.role for pod in ensemble).items())),
                "digest": ensemble.digest,
            },
            "plan": plan,
            "running": running,
            "applied": applied,
            "current": applied is not None and applied.get("digest") == ensemble.digest,
            "runs": list(runs),
            "problems": [{"what": p.what, "mend": p.mend} for p in problems(facts)],
        }

    def _contests(self) -> list[Contest]:
        """Return the contests for seats, but for those that another master has settled."""
        live = self._master.mirror.live
        contests = self._master.registry.writer.contests.standing(self._now(), self._master.ttl)
        return [
            each
            for each in contests
            if (there := live(each.refused.key)) is None
            or (there.pod.id, there.pod.nonce) != (each.refused.id, each.refused.nonce)
            or each.refused.nonce == each.holder.nonce
        ]

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _plan(self, said: dict[str, JSON] | None) -> dict[str, JSON]:
        """Tell the leader's plan as of now; before it said any, the damper's is known here."""
        now = datetime.fromisoformat(self._wall())
        loop = asyncio.get_running_loop()
        if said is None:
            return {"what": "unknown"}
        plan = dict(said)
        left, at = plan.get("seconds"), plan.pop("at", None)
        ripe = self._master.mirror.damper.ripe
        if plan.get("hold") == "damper" and ripe is not None:
            plan["seconds"] = max(0.0, round(ripe - loop.time(), 1))
        elif isinstance(left, int | float) and isinstance(at, str):
            plan["seconds"] = still(left, at, now)
        seconds = plan.get("seconds")
        plan["until"] = None
        if isinstance(seconds, int | float):
            until = now + timedelta(seconds=seconds)
            plan["until"] = until.isoformat(timespec="milliseconds")
        return plan

    def _age(self) -> float | None:
        """Seconds since the store last confirmed that nothing is missing; None if it never did."""
        age = self._master.mirror.age
        return None if age == float("inf") else round(age, 1)

    @contextlib.asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        """Bound reads by the time that people have. Raises `Unavailable`."""
        seconds = _PATIENCE if self._master.mirror.current else _HOPE
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


def still(seconds: float, at: str, now: datetime) -> float:
    """Return what is left now of the `seconds` that were left at the time `at`, for people.

    The times are of two hosts, whose clocks may differ: so it is never more than was told.
    """
    try:
        passed = (now - datetime.fromisoformat(at)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # not a time, or one without a zone
        passed = 0.0
    return round(max(0.0, seconds - max(0.0, passed)), 1)
