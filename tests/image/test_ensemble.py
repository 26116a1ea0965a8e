"""An ensemble in containers, from the image as it is built: the whole way, real in every part."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.e2e.daemon import exited
from tests.image.containers import GRACE, Containers
from tests.image.engine import SUITES, build
from tests.image.tier import TTL, tier

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "image"

pytestmark = [pytest.mark.privileged("podman", "runc", "debootstrap"), pytest.mark.timeout(300)]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Keys for masters and for agents, each in a folder that the image's user can read."""
    made = tmp_path / "keys"
    command = [sys.executable, "-m", "kontrol", "keys", "make", str(made)]
    subprocess.run(command, capture_output=True, timeout=30, check=True)
    for kind in ("master", "agent"):
        folder = tmp_path / kind
        folder.mkdir()
        for name in (f"{kind}.secret", "masters", "agents", "operators"):
            shutil.copy(made / name, folder / name)
            os.chown(folder / name, 10001, 0)
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("image", SUITES, indirect=True)
async def test_pods_come_change_are_lost_and_leave(image: str, keys: Path) -> None:
    name = f"{image}-hello"
    await build(name, EXAMPLE / "Dockerfile", EXAMPLE, f"--build-arg=KONTROL={image}")
    async with Containers(name) as containers:
        mount = "/etc/kontrol/keys"
        masters = await tier(
            containers, options=(f"--volume={keys}/master:{mount}:ro",), KONTROL_KEYS=mount
        )
        environ = masters.environ() | {"KONTROL_KEYS": mount}
        options = (f"--volume={keys}/agent:{mount}:ro",)
        ids = {f"hello-{number}" for number in range(5)}
        agents = {
            ident: await containers.run(ident, env=environ, options=options)
            for ident in sorted(ids)
        }
        assert len({agent.address for agent in agents.values()}) == 5

        # The state of each pod's machine is in its payload.
        run = await masters.settled(
            lambda run: (
                {ident for ident, pod in run.pods.items() if pod["state"] == "serve"} == ids
            ),
            "run with five pods that serve",
        )
        seqs = {ident: pod["seq"] for ident, pod in run.pods.items()}
        assert len(set(seqs.values())) == 5

        # A transition in one pod reaches the callback.
        answer = await agents["hello-0"].exec(
            "automaton", "ctl", "/tmp/automaton.sock", "GOTO drain"
        )
        assert answer == "OK"
        run = await masters.settled(
            lambda run: run.pods["hello-0"]["state"] == "drain", "run with a pod that drains"
        )
        assert masters.runs()[-1].changes["changed"] == ["hello-0"]

        # Killed: it did not deregister, so it is lost.
        await agents.pop("hello-1").kill()
        run = await masters.settled(
            lambda run: set(run.pods) == set(agents), "run without the pod that was killed"
        )
        assert run.changes["lost"] == ["hello-1"]

        # Cut off: lost; and back with its number, in a process that never ended.
        cut = agents["hello-2"]
        await containers.disconnect(cut)
        run = await masters.settled(
            lambda run: "hello-2" not in run.pods, "run without the pod that was cut off"
        )
        assert run.changes["lost"] == ["hello-2"]
        await containers.connect(cut)
        run = await masters.settled(
            lambda run: "hello-2" in run.pods, "run with the pod that is back"
        )
        assert run.changes["joined"] == ["hello-2"]
        assert run.pods["hello-2"]["seq"] == seqs["hello-2"]

        # Stopped: every process ends within the grace, and the pod left.
        stopped = agents.pop("hello-3")
        inside = await stopped.processes()
        assert len(inside) >= 4  # supervisord, kontrol, automaton, socat
        before = run
        began = time.monotonic()
        assert await stopped.stop() == 0
        assert time.monotonic() - began < GRACE
        for pid in inside:
            assert await exited(pid, 0), f"process {pid} outlived its container"
        await masters.settled(
            lambda run: set(run.pods) == set(agents), "run without the pod that was stopped"
        )
        assert masters.since(before)["left"] == {"hello-3"}
        assert masters.since(before)["lost"] == set()
        assert time.monotonic() - began < GRACE + TTL

        # A master that is stopped hands over.
        leader = next(m for m in masters.masters if m.log.find("leader, in term"))
        assert await leader.stop() == 0
        masters_left = next(m for m in masters.masters if m is not leader)
        await masters_left.log.logged("leader, in term")
        last = agents.pop("hello-4")
        assert await last.stop() == 0
        run = await masters.settled(
            lambda run: set(run.pods) == set(agents), "run of the master that took over"
        )
        assert run.changes["left"] == ["hello-4"]
