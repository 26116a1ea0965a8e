"""What becomes of a keepalive: the pure decision, case by case, and its invariants."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.master.support import nonce

from kontrol.ensemble.pod import Keepalive, Pod
from kontrol.master.records.pods import Live, Registration
from kontrol.master.registry.admission import (
    Decision,
    Join,
    Leave,
    Nothing,
    Refresh,
    Refuse,
    View,
    Write,
    decide,
    stored_bytes,
)

RECORD = Keepalive(
    app="a", id="p1", ip="10.0.0.1", key="k1", role="r", payload="x", nonce=nonce("b"), n=5
)
POD = Pod.of(RECORD, 7)
LIVE = Live(POD, revision=30, lease=99)
REGISTRATION = Registration.of(POD)


def known(**changes: object) -> View:
    """The store has RECORD itself, changed by hand where the test says so."""
    return View(
        live=replace(LIVE, pod=replace(POD, **changes)),  # type: ignore[arg-type]
        live_revision=30,
        registration=REGISTRATION,
        registration_revision=30,
    )


def refusal(decision: object) -> str:
    assert isinstance(decision, Refuse)
    return decision.name


def test_an_unknown_pod_gets_a_new_number() -> None:
    assert decide(RECORD, View()) == Join(RECORD, seq=None)


def test_one_that_was_lost_gets_its_number_back() -> None:
    assert decide(RECORD, View(registration=REGISTRATION, registration_revision=30)) == Join(
        RECORD, seq=7
    )


def test_an_equal_record_refreshes() -> None:
    assert decide(RECORD, known()) == Refresh(LIVE)


def test_a_newer_record_is_written_under_the_same_number_and_lease() -> None:
    newer = replace(RECORD, n=6, payload="y")
    assert decide(newer, known()) == Write(Pod.of(newer, 7), LIVE)


def test_a_restarted_process_keeps_its_number() -> None:
    restarted = replace(RECORD, nonce=nonce("c"), n=0)
    assert decide(restarted, known()) == Write(Pod.of(restarted, 7), LIVE)


def test_an_older_counter_is_stale() -> None:
    assert refusal(decide(replace(RECORD, n=4), known())) == "Stale"


def test_an_older_process_is_stale() -> None:
    assert refusal(decide(replace(RECORD, nonce=nonce("a"), n=9), known())) == "Stale"


def test_a_late_record_of_a_lost_pod_is_stale() -> None:
    assert refusal(decide(replace(RECORD, n=4), View(registration=REGISTRATION))) == "Stale"


def test_without_a_counter_the_last_write_wins() -> None:
    plain = replace(RECORD, nonce="", n=None, payload="y")
    assert decide(plain, known()) == Write(Pod.of(plain, 7), LIVE)
    assert isinstance(decide(plain, known(nonce="", n=None, payload="y")), Refresh)


def test_a_nonce_without_a_counter_does_not_hide_a_change() -> None:
    plain = replace(RECORD, n=None, payload="y")
    decision = decide(plain, known(n=None))
    assert isinstance(decision, Write)
    assert decision.pod == Pod.of(plain, 7)


def test_another_content_under_an_equal_nonce_and_counter_is_written() -> None:
    """It is not the process's own: one of the two is forged."""
    other = replace(RECORD, payload="y")
    assert decide(other, known()) == Write(Pod.of(other, 7), LIVE)


def test_a_counter_without_a_nonce_orders_nothing() -> None:
    plain = replace(RECORD, nonce="", payload="y")
    assert decide(plain, known()) == Write(Pod.of(plain, 7), LIVE)
    assert decide(plain, known(nonce="")) == Write(
        Pod.of(plain, 7), replace(LIVE, pod=replace(POD, nonce=""))
    )


def test_another_id_on_a_live_key_conflicts_and_both_are_named() -> None:
    other = replace(RECORD, id="p2", nonce=nonce("c"))
    decision = decide(other, known())
    assert isinstance(decision, Refuse)
    assert decision.name == "Conflict"
    assert "p1" in decision.message
    assert "p2" in decision.message


def once_unresponsive(decision: Decision) -> Decision:
    """What a refusal becomes once the senders of the records in the way are unresponsive."""
    otherwise = decision.otherwise if isinstance(decision, Refuse) else None
    return decision if otherwise is None else otherwise


