"""Checks of what holds runs, of registrations, leases and records: they find what is wrong only.

Histories are written by hand, a second between two commits; TTL is 10 s, the damper half a second.
"""

import json
from dataclasses import replace

import pytest
from tests.simulation.checks import live
from tests.simulation.health import NEVER, Health
from tests.simulation.history import (
    KEYS,
    STORE,
    Acknowledged,
    Answered,
    Asked,
    Commit,
    Elected,
    Fault,
    Hook,
    Leased,
    Process,
    Record,
    Refusal,
    Sent,
    Settings,
    Started,
    written,
)
from tests.simulation.script import TTL, A, B, C, Script, good, pod
from tests.simulation.versions import NEXT

from kontrol.ensemble.canonical import canonical
from kontrol.ensemble.ensemble import digest_of

SILENCE = "14 told before lost"
NOTHING = b'{"joined": [], "changed": [], "left": [], "lost": []}'
D = pod("p4", 3)
E = pod("p5", 4)


def says(script: Script, invariant: str, text: str) -> bool:
    return any(c.startswith(f"invariant {invariant}") and text in c for c in script.complaints())


def four() -> Script:
    """Four pods, acknowledged; m1 leads."""
    script = Script()
    script.lead(5)
    for it in (A, B, C, D):
        script.join(it)
    script.go()
    return script


def test_four_pods_are_good() -> None:
    assert four().complaints() == []


# The brake


def test_a_mass_loss_that_is_not_held() -> None:
    script = four()
    script.lose(A, B, C)
    script.start()
    assert says(script, "10 the brake", "3 of 4 lost, held for 1.000 s")


@pytest.mark.parametrize("lost", [[A, B], [A, B, C]])
def test_what_is_no_mass_loss_may_run(lost: list[object]) -> None:
    script = Script(Settings(brake=80.0))
    script.lead(5)
    for it in (A, B, C, D):
        script.join(it)
    script.go()
    script.lose(*[it for it in (A, B, C) if it in lost])
    script.start()
    assert not says(script, "10", "")


def test_a_mass_loss_that_was_held_for_twice_the_ttl() -> None:
    script = four()
    script.lose(A, B, C)
    script.at += 2 * TTL
    script.start()
    assert script.complaints() == []


def test_a_mass_loss_that_another_term_had_held() -> None:
    script = four()
    script.lose(A, B, C)
    script.at += 2 * TTL - 2
    script.lead(6)
    script.start()
    assert says(script, "10 the brake", "held for 1.000 s")


def test_a_mass_loss_that_is_released() -> None:
    script = four()
    script.lose(A, B, C)
    script.commit(script.request("r", "release", "the brake is released"))
    script.start()
    assert script.complaints() == []


def test_a_release_of_another_term() -> None:
    script = four()
    script.lose(A, B, C)
    script.commit(script.request("r", "release", "the brake is released"))
    script.lead(6)
    script.start()
    assert says(script, "10 the brake", "held for")


def test_a_release_of_an_earlier_loss() -> None:
    script = four()
    script.commit(script.request("r", "release", "the brake is released"))
    script.lose(A, B, C)
    script.start()
    assert says(script, "10 the brake", "held for")


def test_a_release_of_nothing() -> None:
    script = four()
    script.lose(A, B, C)
    script.commit(script.request("r", "release", "the brake holds nothing"))
    script.start()
    assert says(script, "10 the brake", "held for")


def test_a_mass_loss_after_another_that_was_over() -> None:
    script = four()
    script.lose(A, B, C)
    for it in (A, B, C):
        script.join(replace(it, n=1))
    script.at += 2 * TTL
    script.lose(A, B, C)
    script.start()
    assert says(script, "10 the brake", "held for")


# The damper


def test_a_run_before_it_is_quiet() -> None:
    script = Script(Settings(damper=5.0, ceiling=20.0))
    script.join(A)
    script.start()
    assert says(script, "damper", "comes 1.000 s after the last change")


def test_a_run_when_it_is_quiet_or_changes_do_not_end() -> None:
    script = Script(Settings(damper=5.0, ceiling=20.0))
    script.join(A)
    script.at += 5
    script.go()
    for n in range(1, 10):
        script.join(replace(A, n=n, payload=str(n)))
        script.at += 1
    script.at += 1
    script.start()
    assert script.complaints() == []


