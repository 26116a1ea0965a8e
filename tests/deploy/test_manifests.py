"""The manifests: valid, consistent with each other and with Kontrol, as tight as they can be."""

import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
from tests.deploy.manifests import (
    COMPONENTS,
    DEPLOY,
    TOPS,
    Object,
    containers,
    environment,
    everything,
    key,
    load,
    named,
    secrets,
    templates,
)

from kontrol.ensemble.tiers import parse_tiers
from kontrol.master.operator.metrics import METRICS
from kontrol.settings.variables import VARIABLES
from kontrol.web.web import WEB

pytestmark = pytest.mark.equipped("kubectl")

# The oldest Kubernetes with sidecars by default, and the newest that the schemas know.
VERSIONS = ("1.29", ".".join(kubernetes_validate.latest_version().split(".")[:2]))
# Kinds of custom resource definitions: judged by the tests below.
FOREIGN = ("monitoring.coreos.com/v1", "cert-manager.io/v1")


@pytest.fixture(scope="module")
def pods() -> dict[str, Object]:
    """Every pod, by what makes it."""
    found: dict[str, Object] = {}
    for top in TOPS:
        found |= templates(load(top))
    return found | templates(load("", COMPONENTS))


@pytest.fixture(scope="module")
def kontrols(pods: dict[str, Object]) -> dict[str, tuple[Object, Object]]:
    """Every pod that Kontrol runs in, with the container that it is."""
    return {
        name: (pod, container)
        for name, pod in pods.items()
        for container in containers(pod)
        if any(variable.startswith("KONTROL_") for variable in environment(container))
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("components", [(), COMPONENTS])
def test_the_tier_is_valid(components: tuple[str, ...], version: str) -> None:
    for item in load("", components):
        if item["apiVersion"] not in FOREIGN:
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("top", TOPS[1:])
def test_the_examples_are_valid(top: str, version: str) -> None:
    for item in load(top):
        kubernetes_validate.validate(item, version, strict=True)


def test_the_schemas_would_tell() -> None:
    broken = load()[0] | {"spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


def test_every_folder_of_deploy_is_judged_here() -> None:
    assert {path.name for path in (DEPLOY / "components").iterdir()} == set(COMPONENTS)
    assert {f"examples/{path.name}" for path in (DEPLOY / "examples").iterdir()} == set(TOPS) - {""}


def test_restricted(pods: dict[str, Object]) -> None:
    """What the Pod Security Standard `restricted` asks for, and a read-only root file system."""
    for name, pod in pods.items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume.keys() - {"name"}}
        allowed = ("configMap", "downwardAPI", "emptyDir", "projected", "secret")
        assert kinds <= {*allowed, "persistentVolumeClaim"}, name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert context["readOnlyRootFilesystem"] is True, name


def test_bounded_probed_and_without_what_it_does_not_use(pods: dict[str, Object]) -> None:
    for name, pod in pods.items():
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is False, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in containers(pod):
            resources = container["resources"]
            assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory"}
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            assert mounts - {"data"} <= volumes, name  # `data` is a claim's
            if name.startswith("CronJob/"):
                continue  # it ends by itself, or by its deadline
            assert {"livenessProbe", "readinessProbe"} & container.keys(), name
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                how = container.get(probe, {})
                place = how.get("httpGet") or how.get("tcpSocket") or {"port": next(iter(ports))}
                assert place["port"] in ports, name


def test_tokens_of_the_service_account_are_renewed(pods: dict[str, Object]) -> None:
    """3607 is what Kubernetes asks for by itself, and takes for a token of a year."""
    lifetimes = [
        source["serviceAccountToken"]["expirationSeconds"]
        for pod in pods.values()
        for volume in pod["spec"].get("volumes", [])
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    ]
    assert lifetimes == [3600] * 2


def test_kontrol_in_it(kontrols: dict[str, tuple[Object, Object]]) -> None:
    """Its variables exist and have values that it takes, and it may write in /tmp."""
    known = {variable.name: variable for variable in VARIABLES}
    told = {"POD_NAME", "POD_NAMESPACE", "POD_IP", "HOST_IP", "NODE_NAME"}
    assert len(kontrols) == 5
    for name, (pod, container) in kontrols.items():
        env = environment(container)
        assert env.keys() <= known.keys() | told, name
        for told_as, value in env.items():
            if value is not None:
                known[told_as].parse(value)
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert "emptyDir" in volumes[mounts["/tmp"]], name
        for variable in VARIABLES:  # what is named as a file or folder is mounted
            value = env.get(variable.name)
            if value is not None and variable.path and value not in mounts:
                assert "secret" in volumes[mounts[str(Path(value).parent)]], (name, value)
        if name.startswith("CronJob/"):
            continue
        assert "secret" in volumes[mounts[str(env["KONTROL_KEYS"])]], name
        known["KONTROL_LABELS"].parse(json.dumps(pod["metadata"]["labels"]))
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}, name
        assert pod["spec"]["terminationGracePeriodSeconds"] >= 30, name