def test_an_unresponsive_incumbent_is_replaced_by_another_id() -> None:
    other = replace(RECORD, id="p2", nonce=nonce("c"))
    assert once_unresponsive(decide(other, known())) == Join(other, seq=None)


def test_what_is_in_the_way_of_a_retrying_process_is_replaced_once_unresponsive() -> None:
    """Its sender was lost, or forged: at this key, at another, or long gone."""
    older = replace(RECORD, nonce=nonce("a"), n=0)
    elsewhere = replace(LIVE, pod=replace(POD, key="k9", seq=3))
    for view, decision in (
        (known(), Write(Pod.of(older, 7), LIVE)),
        (View(elsewhere=(elsewhere,)), Join(older, seq=None, moved=(elsewhere,))),
        (View(registration=REGISTRATION), Join(older, seq=7)),
    ):
        assert refusal(decide(older, view)) == "Stale"
        assert once_unresponsive(decide(older, view)) == decision


def test_a_tombstone_is_kept_when_another_id_takes_the_key() -> None:
    tombstone = replace(REGISTRATION, left=True)
    for other in (replace(RECORD, id="p2", nonce=nonce("c")), replace(RECORD, id="p2")):
        decision = decide(other, View(registration=tombstone))
        assert decision == Join(other, seq=None, archive=tombstone)


def test_another_id_may_take_a_key_whatever_the_nonce_of_its_last_user() -> None:
    other = replace(RECORD, id="p2", nonce=nonce("a"), n=0)
    assert decide(other, View(registration=REGISTRATION)) == Join(other, seq=None)


def test_the_same_id_from_a_new_address_replaces_the_earlier_one() -> None:
    moved = replace(RECORD, ip="10.0.0.9", key="k9", nonce=nonce("c"), n=0)
    assert decide(moved, View(elsewhere=(LIVE,))) == Join(moved, seq=None, moved=(LIVE,))


def test_the_earlier_one_cannot_come_back_over_it() -> None:
    old = replace(RECORD, ip="10.0.0.9", key="k9", nonce=nonce("a"))
    assert refusal(decide(old, View(elsewhere=(LIVE,)))) == "Stale"


def test_a_record_that_moved_while_another_stood_replaces_that() -> None:
    elsewhere = replace(LIVE, pod=replace(POD, key="k9", seq=3, nonce=nonce("a")))
    decision = decide(RECORD, replace(known(), elsewhere=(elsewhere,)))
    assert decision == Join(RECORD, seq=7, moved=(elsewhere,))


def test_a_lease_about_to_go_is_replaced_under_the_same_number() -> None:
    assert decide(RECORD, known(), new_lease=True) == Join(RECORD, seq=7)


def test_one_that_is_here_is_not_judged_by_its_registration() -> None:
    for registration in (None, replace(REGISTRATION, left=True), replace(REGISTRATION, n=9)):
        assert decide(RECORD, replace(known(), registration=registration), new_lease=True) == Join(
            RECORD, seq=7
        )


def test_a_deregistration_leaves_a_tombstone() -> None:
    last = replace(RECORD, down=True, n=6)
    assert decide(last, known()) == Leave(replace(REGISTRATION, n=6, left=True), LIVE)


def test_a_deregistration_after_the_lease_expired_still_counts_as_having_left() -> None:
    last = replace(RECORD, down=True, n=6)
    assert decide(last, View(registration=REGISTRATION)) == Leave(
        replace(REGISTRATION, n=6, left=True), None
    )


def test_a_deregistration_of_an_unknown_pod_is_nothing() -> None:
    last = replace(RECORD, down=True)
    assert decide(last, View()) == Nothing()
    assert decide(replace(last, id="p2"), known()) == Nothing()
    assert decide(last, View(registration=replace(REGISTRATION, left=True))) == Nothing()
    assert decide(replace(last, id="p2"), View(registration=REGISTRATION)) == Nothing()
    assert decide(last, known(id="p2")) == Nothing()


def test_a_deregistration_of_the_process_before_does_not_remove_its_successor() -> None:
    last = replace(RECORD, down=True, nonce=nonce("a"), n=9)
    assert refusal(decide(last, known())) == "Stale"