def test_a_new_leader_may_have_seen_what_came_first_late() -> None:
    script = Script(Settings(damper=5.0, ceiling=20.0))
    script.add(Fault(0.5, "mute", "m1", STORE))
    script.add(Fault(0.6, "mute", "m1", STORE, on=False))
    script.join(A)
    script.start()
    assert not says(script, "damper", "after the last change")
    script.end()
    script.acknowledge()
    script.join(B)
    script.start()
    assert says(script, "damper", "after the last change")


# The gap


@pytest.mark.parametrize(("longest", "counts"), [(6.0, True), (30.0, False)])
def test_an_outage_counts_by_the_longest_ttl(longest: float, *, counts: bool) -> None:
    script = Script(Settings(ttl=6.0))
    script.add(Process(0, "m2", up=True, settings=Settings(ttl=longest)))
    script.join(A)
    script.go()
    for on in (True, False):
        script.add(Fault(script.at, "paused", "m1", on=on))
        script.add(Fault(script.at, "paused", "m2", on=on))
        script.at += 4 * on
    del script.pods[A.key]
    script.commit((KEYS.pod(A.key), None))
    script.start()
    assert says(script, "6 gap", "s after an outage of the tier") is counts


# What is due


def later(script: Script, seconds: float) -> None:
    script.at += seconds
    script.add(Asked(script.at, "m1", "release"))


def test_a_change_without_a_run() -> None:
    script = four()
    script.join(E)
    later(script, 20)
    assert says(script, "10 nothing", "a change has been due for 20")


@pytest.mark.parametrize(
    "fault", [Fault(0, "cut", "m1", "etcd"), Fault(0, "paused", "m1"), Process(0, "m1", up=False)]
)
def test_a_leader_that_cannot_is_not_late(fault: Fault | Process) -> None:
    script = four()
    script.join(E)
    script.add(replace(fault, at=script.at))
    later(script, 20)
    assert not says(script, "10", "")


def test_changes_without_end_and_without_a_run() -> None:
    script = four()
    for n in range(1, 20):
        script.join(replace(A, n=n, payload=str(n)))
    assert says(script, "10 nothing", "one change after another has been due")


def test_a_loss_waits_for_the_gap() -> None:
    script = four()
    script.lose(A)
    later(script, TTL + 12)
    assert script.complaints() == []
    later(script, 5)
    assert says(script, "10 nothing", "a change")


def test_a_mass_loss_is_not_held_for_ever() -> None:
    script = four()
    script.lose(A, B, C)
    later(script, 2 * TTL + 20)
    assert script.complaints() == []
    later(script, 10)
    assert says(script, "10 nothing", "a change")


def test_a_new_callback_waits_for_a_minute() -> None:
    script = four()
    script.lead(6, fingerprint="another")
    later(script, 70)
    assert script.complaints() == []
    later(script, 10)
    assert says(script, "10 nothing", "the callback has been due")


def test_a_new_callback_that_never_ran() -> None:
    script = four()
    script.settle("another")
    assert says(script, "2", "the masters have another")


# Silent pods


def leased(ttl: int = 10) -> Script:
    """One pod, under a lease that was granted just now."""
    script = Script()
    script.lead(5)
    script.leases[KEYS.pod(A.key)] = 77
    script.add(Leased(script.at, 77, ttl))
    script.join(A)
    script.go()
    return script


def test_a_silent_pod_that_stays() -> None:
    script = leased()
    script.add(Process(script.at, A.id, up=False))
    script.at += TTL + 3
    script.commit((KEYS.pod(A.key), None))
    assert says(script, "7", f"{A.key} is there")


def test_a_silent_pod_that_goes() -> None:
    script = leased()
    script.add(Leased(script.at, 77, 10))
    script.add(Process(script.at, A.id, up=False))
    script.at += TTL + 1
    script.commit((KEYS.pod(A.key), None))
    assert not says(script, "7", "")


