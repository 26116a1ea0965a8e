"""What a boot leaves for the commands that are started later beside what it became."""

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.boot.cluster import TOKEN, Cluster
from tests.boot.test_process import KONTROL, Booting, Ended

from kontrol.settings import booted
from kontrol.settings.private import run_folder
from kontrol.settings.resolve import NOTHING


@pytest.fixture
def booting(tmp_path: Path, cluster: Cluster) -> Booting:
    return Booting(tmp_path, cluster)


async def later(booting: Booting, *words: str, **environ: str) -> Ended:
    """Run a command as `kubectl exec` does: in the container's environment, without boot's."""
    process = await asyncio.create_subprocess_exec(
        *KONTROL,
        *words,
        env={**booting.environ, **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    return Ended(process.returncode, out.decode("utf-8"), err.decode("utf-8"))


def values(ended: Ended) -> dict[str, tuple[str | None, str]]:
    return {
        item["variable"]: (item["value"], item["source"])
        for item in json.loads(ended.out)["values"]
    }


async def test_later_commands_know_what_boot_found(booting: Booting) -> None:
    """`config`, `status`, `invoke` and `export`, beside the process that boot became."""
    words = ("--telegraf", str(booting.conf), "--", "sh", "-c", "echo up; exec sleep 60")
    async with booting.start(*words, environ={"KONTROL_EIP": "203.0.113.9"}) as process:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"up\n"
        config = await later(booting, "config", "--json", KONTROL_MODE="master,agent")
        status = await later(booting, "status", "-v", "--timeout", "0.1")
        invoke = await later(booting, "invoke", "--all", "--", "true")
        export = await later(booting, "export", KONTROL_ETCD="127.0.0.1:1")
    assert config.status == 0, config.err
    found = values(config)
    assert found["KONTROL_ID"] == ("redis-0", "kontrol boot (api)")
    assert found["KONTROL_IP"] == ("10.1.2.3", "kontrol boot (api)")
    assert found["NAMESPACE"] == ("games", "kontrol boot (api)")
    assert found["KONTROL_ZONE"] == ("eu-1a", "kontrol boot (node)")
    assert found["KONTROL_EIP"] == ("203.0.113.9", "kontrol boot (environment)")
    assert json.loads(found["KONTROL_LABELS"][0] or "") == {"app": "redis", "role": "cache"}
    assert found["kontrol.unity3d.com/master"] == ("masters:8000", "annotation")
    assert found["KONTROL_TELEGRAF_CONF"][0] == str(booting.conf)
    assert "asking http://masters:8001" in status.err
    assert "masters" in invoke.err
    assert (export.status, "127.0.0.1:1" in export.err) == (4, True), export.err


async def test_the_file_is_for_its_owner_and_holds_no_secret(booting: Booting) -> None:
    async with booting.start("--", "sh", "-c", "echo up; exec sleep 60") as process:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            await process.stdout.readline()
        folder = run_folder(booting.environ)
        [path] = folder.iterdir()
        assert path.name == f"boot-{process.pid}.json"
        assert (path.stat().st_mode & 0o7777, folder.stat().st_mode & 0o7777) == (0o600, 0o700)
        assert TOKEN not in path.read_text("utf-8")


async def test_it_holds_while_that_process_runs_and_the_next_boot_removes_it(
    booting: Booting,
) -> None:
    ended = await booting.run("--", "true")
    assert ended.status == 0, ended.err
    [left] = run_folder(booting.environ).iterdir()
    config = await later(booting, "config", "--json", KONTROL_ID="mine")
    assert values(config)["KONTROL_LABELS"] == (None, "not set")
    await booting.run("--", "true")
    [other] = run_folder(booting.environ).iterdir()
    assert other != left


async def test_the_environment_goes_first_and_the_daemon_ignores_the_file(booting: Booting) -> None:
    with running(booting.environ, {"KONTROL_ID": ("left", "api"), "KONTROL_ZONE": ("z", "node")}):
        config = await later(booting, "config", "--json", KONTROL_ID="mine")
        daemon = await later(booting, KONTROL_MODE="agent")
    found = values(config)
    assert found["KONTROL_ID"] == ("mine", "environment")
    assert found["KONTROL_ZONE"] == ("z", "kontrol boot (node)")
    assert (daemon.status, "KONTROL_LABELS: expected" in daemon.err) == (2, True), daemon.err


async def test_print_leaves_nothing(booting: Booting) -> None:
    assert (await booting.run("--print")).status == 0
    assert not run_folder(booting.environ).exists()


async def test_where_it_cannot_be_left_the_boot_goes_on(booting: Booting) -> None:
    ended = await booting.run("--", "echo", "started", XDG_RUNTIME_DIR="/proc/nowhere")
    assert (ended.status, ended.out) == (0, "started\n")
    assert "commands that are started later (kubectl exec) will not know" in ended.err
    assert "/proc/nowhere" in ended.err


@contextmanager
def running(
    environ: Mapping[str, str], left: Mapping[str, tuple[str, str]], **changes: object
) -> Iterator[Path]:
    """A file of this process, which runs, with `changes` to the document."""
    path = booted.leave(environ, left)
    document = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps(document), "utf-8")
    try:
        yield path
    finally:
        path.unlink()


FACTS = {"KONTROL_ID": ("redis-0", "api")}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_another_process_with_the_same_number_is_not_it(environ: dict[str, str]) -> None:
    with running(environ, FACTS):
        assert booted.read(environ).facts == {"kontrol boot (api)": {"KONTROL_ID": "redis-0"}}
    with running(environ, FACTS, started=1):
        assert booted.read(environ) == NOTHING


def test_of_several_the_oldest_counts(environ: dict[str, str]) -> None:
    """The container's own process, not one that `kubectl exec` started as a boot."""
    oldest = run_folder(environ) / f"boot-{os.getppid()}.json"
    with running(environ, FACTS):
        started = Path(f"/proc/{os.getppid()}/stat").read_text("utf-8").rpartition(")")[2].split()
        facts = {"KONTROL_ID": {"text": "container", "source": "api"}}
        oldest.write_text(json.dumps({"started": int(started[19]), "facts": facts}), "utf-8")
        assert booted.read(environ).facts == {"kontrol boot (api)": {"KONTROL_ID": "container"}}


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [],
        {"KONTROL_ID": "redis-0"},
        {"KONTROL_ID": {"text": 7, "source": "api"}},
        {"KONTROL_CALLBACK": {"text": "rm -rf /", "source": "api"}},
        {"KONTROL_TOKEN_FILE": {"text": "/x", "source": "api"}},
        {"KONTROL_ID": {"text": "x" * booted.MAX_BYTES, "source": "api"}},
    ],
)
def test_what_no_boot_writes_is_not_taken(environ: dict[str, str], facts: object) -> None:
    with running(environ, {}, facts=facts):
        assert booted.read(environ) == NOTHING


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"7"])
def test_garbage_is_not_taken(environ: dict[str, str], content: bytes) -> None:
    with running(environ, FACTS) as path:
        path.write_bytes(content)
        assert booted.read(environ) == NOTHING


def test_a_folder_that_others_may_write_is_not_trusted(environ: dict[str, str]) -> None:
    with running(environ, FACTS) as path:
        path.parent.chmod(0o770)
        left = booted.read(environ)
        assert left.facts == {}
        [(_, note)] = left.notes
        assert "is not a directory of this user alone" in note
        path.parent.chmod(0o700)
