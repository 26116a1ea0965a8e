"""What a master shows to operators, and takes from them: the source of REST and the command line.

Everything is JSON-able. What must be known even without a store comes from the mirrors; the rest is
read when it is asked for, so that nothing is kept for the sake of being looked at.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

from kontrol import __version__
from kontrol.ensemble.canonical import JSON
from kontrol.master.leader.counts import Counts
from kontrol.master.leader.requests import Kind
from kontrol.master.master import Master
from kontrol.master.operator.problems import Facts, problems
from kontrol.store.protocol import KeyValue, Range, Store, StoreError, Unavailable

_RUNS = 5  # in the status
_PATIENCE = 1.5  # seconds for the store's answers: people wait, and may ask another master next
_HOPE = 1.0  # the same while it is silent


class View:
    """One master, for people. Methods that read the store raise `StoreError`."""

    def __init__(self, master: Master, store: Store, *, wall: Callable[[], str]) -> None:
        """`wall` tells the date and time, RFC 3339."""
        self._master = master
        self._store = store
        self._keys = master.keys
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
        async with self._patience():
            state, states = await asyncio.gather(
                self._first(Range(self._keys.state)),
                self._first(Range(self._keys.states, prefix=True, descending=True, limit=1)),
            )
        run = int(states.key.removeprefix(self._keys.states)) if states else 0
        return {"run": run, "state": _load(state)}

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
        if entry is None:
            return None
        return {**json.loads(entry.value), "state_kept": state is not None}

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
        master, keys = self._master, self._keys
        running: dict[str, JSON] | None = None
        applied: dict[str, JSON] | None = None
        plan: dict[str, JSON] = {"what": "unknown"}
        runs: list[dict[str, JSON]] = []
        error = ""
        try:
            async with self._patience():
                *found, runs = await asyncio.gather(
                    self._first(Range(keys.running)),
                    self._first(Range(keys.applied)),
                    self._first(Range(keys.plan)),
                    self._last(_RUNS),
                )
            running, applied, said = (_load(kv) for kv in found)
            plan = self._plan(said)
        except StoreError as failed:
            error = str(failed)
        candidates = [json.loads(kv.value) for kv in master.election.candidates]
        ensemble = master.mirror.ensemble
        age = self._age()
        leader = self.leader()
        facts = Facts(
            etcd=error or ("" if master.mirror.current else "its watch is silent"),
            leader=leader,
            candidates=[str(one.get("id")) for one in candidates],
            fingerprints=[str(one.get("fingerprint", "")) for one in candidates],
            plan=plan,
            running=running,
            pods=len(ensemble),
        )
        return {
            "version": __version__,
            "namespace": master.config.namespace,
            "app": master.config.app,
            "master": master.config.id,
            "time": self._wall(),
            "etcd": {"ok": not facts.etcd, "error": facts.etcd, "seconds": age},
            "leader": leader,
            "candidates": candidates,
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
            until = datetime.fromisoformat(at) + timedelta(seconds=left)
            plan["seconds"] = max(0.0, round((until - now).total_seconds(), 1))
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
        return [json.loads(kv.value) for kv in (await self._store.range(request)).kvs]

    async def _first(self, request: Range) -> KeyValue | None:
        kvs = (await self._store.range(request)).kvs
        return kvs[0] if kvs else None


def _load(kv: KeyValue | None) -> dict[str, JSON] | None:
    return None if kv is None else json.loads(kv.value)
