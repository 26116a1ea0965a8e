"""What the page on boot promises is what there is."""

import re
from pathlib import Path

import yaml

from kontrol import boot
from kontrol.boot.cloud import PROVIDERS
from kontrol.boot.downward import VARIABLES
from kontrol.boot.kubernetes import grant, node_path, pod_path
from kontrol.settings import FACTS

PAGE = (Path(__file__).parents[2] / "docs" / "boot.rst").read_text("utf-8")
BLOCKS = [
    re.sub("^   ", "", block, flags=re.MULTILINE)
    for block in re.findall(r"code-block:: yaml\n\n((?:(?:   .*)?\n)+)", PAGE)
]


def test_every_variable_and_where_it_is_from() -> None:
    assert set(FACTS) <= set(re.findall(r":envvar:`(\w+)`", PAGE))
    assert all(f"``{name}``" in PAGE for name in VARIABLES.values())


def test_every_cloud() -> None:
    assert all(f"``{name}``" in PAGE for name in PROVIDERS)


def test_every_status() -> None:
    listed = re.findall(r"^   \* - ([\d, ]+)$", PAGE, re.MULTILINE)
    kinds = [
        kind
        for kind in vars(boot).values()
        if isinstance(kind, type) and issubclass(kind, boot.BootError)
    ]
    assert {str(kind.status) for kind in kinds} - {"1"} <= set(listed)


def test_the_roles_are_those_that_a_refusal_names() -> None:
    roles = {item["kind"]: item["metadata"]["name"] for item in yaml.safe_load_all(BLOCKS[0])}
    words = 'User "system:serviceaccount:games:default" cannot get resource "pods"'
    pods = grant(pod_path("games", "redis-0"), words)
    nodes = grant(node_path("node-1"), words)
    assert f"-n games create role {roles['Role']} " in pods
    assert f"create rolebinding {roles['RoleBinding']} --role={roles['Role']} " in pods
    assert f"create clusterrole {roles['ClusterRole']} " in nodes
    assert f"create clusterrolebinding {roles['ClusterRoleBinding']} " in nodes


def test_the_downward_example_tells_everything() -> None:
    [container] = yaml.safe_load(BLOCKS[1])["spec"]["containers"]
    assert {item["name"] for item in container["env"]} == set(VARIABLES.values())
