"""What is wrong, in words: a full etcd with the commands that help, and masters that differ."""

import json
from dataclasses import replace

import pytest
from tests.master.support import Stub, running
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON
from kontrol.master.operator.problems import of_the_published, problems
from kontrol.master.operator.story import Facts
from kontrol.master.operator.view import View
from kontrol.master.records.masters import Candidate
from kontrol.master.records.runs import Head
from kontrol.store.protocol import NoSpace

M1 = Candidate("m1", fingerprint="f", term=5, version="1.0.0", ttl=6.0, fover=15.0, damper=10.0)


def said(*candidates: Candidate, alarms: tuple[str, ...] = ()) -> list[str]:
    """What is wrong where nothing is but with these."""
    facts = Facts(
        etcd="",
        alarms=alarms,
        revision=4711,
        leader={"id": "m1", "term": 5},
        candidates=candidates,
        plan={},
        running=None,
        pods=1,
    )
    return [f"{each.what} / {each.fix}" for each in problems(facts)]


def other(**changes: object) -> Candidate:
    fields = {"fingerprint": "f", "version": "1.0.0", "ttl": 6.0, "fover": 15.0, "damper": 10.0}
    return Candidate("m2", **{**fields, **changes})  # type: ignore[arg-type]


def test_nothing_is_wrong_with_masters_that_are_set_alike() -> None:
    assert said(M1, other()) == []


def test_a_full_etcd_comes_first_with_the_commands_that_end_it() -> None:
    [full] = said(M1, alarms=("NOSPACE",))
    for part in (
        "Pods that report stay alive",
        "new pods, deregistrations, new masters and runs wait",
        "`etcdctl compact 4711`",
        "`etcdctl defrag --cluster`",
        "`etcdctl alarm disarm`",
        "--quota-backend-bytes",
    ):
        assert part in full


def test_on_a_full_etcd_no_leader_is_promised() -> None:
    facts = Facts("", ("NOSPACE",), 4711, None, (), {}, None, 1)
    [_, none] = problems(facts)
    assert (none.what, none.kind) == ("no master leads", "no-leader")
    assert none.fix == "first free etcd's space: no leader can be elected before"


def test_any_other_alarm_is_named() -> None:
    [corrupt] = said(M1, alarms=("CORRUPT",))
    assert "CORRUPT" in corrupt
    assert "etcdctl alarm list" in corrupt


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ttl": 24.0}, "different KONTROL_TTL: m1 has 6 s, m2 has 24 s; the leader's rules / "),
        ({"damper": 1.5}, "KONTROL_DAMPER: m1 has 10 s, m2 has 1.5 s; the leader's rules / "),
        ({"fover": 3.0}, "KONTROL_FOVER: m1 has 15 s, m2 has 3 s; a leader is replaced after its"),
        ({"version": "1.1.0"}, "different versions: m1 runs 1.0.0, m2 runs 1.1.0 / "),
        ({"version": ""}, "m1 runs 1.0.0, m2 runs an unknown version / "),
    ],
)
def test_masters_that_differ_are_named_with_what_rules(
    changes: dict[str, object], expected: str
) -> None:
    [found] = said(M1, other(**changes))
    assert expected in found


def test_what_an_earlier_version_does_not_tell_is_not_compared() -> None:
    assert said(M1, other(ttl=None, fover=None, damper=None)) == []


@virtual
async def test_every_master_s_status_says_that_etcd_is_full_and_that_settings_differ() -> None:
    cluster = MemoryCluster()
    async with (
        running(cluster, Stub(), ttl=6.0) as one,
        running(cluster, Stub(), id="m2", ttl=24.0) as two,
    ):
        cluster.core.full = True
        for master in (one, two):
            view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00Z")
            shown = json.loads(json.dumps(await view.status()))
            assert shown["etcd"]["alarms"] == ["NOSPACE"]
            assert shown["etcd"]["ok"]
            assert shown["ttl"] == 6.0
            told = [problem["what"] for problem in shown["problems"]]
            assert told[0].startswith("etcd is full")
            assert f"`etcdctl compact {cluster.core.revision}`" in shown["problems"][0]["fix"]
            assert any("m1 has 6 s, m2 has 24 s; the leader's rules" in each for each in told)


@virtual
async def test_what_a_full_etcd_cannot_take_is_refused_with_the_commands_that_end_it() -> None:
    cluster = MemoryCluster()
    async with running(cluster, Stub()) as master:
        view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00Z")
        cluster.core.full = True
        with pytest.raises(NoSpace) as caught:
            await view.ask("run", "ann")
        assert f"`etcdctl compact {cluster.core.revision}`" in str(caught.value)
        assert "`etcdctl alarm disarm`" in str(caught.value)


def test_a_note_stands_until_the_next_acknowledged_run() -> None:
    head = Head(7, "d", "f", note="p1 does not answer")
    plan: dict[str, JSON] = {"what": "idle", "reason": "again", "hold": None, "seconds": 4.24}
    base = Facts("", (), 1, {"id": "m1", "term": 2}, (M1,), plan, None, 1, applied=head)

    def says(facts: Facts) -> list[str]:
        return [each.what for each in problems(facts) if each.kind == "note"]

    assert says(base) == ["the callback runs again in 4.2 s: p1 does not answer"]
    assert says(replace(base, plan={**plan, "reason": None, "seconds": None})) == [
        "run 7 left a note: p1 does not answer"
    ]
    assert says(replace(base, plan={**plan, "what": "wait", "hold": "damper"})) == [
        "run 7 left a note: p1 does not answer"
    ]
    assert says(replace(base, running={"run": 8, "ended": False})) == [
        "run 7 left a note, and run 8 is under way: p1 does not answer"
    ]
    assert says(replace(base, running={"run": 8, "ended": True}, plan=plan | {"what": "wait"})) == [
        "run 7 left a note: p1 does not answer"
    ]
    assert says(replace(base, applied=replace(head, note=None))) == []
    assert says(replace(base, applied=None)) == []
    (long,) = says(replace(base, applied=replace(head, note="x" * 60_000)))
    assert len(long) < 1100


def test_two_processes_of_one_pod_that_lack_what_is_published_are_both_named() -> None:
    """One says why, the other does not."""
    (problem,) = of_the_published(7, [("p1", 6, "no space left"), ("p1", 6, None), ("p0", 0, None)])
    assert "p0 has none, p1 has 6, p1 has 6 (no space left)" in problem.what
