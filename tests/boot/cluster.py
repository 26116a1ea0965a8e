"""A Kubernetes API over TLS, as far as a pod asks it: objects by path, tokens, refusals.

The certificates are those of tests/support/certs.
"""

import asyncio
import json
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.boot.server import Answer, Reply, Request, Served, serve
from tests.support.etcd import CERTS

TOKEN = "eyJhbGciOiJSUzI1NiJ9.first.secret"
POD_PATH = "/api/v1/namespaces/games/pods/redis-0"
NODE_PATH = "/api/v1/nodes/node-1"
LABELS = {"app": "redis", "role": "cache"}
ANNOTATIONS = {"kontrol.unity3d.com/master": "masters:8000"}
USER = "system:serviceaccount:games:robot"


def pod(**changes: object) -> dict[str, object]:
    """A running pod's object; `changes` go into its status."""
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": "redis-0",
            "namespace": "games",
            "labels": LABELS,
            "annotations": ANNOTATIONS,
            "managedFields": [{"fieldsV1": {"f:metadata": {"f:labels": {".": {}}}}}],
        },
        "spec": {"nodeName": "node-1", "containers": []},
        "status": {"phase": "Running", "podIP": "10.1.2.3", "hostIP": "10.0.0.1", **changes},
    }


def node() -> dict[str, object]:
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": "node-1",
            "labels": {
                "kubernetes.io/hostname": "node-1.local",
                "topology.kubernetes.io/zone": "eu-1a",
                "topology.kubernetes.io/region": "eu-1",
                "node.kubernetes.io/instance-type": "m5.large",
                "unity3d.com/array": "front",
            },
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
        },
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "Hostname", "address": "node-1"},
            ]
        },
    }


def status(code: int, message: str) -> Reply:
    """A refusal as the API gives it."""
    text = json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": code})
    return Reply(code, text, {"Content-Type": "application/json"})


class Cluster:
    """The API's state. `script` answers a path's first requests, before `objects` does.

    A path in `forbidden` is a 403. At each request `asked` is set, and `on_request` called.
    """

    def __init__(self) -> None:
        self.objects: dict[str, object] = {POD_PATH: pod(), NODE_PATH: node()}
        self.script: dict[str, list[Answer]] = {}
        self.forbidden: set[str] = set()
        self.tokens = {TOKEN}
        self.asked = asyncio.Event()
        self.on_request: Callable[[], object] = lambda: None
        self.served: Served

    async def __call__(self, request: Request) -> Answer:
        self.asked.set()
        self.on_request()
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            return status(401, "Unauthorized")
        if script := self.script.get(request.path):
            return script.pop(0)
        if request.path in self.forbidden:
            kind = "nodes" if "/nodes/" in request.path else "pods"
            name = request.path.rpartition("/")[2]
            return status(
                403,
                f'{kind} "{name}" is forbidden: User "{USER}" cannot get resource "{kind}" in API '
                'group "" in the namespace "games"',
            )
        if request.path not in self.objects:
            return status(404, f'"{request.path.rpartition("/")[2]}" not found')
        return Reply(200, json.dumps(self.objects[request.path]))

    @property
    def paths(self) -> list[str]:
        """The paths that were asked, in order."""
        return [request.path for request in self.served.requests]

    def environ(self, **more: str) -> dict[str, str]:
        """What Kubernetes puts in the environment of our pod."""
        host = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "HOSTNAME": "redis-0"}
        return {**host, "KUBERNETES_SERVICE_PORT": str(self.served.port), **more}


@asynccontextmanager
async def running(certificate: str = "member") -> AsyncIterator[Cluster]:
    """A cluster whose API runs on loopback until the block ends."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTS / f"{certificate}.pem", CERTS / f"{certificate}.key")
    cluster = Cluster()
    async with serve(cluster, context) as served:
        cluster.served = served
        yield cluster


def account(folder: Path, token: str = TOKEN) -> Path:
    """Make a service account's folder."""
    folder.mkdir()
    shutil.copy(CERTS / "ca.pem", folder / "ca.crt")
    (folder / "token").write_text(token, "utf-8")
    (folder / "namespace").write_text("games", "utf-8")
    return folder


def podinfo(folder: Path, files: Mapping[str, str]) -> Path:
    """Make a folder as a downwardAPI volume has it."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return folder
