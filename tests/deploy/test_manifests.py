"""The manifests: valid, consistent with each other and with Kontrol, as tight as they can be."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from tests.deploy.manifests import (
    DEPLOY,
    TOPS,
    Object,
    containers,
    everything,
    load,
    named,
    templates,
)

from kontrol.ensemble.tiers import parse_tiers
from kontrol.settings.variables import VARIABLES

# The oldest Kubernetes with sidecars by default, and the newest that the schemas know.
VERSIONS = ("1.29", ".".join(kubernetes_validate.latest_version().split(".")[:2]))
PODS = {
    f"{top or 'deploy'}:{name}": template
    for top, objects in everything().items()
    for name, template in templates(objects).items()
}
KONTROL = {name: pod for name, pod in PODS.items() if "StatefulSet/etcd" not in name}
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS.keys())
every_kontrol = pytest.mark.parametrize("pod", KONTROL.values(), ids=KONTROL.keys())


def key(item: Object) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("top", TOPS, ids=lambda top: top or "deploy")
def test_valid(top: str, version: str) -> None:
    for item in load(DEPLOY / top):
        kubernetes_validate.validate(item, version, strict=True)


def test_the_schemas_would_tell() -> None:
    broken = load(DEPLOY / "masters")[0] | {"spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize("top", TOPS, ids=lambda top: top or "deploy")
def test_kustomize_agrees_with_our_reader(top: str) -> None:
    """So that what the other tests judge is what is applied. Without kubectl, the reader alone."""
    ours = load(DEPLOY / top)
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        assert ours
        return
    output = subprocess.run(
        [kubectl, "kustomize", DEPLOY / top], capture_output=True, text=True, timeout=30, check=True
    )
    theirs = list(yaml.safe_load_all(output.stdout))
    # Generated names end in a digest, which their users are told too.
    assert sorted((kind, name.split("-callback-")[0]) for kind, name in map(key, theirs)) == sorted(
        (kind, name.removesuffix("-callback")) for kind, name in map(key, ours)
    )
    assert not [
        item for item in theirs if "kontrol-callback" in str(item) and "-callback-" not in str(item)
    ]


def test_the_overlay_of_the_guide(tmp_path: Path) -> None:
    """Namespace, image and callback as the guide has them, on a copy of deploy/."""
    guide = (DEPLOY.parent / "docs" / "guide.rst").read_text("utf-8")
    _, _, rest = guide.partition(":caption: kustomization.yaml\n\n")
    block = rest[: rest.index("\n.. code-block")]
    overlay = yaml.safe_load(textwrap.dedent(block))
    assert overlay["resources"] == ["kontrol/deploy"]
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return
    shutil.copytree(DEPLOY, tmp_path / "kontrol" / "deploy")
    (tmp_path / "kustomization.yaml").write_text(textwrap.dedent(block), encoding="utf-8")
    (tmp_path / "on-change").write_text("#!/bin/sh\n: ours\n", encoding="utf-8")
    output = subprocess.run(
        [kubectl, "kustomize", tmp_path], capture_output=True, text=True, timeout=30, check=True
    )
    objects = list(yaml.safe_load_all(output.stdout))
    cluster = {"ClusterRole", "ClusterRoleBinding"}
    assert {o["metadata"].get("namespace") for o in objects if o["kind"] not in cluster} == {
        "games"
    }
    subjects = [s for o in objects if o["kind"].endswith("Binding") for s in o["subjects"]]
    assert {subject["namespace"] for subject in subjects} == {"games"}
    (masters,) = [pod for name, pod in templates(objects).items() if name == "Deployment/masters"]
    assert masters["spec"]["containers"][0]["image"] == "registry.example.com/kontrol:1.0"
    (callback,) = [o["data"] for o in objects if o["kind"] == "ConfigMap"]
    assert callback == {"on-change": "#!/bin/sh\n: ours\n"}


@every_pod
def test_restricted(pod: Object) -> None:
    """What the Pod Security Standard `restricted` asks for, and a read-only root file system."""
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    kinds = {kind for volume in spec.get("volumes", []) for kind in volume.keys() - {"name"}}
    assert kinds <= {"configMap", "downwardAPI", "emptyDir", "projected", "secret"}
    for container in containers(pod):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True


@every_pod
def test_bounded_probed_and_without_what_it_does_not_use(pod: Object) -> None:
    spec = pod["spec"]
    assert spec["enableServiceLinks"] is False
    assert spec["automountServiceAccountToken"] is False
    for container in containers(pod):
        resources = container["resources"]
        assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory"}
        assert {"livenessProbe", "readinessProbe"} & container.keys()
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            how = container.get(probe, {})
            port = (how.get("httpGet") or how.get("tcpSocket") or {"port": next(iter(ports))})[
                "port"
            ]
            assert port in ports
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        assert mounts - {"data"} <= volumes  # `data` is a claim's


@every_kontrol
def test_kontrol_in_it(pod: Object) -> None:
    """Its variables exist and have values that it takes; it may write in /tmp, and has its keys."""
    known = {variable.name: variable for variable in VARIABLES}
    told = {"POD_NAME", "POD_NAMESPACE", "POD_IP", "HOST_IP", "NODE_NAME"}
    (container,) = [c for c in containers(pod) if c["name"] != "cache"]
    for entry in container["env"]:
        assert entry["name"] in known.keys() | told
        if "value" in entry:
            known[entry["name"]].parse(entry["value"])
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert "emptyDir" in volumes[mounts["/tmp"]]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert "secret" in volumes[mounts[env["KONTROL_KEYS"]]]
    labels = pod["metadata"]["labels"]
    known["KONTROL_LABELS"].parse(json.dumps(labels))
    for name in ("startupProbe", "livenessProbe"):
        assert container[name]["httpGet"] == {"path": "/healthz", "port": "http"}


@every_kontrol
def test_its_grace_is_longer_than_its_jobs_take(pod: Object) -> None:
    assert pod["spec"]["terminationGracePeriodSeconds"] >= 30


def test_pods_report_to_the_masters_service() -> None:
    tier = load(DEPLOY)
    service = named(tier, "Service", "masters")
    masters = templates(tier)["Deployment/masters"]
    assert service["spec"]["selector"].items() <= masters["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None"  # or DNS would tell one address for all
    (container,) = masters["spec"]["containers"]
    assert {p["port"] for p in service["spec"]["ports"]} == {
        p["containerPort"] for p in container["ports"]
    }
    for top in ("examples/sidecar", "examples/image"):
        for pod in templates(load(DEPLOY / top)).values():
            annotation = pod["metadata"]["annotations"]["kontrol.unity3d.com/master"]
            (place,) = parse_tiers(annotation, 8000)
            assert (place.host, place.port) == ("masters", 8000)


def test_masters_know_every_member_of_etcd() -> None:
    tier = load(DEPLOY)
    etcd = named(tier, "StatefulSet", "etcd")["spec"]
    members = [f"etcd-{number}.{etcd['serviceName']}" for number in range(etcd["replicas"])]
    (container,) = templates(tier)["Deployment/masters"]["spec"]["containers"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert env["KONTROL_ETCD"].split(",") == members
    (command,) = [c["command"] for c in etcd["template"]["spec"]["containers"]]
    (cluster,) = [word for word in command if word.startswith("--initial-cluster=")]
    assert cluster.partition("=")[2].split(",") == [
        f"{member.partition('.')[0]}=http://{member}:2380" for member in members
    ]


def test_no_more_rights_than_the_boot_uses() -> None:
    tier = load(DEPLOY)
    rules = {key(o): o["rules"] for o in tier if o["kind"] in ("Role", "ClusterRole")}
    assert rules == {
        ("Role", "kontrol"): [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
        ("ClusterRole", "kontrol-nodes"): [
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}
        ],
    }
    for binding in (o for o in tier if o["kind"].endswith("Binding")):
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in rules
        assert [s["name"] for s in binding["subjects"]] == ["kontrol"]


def test_selectors_select() -> None:
    """A disruption budget or a network policy for no pod would protect nothing, in silence."""
    for objects in everything().values():
        pods = [pod["metadata"]["labels"] for pod in templates(objects).values()]
        for item in objects:
            spec = item.get("spec", {})
            wanted = spec.get("podSelector") or spec.get("selector")
            if wanted is None or item["kind"] == "Service":
                continue
            labels = wanted["matchLabels"]
            assert [pod for pod in pods if labels.items() <= pod.items()], key(item)


def test_secrets_are_those_that_kontrol_keys_prints(tmp_path: Path) -> None:
    def keys(*words: str) -> str:
        command = [sys.executable, "-m", "kontrol", "keys", *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout

    keys("make", str(tmp_path / "keys"))
    printed = {}
    for kind in ("master", "agent"):
        secret = yaml.safe_load(keys("secret", str(tmp_path / "keys"), "--kind", kind))
        kubernetes_validate.validate(secret, VERSIONS[0], strict=True)
        printed[secret["metadata"]["name"]] = secret["data"].keys()
    used = {
        volume["secret"]["secretName"]: pod
        for pod in PODS.values()
        for volume in pod["spec"].get("volumes", [])
        if "secret" in volume
    }
    assert used.keys() == printed.keys()
    for name, pod in used.items():
        role = "master" if pod["metadata"]["labels"]["role"] == "master" else "agent"
        assert f"{role}.secret" in printed[name]
        assert [key for key in printed[name] if key.endswith(".secret")] == [f"{role}.secret"]
