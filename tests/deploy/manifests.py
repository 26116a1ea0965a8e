"""What `deploy/` says once kustomize has built it, as `kubectl apply -k` would.

A kustomization of a user's own is made in a temporary folder, with the repository's `deploy/`
beside it as the guide has it, so that what is judged is what is applied.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from tests.support.programs import find

DEPLOY = Path(__file__).parents[2] / "deploy"
TOPS = ("", "examples/sidecar", "examples/image")
"""The folders that are meant to be applied."""
COMPONENTS = ("backup", "cert-manager", "monitoring", "egress", "openshift", "zones")
"""The folders of deploy/components, in an order in which all of them can be used together."""

Object = dict[str, Any]


def kustomize(folder: Path) -> list[Object]:
    """Return every object that a kustomization builds."""
    command = [str(find("kubectl")), "kustomize", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert built.returncode == 0, built.stderr
    return [item for item in yaml.safe_load_all(built.stdout) if item]


@cache
def load(
    top: str = "", components: tuple[str, ...] = (), namespace: str = "games", **more: str
) -> list[Object]:
    """Return the objects of a folder, as a kustomization of one's own that names it builds them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(DEPLOY, folder / "kontrol" / "deploy")
        document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": namespace,
            "resources": [f"kontrol/deploy/{top}".rstrip("/")],
            "components": [f"kontrol/deploy/components/{name}" for name in components],
            **more,
        }
        folder.joinpath("kustomization.yaml").write_text(yaml.safe_dump(document), "utf-8")
        return kustomize(folder)


def key(item: Object) -> tuple[str, str]:
    """Return an object's kind and name."""
    return item["kind"], item["metadata"]["name"]


def everything() -> list[Object]:
    """Return the objects of every folder and component that is meant to be applied."""
    return [*load("", COMPONENTS), *load(), *load("examples/sidecar"), *load("examples/image")]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """Return the one object of this kind and name."""
    (found,) = [item for item in objects if key(item) == (kind, name)]
    return found


def templates(objects: Sequence[Object]) -> dict[str, Object]:
    """Return the pod templates, by `kind/name` of what makes the pods."""
    return {f"{item['kind']}/{item['metadata']['name']}": pod for item, pod in _pods(objects)}


def _pods(objects: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield item, item["spec"]["template"]
        elif item["kind"] == "CronJob":
            yield item, item["spec"]["jobTemplate"]["spec"]["template"]


def containers(template: Object) -> list[Object]:
    """Return all containers of a pod, init containers too."""
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def environment(container: Object) -> dict[str, str | None]:
    """Return the variables of a container by name, None for what is told by a field."""
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def secrets(template: Object) -> Iterator[str]:
    """Return the names of the Secrets that a pod waits for."""
    for volume in template["spec"].get("volumes", []):
        if "secret" in volume and not volume["secret"].get("optional"):
            yield volume["secret"]["secretName"]


def documents(path: str) -> list[Object]:
    """Return the objects of one file of deploy/, as they are written."""
    found = list(yaml.safe_load_all((DEPLOY / path).read_text("utf-8")))
    assert all(isinstance(each, dict) for each in found), path
    return found