@pytest.mark.parametrize("said", [{"ttl": TTL}, {}])
def test_a_silent_pod_under_the_ttl_of_another_master_than_the_leader(said: Record) -> None:
    """Who follows a leader that does not say its TTL, as in the version before, has its own."""
    script = Script()
    script.add(Process(0, "m2", up=True, settings=Settings(ttl=2 * TTL)))
    script.commit((KEYS.candidate(5), canonical({"id": "m1", "term": 5, **said})))
    script.at += 100
    script.leases[KEYS.pod(A.key)] = 77
    script.join(A)
    script.add(Leased(script.at, 77, 20))
    script.add(Process(script.at, A.id, up=False))
    script.at += 2 * TTL
    script.commit((KEYS.pod(A.key), None))
    assert says(script, "7", f"{A.key} is there") is bool(said)


@pytest.mark.parametrize("restored", [True, False])
def test_a_silent_pod_whose_lease_a_restore_brought_back(*, restored: bool) -> None:
    """It has the TTL that was in effect when the backup was made."""
    script = Script(Settings(ttl=2 * TTL))
    script.lead(5)
    script.leases[KEYS.pod(A.key)] = 77
    script.join(A)
    commits = [entry for entry in script.entries if isinstance(entry, Commit)]
    made = [event.kv for commit in commits for event in commit.changes]
    script.add(Process(script.at, "m1", up=False))
    script.add(Process(script.at, "m1", up=True, settings=Settings(ttl=TTL)))
    script.lead(6)
    script.at += 100
    if restored:
        script.restore(made)
    else:
        script.add(Leased(script.at, 77, 20))
    script.add(Process(script.at, A.id, up=False))
    script.at += 2 * TTL
    script.commit((KEYS.pod(A.key), None))
    assert says(script, "7", f"{A.key} is there") is not restored


@pytest.mark.parametrize("leader", [True, False])
def test_a_silent_pod_that_was_accepted_without_a_leader(*, leader: bool) -> None:
    """Under a lease of the TTL of a master that restarted."""
    script = Script(Settings(ttl=TTL))
    script.commit((KEYS.candidate(5), canonical({"id": "m1", "term": 5, "ttl": TTL})))
    if not leader:
        script.commit((KEYS.candidate(5), None))
    script.add(Process(script.at, "m2", up=True, settings=Settings(ttl=2 * TTL)))
    script.at += 100
    script.leases[KEYS.pod(A.key)] = 77
    script.join(A)
    script.add(Leased(script.at, 77, 20))
    script.add(Process(script.at, A.id, up=False))
    script.at += 2 * TTL
    script.commit((KEYS.pod(A.key), None))
    assert says(script, "7", f"{A.key} is there") is leader


def test_an_election_of_the_store_gives_a_silent_pod_its_time_again() -> None:
    script = leased()
    script.add(Process(script.at, A.id, up=False))
    script.at += 5
    script.add(Elected(script.at))
    script.at += TTL + 1
    script.commit((KEYS.pod(A.key), None))
    assert not says(script, "7", "")


def test_a_pod_under_the_lease_of_a_former_ttl() -> None:
    script = leased(ttl=60)
    script.add(Process(script.at, "m1", up=False))
    script.add(Process(script.at, "m1", up=True, settings=Settings(ttl=6)))
    script.lead(6)
    for _ in range(10):
        script.at += 5
        script.add(Leased(script.at, 77, 60))
    script.at += 12
    script.commit((KEYS.pod(A.key), None))
    assert says(script, "7", "after a refresh")


# Registrations


@pytest.mark.parametrize(("after", "wrong"), [(80, True), (101, False)])
def test_a_registration_is_swept_at_its_age(after: float, wrong: bool) -> None:
    script = Script(Settings(age=100))
    script.join(A)
    script.go()
    script.crash(A)
    script.go()
    registration = script.registration(A)[0]
    idle: Record = {"id": A.id, "nonce": A.nonce, "n": 0, "seq": A.seq, "left": False, "idle": 1}
    script.commit((registration, canonical(idle)))
    script.at += after - 5
    script.commit((registration, None))
    assert says(script, "9 registrations", "is swept") is wrong


def test_the_registration_of_a_living_pod_is_swept() -> None:
    script = Script(Settings(age=5))
    script.join(A)
    script.at += 20
    script.commit((script.registration(A)[0], None))
    assert says(script, "9 registrations", "is swept")


def test_a_pod_whose_registration_was_swept_gets_another_number() -> None:
    script = Script(Settings(age=5))
    script.join(A)
    script.go()
    script.leave(A)
    script.go()
    script.at += 20
    script.commit((script.registration(A)[0], None))
    script.join(replace(A, seq=7))
    assert script.complaints() == []


