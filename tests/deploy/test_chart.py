"""The Helm chart: made of the manifests, so that it says what kustomize builds of them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.deploy.manifests import (
    COMPONENTS,
    DEPLOY,
    Object,
    containers,
    environment,
    key,
    load,
    named,
    templates,
)
from tests.support.programs import find

pytestmark = pytest.mark.equipped("kubectl", "helm")

_VALUES = {"cert-manager": "certManager"}
_CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding")


def helm(*words: str) -> str:
    done = subprocess.run(
        [str(find("helm")), *words], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def chart(*options: str) -> list[Object]:
    output = helm("template", "ensemble", str(DEPLOY), "--namespace", "games", *options)
    return [item for item in yaml.safe_load_all(output) if item]


def plain(objects: list[Object]) -> dict[tuple[str, str], Object]:
    """Return objects without what kustomize and helm do each in its own way.

    That is: where the namespace stands, and how pods are replaced for another callback.
    """
    text = yaml.safe_dump(objects, sort_keys=True)
    text = re.sub(r"\bkontrol-callback-[0-9a-z]{10}\b", "kontrol-callback", text)
    text = re.sub(r"\bimage: kontrol$", "image: kontrol:latest", text, flags=re.MULTILINE)
    found = {key(item): item for item in yaml.safe_load(text)}
    for (kind, _), item in found.items():
        if kind not in _CLUSTER_WIDE:
            assert item["metadata"].pop("namespace", "games") == "games"
        if kind == "Deployment":
            pod = item["spec"]["template"]["metadata"]
            assert pod.pop("annotations", {}).keys() <= {"checksum/callback"}
    return found


@pytest.mark.parametrize(
    "components", [(), *((name,) for name in COMPONENTS), COMPONENTS], ids="-".join
)
def test_the_chart_is_what_kustomize_builds(components: tuple[str, ...]) -> None:
    options = [f"--set={_VALUES.get(name, name)}.enabled=true" for name in components]
    ours, theirs = plain(chart(*options)), plain(load("", components))
    assert ours.keys() == theirs.keys()
    for name, item in theirs.items():
        assert ours[name] == item, name


def test_values(tmp_path: Path) -> None:
    callback = tmp_path / "on-change"
    callback.write_text('#!/bin/sh\n: "ours" {{ not a template }} é\n', "utf-8")
    options = (
        "--set=image.repository=registry.example.com/kontrol,image.tag=1.0",
        "--set=image.pullPolicy=Always,image.pullSecrets[0].name=registry",
        "--set=masters.replicas=3,masters.env.KONTROL_DAMPER=5",
        "--set=masters.resources.limits.memory=1Gi",
        "--set=etcd.storage=20Gi,etcd.storageClass=fast,etcd.quotaBytes=8589934592",
        "--set=etcd.image=mirror.example.com/etcd:v3.6.16",
        "--set=backup.enabled=true",
    )
    objects = chart(*options, f"--set-file=callback={callback}")
    masters = named(objects, "Deployment", "masters")["spec"]
    (container,) = containers(masters["template"])
    assert masters["replicas"] == 3
    assert container["image"] == "registry.example.com/kontrol:1.0"
    assert container["imagePullPolicy"] == "Always"
    assert masters["template"]["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert environment(container)["KONTROL_DAMPER"] == "5"
    assert container["resources"] == {"limits": {"memory": "1Gi"}}
    etcd = named(objects, "StatefulSet", "etcd")["spec"]
    (member,) = containers(etcd["template"])
    assert member["image"] == "mirror.example.com/etcd:v3.6.16"
    assert "--quota-backend-bytes=8589934592" in member["command"]
    (claim,) = etcd["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "20Gi"
    assert claim["spec"]["storageClassName"] == "fast"
    for name, pod in templates(objects).items():
        if name.startswith("CronJob/"):
            assert containers(pod)[0]["image"] == "registry.example.com/kontrol:1.0"
    data = named(objects, "ConfigMap", "kontrol-callback")["data"]
    assert data == {"on-change": callback.read_text("utf-8")}


def test_another_callback_replaces_the_masters(tmp_path: Path) -> None:
    digests = set()
    for text in ("one", "two"):
        path = tmp_path / text
        path.write_text(text, "utf-8")
        pod = templates(chart(f"--set-file=callback={path}"))["Deployment/masters"]
        digests.add(pod["metadata"]["annotations"]["checksum/callback"])
    assert len(digests) == 2


def test_a_release_in_each_namespace() -> None:
    output = helm("template", "ensemble", str(DEPLOY), "--namespace", "shop")
    objects = [item for item in yaml.safe_load_all(output) if item]
    binding = named(objects, "ClusterRoleBinding", "kontrol-nodes-shop")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "kontrol", "namespace": "shop"}
    ]


def test_it_is_well_made(tmp_path: Path) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(DEPLOY))
    helm("package", str(DEPLOY), "--destination", str(tmp_path))
    [package] = tmp_path.iterdir()
    assert package.stat().st_size < 64 * 1024
    # What it is made of is in the package, too: no file is left out by .helmignore.
    output = helm("template", "ensemble", str(package), "--set=monitoring.enabled=true")
    assert "PrometheusRule" in output
