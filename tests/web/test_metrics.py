"""The text format, read by Prometheus' own parser; the tables; statsd."""

import asyncio
import math
import re
import socket
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.master.support import BAD, CONFIG, GOOD, Stub, alive, record, running
from tests.support.memory import MemoryCluster
from tests.support.simloop import virtual
from tests.web.support import DEADLINE, get, serving

from kontrol.agent import health
from kontrol.agent.agent import AgentStatus
from kontrol.agent.reporter import TierStatus
from kontrol.master.master import Master
from kontrol.master.operator import metrics as mastering
from kontrol.metrics import CONTENT_TYPE, PROCESS, Metric, Process, Statsd, render
from kontrol.rpc.errors import Refused
from kontrol.web.web import WEB, Web

TABLES: tuple[tuple[Metric[AgentStatus] | Metric[Master] | Metric[Process] | Metric[Web], ...], ...]
TABLES = (PROCESS, health.METRICS, mastering.METRICS, WEB)

TIER = TierStatus(
    tier="masters:8000",
    address="10.0.0.1",
    seq=3,
    leader="m0",
    ttl=25.0,
    acknowledged=2.5,
    failures=0,
    error=None,
    sent=10,
    accepted=8,
    refused=1,
    failed=1,
    round_trips=0.25,
)
SILENT = TierStatus("[fd00::1]:8000", None, None, None, 25.0, None, 4, "no answer in time")


def agent(*tiers: TierStatus, leaving: bool = False) -> AgentStatus:
    return AgentStatus("pod-7", "k7", "nonce", 2, None, leaving, tiers)


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample, by name and labels; each may come once."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = {(s.name, tuple(sorted(s.labels.items()))): float(s.value) for s in samples}
    assert len(found) == len(samples)
    return found


def only(metrics: Iterable[Metric[None]]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return read(render(metrics, None))


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.one_of(st.integers(-(2**53), 2**53), st.floats()),
)
def test_any_label_and_number_comes_back_as_it_was(one: str, other: str, value: float) -> None:
    # The parser splits lines wherever Python does, which the format does not.
    one, other = (
        re.sub(r"[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", "", text) for text in (one, other)
    )
    row = Metric[None]("m", "gauge", "h", lambda _: [((one, other), value)], ("a", "b"))
    ((name, labels), told) = next(iter(only([row]).items()))
    assert (name, labels) == ("m", (("a", one), ("b", other)))
    assert told == value or (math.isnan(told) and math.isnan(value))


def test_kinds() -> None:
    rows: list[Metric[None]] = [
        Metric("one_total", "counter", "A\nline \\ more.", lambda _: 3),
        Metric("two", "gauge", "None now.", lambda _: None),
        Metric("three_seconds", "summary", "A sum.", lambda _: (4, 1.5)),
        Metric("four_seconds", "summary", "Sums.", lambda _: [(("x",), (1, 2.0))], ("l",)),
    ]
    assert only(rows) == {
        ("one_total", ()): 3,
        ("three_seconds_sum", ()): 1.5,
        ("three_seconds_count", ()): 4,
        ("four_seconds_sum", (("l", "x"),)): 2,
        ("four_seconds_count", (("l", "x"),)): 1,
    }


def test_names_follow_the_conventions() -> None:
    names = [metric.name for table in TABLES for metric in table]
    assert len(set(names)) == len(names)
    for table in TABLES:
        for metric in table:
            assert re.fullmatch(r"(kontrol|process)(_[a-z]+)+", metric.name)
            assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
            assert not re.search(r"_(ms|milliseconds|minutes|kb|percent)(_|$)", metric.name)
            assert metric.kind != "summary" or metric.name.endswith("_seconds")
            assert metric.help.endswith(".")


def test_an_agents_numbers() -> None:
    found = read(render(health.METRICS, agent(TIER, SILENT)))
    mine, other = (("tier", "masters:8000"),), (("tier", "[fd00::1]:8000"),)
    assert found["kontrol_agent_reporting", mine] == 1
    assert found["kontrol_agent_reporting", other] == 0
    assert found["kontrol_agent_acknowledged_age_seconds", mine] == 2.5
    assert ("kontrol_agent_acknowledged_age_seconds", other) not in found
    assert found["kontrol_agent_keepalives_sent_total", mine] == 10
    assert found["kontrol_agent_keepalives_acknowledged_total", mine] == 8
    assert found["kontrol_agent_keepalives_refused_total", mine] == 1
    assert found["kontrol_agent_keepalives_failed_total", mine] == 1
    assert found["kontrol_agent_round_trip_seconds_sum", mine] == 0.25
    assert found["kontrol_agent_round_trip_seconds_count", mine] == 8
    assert found["kontrol_agent_consecutive_failures", other] == 4
    assert found["kontrol_agent_seq", mine] == 3
    assert found["kontrol_agent_payload_changes_total", ()] == 2
    assert found["kontrol_agent_leaving", ()] == 0


