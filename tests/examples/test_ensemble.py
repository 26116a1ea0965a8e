"""What the examples run on: faults reach all processes of a pod, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples.ensemble import ensemble, working_in

FORKS = ["/bin/sh", "-c", "setsid sleep 600 & echo ready; wait"]
ENDS = ["/bin/sh", "-c", "mkfifo end; read line < end; exit 3"]


def content(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a name that is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="k-", dir="/tmp") as made:
        yield Path(made).resolve()


async def test_a_leader_that_is_killed_in_its_run_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    runs = ("/bin/sh", "-c", "echo it runs >&2; sleep 600")
    async with ensemble("numbers", *runs, masters=1, TTL="3", FOVER="3", DAMPER="0.1") as here:
        pod = await here.pod("pod", "test", ["sleep", "600"])
        [master] = here.masters
        await here.until(lambda: master.find("it runs"), "run of the callback")
        await master.kill()
        assert pod.runs
    assert not content(folder)


async def test_faults_reach_all_that_runs_in_a_pod_and_nothing_is_left() -> None:
    async with ensemble("numbers", "true", masters=2, TTL="3", FOVER="3", DAMPER="0.1") as here:
        forks = await here.pod("forks", "test", FORKS)
        await here.until(lambda: forks.find("ready"), "process that left its session")
        await here.until(lambda: forks.find("reporting to"), "acknowledged keepalive")
        assert len(working_in(forks.folder)) >= 3
        await forks.send(signal.SIGSTOP)
        lost = r"1 lost \(#0 forks\)"
        await here.until(lambda: any(each.find(lost) for each in here.masters), "loss of the pod")
        await forks.kill()
        assert not working_in(forks.folder)
        assert not forks.runs

        # A pod whose process ends takes its agent with it, which deregisters.
        ends = await here.pod("ends", "test", ENDS)
        await here.until(lambda: ends.find("reporting to"), "acknowledged keepalive")
        (ends.folder / "end").write_text("\n")
        assert await ends.ended() == [3, 0]

        leader = here.leader()
        assert leader is not None
        await leader.kill()
        assert here.leader() is None
        await here.until(here.leader, "next leader")
        assert "1 lost (#0 forks)" in await here.run("kontrol", "runs")
        with pytest.raises(RuntimeError, match=r"ended with 3: no"):
            await here.run("sh", "-c", "echo no; exit 3")
        frozen = await here.pod("frozen", "test", FORKS)
        await here.until(lambda: frozen.find("ready"), "process that left its session")
        await frozen.send(signal.SIGSTOP)
        folders = [member.folder for member in (*here.masters, *here.pods.values())]
    assert not any(map(working_in, folders))
    assert not here.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_example_that_is_interrupted_leaves_nothing(
    number: signal.Signals, folder: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "examples.numbers"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "numbers: " in line:  # of the callback: masters and pods are there
                break
        pods = [pod for made in folder.iterdir() for pod in made.glob("pod-*")]
        assert any(map(working_in, pods))
        process.send_signal(number)
        assert process.wait(60) == 130
    assert not any(map(working_in, pods))
    assert not content(folder)