# Rollbacks


def rollback(script: Script, *more: tuple[str, bytes], state: bytes = b"1") -> None:
    script.run += 1
    run: Record = {"run": script.run, "term": 5, "reason": "rollback", "ok": True}
    script.commit((KEYS.run(script.run), canonical(run)), (KEYS.state, state), *more)
    script.state = state


def kept() -> Script:
    """A script in which run 1 left the state 1, which is kept, and an operator wants it back."""
    script = four()
    script.commit((KEYS.state_of(1), b"1"), script.request("r", "rollback", run=1))
    return script


def test_a_rollback_with_its_answer() -> None:
    script = kept()
    rollback(script, script.request("r", "rollback", "done", run=1))
    assert script.complaints() == []


def test_a_rollback_without_its_answer() -> None:
    script = kept()
    rollback(script)
    assert says(script, "11", "not one request")


def test_a_rollback_that_is_done_again() -> None:
    script = kept()
    for _ in range(2):
        rollback(script, script.request("r", "rollback", "done", run=1))
    assert says(script, "11", "is done again")


def test_a_rollback_to_another_state() -> None:
    script = kept()
    rollback(script, script.request("r", "rollback", "done", run=1), state=b"9")
    assert says(script, "11", "is put back")


# Fields of other versions


@pytest.mark.parametrize(("keeps", "seq"), [(True, 0), (False, 0), (False, 9)])
def test_an_unknown_field_of_a_registration(*, keeps: bool, seq: int) -> None:
    script = Script()
    key = KEYS.registration("k")
    registration: Record = {"id": "p1", "nonce": "1", "n": 0, "seq": 0, "left": False}
    script.commit((key, canonical({**registration, NEXT: True})))
    script.commit(
        (key, canonical({**registration, "n": 1, "seq": seq, **({NEXT: True} if keeps else {})}))
    )
    assert says(script, "unknown", "loses a field") is (not keeps and seq == 0)


# Restores


def gone_back(*, witness: bool) -> Script:
    """A script in which the store forgets run 2, and m1 leads again: the same process, or not."""
    script = four()
    snapshot = list(script.book_now().raw.values())
    script.at += 10
    script.join(E)
    script.go()
    if not witness:
        script.add(Process(script.at, "m1", up=False))
    script.restore(snapshot)
    if not witness:
        script.add(Process(script.at, "m1", up=True, settings=Settings(ttl=TTL)))
    del script.pods[E.key]
    script.before = {it.seq: it for it in (A, B, C, D)}
    script.at += TTL
    return script


def test_a_restore_forgets_and_numbers_go_on() -> None:
    script = gone_back(witness=True)
    script.lead(2_000_000)
    script.join(replace(E, seq=4))
    script.go()
    script.settle()
    assert script.complaints() == []


@pytest.mark.parametrize("witness", [True, False])
def test_a_number_is_reused_after_a_restore(*, witness: bool) -> None:
    script = gone_back(witness=witness)
    script.lead(2_000_000)
    script.join(E)
    script.run = 1
    script.go()
    assert says(script, "4", "run 2 is recorded") is witness


@pytest.mark.parametrize(("seconds", "told"), [(2, False), (8, True)])
def test_a_witness_that_led_has_told_the_others(seconds: float, *, told: bool) -> None:
    script = gone_back(witness=True)
    script.lead(2_000_000)
    script.at += seconds
    script.add(Process(script.at, "m1", up=False))
    script.add(Process(script.at, "m1", up=True, settings=Settings(ttl=TTL)))
    script.lead(2_000_010)
    script.join(replace(E, seq=4))
    script.run = 1
    script.go()
    assert says(script, "4", "run 2 is recorded") is told


def test_a_term_is_reused_after_a_restore() -> None:
    script = four()
    snapshot = list(script.book_now().raw.values())
    script.at += 10
    script.lead(9)
    for _ in range(2):  # so that all masters hear of it
        script.at += 1
        script.add(Process(script.at, "p9", up=True))
    script.restore(snapshot)
    script.lead(8)
    assert says(script, "4", "term 8 begins")


def test_a_run_that_was_recorded_before_a_restore_may_start() -> None:
    script = four()
    snapshot = list(script.book_now().raw.values())
    script.join(E)
    script.start()
    run = script.entries.pop()
    assert isinstance(run, Started)
    script.restore(snapshot)
    script.add(run)
    assert not says(script, "1", "")


