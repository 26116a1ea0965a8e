"""What agents and commands import: of what is heavy, only what they use (decision 0178).

`python -m bench imports` measures what an import costs.
"""

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.cli.master import Master
from tests.support.etcd import CERTS, free_port

from kontrol.httpclient import request
from kontrol.rpc.security.keyfolder import make
from kontrol.rpc.security.keys import Keyring
from kontrol.rpc.server import Call, Server

DEADLINE = 40.0

HEAVY = {
    "argparse": "the options of commands; a daemon has none",
    "asyncio": "the event loop, 4 MB more than a command without one",
    "bz2": "comes with shutil",
    "concurrent.futures.process": "a pool of processes; asyncio imports the package alone",
    "concurrent.futures.thread": "a pool of threads; the resolver has threads of its own",
    "ctypes": "libffi; for inotify, and for the event loop's timers on the boot clock",
    "difflib": "suggestions for words that are wrong",
    "email": "comes with http and importlib.metadata",
    "google.protobuf": "etcd, which only masters talk to",
    "h11": "HTTP",
    "hashlib": "hashes; agents and commands need none, but tokens of REST are compared by them",
    "http": "the standard library's client, which kontrol.httpclient replaces",
    "importlib.metadata": "versions; that of Kontrol is in kontrol._version",
    "importlib.resources": "data of packages; there are none",
    "kontrol.boot": "kontrol boot",
    "kontrol.daemon": "agents and masters",
    "kontrol.demo": "kontrol demo",
    "kontrol.filewatch": "files that change, with ctypes",
    "kontrol.master": "masters",
    "kontrol.process": "commands that are run here; of it, the clock of the event loop is small",
    "kontrol.rpc": "ZeroRPC",
    "kontrol.rpc.server": "the endpoint, which an agent without remote commands does not have",
    "kontrol.settings": "the environment",
    "kontrol.store": "etcd, which only masters talk to",
    "kontrol.web": "REST",
    "logging": "the log of daemons; notes of the settings have its levels",
    "lzma": "comes with shutil",
    "multiprocessing": "nothing uses it",
    "msgpack": "ZeroRPC",
    "nacl": "libsodium, for keys on the ZeroRPC port",
    "secrets": "tokens and keys that are made here",
    "shutil": "with three compression libraries",
    "ssl": "OpenSSL, for TLS: 5 MB with _hashlib",
    "tempfile": "files that are replaced; agents write none",
    "unittest": "comes with careless imports",
    "urllib.request": "proxies, e-mail and FTP",
    "xml": "nothing uses it",
    "yaml": "automaton's manifests",
    "_hashlib": "OpenSSL, for hashes that CPython has itself",
    "_ssl": "OpenSSL, for TLS",
}
"""Names of modules and packages, and what they are for. All but those of a case are refused."""

ZERORPC = {"kontrol.rpc", "msgpack"}
ASKS = {"argparse", "kontrol.settings", "logging"}
AGENT = {
    "asyncio",
    "ctypes",
    "kontrol.daemon",
    "kontrol.process",
    "kontrol.settings",
    "logging",
} | ZERORPC
REST = {"h11", "hashlib", "kontrol.web"}
WATCHES = {"kontrol.filewatch"}

# Writes the names of all modules that are there at the end. Some are None: they cannot be imported.
RECORD = """
import atexit, sys
def record(path=sys.argv.pop(1)):
    with open(path, "w") as file:
        file.write("\\n".join(name for name in sorted(sys.modules) if sys.modules[name]))
atexit.register(record)
from kontrol.__main__ import main
sys.exit(main())
"""


def environment(**more: str) -> dict[str, str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("KONTROL_")}
    return {**clean, "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": "", **more}


