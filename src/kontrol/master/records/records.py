"""The records in etcd, read in one place. A damaged one stops nothing.

A record may have been written by another version, an operator or a bug. What a damaged record
means is stated here for each kind. It is named in the log once per key and revision, with what is
done instead and how to fix it. There is one object per master, because it remembers what it logged.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.ensemble import Member
from kontrol.ensemble.pod import BadRecord, Pod
from kontrol.master.records.desired import Desired
from kontrol.master.records.fields import AGAIN_LEAST, LONGEST, Damaged
from kontrol.master.records.keys import Keys
from kontrol.master.records.masters import Candidate, Meta, OperatorRequest, decode_plan
from kontrol.master.records.pods import Ages, Facts, Live, Registration, decode_counter
from kontrol.master.records.published import Published
from kontrol.master.records.runs import (
    Applied,
    Head,
    Running,
    decode_entry,
    decode_rows,
    decode_state,
    member_of,
)
from kontrol.store.protocol import KeyValue

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_LOGGED = 1000  # damaged records that are remembered, each to be logged once


class Records:
    """Reads the records of a tier with these `keys`. Only `meta` raises.

    `damaged` counts the damaged records that were logged.
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.damaged = 0
        self._logged: OrderedDict[tuple[str, int], None] = OrderedDict()

    def pod(self, kv: KeyValue) -> Live | None:
        """Read a live pod. A damaged one is None: its agent's next keepalive replaces it."""

        def decode(raw: bytes) -> Live:
            pod = Pod.decode(raw)
            if kv.key != self.keys.pod(pod.key):
                raise BadRecord("key", pod.key, "the key under which the record is")
            return Live(pod, kv.mod_revision, kv.lease)

        return self._read(
            kv,
            decode,
            "it does not count as a pod; its agent's next keepalive replaces it, or it expires "
            "with its lease",
        )

    def live_facts(self, kvs: Iterable[KeyValue]) -> dict[str, Facts]:
        """Read live facts, by the pod's key. Damaged ones are left out."""
        instead = "it is not shown; the pod's next live facts replace it"
        found = {
            kv.key.removeprefix(self.keys.live): self._read(kv, Facts.decode, instead) for kv in kvs
        }
        return {key: facts for key, facts in found.items() if facts is not None}

    def registration(self, kv: KeyValue) -> Registration | None:
        """Read a registration. A damaged one is None: the next pod at its key gets a new number."""
        key = kv.key.removeprefix(self.keys.registrations)
        return self._read(
            kv,
            Registration.decode,
            "it is ignored, so a pod that is not live loses its number and counts as lost; "
            f"the next pod at this key replaces it, or delete it: `kontrol forget {key}`",
        )

    def counter(self, kv: KeyValue) -> int | None:
        """Read the next sequence number. A damaged one is None: it has to be counted again."""
        return self._read(
            kv,
            decode_counter,
            "the numbers in use are counted, and the next pod that joins gets a higher one and "
            "replaces it",
        )

    def candidate(self, kv: KeyValue) -> Candidate:
        """Read a candidacy. A damaged one still counts in the election, as `?`."""
        found = self._read(
            kv,
            Candidate.decode,
            "it still counts in the election until its lease expires",
        )
        return found if found is not None else Candidate()

    def meta(self, kv: KeyValue) -> Meta | None:
        """Read the version and the floor. A damaged one is None: version 1, of unknown floor.

        Raises `Outdated` for a later version.
        """
        return self._read(
            kv,
            Meta.decode,
            "version 1 is assumed, and the next leader replaces it with a floor above all recorded "
            "terms",
        )

    def running(self, kv: KeyValue) -> Running:
        """Read the run that is not acknowledged. A damaged one is `Running()`."""
        found = self._read(
            kv,
            Running.decode,
            "it counts as a run under way; the next leader waits until it must have ended, and "
            "records it as failed",
        )
        return found if found is not None else Running()

    def head(self, kv: KeyValue) -> Head | None:
        """Read the last acknowledged run. A damaged one is None, as before the first run."""
        return self._read(
            kv,
            Head.decode,
            "it is ignored, as before the first run: the callback runs again, with all pods as "
            "joined, and that replaces it",
        )

    def rows(self, kv: KeyValue) -> list[JSON]:
        """Read a chunk of the acknowledged pods, as rows. A damaged one has none."""
        return (
            self._read(
                kv,
                decode_rows,
                "the pods in it count as new; the next acknowledged run replaces it",
            )
            or []
        )

    def members(self, kv: KeyValue) -> list[Member]:
        """Read a chunk of the acknowledged pods, without the damaged ones."""
        found = []
        for row in self.rows(kv):
            try:
                found.append(member_of(row))
            except Damaged as error:
                self._log(kv, error, "such pods count as new; the next run replaces it")
        return found

    def applied(self, kv: KeyValue, chunks: Iterable[KeyValue]) -> Applied | None:
        """Read the last acknowledged run and its pods from all `chunks`."""
        head = self.head(kv)
        if head is None:
            return None
        mine = self.keys.members(head.run)
        members = [m for chunk in chunks if chunk.key.startswith(mine) for m in self.members(chunk)]
        if head.pods is not None and len(members) != head.pods:
            self._log(
                kv,
                Damaged("pods", head.pods, f"{len(members)}, as there are below {mine}"),
                "the missing pods count as new; the next acknowledged run replaces it",
            )
        head = replace(
            head,
            ttl=head.ttl if head.ttl is not None and head.ttl <= LONGEST else None,
            # What another version or a person wrote is not forgotten, and is no endless loop.
            again=None if head.again is None else min(max(head.again, AGAIN_LEAST), LONGEST),
        )
        return Applied.of(head, tuple(members))

    def last_run(self, kv: KeyValue) -> int | None:
        """Read the number of the last run. A damaged one is None: the ledger has it too."""
        return self._read(
            kv, decode_counter, "the ledger is used instead; the next run replaces it"
        )

    def state(self, kv: KeyValue) -> bytes | None:
        """Read a state, byte for byte. A damaged one is None, and stays in the store."""
        return self._read(
            kv,
            decode_state,
            "it stays in the store, and the callback gets no state; `kontrol rollback RUN` "
            "restores the state of an earlier run",
        )

    def desired(self, kv: KeyValue) -> Desired | None:
        """Read the desired state. A damaged one is None, and stays in the store: not empty."""
        return self._read(
            kv,
            Desired.decode,
            "it stays in the store, and the callback gets no desired state; nothing can be set "
            f"until it is replaced or deleted: `etcdctl del {kv.key}`",
        )

    def entry(self, kv: KeyValue) -> dict[str, JSON] | None:
        """Read an entry of the ledger. A damaged one is None, and in no list."""
        return self._read(
            kv,
            lambda raw: decode_entry(raw, self.keys.number(kv.key)),
            f"it is not shown; delete it: `etcdctl del {kv.key}`",
        )

    def request(self, kv: KeyValue) -> OperatorRequest | None:
        """Read an operator's request. A damaged one is None, and ignored."""
        return self._read(
            kv,
            lambda raw: OperatorRequest.decode(kv.key, raw),
            "it is ignored; it expires within a minute, unless it has no lease: "
            f"`etcdctl del {kv.key}`",
        )

    def plan(self, kv: KeyValue) -> dict[str, JSON] | None:
        """Read the leader's plan. A damaged one is None, and shown as unknown."""
        return self._read(kv, decode_plan, "it is shown as unknown; the leader's next replaces it")

    def published(self, kv: KeyValue) -> Published | None:
        """Read what is published. A damaged one is None, as if nothing was."""
        return self._read(
            kv,
            Published.decode,
            "pods keep what they have, and the next `kontrol publish` of a run replaces it: it "
            "then holds that document alone",
        )

    def ages(self, kv: KeyValue) -> Ages | None:
        """Read the watched time. Damaged, it is None: unused registrations age from now on."""
        return self._read(
            kv,
            Ages.decode,
            "the age of unused registrations is counted from now on; the next sweep replaces it",
        )

    def free_number(
        self,
        pods: Iterable[KeyValue],
        registrations: Iterable[KeyValue],
        chunks: Iterable[KeyValue],
    ) -> int:
        """Return the number above those of all pods, registrations and acknowledged pods."""
        used = [live.pod.seq for kv in pods if (live := self.pod(kv))]
        used += [
            registration.seq for kv in registrations if (registration := self.registration(kv))
        ]
        used += [member.seq for kv in chunks for member in self.members(kv)]
        return 1 + max(used, default=-1)

    def highest_term(
        self,
        running: Iterable[KeyValue],
        entries: Iterable[KeyValue],
        candidates: Iterable[KeyValue],
    ) -> int:
        """Return the highest recorded term, 0 if there is none."""
        terms = [self.running(kv).term for kv in running]
        for kv in entries:
            term = (self.entry(kv) or {}).get("term")
            terms += [term] if isinstance(term, int) else []
        terms += [self.candidate(kv).term or 0 for kv in candidates]
        return max(terms, default=0)

    def _read(self, kv: KeyValue, decode: Callable[[bytes], _T], instead: str) -> _T | None:
        try:
            return decode(kv.value)
        except (Damaged, BadRecord) as error:
            self._log(kv, error, instead)
            return None

    def _log(self, kv: KeyValue, error: Exception, instead: str) -> None:
        """Name a damaged record in the log, once per revision."""
        name = (kv.key, kv.mod_revision)
        if name in self._logged:
            self._logged.move_to_end(name)
            return
        self.damaged += 1
        self._logged[name] = None
        if len(self._logged) > _LOGGED:
            self._logged.popitem(last=False)
        log.warning("the record %s is damaged: %s; %s", kv.key, error, instead)