def test_a_run_without_a_record_after_a_restore() -> None:
    script = four()
    script.restore([])
    script.add(Started(script.at, "m1", 9, 5, "x", b"[]", NOTHING, None))
    assert says(script, "1", "while the ledger has")


# Two processes under one identity


def processes(script: Script) -> None:
    """Let A's process be followed by another, whose clock is behind."""
    script.add(Sent(script.at, A.id, A.id, A.key, "1"))
    script.add(Process(script.at, A.id, up=False))
    script.add(Process(script.at, A.id, up=True, id=A.id, key=A.key))
    script.add(Sent(script.at, A.id, A.id, A.key, "0"))


def test_a_later_process_with_an_earlier_clock_has_the_last_word() -> None:
    script = good()
    processes(script)
    script.at += TTL
    script.join(replace(A, nonce="0", n=1, payload="y"))
    assert script.complaints() == []


def test_a_late_message_of_an_earlier_process_over_a_later_one_s() -> None:
    script = good()
    processes(script)
    script.add(Sent(script.at, A.id, A.id, A.key, "2"))
    script.join(replace(A, nonce="2", n=1, payload="y"))
    script.join(replace(A, nonce="1", n=9, payload="x"))
    assert says(script, "5", "over")


def test_a_late_message_of_an_earlier_process_whose_clock_was_ahead() -> None:
    script = good()
    processes(script)
    script.at += TTL
    script.join(replace(A, nonce="0", n=1, payload="y"))
    script.join(replace(A, nonce="1", n=9, payload="x"))
    assert not says(script, "5", "over")


def test_a_pod_with_conflicting_senders_need_not_stay() -> None:
    for conflicting in (False, True):
        script = four()
        if conflicting:
            script.add(Process(script.at, "p9", up=True, id=A.id, key="k9"))
        script.at += 2 * TTL
        script.commit((KEYS.pod(A.key), None))
        assert says(script, "6", "in reach") is not conflicting


def test_the_ttl_that_was_told_is_kept() -> None:
    script = four()
    script.add(Acknowledged(script.at, script.at, A.id, A.key, "1", 0, A.seq, 25.0))
    script.at += 15
    script.commit((KEYS.pod(A.key), None))
    assert says(script, "6", "s after a keepalive")


@pytest.mark.parametrize(("seconds", "wrong"), [(10, False), (16, True)])
def test_a_process_that_is_refused_for_long(seconds: float, *, wrong: bool) -> None:
    script = four()
    script.add(Process(script.at, E.id, up=True, id=E.id, key=E.key))
    script.add(Sent(script.at, E.id, E.id, E.key, "1"))
    script.at += seconds
    script.add(Refusal(script.at, E.id, "Stale", E.id))
    assert says(script, "6", "is refused") is wrong


def test_a_process_that_conflicts_with_another_one_may_be_refused() -> None:
    script = four()
    script.add(Process(script.at, E.id, up=True, id=A.id, key=A.key))
    script.at += 30
    script.add(Refusal(script.at, E.id, "Stale", A.id))
    assert not says(script, "6", "is refused")


def test_a_process_that_replaces_a_paused_one_works() -> None:
    health = Health()
    health.apply(Process(0, "m1", up=True))
    health.apply(Fault(1, "paused", "m1"))
    assert not health.works("m1")
    health.apply(Process(2, "m1", up=False))
    health.apply(Process(3, "m1", up=True))
    assert health.works("m1")


def test_when_faults_began_is_known_after_they_ended() -> None:
    health = Health()
    for at, on in ((1, True), (5, False), (8, True)):
        health.apply(Fault(at, "full", STORE, on=on))
    began = [health.fault_since(at) for at in (0, 1, 4, 5, 6, 8, 9)]
    assert began == [NEVER, 1, 1, 1, NEVER, 8, 8]


# Hooks of pods