def test_the_backup_is_of_the_masters_ensemble() -> None:
    objects = load("", ("backup",))
    masters = templates(objects)["Deployment/masters"]
    (master,) = containers(masters)
    for name in ("kontrol-backup", "kontrol-restore"):
        (container,) = containers(templates(objects)[f"CronJob/{name}"])
        env = environment(container)
        labels = json.loads(str(env["KONTROL_LABELS"]))
        assert labels["app"] == masters["metadata"]["labels"]["app"]
        for variable in ("KONTROL_ETCD", "KONTROL_ETCD_CA", "KONTROL_ETCD_CERT"):
            assert env[variable] == environment(master)[variable]
    assert named(objects, "CronJob", "kontrol-restore")["spec"]["suspend"] is True


def test_pods_report_to_the_masters_service() -> None:
    tier = load()
    service = named(tier, "Service", "masters")
    masters = templates(tier)["Deployment/masters"]
    assert service["spec"]["selector"].items() <= masters["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None"  # or DNS would tell one address for all
    (container,) = masters["spec"]["containers"]
    assert environment(container)["KONTROL_NAMES"] == "masters"
    assert {p["port"] for p in service["spec"]["ports"]} == {
        p["containerPort"] for p in container["ports"]
    }
    for top in ("examples/sidecar", "examples/image"):
        for pod in templates(load(top)).values():
            annotation = pod["metadata"]["annotations"]["kontrol.unity3d.com/master"]
            (place,) = parse_tiers(annotation, 8000)
            assert (place.host, place.port) == ("masters", 8000)


def test_a_prefix_renames_what_the_masters_answer_to() -> None:
    tier = load(namePrefix="blue-")
    named(tier, "Service", "blue-masters")
    (container,) = containers(templates(tier)["Deployment/blue-masters"])
    assert environment(container)["KONTROL_NAMES"] == "blue-masters"


def etcd_flags() -> dict[str, str]:
    (container,) = containers(templates(load())["StatefulSet/etcd"])
    flags = [word.removeprefix("--").partition("=") for word in container["command"][1:]]
    return {name: value for name, _, value in flags}


def test_masters_know_every_member_of_etcd_and_speak_tls() -> None:
    tier = load()
    etcd = named(tier, "StatefulSet", "etcd")["spec"]
    members = [f"etcd-{number}.{etcd['serviceName']}" for number in range(etcd["replicas"])]
    (container,) = containers(templates(tier)["Deployment/masters"])
    env = environment(container)
    assert str(env["KONTROL_ETCD"]).split(",") == [f"https://{member}" for member in members]
    flags = etcd_flags()
    assert flags["initial-cluster"].split(",") == [
        f"{member.partition('.')[0]}=https://{member}:2380" for member in members
    ]
    for name in ("client", "peer"):
        assert flags[f"listen-{name}-urls"].startswith("https://")
    assert {"client-cert-auth", "peer-client-cert-auth"} <= flags.keys()


def test_etcd_has_room_for_its_quota_and_is_let_start() -> None:
    etcd = named(load(), "StatefulSet", "etcd")["spec"]
    (claim,) = etcd["volumeClaimTemplates"]
    storage = re.fullmatch(r"(\d+)Gi", claim["spec"]["resources"]["requests"]["storage"])
    assert storage
    flags = etcd_flags()
    # The log, snapshots that members send each other, and a defragmentation need as much again.
    assert 3 * int(flags["quota-backend-bytes"]) <= int(storage[1]) << 30
    assert flags["auto-compaction-mode"] == "periodic"
    (container,) = containers(etcd["template"])
    probes = {
        name: probe["httpGet"]["path"] for name, probe in container.items() if "Probe" in name
    }
    # A member that starts without a quorum is not ready; it is not to be killed for that.
    assert probes == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }


