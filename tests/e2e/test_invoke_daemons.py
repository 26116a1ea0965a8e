"""Commands on pods of a real tier: from a callback and by an operator, with keys and without."""

import re
import sys
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.invoking import invoke
from tests.e2e.lab import Lab, Tier
from tests.e2e.spy import entries
from tests.rpc.keyed import cluster, part
from tests.support.etcd import EtcdCluster, free_port

PODS = ("a", "b")
LISTS = ("masters", "agents", "operators")
NO_POD = {"KONTROL_ANNOTATIONS": "", "KONTROL_LABELS": ""}

CALLBACK = """#!/bin/sh
{python} -m kontrol invoke --all -- /bin/sh -c 'echo told in the name of "$0"' "$TIER" >&2
"""


BEST_EFFORT = """#!/bin/sh
printf 'from %s' "$TIER" | {python} -m kontrol invoke --all --stdin - --best-effort --liveness 5 \\
    -- /bin/sh -c 'cat; test "$KONTROL_ID" = a' >&2
"""


async def pod(tier: Tier, ident: str, **settings: str) -> Daemon:
    """Start an agent that listens on an address of its own."""
    address = tier.lab.address()
    environ = tier.environ("agent", ident, address, {"KONTROL_BIND": address, **settings})
    tier.agents[ident] = await tier.lab.start(f"{tier.app}/{ident}", environ)
    return tier.agents[ident]


def callback(folder: Path, script: str = CALLBACK) -> str:
    path = folder / "callback"
    path.write_text(script.format(python=sys.executable), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


async def told(tier: Tier, who: str) -> None:
    """See that the callback's command ran on each pod, and how its audit names who asked."""
    where = rf"at 127[.\d]+ \(run \d+, term \d+, tier default/{tier.app}\)"
    for ident in PODS:
        agent = tier.agents[ident]
        await agent.logged(rf"kontrol.audit: exec by {who} {where}: \['/bin/sh', .*: exit status 0")
        await tier.masters[0].logged(rf"{ident} \| told in the name of default/{tier.app}")


async def test_with_keys_only_callbacks_and_operators_may(tmp_path: Path) -> None:
    whole = cluster(tmp_path / "keys")
    master = part(tmp_path / "master", whole, "master.secret", *LISTS)
    agent = part(tmp_path / "agent", whole, "agent.secret", *LISTS)
    operator = part(tmp_path / "operator", whole, "operator.secret", *LISTS)
    unknown = cluster(tmp_path / "unknown")
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, KEYS=str(master), CALLBACK=callback(tmp_path))
        for ident in PODS:
            await pod(tier, ident, KONTROL_KEYS=str(agent))
        await told(tier, r"master \S{8}")
        at = {"KONTROL_MASTER": tier.name, **NO_POD}
        ran = await invoke("--all", "--", "echo", "hi", **at, KONTROL_KEYS=str(operator))
        assert (ran.status, sorted(ran.out)) == (0, ["a | hi", "b | hi"])
        await tier.agents["a"].logged(
            r"exec by operator \S{8} at 127\.0\.0\.1: \['echo', 'hi'\]: exit"
        )
        ran = await invoke("--all", "--", "echo", "hi", **at)
        assert (ran.status, ran.out) == (4, [])
        ran = await invoke("--all", "--", "echo", "hi", **at, KONTROL_KEYS=str(unknown))
        assert (ran.status, ran.out) == (4, [])
        ran = await invoke("--all", "--", "echo", "hi", **at, KONTROL_KEYS=str(agent))
        assert (ran.status, ran.out) == (2, [])
        assert "operator.secret: there is no such file" in ran.err


async def test_without_keys_only_what_says_insecure(tmp_path: Path) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, CALLBACK=callback(tmp_path))
        allow = tmp_path / "allow.json"
        allow.write_text('{"say": {"argv": ["echo", "{1}"], "args": ["[a-z]+"]}}', encoding="utf-8")
        await pod(tier, "a", KONTROL_INVOKE="insecure")
        await pod(tier, "b")
        c = await pod(tier, "c", KONTROL_INVOKE="insecure", KONTROL_INVOKE_ALLOW=str(allow))
        found = await tier.masters[0].logged(
            r"callback.*3 of 3 pods failed|callback.*2 of 3 pods failed"
        )
        since = tier.masters[0].lines.index(found.string)
        await tier.masters[0].logged(r"\bb +accepts no commands: set KONTROL_KEYS", since)
        await tier.masters[0].logged(r"\bc +refused: Forbidden: '/bin/sh' is not allowed", since)
        await tier.masters[0].logged(r"run \d+ .*failed|attempt", since)
        at = {"KONTROL_MASTER": tier.name, **NO_POD}
        ran = await invoke("c", "--", "say", "hello", **at)
        assert (ran.status, ran.out) == (0, ["c | hello"])
        ran = await invoke("c", "--", "say", "HELLO", **at)
        assert ran.status == 5
        assert "argument 1 is 'HELLO'; expected what matches '[a-z]+'" in ran.err
        await c.logged(
            r"kontrol.audit.refused: exec by a client without a key .*\['say', 'HELLO'\]: refused:"
        )


async def test_best_effort_commits_the_run_and_asks_for_another(tmp_path: Path) -> None:
    port = str(free_port())
    async with EtcdCluster() as etcd, Lab() as lab:
        script = callback(tmp_path, BEST_EFFORT)
        tier = await lab.tier(etcd.endpoints, CALLBACK=script, HTTP_PORT=port, DAMPER="1")
        for ident in PODS:
            await pod(tier, ident, KONTROL_INVOKE="insecure")
        master = tier.masters[0]
        for ident in PODS:  # both get the input
            await master.logged(rf"callback.*\b{ident} \| from default/{tier.app}")
        left = await master.logged(r"failures are left to the next run of the callback")
        since = master.lines.index(left.string)
        acknowledged = await master.logged(r"run (\d+) acknowledged", since)
        number = int(acknowledged[1])
        entry = (await entries(etcd.endpoints, tier.app))[number]
        assert (entry["ok"], entry["again"]) == (True, 5)
        assert entry["note"] == "b: exit status 1"
        at = f"http://{tier.addresses[0]}:{port}"
        asking = await lab.start("status", {}, command=("-m", "kontrol", "status", "--master", at))
        assert await asking.ended() == 6
        assert "b: exit status 1" in " ".join(asking.lines)
        await master.logged(rf"run {number + 1} acknowledged")
        later = (await entries(etcd.endpoints, tier.app))[number + 1]
        assert (later["ok"], later["reason"]) == (True, "again")


@pytest.mark.parametrize("content", ["{", '{"a": {}}', None])
async def test_a_bad_allow_list_is_refused_at_the_start(
    tmp_path: Path, content: str | None
) -> None:
    allow = tmp_path / "allow.json"
    if content is not None:
        allow.write_text(content, encoding="utf-8")
    async with Lab() as lab:
        environ = {
            "KONTROL_IP": "127.0.0.1",
            "KONTROL_PORT": str(free_port()),
            "KONTROL_HTTP_PORT": "0",
            "KONTROL_LABELS": '{"app": "a", "role": "r"}',
            "KONTROL_ANNOTATIONS": '{"kontrol.unity3d.com/master": "127.0.0.1:9"}',
            "KONTROL_INVOKE": "insecure",
            "KONTROL_INVOKE_ALLOW": str(allow),
        }
        daemon = await lab.start("a", environ)
        assert await daemon.ended() == 2
        start = re.escape(str(allow)[:40])  # a long value is told in part
        assert daemon.find(rf"KONTROL_INVOKE_ALLOW.*{start}")