def cut_off(*hooks: tuple[float, str, str], **more: bool) -> Script:
    """One of two pods is cut off until it is lost; `hooks` run so many seconds after."""
    script = Script()
    script.lead(5)
    script.add(Process(0, "p1", up=True, id="p1", key=A.key))
    script.add(Sent(0, "p1", "p1", A.key, A.nonce))
    script.join(A)
    script.join(B)
    script.go()
    script.add(Fault(script.at, "cut", "m1", "p1"))
    script.add(Acknowledged(script.at, script.at, "p1", A.key, A.nonce, 0, 0, TTL))
    start = script.at
    if more.get("paused"):
        script.add(Fault(start + 1, "paused", "p1"))
        script.add(Fault(start + 2, "paused", "p1", on=False))
    for at, name, what in hooks:
        script.add(Hook(start + at, "p1", name, what))
    del script.pods[A.key]
    script.at += TTL - 1
    script.commit((KEYS.pod(A.key), None))
    script.go()
    return script


BEGINS, DONE = (6.7, "silent", "begins"), (7.0, "silent", "done")


def test_a_silent_hook_before_the_loss_is_good() -> None:
    assert cut_off(BEGINS, DONE).complaints() == []
    assert cut_off(BEGINS, (8.7, "silent", "killed")).complaints() == []
    assert cut_off(paused=True).complaints() == []  # it could not run one
    later = (*(BEGINS, DONE), (8.0, "silent", "begins"))
    assert cut_off(*later).complaints() == []  # once more, for whatever reason


def test_a_loss_without_a_silent_hook_before() -> None:
    assert says(cut_off(), SILENCE, "10.000 s after its last keepalive: no silent hook began")
    heard = ((1.0, "heard", "begins"), (2.0, "heard", "done"))
    assert says(cut_off(*heard), SILENCE, "no silent hook began")
    after = cut_off()
    after.add(Hook(after.at, "p1", "silent", "begins"))
    assert says(after, SILENCE, "no silent hook began")


def test_a_silent_hook_that_still_runs_when_the_pod_is_lost() -> None:
    assert says(cut_off(BEGINS), SILENCE, "its silent hook still runs")


def test_hooks_that_overlap() -> None:
    both = cut_off(BEGINS, (6.8, "heard", "begins"), DONE)
    assert says(both, "14 hooks in order", "hook heard of p1 begins")
    assert says(cut_off(DONE), "14 hooks in order", "it did not run")


# The desired state


def desired() -> Script:
    """The desired state is set, and seen by runs: one that fails, and one that is acknowledged."""
    script = good()
    script.lead(9)
    script.commit(
        (f"{KEYS.candidates}{9:016x}", canonical({"id": "m1", "term": 9, "version": "1"}))
    )
    script.set(script.want("a", 1))
    script.set(script.want("b", 1))
    script.start()
    script.end(ok=False)
    script.view(ended=True)
    script.set(script.want("b", None))
    script.go()
    return script


def test_a_desired_state_that_runs_see() -> None:
    script = desired()
    script.settle()
    assert script.complaints() == []
    script.set(script.want("a", 2, b"1"))
    script.set(script.want("a", 3, b"1"), "other")
    script.set(script.want("a", 2), "same")
    script.go()
    script.settle()
    assert script.complaints() == []


def test_a_desired_state_that_no_run_saw() -> None:
    script = desired()
    script.set(script.want("a", 2))
    assert not says(script, "12 desired, seen by a run", "applied is")
    script.settle()
    assert says(script, "12 desired, seen by a run", "applied is")
    assert says(script, "2", "the desired state is another")
    script.at += 60
    script.commit(("x", b""))
    assert says(script, "10", "the desired state has been due")


def test_a_run_that_gets_an_older_desired_state() -> None:
    script = desired()
    script.set(script.want("a", 2))
    now, script.spec = script.spec, {"a": 1, "b": 1}
    script.start()
    script.spec = now
    assert says(script, "12 desired, seen by a run", "gets")


@pytest.mark.parametrize("told", [{}, {"set": ["b"], "unset": []}, {"set": ["a"], "unset": ["b"]}])
def test_a_run_that_is_told_something_else_of_the_desired_state(told: Record) -> None:
    script = desired()
    script.set(script.want("a", 2))
    script.start()
    started = script.entries.pop()
    assert isinstance(started, Started)
    given = json.loads(started.given) | ({"spec": told} if told else {})
    given = given if told else {name: given[name] for name in given if name != "spec"}
    script.add(replace(started, given=canonical(given)))
    assert says(script, "12 desired, seen by a run", "true is")


