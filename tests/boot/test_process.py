"""The real command, as a process of its own, against a Kubernetes API over TLS."""

import asyncio
import json
import os
import signal
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
from tests.boot.cluster import NODE_PATH, POD_PATH, TOKEN, Cluster, account, pod
from tests.boot.server import Answer, Hang, Reply

NOTHING: Mapping[str, str] = MappingProxyType({})
KONTROL = (sys.executable, "-m", "kontrol")


@dataclass(frozen=True, slots=True)
class Ended:
    status: int | None
    out: str
    err: str


class Booting:
    """Starts `kontrol boot` in an environment that holds nothing else."""

    def __init__(self, folder: Path, cluster: Cluster | None) -> None:
        self.folder = folder
        self.conf = folder / "telegraf.conf"
        self.words = [
            *("--service-account", str(account(folder / "account"))),
            *("--podinfo", str(folder / "podinfo")),
        ]
        self.environ = {
            "PATH": os.environ["PATH"],
            "KONTROL_CLOUD": "none",
            "KONTROL_TELEGRAF_CONF": str(self.conf),
            "POD_NAME": "redis-0",
            "XDG_RUNTIME_DIR": str(folder),
            "http_proxy": "http://127.0.0.1:1",
            "https_proxy": "http://127.0.0.1:1",
            **(cluster.environ() if cluster else {}),
        }

    @asynccontextmanager
    async def start(
        self, *words: str, before: Sequence[str] = (), environ: Mapping[str, str] = NOTHING
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *before,
            *KONTROL,
            "boot",
            *self.words,
            *words,
            env={**self.environ, **environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def run(self, *words: str, **environ: str) -> Ended:
        async with asyncio.timeout(30), self.start(*words, environ=environ) as process:
            out, err = await process.communicate()
        return Ended(process.returncode, out.decode("utf-8"), err.decode("utf-8"))


@pytest.fixture
def booting(tmp_path: Path, cluster: Cluster) -> Booting:
    return Booting(tmp_path, cluster)


def exported(text: str) -> dict[str, str]:
    """Read what `env -0` prints."""
    return dict(entry.split("=", 1) for entry in text.split("\0") if entry)


async def test_a_command_gets_what_was_found(booting: Booting) -> None:
    ended = await booting.run("--", "env", "-0", KONTROL_TTL="7")
    assert ended.status == 0, ended.err
    env = exported(ended.out)
    assert env["KONTROL_ID"] == "redis-0"
    assert env["KONTROL_IP"] == "10.1.2.3"
    assert env["KONTROL_HOST"] == "10.0.0.1"
    assert env["KONTROL_ZONE"] == "eu-1a"
    assert json.loads(env["KONTROL_LABELS"]) == {"app": "redis", "role": "cache"}
    assert json.loads(env["KONTROL_NODE_LABELS"])["unity3d.com/array"] == "front"
    assert (env["NAMESPACE"], env["KONTROL_TTL"]) == ("games", "7")
    assert env["KONTROL_TELEGRAF_CONF"] == str(booting.conf)
    assert TOKEN not in ended.out + ended.err
    assert "this is pod redis-0 at 10.1.2.3: starting env" in ended.err


async def test_the_daemon_takes_what_was_exported(booting: Booting) -> None:
    ended = await booting.run("--", *KONTROL, "config", "--json")
    assert ended.status == 0, ended.err
    assert "unknown" not in ended.err
    document = json.loads(ended.out)
    values = {item["variable"]: item["value"] for item in document["values"]}
    assert document["mistakes"] == []
    assert values["KONTROL_ETCD"] == "10.0.0.1"
    assert values["kontrol.unity3d.com/master"] == "masters:8000"


@pytest.mark.parametrize("bars", [[], ["--"]])
async def test_the_commands_arguments_are_left_alone(booting: Booting, bars: list[str]) -> None:
    ended = await booting.run(*bars, "printf", "%s|", "--print", "--", "-x", "a b", "")
    assert ended.out == "--print|--|-x|a b||"


async def test_the_command_starts_as_if_nothing_had_been_before(booting: Booting) -> None:
    ended = await booting.run("--", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    masks = [int(line.split()[1], 16) for line in ended.out.splitlines()]
    own = 0b11 << 31  # signals 32 and 33 are the C library's, which may block them around a fork
    assert [mask & ~own for mask in masks] == [0, 0], ended.out
    ended = await booting.run("--", "sh", "-c", "ls /proc/$$/fd")
    assert ended.out.split() == ["0", "1", "2"]


async def test_without_a_command_it_is_supervisord(booting: Booting) -> None:
    program = booting.folder / "supervisord"
    program.write_text('#!/bin/sh\necho $KONTROL_ID $$ "$@"\n', "utf-8")
    program.chmod(0o755)
    path = f"{booting.folder}:{os.environ['PATH']}"
    async with asyncio.timeout(30), booting.start(environ={"PATH": path}) as process:
        out, _ = await process.communicate()
    expected = f"redis-0 {process.pid} -n -c /etc/supervisor/supervisord.conf\n"
    assert out.decode("utf-8") == expected


async def test_telegraf_is_configured(booting: Booting, cluster: Cluster) -> None:
    document = pod()
    document["metadata"] = {
        "name": "redis-0",
        "labels": {"app": "redis", "role": "cache"},
        "annotations": {"kontrol.unity3d.com/opentsdb": "tsdb:1", "a": 'say "ü"\n'},
    }
    cluster.objects[POD_PATH] = document
    ended = await booting.run("--", "true", KONTROL_HTTP_PORT="9001", KONTROL_BIND="10.1.2.3")
    assert f"telegraf sends to tcp://tsdb port 1: {booting.conf}" in ended.err
    conf = tomllib.loads(booting.conf.read_text("utf-8"))
    assert conf["global_tags"] == {
        "app": "redis",
        "array": "front",
        "hostname": "node-1.local",
        "role": "cache",
    }
    assert conf["inputs"]["prometheus"][0]["urls"] == ["http://10.1.2.3:9001/metrics"]
    elsewhere = booting.folder / "elsewhere.conf"
    ended = await booting.run(
        *("--telegraf", str(elsewhere), "--", "printenv", "KONTROL_TELEGRAF_CONF"),
        KONTROL_HTTP_PORT="0",
    )
    assert ended.out.strip() == str(elsewhere)
    assert "inputs" not in tomllib.loads(elsewhere.read_text("utf-8"))


async def test_without_the_annotation_an_old_configuration_goes(booting: Booting) -> None:
    booting.conf.write_text("stale", "utf-8")
    ended = await booting.run("--", "true")
    assert not booting.conf.exists()
    assert "no telegraf configuration: the pod has no annotation" in ended.err


async def test_print_is_a_table_and_starts_nothing(booting: Booting) -> None:
    booting.conf.write_text("stays", "utf-8")
    ended = await booting.run("--print", "--", "touch", str(booting.folder / "touched"))
    assert ended.status == 0
    head, *lines = ended.out.splitlines()
    assert head.split() == ["VARIABLE", "SOURCE", "VALUE"]
    rows = {name: (source, text) for name, source, text in (line.split(None, 2) for line in lines)}
    assert rows["KONTROL_IP"] == ("api", "10.1.2.3")
    assert rows["KONTROL_ZONE"] == ("node", "eu-1a")
    assert booting.conf.read_text("utf-8") == "stays"
    assert not (booting.folder / "touched").exists()
    assert TOKEN not in ended.out + ended.err


async def test_json_is_one_document_with_the_problem(booting: Booting, cluster: Cluster) -> None:
    document = json.loads((await booting.run("--json")).out)
    assert document["problem"] is None
    assert {"variable": "KONTROL_IP", "value": "10.1.2.3", "source": "api"} in document["values"]
    cluster.forbidden = {POD_PATH}
    ended = await booting.run("--json", "--print")
    assert ended.status == 5
    document = json.loads(ended.out)
    assert document["problem"]["status"] == 5
    assert "rolebinding" in document["problem"]["message"]


async def test_a_value_cannot_steer_the_terminal(booting: Booting) -> None:
    ended = await booting.run("--print", KONTROL_HOSTNAME="a\x1b[2Jb")
    assert "\x1b" not in ended.out + ended.err


async def test_the_log_can_be_json(booting: Booting) -> None:
    ended = await booting.run("--", "true", KONTROL_LOG="json")
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert lines
    assert {line["level"] for line in lines} == {"info"}


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("401", 5, "does not accept the token"),
        ("403", 5, "create rolebinding kontrol-boot:games:robot"),
        ("404", 5, "set them in POD_NAME"),
        ("500", 4, "status 500; gave up after 2 s"),
        ("half", 4, "the answer was cut off"),
        ("wrong", 4, "not JSON"),
        ("no address", 6, "has no address yet (status.podIP)"),
        ("no token", 2, "automountServiceAccountToken"),
    ],
)
async def test_a_fault_is_a_line_and_a_status(
    booting: Booting, cluster: Cluster, fault: str, status: int, words: str
) -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"
    match fault:
        case "401":
            cluster.tokens = set()
        case "403":
            cluster.forbidden = {POD_PATH}
        case "404":
            del cluster.objects[POD_PATH]
        case "no address":
            cluster.objects[POD_PATH] = pod(podIP=None)
        case "no token":
            (booting.folder / "account" / "token").unlink()
        case _:
            replies: dict[str, Answer] = {"500": Reply(500), "wrong": Reply(200, "<p>")}
            cluster.script[POD_PATH] = [replies.get(fault, half)] * 100
    ended = await booting.run("--timeout", "2", "--", "echo", "started")
    assert ended.status == status, ended.err
    assert ended.out == ""
    last = ended.err.splitlines()[-1]
    assert " ERROR   kontrol.boot: " in last
    assert words in last
    assert "Traceback" not in ended.err


async def test_a_hanging_node_does_not_stop_the_boot(booting: Booting, cluster: Cluster) -> None:
    cluster.script[NODE_PATH] = [Hang()] * 10
    ended = await booting.run("--timeout", "2", "--", "echo", "started")
    assert (ended.status, ended.out) == (0, "started\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KONTROL_LABELS", "{"),
        ("KONTROL_HTTP_PORT", "99999"),
        ("KONTROL_CLOUD", "heaven"),
        ("KONTROL_LOG", "loud"),
        ("KONTROL_MODE", "agnet"),
    ],
)
async def test_a_bad_variable_is_status_2(booting: Booting, name: str, value: str) -> None:
    ended = await booting.run("--", "true", **{name: value})
    assert ended.status == 2
    assert f"{name}={value!r}: expected" in ended.err