def test_no_more_rights_than_the_boot_uses() -> None:
    tier = load()
    rules = {key(o): o["rules"] for o in tier if o["kind"] in ("Role", "ClusterRole")}
    assert rules == {
        ("Role", "kontrol"): [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
        ("ClusterRole", "kontrol-nodes-games"): [
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}
        ],
    }
    for binding in (o for o in tier if o["kind"].endswith("Binding")):
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in rules
        assert [s["name"] for s in binding["subjects"]] == ["kontrol"]


def test_two_ensembles_share_nothing_of_the_cluster() -> None:
    """What has no namespace has another name for each, and goes with its own alone."""
    cluster_wide = ("ClusterRole", "ClusterRoleBinding")
    first, second = (
        {key(o): o for o in load(namespace=namespace) if o["kind"] in cluster_wide}
        for namespace in ("games", "shop")
    )
    assert not first.keys() & second.keys()
    for namespace, objects in (("games", first), ("shop", second)):
        binding = objects["ClusterRoleBinding", f"kontrol-nodes-{namespace}"]
        assert [s["namespace"] for s in binding["subjects"]] == [namespace]


def test_selectors_select() -> None:
    """A disruption budget or a network policy for no pod would protect nothing, in silence."""
    objects = load("", COMPONENTS)
    pods = [pod["metadata"]["labels"] for pod in templates(objects).values()]
    for item in objects:
        spec = item.get("spec", {})
        wanted = spec.get("podSelector") or spec.get("selector")
        if wanted is None or item["kind"] == "Service":
            continue
        assert [pod for pod in pods if selects(wanted, pod)], key(item)


