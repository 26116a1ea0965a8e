"""etcd as the manifests start it, and what the page on it says to do, on real members.

Each member runs with the command of the StatefulSet: only addresses and paths are put in place of
the pod's. Certificates are those that `deploy/etcd/certificates` makes.
"""

import asyncio
import base64
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from tests.deploy.docs import blocks, commands, section
from tests.deploy.manifests import DEPLOY, Object, containers, documents, environment
from tests.support import etcd
from tests.support.etcd import EtcdCluster, Member

from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Put, Range, StoreError

pytestmark = [pytest.mark.equipped("openssl"), pytest.mark.timeout(240)]

(CONTAINER,) = containers(documents("etcd/statefulset.yaml")[0]["spec"]["template"])
KONTROL = (sys.executable, "-m", "kontrol")


async def certificates(folder: Path, **environ: str) -> dict[str, Object]:
    """Run the script, and return the Secrets that it prints, by name."""
    process = await asyncio.create_subprocess_exec(
        str(DEPLOY / "etcd" / "certificates"),
        str(folder),
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b""), err
    return {item["metadata"]["name"]: item for item in yaml.safe_load_all(out)}


def mount(secret: Object, folder: Path) -> Path:
    """Write a Secret's files where kubelet would."""
    folder.mkdir(exist_ok=True)
    for name, data in secret["data"].items():
        (folder / name).write_bytes(base64.b64decode(data, validate=True))
        (folder / name).chmod(0o400)
    return folder


class Tier(EtcdCluster):
    """The members of the StatefulSet. `state` is what the ConfigMap `etcd` says, if it is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(3, tls=True, prefix="etcd-")
        self.server, self.client = folder / "server", folder / "client"
        self.state = ""

    def _here(self, text: str, own: Member) -> str:
        """Put this machine's addresses and folders in place of a pod's."""
        text = text.replace("$(NAME)", own.name)
        for member in self.members:
            for port, ours in ((2379, member.client_port), (2380, member.peer_port)):
                text = text.replace(f"{member.name}.etcd:{port}", f"localhost:{ours}")
        ports = {2379: own.client_port, 2380: own.peer_port, 2381: own.metrics_port}
        for port, ours in ports.items():
            text = text.replace(f"0.0.0.0:{port}", f"127.0.0.1:{ours}")
        return text.replace("/etc/etcd/tls", str(self.server)).replace("/data/etcd", str(own.data))

    def _command(self, member: Member) -> list[str]:
        words = [self._here(word, member) for word in CONTAINER["command"][1:]]
        state = [f"--initial-cluster-state={self.state}"] if self.state else []
        return [self._binary, *words, *state, "--unsafe-no-fsync"]

    def environ(self, member: Member) -> dict[str, str]:
        """Return the variables that a pod has for etcdctl."""
        told = environment(CONTAINER).items()
        env = {name: self._here(value, member) for name, value in told if value is not None}
        return {**os.environ, "ETCDCTL_API": "3", **env}

    @property
    def variables(self) -> dict[str, str]:
        """What the masters' manifest says of etcd, with this machine's addresses."""
        return {
            "KONTROL_ETCD": ",".join(f"https://localhost:{m.client_port}" for m in self.members),
            "KONTROL_ETCD_CA": str(self.client / "ca.crt"),
            "KONTROL_ETCD_CERT": str(self.client / "tls.crt"),
            "KONTROL_ETCD_KEY": str(self.client / "tls.key"),
        }


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Tier]:
    made = await certificates(folder / "certs")
    tier = Tier(folder)
    mount(made["etcd-server"], tier.server)
    mount(made["etcd-client"], tier.client)
    async with tier:
        yield tier


def config(tier: Tier, *, certified: bool = True) -> EtcdConfig:
    folder = tier.client
    return EtcdConfig(
        tuple(f"localhost:{member.client_port}" for member in tier.members),
        ca=folder / "ca.crt",
        cert=folder / "tls.crt" if certified else None,
        key=folder / "tls.key" if certified else None,
    )


class Cluster:
    """A `kubectl` that does what the page's commands mean, on our processes in place of pods.

    It is a program on the `PATH` that hands its words to this one over a socket.
    """

    STUB = """\
