"""Histories written by hand, as a well-behaved tier would have made them."""

import json
from dataclasses import replace

from tests.simulation.checker import check
from tests.simulation.history import (
    KEYS,
    Acknowledged,
    Commit,
    Ended,
    Entry,
    Farewell,
    Process,
    Record,
    Settings,
    Settled,
    Started,
)

from kontrol.ensemble.canonical import canonical
from kontrol.ensemble.ensemble import digest_of
from kontrol.ensemble.pod import Pod
from kontrol.store.protocol import Event, KeyValue

TTL = 10.0


def pod(name: str, seq: int, n: int = 0, nonce: str = "1", payload: str = "", **more: str) -> Pod:
    key = more.get("key", f"k{name}")
    return Pod(seq, "test", name, f"10.0.0.{seq + 1}", key, "test", payload, nonce, n)


class Script:
    """Writes a history, a second apart, as a well-behaved tier would have made it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.at = 0.0
        self.revision = 1
        self.pods: dict[str, Pod] = {}
        self.before: dict[int, Pod] = {}
        self.run = 0
        self.term = 5
        self.fingerprint = "f"
        self.state: bytes | None = None
        self.add(Process(0, "m1", up=True, settings=Settings(ttl=TTL)))

    def add(self, entry: Entry) -> Entry:
        self.entries.append(entry)
        return entry

    def commit(self, *changes: tuple[str, bytes | None]) -> None:
        self.at += 1
        self.revision += 1
        events = tuple(
            Event("delete", KeyValue(key, b"", 0, self.revision))
            if value is None
            else Event("put", KeyValue(key, value, self.revision, self.revision))
            for key, value in changes
        )
        self.add(Commit(self.at, self.revision, events))

    def seat(self, it: Pod, *, left: bool = False) -> tuple[str, bytes]:
        seat: Record = {"id": it.id, "nonce": it.nonce, "n": it.n, "seq": it.seq, "left": left}
        return KEYS.seat(it.key), canonical(seat)

    def join(self, it: Pod) -> None:
        if it.id not in {e.node for e in self.entries if isinstance(e, Process)}:
            self.add(Process(self.at, it.id, up=True))
        self.pods[it.key] = it
        self.commit((KEYS.pod(it.key), it.encode()), self.seat(it))
        self.add(Acknowledged(self.at, self.at, it.id, it.key, it.nonce, it.n or 0, it.seq, TTL))

    def leave(self, it: Pod) -> None:
        self.add(Farewell(self.at, it.id, it.key))
        del self.pods[it.key]
        self.commit((KEYS.pod(it.key), None), self.seat(it, left=True))

    def crash(self, it: Pod) -> None:
        self.add(Process(self.at, it.id, up=False))
        self.at += TTL
        del self.pods[it.key]
        self.commit((KEYS.pod(it.key), None))

    def listed(self) -> list[Pod]:
        return sorted(self.pods.values(), key=lambda it: it.seq)

    def book(self, *, ended: bool = False) -> None:
        record: Record = {
            "run": self.run,
            "term": self.term,
            "digest": digest_of(self.listed()),
            "fingerprint": self.fingerprint,
            "ended": ended,
        }
        self.commit((KEYS.running, canonical(record)))

    def start(self, **given: list[int]) -> None:
        """Begin a run; `given` replaces parts of the true changes by lists of seqs."""
        self.run += 1
        self.book()
        now = {it.seq: it for it in self.listed()}
        gone = [self.before[seq] for seq in sorted(self.before.keys() - now.keys())]
        farewells = {entry.id for entry in self.entries if isinstance(entry, Farewell)}
        rows = {
            "joined": sorted(now.keys() - self.before.keys()),
            "left": [it.seq for it in gone if it.id in farewells],
            "lost": [it.seq for it in gone if it.id not in farewells],
            "changed": [
                s for s in sorted(now.keys() & self.before.keys())
                if now[s].canonical != self.before[s].canonical
            ],
        } | given  # fmt: skip
        pods = b"[" + b",".join(it.canonical for it in now.values()) + b"]"
        ids = {it.seq: it.id for it in (*self.before.values(), *now.values())}
        changes = {k: [{"seq": s, "id": ids.get(s, "?")} for s in v] for k, v in rows.items()}
        self.add(
            Started(
                self.at, "m1", self.run, self.term, digest_of(now.values()), pods,
                json.dumps(changes).encode(), self.state,
            )
        )  # fmt: skip

    def end(self, state: bytes | None = b"1", *, ok: bool = True) -> None:
        self.at += 1
        self.add(Ended(self.at, self.run, ok, state if ok else None))

    def acknowledge(self, state: bytes | None = b"1") -> None:
        head = {
            "run": self.run,
            "digest": digest_of(self.listed()),
            "fingerprint": self.fingerprint,
        }
        changes: list[tuple[str, bytes | None]] = [(KEYS.applied, canonical(head))]
        if state is not None:
            changes.append((KEYS.state, state))
            self.state = state
        self.commit(*changes, (KEYS.running, None))
        self.before = {it.seq: it for it in self.listed()}

    def go(self, state: bytes | None = b"1") -> None:
        self.start()
        self.end(state)
        self.acknowledge(state)

    def settle(self) -> None:
        alive = tuple((it.id, it.key, json.dumps(it.payload)) for it in self.listed())
        self.add(Settled(self.at, alive))

    def complaints(self) -> list[str]:
        return check(tuple(self.entries))


A, B, C = pod("p1", 0), pod("p2", 1), pod("p3", 2)


def good() -> Script:
    """Two join, run; one changes, run fails and is repeated; one leaves, one is lost, run."""
    script = Script()
    script.join(A)
    script.join(B)
    script.go()
    script.join(replace(A, n=1, payload="x"))
    script.start()
    script.end(ok=False)
    script.book(ended=True)
    script.go(None)
    script.join(C)
    script.go(b"2")
    script.leave(B)
    script.crash(C)
    script.go()
    return script
