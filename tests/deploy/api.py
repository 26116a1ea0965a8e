"""A Kubernetes API that records what it is told, as far as kubectl needs one.

Objects are kept by kind, namespace and name. As the real one does, it knows only the namespaces
that were created, judges objects by Kubernetes' schemas, and makes pods and volumes of what asks
for them; their containers run nothing. `execs` are the commands of `kubectl exec`.
"""

import base64
import copy
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
from tests.deploy import protobuf
from tests.deploy.manifests import Object

_NAMESPACED = {
    "v1": {
        "pods": "Pod",
        "services": "Service",
        "secrets": "Secret",
        "configmaps": "ConfigMap",
        "serviceaccounts": "ServiceAccount",
        "persistentvolumeclaims": "PersistentVolumeClaim",
    },
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "batch/v1": {"jobs": "Job", "cronjobs": "CronJob"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "rbac.authorization.k8s.io/v1": {"roles": "Role", "rolebindings": "RoleBinding"},
}
_CLUSTER_WIDE = {
    "v1": {"namespaces": "Namespace"},
    "rbac.authorization.k8s.io/v1": {
        "clusterroles": "ClusterRole",
        "clusterrolebindings": "ClusterRoleBinding",
    },
}
_SHORT = {"persistentvolumeclaims": ["pvc"], "deployments": ["deploy"]}
_VERSION = "1.30"  # of the schemas that objects are judged by
_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?\Z"
)
_NAMESPACE = re.compile(r"/api/v1/namespaces(?:/(?P<name>[^/]+))?\Z")
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3

Key = tuple[str, str, str]


class Refusal(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
        }