@pytest.mark.parametrize(
    ("status", "ready"),
    [
        (agent(TIER), True),
        (agent(TIER, SILENT), False),
        (agent(TIER, leaving=True), False),
        (agent(), True),
    ],
)
def test_when_an_agent_is_ready(status: AgentStatus, ready: bool) -> None:
    checks = health.checks(status)
    assert all(check["ok"] for check in checks) == ready
    assert all(set(check) <= {"name", "ok", "detail", "error"} for check in checks)


def test_an_acknowledgement_older_than_the_ttl_is_none() -> None:
    old = TierStatus("t:1", "a", 1, None, 25.0, 25.1, 3, "no answer in time")
    (check,) = health.checks(agent(old))
    assert check == {
        "name": "tier t:1",
        "ok": False,
        "detail": "acknowledged 25.1 s ago; the TTL is 25 s",
        "error": "no answer in time",
    }


def test_process() -> None:
    found = read(render(PROCESS, Process.since_now("agent")))
    assert found["process_resident_memory_bytes", ()] > 1 << 20
    assert found["process_open_fds", ()] >= 3
    assert found["process_threads", ()] >= 1
    assert found["process_cpu_seconds_total", ()] > 0
    assert found["process_start_time_seconds", ()] > 1_700_000_000
    (labels,) = (labels for name, labels in found if name == "kontrol_build_info")
    assert dict(labels)["mode"] == "agent"


