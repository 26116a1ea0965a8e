"""The desired state on real processes and a real etcd: races, leaders that die, a full etcd."""

import asyncio
import json
import signal
from base64 import b64decode
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.cli.test_against_daemons import TOKEN, Shell, start
from tests.e2e.lab import Lab, Tier
from tests.support.etcd import EtcdCluster

from kontrol.ensemble.canonical import JSON

QUOTA = 4 * 1024 * 1024


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n", "utf-8")
    path.chmod(0o600)
    return path


class Ran(NamedTuple):
    """A run as the callback saw it."""

    run: int
    term: int
    spec: JSON
    changed: JSON


class Script:
    """A callback that writes down what it gets; while `slow` exists, it takes 30 s."""

    def __init__(self, folder: Path) -> None:
        self.slow = folder / "slow"
        self._lines = folder / "ran"
        path = folder / "callback"
        path.write_text(
            "#!/bin/sh\n"
            '[ "$(cat "$SPEC_FILE")" = "$SPEC" ] || exit 9\n'
            'line="$RUN $TERM_ID $(base64 -w 0 "$SPEC_FILE") $(base64 -w 0 "$CHANGES_FILE")"\n'
            f'echo "$line" >> "{self._lines}"\n'
            f'if [ -e "{self.slow}" ]; then sleep 30; fi\n',
            "utf-8",
        )
        path.chmod(0o755)
        self.command = str(path)

    @property
    def runs(self) -> list[Ran]:
        """What it wrote down."""
        found = []
        for line in self._lines.read_text("utf-8").splitlines():
            run, term, spec, changes = line.split()
            changed = json.loads(b64decode(changes)).get("spec")
            found.append(Ran(int(run), int(term), json.loads(b64decode(spec)), changed))
        return found


async def leading(shell: Shell) -> int:
    """Return which master leads."""
    leader = json.loads((await shell.kontrol("status", "--json")).out)["leader"]["id"]
    return int(leader.removeprefix("m"))


def without(shell: Shell, tier: Tier, master: int) -> Shell:
    """Return a shell that knows all masters but one."""
    others = [a for i, a in enumerate(tier.addresses) if i != master]
    return Shell({**shell.environ, "KONTROL_MASTER": "|".join(others)})


async def test_of_processes_that_race_one_wins(token: Path, tmp_path: Path) -> None:
    script = Script(tmp_path)
    async with EtcdCluster(size=3) as etcd, Lab() as lab:
        options = {"CALLBACK": script.command, "DAMPER": "60"}
        tier = await lab.tier(etcd.endpoints, masters=0, places=2, **options)
        shell = await start(tier, 2, token)
        shells = [without(shell, tier, i) for i in (0, 1)]
        won = -1
        for expected in (["--if-absent"], ["--if-is", "0"]):
            values = [0] * 8 if expected == ["--if-absent"] else [*range(1, 9)]
            ended = await asyncio.gather(
                *(
                    shells[i % 2].kontrol("set", f"n={value}", *expected)
                    for i, value in enumerate(values)
                )
            )
            assert sorted(done.status for done in ended) == [0, *[7] * 7], ended
            [won] = [value for value, done in zip(values, ended, strict=True) if not done.status]
            assert json.loads((await shell.kontrol("get", "n")).out) == won
        together = await asyncio.gather(
            *(shells[i % 2].kontrol("set", f"k{i}={i}") for i in range(8))
        )
        assert {done.status for done in together} == {0}
        spec = json.loads((await shell.kontrol("get")).out)
        assert spec == {"n": won, **{f"k{i}": i for i in range(8)}}
        assert (await shell.kontrol("get", "none")).status == 3
        assert (await shell.kontrol("unset", "k0", "--if-is", "1")).status == 7
        done = await shell.kontrol("unset", "k0", KONTROL_TOKEN_FILE="")
        assert done.status == 5
        # Without pods, and though the damper would wait for a minute, all of it comes to runs.
        explained = (await shell.becomes("the desired state changed", "explain")).out
        assert ", by REST from 127." in explained
        await shell.becomes("nothing is due", "status")
        assert script.runs[-1].spec == spec
        large = "x" * 65000
        assert (await shell.kontrol("set", f"k1={large}")).status == 0
        assert json.loads((await shell.kontrol("get", "k1")).out) == large


async def test_a_change_is_seen_though_the_leader_dies_before_its_run(
    token: Path, tmp_path: Path
) -> None:
    script = Script(tmp_path)
    async with EtcdCluster() as etcd, Lab() as lab:
        options = {"CALLBACK": script.command, "DAMPER": "1"}
        tier = await lab.tier(etcd.endpoints, masters=0, places=3, **options)
        shell = await start(tier, 3, token)
        await tier.agent("a")
        await shell.becomes("All is well: 1 pod; nothing is due.", "status")
        assert script.runs[-1].spec == {}

        # The leader is stopped before the change, and killed after it.
        leader = await leading(shell)
        others = without(shell, tier, leader)
        tier.masters[leader].signal(signal.SIGSTOP)
        done = await others.kontrol("set", "primary=a", "--timeout", "15")
        assert (done.status, done.out) == (0, "primary is set\n")
        await tier.masters[leader].kill()
        await others.becomes("All is well: 1 pod; nothing is due.", "status")
        last = script.runs[-1]
        assert (last.spec, last.changed) == ({"primary": "a"}, {"set": ["primary"], "unset": []})
        assert last.term > script.runs[0].term
        assert len(script.runs) == 2

        # During a run, whose leader is killed.
        script.slow.touch()
        assert (await others.kontrol("set", "primary=b")).status == 0
        await others.becomes("is under way", "status")
        leader = await leading(others)
        assert (await others.kontrol("set", "replicas=3")).status == 0
        script.slow.unlink()
        await tier.masters[leader].kill()
        [rest] = {0, 1, 2} - {leader} - {i for i in range(3) if not _alive(tier, i)}
        alone = Shell({**shell.environ, "KONTROL_MASTER": tier.addresses[rest]})
        await alone.becomes("All is well: 1 pod; nothing is due.", "status")
        last = script.runs[-1]
        assert last.spec == {"primary": "b", "replicas": 3}
        assert last.changed == {"set": ["primary", "replicas"], "unset": []}


def _alive(tier: Tier, i: int) -> bool:
    return Path(f"/proc/{tier.masters[i].pid}").exists()


async def test_a_full_etcd_is_said_and_nothing_is_lost(token: Path, tmp_path: Path) -> None:
    script = Script(tmp_path)
    quota = (f"--quota-backend-bytes={QUOTA}",)
    async with EtcdCluster(options=quota) as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1, CALLBACK=script.command)
        shell = await start(tier, 1, token)
        value = "y" * 60_000
        sent, done = 0, await shell.kontrol("set", "k=0")
        while done.status == 0 and sent < 200:
            sent += 1
            done = await shell.kontrol("set", f"k{sent % 8}={sent}{value}")
        assert done.status == 4, done
        assert "etcd is full" in done.err
        assert "compact" in done.err
        spec = json.loads((await shell.kontrol("get")).out)
        assert spec["k"] == 0
        if sent > 8:
            assert str(spec[f"k{(sent - 1) % 8}"]).startswith(f"{sent - 1}y")