async def test_a_command_that_cannot_be_started(booting: Booting) -> None:
    missing = await booting.run("--", "no-such-program")
    assert missing.status == 127
    assert missing.err.splitlines()[-1] == (
        "kontrol: cannot start no-such-program: no such file or directory"
    )
    folder = await booting.run("--", str(booting.folder))
    assert folder.status == 126
    assert f"cannot start {booting.folder}: permission denied" in folder.err


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)],
)
@pytest.mark.parametrize("hanging", [False, True])
async def test_a_signal_ends_the_waiting_at_once(
    booting: Booting, cluster: Cluster, number: signal.Signals, status: int, *, hanging: bool
) -> None:
    cluster.objects[POD_PATH] = pod(podIP=None)
    if hanging:
        cluster.script[POD_PATH] = [Hang()] * 10
    async with asyncio.timeout(30), booting.start("--", "true") as process:
        await cluster.asked.wait()
        process.send_signal(number)
        async with asyncio.timeout(2):
            _, err = await process.communicate()
    assert process.returncode == status
    assert err.decode("utf-8").splitlines()[-1] == f"kontrol: boot: {number.name}: ending"


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8"))


@pytest.mark.privileged
async def test_a_signal_ends_the_first_process_too(booting: Booting, cluster: Cluster) -> None:
    cluster.objects[POD_PATH] = pod(podIP=None)
    unshare = ("unshare", "--pid", "--fork", "--kill-child")
    async with asyncio.timeout(30), booting.start("--", "true", before=unshare) as process:
        await cluster.asked.wait()
        os.kill(child_of(process.pid), signal.SIGTERM)
        async with asyncio.timeout(2):
            await process.communicate()
    assert process.returncode == 143


async def test_outside_kubernetes_it_is_quick(tmp_path: Path) -> None:
    ended = await Booting(tmp_path, None).run("--", "env", "-0")
    assert ended.status == 0
    assert "no Kubernetes here (KUBERNETES_SERVICE_HOST is not set)" in ended.err
    env = exported(ended.out)
    assert env["KONTROL_ID"] == "redis-0"
    assert env["KONTROL_HOSTNAME"]
    assert "KONTROL_LABELS" not in env
