"""Histories written by hand, as a well-behaved tier would have made them."""

import json
from dataclasses import replace

from tests.simulation.checker import check
from tests.simulation.checks.desired import marks_of
from tests.simulation.history import (
    KEYS,
    STORE,
    Acknowledged,
    Answered,
    Commit,
    Deregistered,
    Ended,
    Entry,
    Fault,
    Process,
    Record,
    Restore,
    Settings,
    Settled,
    Started,
    StoreView,
    Wanted,
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

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` are those of m1, which is there from the start."""
        self.entries: list[Entry] = []
        self.at = 0.0
        self.revision = 1
        self.pods: dict[str, Pod] = {}
        self.before: dict[int, Pod] = {}
        self.run = 0
        self.term = 5
        self.fingerprint = "f"
        self.state: bytes | None = None
        self.created: dict[str, int] = {}
        self.spec: Record = {}  # the desired state
        self.had: Record = {}  # that of the last acknowledged run
        self.wanted = 0
        self.leases: dict[str, int] = {}  # of the keys that have one
        self.add(Process(0, "m1", up=True, settings=settings or Settings(ttl=TTL)))

    def add(self, entry: Entry) -> Entry:
        self.entries.append(entry)
        return entry

    def commit(self, *changes: tuple[str, bytes | None]) -> None:
        self.at += 1
        self.revision += 1
        self.add(Commit(self.at, self.revision, tuple(self.event(*change) for change in changes)))

    def event(self, key: str, value: bytes | None) -> Event:
        if value is None:
            self.created.pop(key, None)
            return Event("delete", KeyValue(key, b"", 0, self.revision))
        created = self.created.setdefault(key, self.revision)
        return Event(
            "put", KeyValue(key, value, created, self.revision, 1, self.leases.get(key, 0))
        )

    def registration(self, it: Pod, *, left: bool = False) -> tuple[str, bytes]:
        registration: Record = {
            "id": it.id,
            "nonce": it.nonce,
            "n": it.n,
            "seq": it.seq,
            "left": left,
        }
        return KEYS.registration(it.key), canonical(registration)

    def join(self, it: Pod) -> None:
        if it.id not in {e.node for e in self.entries if isinstance(e, Process)}:
            self.add(Process(self.at, it.id, up=True))
        self.pods[it.key] = it
        self.commit((KEYS.pod(it.key), it.encode()), self.registration(it))
        self.add(Acknowledged(self.at, self.at, it.id, it.key, it.nonce, it.n or 0, it.seq, TTL))

    def leave(self, it: Pod) -> None:
        self.add(Deregistered(self.at, it.id, it.key))
        del self.pods[it.key]
        self.commit((KEYS.pod(it.key), None), self.registration(it, left=True))

    def crash(self, it: Pod) -> None:
        self.add(Process(self.at, it.id, up=False))
        self.at += TTL
        del self.pods[it.key]
        self.commit((KEYS.pod(it.key), None))

    def lose(self, *pods: Pod) -> None:
        """Let pods go together, without deregistering."""
        for it in pods:
            self.add(Process(self.at, it.id, up=False))
            del self.pods[it.key]
        self.at += TTL
        self.commit(*((KEYS.pod(it.key), None) for it in pods))

    def lead(self, term: int, name: str = "m1", fingerprint: str = "") -> None:
        """Let a master announce that it leads, and its predecessor's candidacy go."""
        gone = [(key, None) for key in self.created if key.startswith(KEYS.candidates)]
        record: Record = {"id": name, "term": term, "fingerprint": fingerprint or self.fingerprint}
        self.term = term
        self.commit(*gone, (f"{KEYS.candidates}{term:016x}", canonical(record)))

    def request(self, name: str, kind: str, message: str = "", **more: int) -> tuple[str, bytes]:
        """Return an operator's request as the store has it, with an answer if there is one."""
        record: Record = {"kind": kind, "by": "an operator", **more}
        if message:
            record["answer"] = {"message": message, "refused": False}
        return KEYS.requests + name, canonical(record)

    def restore(self, snapshot: "list[KeyValue]", kind: str = "lower") -> None:
        """Let the store go away, and come back with what `snapshot` has."""
        self.add(Fault(self.at, "paused", STORE))
        self.at += 3
        self.add(Restore(self.at, kind, self.revision, tuple(snapshot)))
        self.add(Fault(self.at, "paused", STORE, on=False))

    def listed(self) -> list[Pod]:
        return sorted(self.pods.values(), key=lambda it: it.seq)

    def view(self, *, ended: bool = False) -> None:
        same = self.before == {it.seq: it for it in self.listed()}
        record: Record = {
            "run": self.run,
            "term": self.term,
            "digest": digest_of(self.listed()),
            "fingerprint": self.fingerprint,
            "ended": ended,
            "reason": "spec" if same and self.told() else "ensemble",
            "attempt": 1,
        }
        self.commit((KEYS.running, canonical(record)))

    def start(self, *live: tuple[str, float], **given: list[int]) -> None:
        """Begin a run; `given` replaces parts of the true changes by lists of seqs.

        `live` says of when the live facts are that it sees, by the pods' keys.
        """
        self.run += 1
        self.view()
        now = {it.seq: it for it in self.listed()}
        gone = [self.before[seq] for seq in sorted(self.before.keys() - now.keys())]
        deregistered = {entry.id for entry in self.entries if isinstance(entry, Deregistered)}
        rows = {
            "joined": sorted(now.keys() - self.before.keys()),
            "left": [it.seq for it in gone if it.id in deregistered],
            "lost": [it.seq for it in gone if it.id not in deregistered],
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
                json.dumps(changes | self.told()).encode(), self.state, canonical(self.spec),
                live,
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
            **({"spec": marks_of(self.spec)} if self.spec else {}),
        }
        self.had = dict(self.spec)
        changes: list[tuple[str, bytes | None]] = [(KEYS.applied, canonical(head))]
        if state is not None:
            changes.append((KEYS.state, state))
            self.state = state
        self.commit(*changes, (KEYS.running, None))
        self.before = {it.seq: it for it in self.listed()}

    def tell(self, it: Pod, live: float, *, at: float | None = None) -> None:
        """Let a pod report live facts as of `live`; below 0: that there are none."""
        at = self.at if at is None else at
        self.add(Acknowledged(at, at, it.id, it.key, it.nonce, it.n or 0, it.seq, TTL, live))

    def go(self, state: bytes | None = b"1") -> None:
        self.start()
        self.end(state)
        self.acknowledge(state)

    def want(self, key: str, value: object, expected: bytes | None = b"") -> int:
        """Let an operator ask to set a key, on the condition that it has the value expected."""
        self.wanted += 1
        raw = None if value is None else canonical(value)
        expects = expected != b""
        self.add(
            Wanted(self.at, "m1", self.wanted, key, raw, expects, expected if expects else None)
        )
        return self.wanted

    def set(self, number: int, result: str = "made") -> None:
        """Let a change be made, and answered; with another result it is only answered."""
        it = next(e for e in self.entries if isinstance(e, Wanted) and e.number == number)
        if result == "made":
            self.spec.pop(it.key, None)
            if it.value is not None:
                self.spec[it.key] = json.loads(it.value)
            values: Record = {key: {"value": value} for key, value in self.spec.items()}
            log = [{"by": f"operator {number}"}]
            self.commit((KEYS.spec, canonical({"values": values, "log": log})))
        self.add(Answered(self.at, number, result))

    def told(self) -> Record:
        """Return what a run is told of the desired state, nothing if it did not change."""
        new = sorted(k for k in self.spec if self.had.get(k, self) != self.spec[k])
        gone = sorted(self.had.keys() - self.spec.keys())
        return {"spec": {"set": new, "unset": gone}} if new or gone else {}

    def settle(self, fingerprint: str = "") -> None:
        alive = tuple((it.id, it.key, json.dumps(it.payload)) for it in self.listed())
        self.add(Settled(self.at, alive, fingerprint))

    def complaints(self) -> list[str]:
        return check(tuple(self.entries))

    def book_now(self) -> StoreView:
        """Return what the store has now."""
        view = StoreView()
        for entry in self.entries:
            view.apply(entry)
        return view


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
    script.view(ended=True)
    script.go(None)
    script.join(C)
    script.go(b"2")
    script.leave(B)
    script.crash(C)
    script.go()
    return script
