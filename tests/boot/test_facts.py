import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.boot import cluster

from kontrol.boot import objects
from kontrol.boot.facts import Fact, encode, fit, layer, overlay, table
from kontrol.boot.objects import BadObject
from kontrol.ensemble.canonical import JSON
from kontrol.settings import FACTS

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def test_the_first_layer_wins_and_blank_is_nothing() -> None:
    above = layer("environment", {"KONTROL_ID": " ", "KONTROL_IP": "10.0.0.1", "KONTROL_EIP": None})
    below = layer("api", {"KONTROL_ID": "redis-0", "KONTROL_IP": "10.0.0.2"})
    assert overlay(above, below) == {
        "KONTROL_ID": Fact("redis-0", "api"),
        "KONTROL_IP": Fact("10.0.0.1", "environment"),
    }


def test_facts_come_in_the_order_in_which_they_are_shown() -> None:
    facts = layer("x", dict.fromkeys(reversed(FACTS), "y"))
    assert tuple(overlay(facts)) == FACTS


@given(st.dictionaries(TEXTS, TEXTS))
def test_labels_are_read_back(entries: dict[str, str]) -> None:
    facts = layer("api", {"KONTROL_ANNOTATIONS": encode(entries)})
    assert table(facts, "KONTROL_ANNOTATIONS") == entries
    assert table({}, "KONTROL_ANNOTATIONS") == {}


def test_what_no_variable_can_hold_loses_its_longest_entries() -> None:
    entries = {"kontrol.unity3d.com/master": "m", "applied": "é" * 60_000, "big": "x" * 90_000}
    facts = layer("api", {"KONTROL_ANNOTATIONS": encode(entries), "KONTROL_ID": "redis-0"})
    fitting, left_out = fit(facts)
    assert left_out == ["applied of KONTROL_ANNOTATIONS"]
    assert set(table(fitting, "KONTROL_ANNOTATIONS")) == {"kontrol.unity3d.com/master", "big"}
    assert fitting["KONTROL_ANNOTATIONS"].source == "api"
    assert fitting["KONTROL_ID"] == facts["KONTROL_ID"]
    assert fit(fitting) == (fitting, [])


def test_a_pod_object() -> None:
    pod = objects.pod(json.loads(json.dumps(cluster.pod())))
    assert (pod.name, pod.namespace, pod.ip) == ("redis-0", "games", "10.1.2.3")
    assert (pod.node, pod.host, pod.labels) == ("node-1", "10.0.0.1", cluster.LABELS)


def test_a_pod_that_has_just_been_made() -> None:
    pod = objects.pod({"metadata": {"name": "redis-0", "labels": None}})
    assert (pod.ip, pod.node, pod.labels, pod.annotations) == (None, None, {}, {})


def test_a_node_object() -> None:
    node = objects.node(json.loads(json.dumps(cluster.node())))
    assert node.machine.texts() == {
        "KONTROL_HOSTNAME": "node-1.local",
        "KONTROL_EIP": "203.0.113.1",
        "KONTROL_ZONE": "eu-1a",
        "KONTROL_REGION": "eu-1",
        "KONTROL_INSTANCE_TYPE": "m5.large",
    }


def test_an_old_node_without_addresses() -> None:
    labels: JSON = {
        "failure-domain.beta.kubernetes.io/zone": "z",
        "failure-domain.beta.kubernetes.io/region": "r",
        "beta.kubernetes.io/instance-type": "t",
    }
    node = objects.node({"metadata": {"name": "n", "labels": labels}, "status": {}})
    machine = node.machine
    assert (machine.hostname, machine.eip) == ("n", None)
    assert (machine.zone, machine.region, machine.instance_type) == ("z", "r", "t")


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "the document"),
        ({}, "metadata"),
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": {"name": 1}}, "name"),
        ({"metadata": {"name": "a", "labels": {"x": 1}}}, "labels: the value of 'x'"),
        ({"metadata": {"name": "a"}, "status": []}, ""),
        ({"metadata": {"name": "a"}, "status": [1]}, "status"),
        ({"metadata": {"name": "a"}, "status": {"podIP": {}}}, "podIP"),
    ],
)
def test_what_is_no_pod_is_refused_by_its_field(document: JSON, field: str) -> None:
    if not field:  # an empty list is as good as nothing
        assert objects.pod(document).ip is None
        return
    with pytest.raises(BadObject, match=field):
        objects.pod(document)


@pytest.mark.parametrize("addresses", ["x", [1], [{"type": 1}]])
def test_what_is_no_node_is_refused(addresses: JSON) -> None:
    with pytest.raises(BadObject):
        objects.node({"metadata": {"name": "n"}, "status": {"addresses": addresses}})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_document_is_read_or_refused(document: JSON) -> None:
    for read in (objects.pod, objects.node):
        with contextlib.suppress(BadObject):
            read({"metadata": {"name": "x"}, "status": document, "spec": document})