@dataclass
class Cluster:
    """What there is: objects by (kind, namespace, name). `asked` are requests that change it."""

    objects: dict[Key, Object] = field(default_factory=dict)
    execs: list[tuple[str, list[str]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def create(self, kind: str, namespace: str, item: Object) -> Object:
        """Take a new object, and make what it asks for. Raises `Refusal`."""
        name = item["metadata"]["name"]
        if kind == "Job" and "spec" not in item:  # of a CronJob
            owner = self.objects["CronJob", namespace, item["metadata"].pop("owner")]
            item["spec"] = copy.deepcopy(owner["spec"]["jobTemplate"]["spec"])
        if namespace and ("Namespace", "", namespace) not in self.objects:
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
        if (kind, namespace, name) in self.objects:
            raise Refusal(409, "AlreadyExists", f'{kind} "{name}" already exists')
        try:
            kubernetes_validate.validate(item, _VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Refusal(400, "BadRequest", f"{kind} {name}: {error}") from None
        if namespace:
            item["metadata"]["namespace"] = namespace
        item["metadata"] |= {"uid": f"uid-{kind}-{name}", "resourceVersion": "1"}
        self.objects[kind, namespace, name] = item
        spec = item.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            self.scale(item, spec.get("replicas", 1))
        elif kind == "Job":
            spec["selector"] = {"matchLabels": {"job-name": name}}
            spec["template"]["metadata"].setdefault("labels", {})["job-name"] = name
            item["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
            self._pod(item, f"{name}-x7k2p")
        return item

    def scale(self, item: Object, replicas: int) -> None:
        """Make as many pods of it, with their volumes."""
        name, namespace = item["metadata"]["name"], item["metadata"]["namespace"]
        item["spec"]["replicas"] = replicas
        owned = [k for k, o in self.objects.items() if o["metadata"].get("owner") == name]
        for key in owned:
            del self.objects[key]
        for number in range(replicas):
            if item["kind"] == "Deployment":
                self._pod(item, f"{name}-6d9f7c5b8-{'abcdefgh'[number]}x2x7")
                continue
            self._pod(item, f"{name}-{number}")
            for claim in item["spec"].get("volumeClaimTemplates", []):
                volume = f"{claim['metadata']['name']}-{name}-{number}"
                labels = item["spec"]["selector"]["matchLabels"]
                self.objects["PersistentVolumeClaim", namespace, volume] = {
                    "kind": "PersistentVolumeClaim",
                    "apiVersion": "v1",
                    "metadata": {"name": volume, "namespace": namespace, "labels": labels},
                }

    def _pod(self, owner: Object, name: str) -> None:
        namespace = owner["metadata"]["namespace"]
        template = owner["spec"]["template"]
        self.objects["Pod", namespace, name] = {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {
                **template["metadata"],
                "name": name,
                "namespace": namespace,
                "owner": owner["metadata"]["name"],
            },
            "spec": template["spec"],
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }

    def select(self, kind: str, namespace: str, query: dict[str, list[str]]) -> list[Object]:
        """Return objects by label and field."""
        found = [o for (k, ns, _), o in self.objects.items() if (k, ns) == (kind, namespace)]
        for words in query.get("labelSelector", []):
            for word in filter(None, words.split(",")):
                name, _, value = word.partition("=")
                found = [o for o in found if o["metadata"].get("labels", {}).get(name) == value]
        for word in query.get("fieldSelector", []):
            found = [o for o in found if o["metadata"]["name"] == word.partition("=")[2]]
        return found

    def waiting(self) -> list[str]:
        """Return what pods wait for and was not made: Secrets, ConfigMaps, accounts, claims."""
        missing = []
        for (kind, namespace, name), item in self.objects.items():
            if kind != "Pod":
                continue
            spec = item["spec"]
            wanted = {("ServiceAccount", spec.get("serviceAccountName", "default"))}
            for volume in spec.get("volumes", []):
                for member, kind_of, field_of in (
                    ("secret", "Secret", "secretName"),
                    ("configMap", "ConfigMap", "name"),
                    ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
                ):
                    if member in volume:
                        wanted.add((kind_of, volume[member][field_of]))
            wanted.discard(("ServiceAccount", "default"))
            missing += [
                f"{name} waits for {kind_of} {its}"
                for kind_of, its in sorted(wanted)
                if (kind_of, namespace, its) not in self.objects
            ]
        return missing


def _discovery(path: str) -> Object | None:
    groups = [name for name in _NAMESPACED if name != "v1"]
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        listed = [
            {
                "name": group.split("/")[0],
                "versions": [{"groupVersion": group, "version": group.split("/")[1]}],
                "preferredVersion": {"groupVersion": group, "version": group.split("/")[1]},
            }
            for group in groups
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    if path == "/version":
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
    group = path.removeprefix("/apis/") if path != "/api/v1" else "v1"
    if group not in _NAMESPACED:
        return None
    kinds = [
        {
            "name": name,
            "singularName": kind.lower(),
            "kind": kind,
            "namespaced": namespaced,
            "shortNames": _SHORT.get(name, []),
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        }
        for namespaced, table in ((True, _NAMESPACED), (False, _CLUSTER_WIDE))
        for name, kind in table.get(group, {}).items()
    ]
    kinds += [
        {
            "name": f"{name}/scale",
            "kind": "Scale",
            "group": "autoscaling",
            "version": "v1",
            "namespaced": True,
            "verbs": ["get", "patch", "update"],
        }
        for name in _NAMESPACED.get(group, {})
        if group == "apps/v1"
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group,
        "resources": kinds,
    }


def _openapi(path: str) -> Object | None:
    """Say that fields are validated here, which kubectl asks before it applies."""
    if path == "/openapi/v3":
        places = ["api/v1", *(f"apis/{group}" for group in _NAMESPACED if group != "v1")]
        paths = {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places}
        return {"paths": paths}
    place = path.removeprefix("/openapi/v3/")
    group = "v1" if place == "api/v1" else place.removeprefix("apis/")
    if place == path or group not in _NAMESPACED:
        return None
    name, _, version = group.rpartition("/")
    described = {
        f"/{place}/{resource}/{{name}}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": {
                    "group": name,
                    "version": version,
                    "kind": kind,
                },
                "responses": {},
            }
        }
        for table in (_NAMESPACED, _CLUSTER_WIDE)
        for resource, kind in table.get(group, {}).items()
    }
    return {"openapi": "3.0.0", "info": {"title": "api", "version": "1"}, "paths": described}


class _Handler(BaseHTTPRequestHandler):
    cluster: ClassVar[Cluster]
    lock: ClassVar[threading.Lock]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        typed = self.headers.get("Content-Type", "").startswith(protobuf.TYPE)
        body: Object = {}
        if raw and self.command != "DELETE":
            body = protobuf.decode(raw) if typed else json.loads(raw)
        parts = urlsplit(self.path)
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self._exec(parts.path, parse_qs(parts.query))
            return
        try:
            with self.lock:
                code, answer = self._act(parts.path, parse_qs(parts.query), body)
        except Refusal as refusal:
            code, answer = refusal.code, refusal.status
        text = isinstance(answer, str)
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode("utf-8")
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _act(
        self, path: str, query: dict[str, list[str]], body: Object
    ) -> tuple[int, Object | str]:
        found = _discovery(path) or _openapi(path)
        if found is not None:
            return 200, found
        cluster = self.cluster
        match = _NAMESPACE.match(path) or _PATH.match(path)
        if match is None:
            raise Refusal(404, "NotFound", f"{path} is unknown here")
        told = match.groupdict()
        if "resource" in told:
            group, resource = told["group"] or "v1", told["resource"]
            namespace, sub = told["namespace"] or "", told["sub"]
            table = _NAMESPACED if namespace else _CLUSTER_WIDE
            kind = table.get(group, {}).get(resource, "")
        else:
            group, namespace, sub, kind = "v1", "", None, "Namespace"
        name = told["name"]
        if not kind:
            raise Refusal(404, "NotFound", f"{path} is unknown here")
        if self.command != "GET":
            cluster.asked.append(f"{self.command} {path}")
        if name is None:
            if self.command == "POST":
                return 201, cluster.create(kind, namespace, body)
            return 200, {
                "kind": f"{kind}List",
                "apiVersion": group,
                "metadata": {"resourceVersion": "1"},
                "items": cluster.select(kind, namespace, query),
            }
        item = cluster.objects.get((kind, namespace, name))
        if item is None:
            raise Refusal(404, "NotFound", f'{kind} "{name}" not found')
        return 200, self._of(item, sub, body)

    def _of(self, item: Object, sub: str | None, body: Object) -> Object | str:
        """Answer a request for one object, or for something of it."""
        name, namespace = item["metadata"]["name"], item["metadata"].get("namespace", "")
        cluster = self.cluster
        if sub == "log":
            return f"the log of {name}\n"
        if sub == "scale":
            if self.command != "GET":
                cluster.scale(item, body["spec"]["replicas"])
            return {
                "kind": "Scale",
                "apiVersion": "autoscaling/v1",
                "metadata": {"name": name, "namespace": namespace, "resourceVersion": "1"},
                "spec": {"replicas": item["spec"]["replicas"]},
            }
        if self.command == "DELETE":
            del cluster.objects[item["kind"], namespace, name]
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        return item  # a patch changes nothing that is looked at

    def _exec(self, path: str, query: dict[str, list[str]]) -> None:
        """Take a command of `kubectl exec`, which ends well and says what it was."""
        match = _PATH.match(path)
        assert match, path
        assert match["sub"] == "exec", path
        self.cluster.execs.append((match["name"], query["command"]))
        accept = hashlib.sha1(f"{self.headers['Sec-WebSocket-Key']}{_GUID}".encode()).digest()  # noqa: S324
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accept).decode("ascii"))
        self.send_header("Sec-WebSocket-Protocol", "v5.channel.k8s.io")
        self.end_headers()
        output = "a1, started, etcd-1\n" if "member" in query["command"] else "done\n"
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        for channel, data in ((1, output.encode()), (3, json.dumps(status).encode())):
            self.wfile.write(_frame(2, bytes([channel]) + data))
        self.wfile.write(_frame(8, (1000).to_bytes(2, "big")))
        self.wfile.flush()
        self.close_connection = True


def _frame(opcode: int, payload: bytes) -> bytes:
    assert len(payload) < 65536
    if len(payload) < 126:
        return bytes([0x80 | opcode, len(payload)]) + payload
    return bytes([0x80 | opcode, 126]) + len(payload).to_bytes(2, "big") + payload


@contextmanager
def serving() -> Iterator[Cluster]:
    """Serve a new, empty cluster on loopback until the block ends."""
    cluster = Cluster()
    handler = type("Handler", (_Handler,), {"cluster": cluster, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