def test_a_late_deregistration_of_one_that_was_lost_is_stale() -> None:
    last = replace(RECORD, down=True, n=4)
    assert refusal(decide(last, View(registration=REGISTRATION))) == "Stale"


def test_a_late_keepalive_of_one_that_left_is_refused() -> None:
    tombstone = replace(REGISTRATION, left=True)
    assert refusal(decide(RECORD, View(registration=tombstone))) == "Gone"
    for n in (4, 9):
        assert refusal(decide(replace(RECORD, n=n), View(registration=tombstone))) == "Gone"


def test_its_next_process_is_welcome_under_the_same_number() -> None:
    restarted = replace(RECORD, nonce=nonce("c"), n=0)
    assert decide(restarted, View(registration=replace(REGISTRATION, left=True))) == Join(
        restarted, seq=7
    )
    plain = replace(RECORD, nonce="", n=None)  # an agent that cannot be told from its predecessor
    assert decide(plain, View(registration=replace(REGISTRATION, nonce="", left=True))) == Join(
        plain, seq=7
    )


def test_the_bytes_of_a_record_are_those_with_its_number() -> None:
    new, known_one = Join(RECORD, None), Join(RECORD, 7)
    assert stored_bytes(new, 12345) == len(Pod.of(RECORD, 12345).encode())
    assert stored_bytes(known_one, 12345) == stored_bytes(Write(POD, LIVE), 12345)
    assert stored_bytes(known_one, 12345) == len(POD.encode())
    assert stored_bytes(Refresh(LIVE), 12345) == 0


NONCES = st.sampled_from(["", *map(nonce, "abc")])
COUNTERS = st.none() | st.integers(0, 4)
RECORDS = st.builds(
    replace,
    st.just(RECORD),
    id=st.sampled_from(["p1", "p2"]),
    nonce=NONCES,
    n=COUNTERS,
    payload=st.sampled_from(["x", "y"]),
    down=st.booleans(),
)
VIEWS = st.builds(
    View,
    live=st.none()
    | st.builds(
        Live,
        pod=st.builds(
            replace, st.just(POD), id=st.sampled_from(["p1", "p2"]), nonce=NONCES, n=COUNTERS
        ),
        revision=st.just(30),
        lease=st.just(99),
    ),
    registration=st.none()
    | st.builds(
        Registration,
        id=st.sampled_from(["p1", "p2"]),
        nonce=NONCES,
        n=COUNTERS,
        seq=st.just(7),
        left=st.booleans(),
    ),
)


@given(RECORDS, VIEWS, st.booleans(), st.booleans())
def test_no_older_record_is_written_over_a_newer_one_that_is_seen(
    record: Keepalive, view: View, unresponsive: bool, new_lease: bool
) -> None:
    decision = decide(record, view, new_lease=new_lease)
    if unresponsive and not record.down:
        decision = once_unresponsive(decision)
        assert not (isinstance(decision, Refuse) and decision.name in ("Stale", "Conflict"))
        return
    live = view.live
    if not isinstance(decision, Write | Join | Leave) or live is None or live.pod.id != record.id:
        return
    if record.nonce and live.pod.nonce and record.n is not None and live.pod.n is not None:
        assert (record.nonce, record.n) >= (live.pod.nonce, live.pod.n)


@given(RECORDS, VIEWS, st.booleans(), st.booleans())
def test_a_number_goes_with_the_identity_alone(
    record: Keepalive, view: View, unresponsive: bool, new_lease: bool
) -> None:
    decision = decide(record, view, new_lease=new_lease)
    if unresponsive:
        decision = once_unresponsive(decision)
    if isinstance(decision, Join) and decision.seq is not None:
        assert record.id in {
            view.live.pod.id if view.live else None,
            view.registration.id if view.registration else None,
        }
    if isinstance(decision, Write | Refresh):
        assert view.live is not None
        assert view.live.pod.id == record.id


@given(RECORDS, VIEWS)
def test_a_live_key_is_only_lost_to_another_id_when_silent(record: Keepalive, view: View) -> None:
    decision = decide(record, view)
    if view.live is not None and view.live.pod.id != record.id:
        assert isinstance(decision, Refuse | Nothing)