async def test_the_endpoint_tells_all_and_counts_itself() -> None:
    metrics = [
        lambda: render(PROCESS, Process.since_now("agent")),
        lambda: render(health.METRICS, agent(TIER)),
    ]
    web = Web(names=(), metrics=metrics)
    async with serving(web) as port:
        await get(port, "/nothing")
        answer = await get(port, "/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    found = read(answer.body.decode("utf-8"))
    assert found["kontrol_http_requests_total", (("status", "404"),)] == 1
    assert found["kontrol_http_connections_accepted_total", ()] == 2
    assert found["kontrol_http_errors_total", ()] == 0
    assert ("kontrol_agent_seq", (("tier", "masters:8000"),)) in found


@virtual
async def test_a_masters_numbers() -> None:
    """A run that fails, a run that does not, a hold, and keepalives of all kinds."""
    outcomes = iter([BAD, GOOD, GOOD])
    callback = Stub(outcome=lambda _: next(outcomes))

    async with running(MemoryCluster(), callback) as master:

        def now() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
            return read(render(mastering.METRICS, master))

        fresh = now()
        assert fresh["kontrol_leader_runs_started_total", ()] == 0
        assert ("kontrol_leader_last_run_timestamp_seconds", ()) not in fresh
        async with alive(master, 1, 2):
            await asyncio.sleep(CONFIG.damper / 2)
            damped = now()
            assert damped["kontrol_leader_due", (("reason", "ensemble"),)] == 1
            assert damped["kontrol_leader_held", (("hold", "damper"),)] == 1
            assert damped["kontrol_leader_held_remaining_seconds", ()] == CONFIG.damper / 2
            await asyncio.sleep(30)
            with pytest.raises(Refused):
                await master.ping(record(1, n="x"))
            with pytest.raises(Refused):
                await master.ping(record(1, nonce="0"))
            found = now()
    assert found["kontrol_master_pods", (("role", "r"),)] == 2
    assert found["kontrol_master_keepalives_total", (("outcome", "written"),)] == 2
    assert found["kontrol_master_keepalives_total", (("outcome", "refreshed"),)] >= 10
    assert found["kontrol_master_keepalives_total", (("outcome", "InvalidRecord"),)] == 1
    assert found["kontrol_master_keepalives_total", (("outcome", "Stale"),)] == 1
    assert found["kontrol_master_keepalives_waiting", ()] == 0
    assert 1 <= found["kontrol_master_batch_seconds_count", ()] <= 3
    assert found["kontrol_master_batch_keepalives_total", ()] >= 2
    assert found["kontrol_master_mirror_current", ()] == 1
    assert found["kontrol_master_mirror_age_seconds", ()] < CONFIG.ttl / 3
    assert found["kontrol_master_mirror_revision", ()] > 1
    assert found["kontrol_master_candidates", ()] == 1
    assert found["kontrol_master_leader", ()] == 1
    assert found["kontrol_master_term", ()] > 1
    assert found["kontrol_master_elections_won_total", ()] == 1
    assert found["kontrol_leader_proofs_total", ()] > 10
    assert 0 < found["kontrol_leader_proof_margin_seconds", ()] <= CONFIG.fover * 2 / 3
    assert found["kontrol_leader_runs_started_total", ()] == 2
    assert found["kontrol_leader_runs_total", (("outcome", "acknowledged"),)] == 1
    assert found["kontrol_leader_runs_total", (("outcome", "failed"),)] == 1
    assert found["kontrol_leader_run_seconds_count", ()] == 2
    assert found["kontrol_leader_last_success_timestamp_seconds", ()] > 1_700_000_000
    assert found["kontrol_leader_digest_changes_total", ()] >= 1
    assert sum(value for (name, _), value in found.items() if name == "kontrol_leader_held") == 0
    assert ("kontrol_leader_held_remaining_seconds", ()) not in found


@virtual
async def test_a_standby_tells_who_leads_and_of_no_runs() -> None:
    cluster = MemoryCluster()
    async with (
        running(cluster, Stub()) as leader,
        running(cluster, Stub(), id="m2") as standby,
        alive(leader, 1),
    ):
        await asyncio.sleep(5)
        found = read(render(mastering.METRICS, standby))
    assert found["kontrol_master_leader", ()] == 0
    assert found["kontrol_master_candidates", ()] == 2
    assert found["kontrol_master_pods", (("role", "r"),)] == 1
    assert found["kontrol_master_term", ()] > 1
    assert ("kontrol_leader_proof_margin_seconds", ()) not in found


@virtual
async def test_many_roles_do_not_make_many_series() -> None:
    async with running(MemoryCluster(), Stub()) as master:
        for i in range(150):
            await master.ping(record(i, role=f"role{i}"))
        found = read(render(mastering.METRICS, master))
    roles = {
        dict(labels)["role"]: n for (name, labels), n in found.items() if "role" in dict(labels)
    }
    assert len(roles) == 101
    assert roles["(others)"] == 50


class _Server(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.datagrams: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        self.datagrams.put_nowait(data)


async def test_statsd_gets_what_the_original_sent() -> None:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(_Server, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    found = asyncio.Event()

    async def resolve(host: str, _: int) -> list[str]:
        assert host == "stats"
        await found.wait()
        return ["127.0.0.1"]

    statsd = Statsd("stats", port, resolve=resolve)
    task = asyncio.create_task(statsd.run())
    statsd.count("keepalive_emitted")  # before the name is known
    found.set()
    async with asyncio.timeout(DEADLINE):
        assert await server.datagrams.get() == b"keepalive_emitted,tier=kontrol:1|c"
        statsd.count("md5_changed")
        assert await server.datagrams.get() == b"md5_changed,tier=kontrol:1|c"
    task.cancel()
    await asyncio.wait([task])
    transport.close()


async def test_a_statsd_that_is_away_is_told_once_and_costs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

    async def resolve(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    statsd = Statsd("stats", port, resolve=resolve)
    task = asyncio.create_task(statsd.run())
    for _ in range(1000):
        statsd.count("keepalive_emitted")
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    statsd.count("keepalive_emitted")
    assert len(caplog.records) == 1
    assert "gets no counters" in caplog.text


async def test_a_statsd_whose_name_is_unknown_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = asyncio.Semaphore(0)

    async def resolve(_host: str, _port: int) -> list[str]:
        asked.release()
        raise OSError("no such name")

    statsd = Statsd("stats", 8125, resolve=resolve)
    task = asyncio.create_task(statsd.run())
    async with asyncio.timeout(DEADLINE):
        await asked.acquire()
    for _ in range(1000):
        statsd.count("keepalive_emitted")
    task.cancel()
    await asyncio.wait([task])
    assert [record.getMessage() for record in caplog.records] == [
        "KONTROL_STATSD: stats port 8125 gets no counters: no such name"
    ]