#!{python}
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect(os.environ["CLUSTER"])
    link.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    status, out, err = json.loads(link.makefile().readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""

    def __init__(self, tier: Tier, folder: Path) -> None:
        self.tier = tier
        self.folder = folder
        self.backup = folder / "backup"
        self.backup.mkdir()
        self.masters: list[asyncio.subprocess.Process] = []
        self.log: asyncio.StreamReader  # what the masters write
        self.output = ""
        self.port = 0  # of the masters, chosen when they start: it is kept free for a minute
        (folder / "bin").mkdir()
        stub = folder / "bin" / "kubectl"
        stub.write_text(self.STUB.format(python=sys.executable), "utf-8")
        stub.chmod(0o755)

    async def run(self, *lines: str) -> str:
        """Run commands in one shell, as a user who copies them; return what they print."""
        server = await asyncio.start_unix_server(self._serve, self.folder / "socket")
        environ = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "CLUSTER": str(self.folder / "socket"),
        }
        async with server:
            shell = await asyncio.create_subprocess_exec(
                *("bash", "-euo", "pipefail", "-c", "\n".join(lines)),
                env=environ,
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await shell.communicate()
        assert shell.returncode == 0, (out + err).decode("utf-8")
        return out.decode("utf-8")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = json.loads(await reader.readline())
        assert words[:2] == ["-n", "games"], words
        answer = await self._do(words[2:])
        writer.write(json.dumps(answer).encode("utf-8") + b"\n")
        writer.close()

    async def _do(self, words: list[str]) -> tuple[int, str, str]:
        match words:
            case ["exec", name, "--", "etcdctl", *rest]:
                return await self._etcdctl(self._index(name), rest)
            case ["create", "configmap", "etcd", "--from-literal=initial-cluster-state=existing"]:
                self.tier.state = "existing"
            case ["delete", "configmap", "etcd", "--ignore-not-found"]:
                self.tier.state = ""
            case ["delete", "pvc", name, "--wait=false"]:
                index = self._index(name.removeprefix("data-"))
                shutil.rmtree(self.tier.members[index].data, ignore_errors=True)
            case ["delete", "pod", name]:
                await self.tier.kill(self._index(name))
                await self.tier.start(self._index(name))
            case ["delete", "pvc", "-l", "app=etcd"]:
                for member in self.tier.members:
                    assert member.process is None, "a pod uses that volume"
                    shutil.rmtree(member.data, ignore_errors=True)
            case ["scale", "statefulset/etcd", "--replicas=0"]:
                for index in range(3):
                    await self.tier.kill(index)
            case ["scale", "statefulset/etcd", "--replicas=3"]:
                for index in range(3):
                    await self.tier.start(index, ready=False)
            case ["scale", "deployment/masters", replicas]:
                await self.scale(int(replicas.removeprefix("--replicas=")))
            case ["create", "job", name, origin]:
                return await self._job(name, origin.removeprefix("--from=cronjob/"))
            case ["wait", "--for=condition=complete", *_]:
                pass  # a job was waited for when it was made
            case ["logs", _]:
                return 0, self.output, ""
            case other:
                raise AssertionError(f"the page has a command that is not known here: {other}")
        return 0, "", ""

    def _index(self, name: str) -> int:
        return [member.name for member in self.tier.members].index(name)

    async def _etcdctl(self, index: int, words: list[str]) -> tuple[int, str, str]:
        async with asyncio.timeout(30):
            while True:
                process = await asyncio.create_subprocess_exec(
                    str(etcd.find("etcdctl")),
                    *self._words(index, words),
                    env=self.tier.environ(self.tier.members[index]),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                )
                out, err = await process.communicate()
                if b"unhealthy cluster" not in err:
                    return process.returncode or 0, out.decode("utf-8"), err.decode("utf-8")
                # These members are too young; the page says to ask again. etcd tells when it is so
                # only to those who ask.
                await asyncio.sleep(0.5)

    def _words(self, index: int, words: list[str]) -> list[str]:
        return [self.tier._here(word, self.tier.members[index]) for word in words]

    async def _job(self, name: str, origin: str) -> tuple[int, str, str]:
        (job,) = [
            o
            for o in documents("components/backup/cronjobs.yaml")
            if o["metadata"]["name"] == origin
        ]
        (container,) = containers(job["spec"]["jobTemplate"]["spec"]["template"])
        *shell, script = container["command"]
        told = {k: v for k, v in environment(container).items() if v is not None}
        process = await asyncio.create_subprocess_exec(
            *(*shell, script.replace("/backup", str(self.backup))),
            env={
                **os.environ,
                **told,
                **self.tier.variables,
                "NAMESPACE": "games",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        self.output = out.decode("utf-8")
        return process.returncode or 0, f"job.batch/{name} created\n", err.decode("utf-8")

    async def scale(self, replicas: int) -> None:
        """Run as many masters, the first an agent too."""
        for process in self.masters:
            process.terminate()
            await process.wait()
        self.masters = []
        reader, writer = os.pipe()
        self.log = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.log), os.fdopen(reader, "rb")
        )
        for index in range(replicas):
            self.port = self.port or etcd.free_port()
            variables = {
                "KONTROL_MODE": "master,agent" if not index else "master",
                "KONTROL_ID": f"masters-{index}",
                "KONTROL_IP": f"127.0.0.{index + 1}",
                "KONTROL_BIND": f"127.0.0.{index + 1}",
                "KONTROL_PORT": str(self.port),
                "KONTROL_HTTP_PORT": "0",
                "KONTROL_LABELS": '{"app": "kontrol", "role": "master"}',
                "KONTROL_ANNOTATIONS": json.dumps(
                    {"kontrol.unity3d.com/master": f"127.0.0.1:{self.port}"}
                ),
                "KONTROL_DAMPER": "0",
                "KONTROL_FOVER": "3",
                "KONTROL_SHELL_CALLBACK": "TRUE",
                "KONTROL_CALLBACK": "echo ran $RUN with $STATE and $PODS >&2; echo '\"kept\"'",
                "KONTROL_CONTROL": str(self.folder / f"control-{index}"),
                "NAMESPACE": "games",
            }
            self.masters.append(
                await asyncio.create_subprocess_exec(
                    *KONTROL,
                    env={"PATH": os.environ["PATH"], **variables, **self.tier.variables},
                    stdout=writer,
                    stderr=asyncio.subprocess.STDOUT,
                )
            )
        os.close(writer)

    async def says(self, wanted: str) -> str:
        """Wait until one of the masters logs something; return that line."""
        seen: list[str] = []
        try:
            async with asyncio.timeout(60):
                while line := (await self.log.readline()).decode("utf-8"):
                    seen.append(line)
                    if wanted in line:
                        return line
        except TimeoutError:
            seen.append("and nothing more")
        raise AssertionError("".join(seen))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as tier:
        cluster = Cluster(tier, tmp_path)
        try:
            yield cluster
        finally:
            await cluster.scale(0)


def of_page(title: str, chosen: Callable[[str], bool] = lambda _command: True) -> list[str]:
    found = [
        command
        for language, _, content in blocks(section("etcd.rst", title))
        if language == "console"
        for command in commands(content)
    ]
    assert found, title
    return [command for command in found if chosen(command)]


async def value(store: EtcdStore) -> bytes:
    (found,) = (await store.range(Range("x"))).kvs
    return found.value


async def test_members_and_masters_speak_tls(tmp_path: Path) -> None:
    async with running(tmp_path) as tier:
        async with EtcdStore(config(tier)) as store:
            await store.txn([], [Put("x", b"y")])
            assert await value(store) == b"y"
        async with EtcdStore(config(tier, certified=False)) as store:
            with pytest.raises(StoreError):
                await value(store)
        # A client of another authority is refused.
        mount((await certificates(tmp_path / "other"))["etcd-client"], tmp_path / "unknown")
        for name in ("tls.crt", "tls.key"):
            (tier.client / name).unlink()
            shutil.copy(tmp_path / "unknown" / name, tier.client / name)
        async with EtcdStore(config(tier)) as store:
            with pytest.raises(StoreError):
                await value(store)
        # New certificates of the same authority are taken over while members run.
        made = await certificates(tmp_path / "certs")
        for name, folder in (("etcd-client", tier.client), ("etcd-server", tier.server)):
            shutil.rmtree(folder)
            mount(made[name], folder)
        async with EtcdStore(config(tier)) as store:
            assert await value(store) == b"y"


async def test_the_authority_is_kept_where_its_owner_alone_reads(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    first = await certificates(folder)
    second = await certificates(folder, MEMBERS="5")
    for name in ("etcd-server", "etcd-client"):
        assert first[name]["type"] == "kubernetes.io/tls"
        assert first[name]["data"].keys() == {"ca.crt", "tls.crt", "tls.key"}
        assert first[name]["data"]["ca.crt"] == second[name]["data"]["ca.crt"]
        assert first[name]["data"]["tls.key"] != second[name]["data"]["tls.key"]
        assert "ca.key" not in str(first[name]["data"].keys())
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}
    assert "namespace" not in first["etcd-server"]["metadata"]


async def test_replacing_a_member_that_lost_its_volume(cluster: Cluster) -> None:
    tier = cluster.tier
    async with EtcdStore(config(tier)) as store:
        await store.txn([], [Put("x", b"y")])
        await tier.kill(1)
        shutil.rmtree(tier.members[1].data)
        output = await cluster.run(*of_page("Replace a member"))
        await tier.ready()
        await tier.kill(0)  # the new member is half of the quorum that is left
        assert await value(store) == b"y"
    assert "etcd-1" in output
    assert tier.state == "existing"


async def test_a_wiped_member_is_of_no_use_until_it_is_replaced(cluster: Cluster) -> None:
    """What the page says of it: or its steps would be for nothing."""
    tier = cluster.tier
    await tier.kill(1)
    shutil.rmtree(tier.members[1].data)
    await tier.start(1, ready=False)
    process = tier.members[1].process
    assert process is not None
    async with asyncio.timeout(30):
        await process.wait()
    assert process.returncode != 0


async def test_backup_and_restore(cluster: Cluster) -> None:
    await cluster.scale(1)
    before = await cluster.says("ran 1 with")
    assert '"seq":0' in before.replace(" ", "").replace("\\", "")
    await cluster.says("acknowledged")
    backup = of_page("Backup", lambda command: "apply" not in command and "deploy/" not in command)
    assert len(backup) == 3
    output = await cluster.run(*backup)
    (saved,) = cluster.backup.iterdir()
    assert (output.splitlines()[-1], saved.stat().st_mode & 0o777) == (str(saved), 0o600)
    await cluster.run(*of_page("Restore"))
    after = await cluster.says("ran ")
    assert 'with "kept"' in after.replace("\\", "")
    assert '"seq":0' in after.replace(" ", "").replace("\\", "")
    assert "ran 1 " not in after