def test_changes_that_are_made_though_they_should_not() -> None:
    script = desired()
    number = script.want("a", 5)
    script.set(number)
    script.set(number)
    assert says(script, "12 desired, made once", "made again")
    script = desired()
    script.set(script.want("a", 5, b"4"))
    assert says(script, "12 desired, made once", "expects b'4'")
    script = desired()
    script.set(script.want("a", 5, None))
    assert says(script, "12 desired, made once", "expects None")


@pytest.mark.parametrize(("first", "result", "wrong"), [
    ("made", "other", True), ("made", "unknown", False),
    ("", "made", True), ("", "unknown", False), ("", "other", False),
])  # fmt: skip
def test_changes_that_are_answered_as_what_they_were_not(
    first: str, result: str, *, wrong: bool
) -> None:
    script = desired()
    number = script.want("a", 5)
    if first:
        script.set(number)
        script.entries.pop()
    script.add(Answered(script.at, number, result))
    assert says(script, "12 desired, made once", "is answered") is wrong


def test_a_change_that_makes_another_state() -> None:
    script = desired()
    number = script.want("a", 5)
    values: Record = {"a": {"value": 6}}
    raw = canonical({"values": values, "log": [{"by": f"operator {number}"}]})
    script.commit((KEYS.spec, raw))
    assert says(script, "12 desired, made once", "makes {'a': 6}")


def test_a_run_for_the_desired_state_that_is_as_it_was() -> None:
    script = desired()
    record: Record = {
        "run": 99, "term": 9, "digest": digest_of(script.listed()), "fingerprint": "f",
        "ended": False, "reason": "spec",
    }  # fmt: skip
    script.commit((KEYS.running, canonical(record)))
    assert says(script, "3", "has nothing to do")


def test_a_run_for_the_desired_state_that_tells_a_loss() -> None:
    script = desired()
    script.set(script.want("a", 2))
    script.crash(A)
    script.start()
    started = script.entries.pop()
    running = json.loads(written(script.entries.pop(), KEYS.running) or b"")  # type: ignore[arg-type]
    script.commit((KEYS.running, canonical({**running, "reason": "spec"})))
    script.add(started)
    assert says(script, "12 desired, seen by a run", "tells ['p1'] lost")


def telling() -> Script:
    """Two pods that report live facts, long after they joined; now is 100."""
    script = Script()
    for it in (A, B):
        script.join(it)
        script.add(Sent(script.at, it.id, it.id, it.key, it.nonce))
    script.go()
    for it, at, of in ((A, 90.0, 89.9), (A, 95.0, 94.9), (B, 96.0, 95.9)):
        script.tell(it, of, at=at)
    script.at = 99.0
    return script


def of_facts(script: Script) -> list[str]:
    """What is complained of about live facts alone."""
    history = tuple(script.entries)
    return [*live.seen_by_runs(history), *live.of_their_pods(history)]


def test_a_run_that_sees_what_was_reported_last_is_well() -> None:
    script = telling()
    script.start((A.key, 94.9), (B.key, 95.9))
    script.start((A.key, 99.5), (B.key, 99.5))
    assert of_facts(script) == []


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        (((B.key, 95.9),), "sees no facts of p1"),
        (((A.key, 89.9), (B.key, 95.9)), "sees facts of p1 as of 89.900, though"),
        (((A.key, 94.9), (B.key, 200.0)), "sees facts of p2 as of 200.000; its process"),
        (((A.key, 94.9), (B.key, 0.5)), "sees facts of p2 as of 0.500; its process"),
    ],
)
def test_a_run_that_sees_older_facts_or_of_another_process(
    seen: tuple[tuple[str, float], ...], wrong: str
) -> None:
    script = telling()
    script.start(*seen)
    assert any(wrong in text for text in of_facts(script)), of_facts(script)


def test_facts_that_are_gone_need_not_be_seen_and_new_ones_need_a_moment() -> None:
    script = telling()
    script.tell(A, -1.0, at=97.0)
    script.tell(B, 98.9, at=99.0)
    script.start((B.key, 95.9))
    assert of_facts(script) == []
    script.at += 1
    script.start((B.key, 95.9))
    assert any("p2 as of 95.900" in text for text in of_facts(script))


def test_where_something_is_broken_facts_may_be_older() -> None:
    script = telling()
    script.add(Fault(script.at, "cut", "p1", "m1"))
    script.start()
    assert of_facts(script) == []