def selects(selector: Object, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        match expression["operator"]:
            case "In":
                wanted &= value in expression["values"]
            case "Exists":
                wanted &= value is not None
            case other:
                raise AssertionError(other)
    return bool(wanted)


def allowed(policies: list[Object], direction: str, one: Object, other: Object) -> set[int]:
    """Return the ports that policies open between a pod and another of the same namespace."""
    ports: set[int] = set()
    side = "to" if direction == "egress" else "from"
    for policy in policies:
        if not selects(policy["podSelector"], one["metadata"]["labels"]):
            continue
        for rule in policy.get(direction, []):
            peers = rule.get(side, [{"podSelector": {}}])
            if any(
                "podSelector" in peer and selects(peer["podSelector"], other["metadata"]["labels"])
                for peer in peers
            ):
                ports |= {port["port"] for port in rule["ports"]}
    return ports


def test_network_policies_let_through_what_must_pass() -> None:
    objects = load("", COMPONENTS)
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    pods = templates(objects) | templates(load("examples/sidecar"))
    etcd, masters, app = (
        pods[name] for name in ("StatefulSet/etcd", "Deployment/masters", "Deployment/cache")
    )
    for pod in (masters, pods["CronJob/kontrol-backup"], pods["CronJob/kontrol-restore"]):
        assert 2379 in allowed(policies, "egress", pod, etcd)
        assert 2379 in allowed(policies, "ingress", etcd, pod)
    assert {2379, 2380} <= allowed(policies, "egress", etcd, etcd)
    assert {2379, 2380} <= allowed(policies, "ingress", etcd, etcd)
    assert 2379 not in allowed(policies, "ingress", etcd, app)
    assert {8000, 8001} <= allowed(policies, "ingress", masters, app)
    assert 8000 in allowed(policies, "egress", masters, app)
    assert 8000 in allowed(policies, "egress", masters, masters)  # within its own ensemble, too
    assert 2379 not in allowed(policies, "egress", etcd, app)


def test_the_secrets_are_those_that_the_guide_makes(pods: dict[str, Object]) -> None:
    used = {name for pod in pods.values() for name in secrets(pod)}
    made = {"kontrol-keys-master", "kontrol-keys-agent", "kontrol-token"}
    assert used == made | {"etcd-server", "etcd-client"}
    certificates = {
        item["spec"]["secretName"] for item in everything() if item["kind"] == "Certificate"
    }
    assert {"etcd-server", "etcd-client"} <= certificates


def test_cert_manager_makes_what_the_script_makes() -> None:
    """The names in both are those of the members, and both may be a client as well."""
    objects = load("", ("cert-manager",))
    etcd = named(objects, "StatefulSet", "etcd")["spec"]
    members = {f"etcd-{n}.{etcd['serviceName']}" for n in range(etcd["replicas"])}
    server = named(objects, "Certificate", "etcd-server")["spec"]
    assert set(server["dnsNames"]) == members | {"localhost", "etcd"}
    assert {"server auth", "client auth"} <= set(server["usages"])
    client = named(objects, "Certificate", "etcd-client")["spec"]
    assert "client auth" in client["usages"]
    issuers = {item["metadata"]["name"] for item in objects if item["kind"] == "Issuer"}
    for item in objects:
        if item["kind"] == "Certificate":
            assert item["spec"]["issuerRef"]["name"] in issuers


def test_what_is_watched_is_there() -> None:
    """Metrics of alerts and dashboard exist, with those labels; Prometheus is let in to ports."""
    objects = load("", ("monitoring",))
    metrics = {metric.name: set(metric.labels) for metric in METRICS}
    metrics |= {metric.name: set(metric.labels) for metric in WEB}
    rules = [
        rule["expr"]
        for group in named(objects, "PrometheusRule", "kontrol")["spec"]["groups"]
        for rule in group["rules"]
    ]
    dashboard = json.loads(named(objects, "ConfigMap", "kontrol-dashboard")["data"]["kontrol.json"])
    panels = [target for panel in dashboard["panels"] for target in panel["targets"]]
    told = 0
    for expression in (*rules, *(target["expr"] for target in panels)):
        for name, labels in re.findall(r"(kontrol_\w+)(?:\{([^}]*)\})?", expression):
            told += 1
            asked = set(re.findall(r"(\w+)=", labels)) - {"namespace", "pod"}
            assert asked <= metrics[name], expression
    assert told > 15
    pods = templates(objects)
    for monitor in (o["spec"] for o in objects if o["kind"] == "PodMonitor"):
        (pod,) = [p for p in pods.values() if selects(monitor["selector"], p["metadata"]["labels"])]
        ports = {p["name"]: p["containerPort"] for c in containers(pod) for p in c["ports"]}
        (endpoint,) = monitor["podMetricsEndpoints"]
        open_ports = {
            port["port"]
            for o in objects
            if o["kind"] == "NetworkPolicy"
            and o["metadata"]["name"].endswith("-monitoring")
            and selects(o["spec"]["podSelector"], pod["metadata"]["labels"])
            for rule in o["spec"]["ingress"]
            for port in rule["ports"]
        }
        assert ports[endpoint["port"]] in open_ports


def test_openshift_chooses_users(pods: dict[str, Object]) -> None:
    fixed = ("runAsUser", "runAsGroup", "fsGroup")
    for name, pod in templates(load("", ("backup", "openshift"))).items():
        for context in (pod["spec"]["securityContext"], *containers(pod)):
            assert not [field for field in fixed if field in context], name
    assert [name for name, pod in pods.items() if "fsGroup" in pod["spec"]["securityContext"]]


def test_a_component_can_be_used_alone(tmp_path: Path) -> None:
    """OpenShift's and the zones' patches are for what there is."""
    for name in COMPONENTS:
        assert load("", (name,)), name


def test_zones_spread_etcd_and_masters() -> None:
    for name, pod in templates(load("", ("zones",))).items():
        (spread,) = pod["spec"]["topologySpreadConstraints"]
        assert spread["topologyKey"] == "topology.kubernetes.io/zone"
        assert selects(spread["labelSelector"], pod["metadata"]["labels"]), name