def surplus(record: Path, allowed: set[str]) -> list[str]:
    """Return what was imported of HEAVY beyond what is allowed."""
    loaded = set(record.read_text("utf-8").split())
    assert "kontrol" in loaded
    return [name for name in HEAVY if name in loaded - allowed]


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["--version"], {"argparse", "shutil", "bz2", "lzma"}),
        (["--help"], {"argparse", "shutil", "bz2", "lzma"}),
        (["config"], ASKS | {"shutil", "bz2", "lzma"}),
        (["leave", "x"], ASKS | {"shutil", "bz2", "lzma"}),
        (["completion", "bash"], set(HEAVY)),  # it prints the options of all commands
        (["nonsense"], {"argparse", "difflib", "shutil", "bz2", "lzma"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_commands(tmp_path: Path, words: list[str], allowed: set[str]) -> None:
    record = tmp_path / "modules"
    subprocess.run(
        [sys.executable, "-c", RECORD, record, *words],
        env=environment(XDG_RUNTIME_DIR=str(tmp_path)),
        capture_output=True,
        check=False,
        timeout=DEADLINE,
    )
    assert surplus(record, allowed) == []


def test_commands_that_ask_over_rest(tmp_path: Path) -> None:
    record = tmp_path / "modules"
    with Master().serving() as master:
        subprocess.run(
            [sys.executable, "-c", RECORD, record, "pods"],
            env=environment(KONTROL_MASTER=master.url),
            capture_output=True,
            check=True,
            timeout=DEADLINE,
        )
    assert surplus(record, ASKS | {"h11", "shutil", "bz2", "lzma"}) == []


def test_invoke(tmp_path: Path) -> None:
    record = tmp_path / "modules"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.pods", "1"], stdout=subprocess.PIPE, text=True
    ) as pods:
        assert pods.stdout is not None
        try:
            [pod] = json.loads(pods.stdout.readline())
            subprocess.run(
                [sys.executable, "-c", RECORD, record, "invoke", "--all", "--", "true"],
                env=environment(KONTROL_MASTER=f"127.0.0.1:{pod['port']}"),
                check=True,
                timeout=DEADLINE,
            )
        finally:
            pods.terminate()
    allowed = ASKS | ZERORPC | {"asyncio", "shutil", "bz2", "lzma"}
    assert surplus(record, allowed) == []


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ({}, set()),
        ({"KONTROL_HTTP_PORT": "{port}"}, REST),
        ({"KONTROL_PAYLOAD": "{folder}/payload.json"}, WATCHES),
        ({"KONTROL_ON_SILENT": "true", "KONTROL_ON_HEARD": "true"}, set()),
        ({"KONTROL_PUBLISHED": "{folder}/p.json", "KONTROL_ON_PUBLISHED": "true"}, set()),
        ({"KONTROL_KEYS": "{folder}/keys"}, WATCHES | {"kontrol.rpc.server", "nacl"}),
    ],
    ids=["bare", "rest", "payload", "hooks", "published", "keys"],
)
async def test_agents(tmp_path: Path, more: Mapping[str, str], allowed: set[str]) -> None:
    record = tmp_path / "modules"
    make(tmp_path / "keys", "2026-11-29")
    keys = tmp_path / "keys" if "KONTROL_KEYS" in more else None
    given = {name: text.format(port=free_port(), folder=tmp_path) for name, text in more.items()}
    async with reporting(tmp_path, keys, given) as agent:
        assert threads(agent.pid) == 1
    assert surplus(record, AGENT | allowed) == []


async def test_an_agent_with_a_certificate_speaks_tls(tmp_path: Path) -> None:
    port = free_port()
    more = {
        "KONTROL_HTTP_PORT": str(port),
        "KONTROL_TLS_CERT": str(CERTS / "member.pem"),
        "KONTROL_TLS_KEY": str(CERTS / "member.key"),
    }
    trusting = ssl.create_default_context(cafile=CERTS / "ca.pem")
    async with reporting(tmp_path, None, more):
        answer = await request(f"https://localhost:{port}/healthz", tls=trusting)
    assert answer.status == 200


async def test_an_idle_agent_does_not_wake(tmp_path: Path) -> None:
    more = {"KONTROL_HTTP_PORT": str(free_port())}
    async with reporting(tmp_path, None, more) as agent:
        before = waits(agent.pid)
        await asyncio.sleep(3.0)  # the stretch itself, between two keepalives
        # What is left of the acknowledgement, and no poll.
        assert waits(agent.pid) - before <= 4


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def waits(pid: int) -> int:
    """Return how often the main thread of a process has waited for something."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@asynccontextmanager
async def reporting(
    folder: Path, keys: Path | None, more: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent that a master has acknowledged; it ends by SIGTERM, in order."""
    acknowledged = asyncio.Event()

    async def ping(call: Call, raw: str) -> object:
        acknowledged.set()
        return {"seq": 0, "ttl": 25, "leader": None}

    ring = None if keys is None else Keyring.load(keys)
    server = Server({"ping": ping}, keys=ring, own="master")
    port = await server.bind("127.0.0.1", 0)
    environ = environment(
        KONTROL_MODE="agent",
        KONTROL_ID="pod-1",
        KONTROL_IP="10.1.0.1",
        KONTROL_BIND="127.0.0.1",
        KONTROL_PORT=str(free_port()),
        KONTROL_LABELS='{"app": "test", "role": "test"}',
        KONTROL_ANNOTATIONS=json.dumps({"kontrol.unity3d.com/master": f"127.0.0.1:{port}"}),
        KONTROL_CONTROL=str(folder / "control.sock"),
        KONTROL_HTTP_PORT="0",
    )
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RECORD, folder / "modules"), env={**environ, **more}
        )
        try:
            async with asyncio.timeout(DEADLINE):
                await acknowledged.wait()
                yield process
                process.terminate()
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            serving.cancel()
