"""Reads deploy/ as kustomize would, as far as our kustomizations go: resources, images, ConfigMaps.

`kubectl kustomize` is asked too where it is there; this is for where it is not, and for judging
what the manifests say.
"""

from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
TOPS = ("", "examples/sidecar", "examples/image")
"""The folders that are meant to be applied."""

Object = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "resources", "images", "configMapGenerator"}


def load(folder: Path) -> list[Object]:
    """Return every object of a kustomization, in order."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    assert kustomization.keys() <= _KNOWN, f"{folder}: more than this reader knows"
    objects: list[Object] = []
    for name in kustomization["resources"]:
        path = folder / name
        assert path.resolve().is_relative_to(DEPLOY), f"{path} is outside deploy/"
        objects += load(path) if path.is_dir() else documents(path)
    for generator in kustomization.get("configMapGenerator", []):
        objects.append(config_map(folder, generator))
    return objects


def documents(path: Path) -> list[Object]:
    """Return the objects of one file."""
    found = list(yaml.safe_load_all(path.read_text("utf-8")))
    assert all(isinstance(each, dict) for each in found), path
    return found


def config_map(folder: Path, generator: Object) -> Object:
    """Return the ConfigMap that a generator makes."""
    data = {name: (folder / name).read_text("utf-8") for name in generator["files"]}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": generator["name"]},
        "data": data,
    }


def everything() -> dict[str, list[Object]]:
    """Return the objects of every folder that is meant to be applied."""
    return {top: load(DEPLOY / top) for top in TOPS}


def named(objects: list[Object], kind: str, name: str) -> Object:
    """Return the one object of this kind and name."""
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def templates(objects: list[Object]) -> dict[str, Object]:
    """Return the pod templates, by `kind/name` of what makes the pods."""
    return {
        f"{o['kind']}/{o['metadata']['name']}": o["spec"]["template"]
        for o in objects
        if o["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job")
    }


def containers(template: Object) -> list[Object]:
    """Return all containers of a pod, init containers too."""
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]
