"""What the documentation says to type, typed: kubectl, kontrol and openssl are the real ones.

The API that kubectl asks records, and refuses what a real one would: a namespace that was never
made, an object that is not valid, a pod that does not exist. What has no place in a test (docker,
systemctl, pip) is a program that writes down its words.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.deploy import api
from tests.deploy.docs import DOCS, blocks, commands, section
from tests.deploy.manifests import DEPLOY, TOPS, load, named
from tests.support.programs import find

from kontrol.web.access import Tokens

pytestmark = [pytest.mark.equipped("kubectl", "helm", "openssl"), pytest.mark.timeout(240)]

TOP = DEPLOY.parent


class Terminal:
    """A shell in an empty folder, with the repository as `kontrol` in it, and a cluster."""

    def __init__(self, folder: Path, cluster: api.Cluster) -> None:
        self.cluster = cluster
        self.folder = folder / "work"
        (self.folder / "kontrol").mkdir(parents=True)
        shutil.copytree(DEPLOY, self.folder / "kontrol" / "deploy")
        programs = folder / "bin"
        programs.mkdir()
        for program in ("kubectl", "helm"):
            (programs / program).symlink_to(str(find(program)))
        kontrol = programs / "kontrol"
        kontrol.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kontrol "$@"\n', "utf-8")
        kontrol.chmod(0o755)
        config = folder / "kubeconfig"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "users": [{"name": "u", "user": {"token": "none"}}],
                    "current-context": "c",
                }
            ),
            "utf-8",
        )
        self.programs = programs
        self.recorded = folder / "recorded"
        self.environ = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "KUBECONFIG": str(config),
            "RECORDED": str(self.recorded),
        }

    def record(self, *names: str) -> None:
        """Put programs on the PATH that write down their words, one line each, and do nothing."""
        for name in names:
            path = self.programs / name
            path.unlink(missing_ok=True)
            path.write_text(
                f"#!{sys.executable}\nimport os, shlex, sys\n"
                'with open(os.environ["RECORDED"], "a") as file:\n'
                f"    print({name!r}, shlex.join(sys.argv[1:]), file=file)\n",
                "utf-8",
            )
            path.chmod(0o755)

    def type(self, *lines: str) -> str:
        """Run lines in one shell, which ends at the first that fails."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{lines}: {done.stdout}"
        return done.stdout

    def follow(self, text: str) -> None:
        """Do all that a text says: write the files, and type what is to be typed."""
        lines = []
        for language, caption, content in blocks(text):
            if language == "console":
                lines += commands(content)
            elif caption == "kustomization.yaml":
                (self.folder / caption).write_text(content, "utf-8")
        # Two ways to install are not to be tried on one cluster: helm's shows what it would do.
        lines = [line.replace("helm upgrade --install ", "helm template ") for line in lines]
        self.type(*lines)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with api.serving() as cluster:
        terminal = Terminal(tmp_path, cluster)
        on_change = terminal.folder / "on-change"
        on_change.write_text("#!/bin/sh\n: ours\n", "utf-8")
        yield terminal


CLUSTER = "The masters, in Kubernetes"


def test_the_cluster_section_to_the_letter(terminal: Terminal) -> None:
    terminal.follow(section("guide.rst", CLUSTER))
    cluster = terminal.cluster
    assert cluster.waiting() == []
    pods = [name for kind, _, name in cluster.objects if kind == "Pod"]
    assert sorted(name.split("-")[0] for name in pods) == ["etcd"] * 3 + ["masters"] * 2
    assert {namespace for kind, namespace, _ in cluster.objects if namespace} == {"games"}
    ((pod, words),) = cluster.execs
    assert (pod.startswith("masters-"), words) == (True, ["kontrol", "status"])
    for kind, _, name in cluster.objects:
        if kind == "ClusterRoleBinding":
            assert name == "kontrol-nodes-games"
    (masters,) = [o for key, o in cluster.objects.items() if key[::2] == ("Deployment", "masters")]
    (container,) = masters["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/kontrol:1.0"
    callbacks = [
        o["data"] for key, o in cluster.objects.items() if key[2].startswith("kontrol-callback-")
    ]
    assert callbacks == [{"on-change": "#!/bin/sh\n: ours\n"}]


def test_the_page_on_etcd_to_the_letter(terminal: Terminal) -> None:
    """After the guide; what its commands do on real members is tested with those."""
    terminal.follow(section("guide.rst", CLUSTER))
    page = section("etcd.rst")
    # The guide has made these already.
    page = page.replace("create configmap etcd", "create configmap etcd-again", 1)
    terminal.follow(page)
    cluster = terminal.cluster
    assert cluster.waiting() == []
    jobs = [name for kind, _, name in cluster.objects if kind == "Job"]
    assert jobs == ["backup-now", "restore"]
    assert (terminal.folder / "backup.json").read_text("utf-8") == "done\n"
    assert ["etcdctl", "member", "remove", "a1"] in [words for _, words in cluster.execs]


def test_the_examples_beside_the_tier_wait_for_nothing(terminal: Terminal) -> None:
    terminal.follow(section("guide.rst", CLUSTER))
    path = terminal.folder / "kustomization.yaml"
    document = yaml.safe_load(path.read_text("utf-8"))
    document["resources"] += [f"kontrol/deploy/{top}" for top in TOPS[1:]]
    path.write_text(yaml.safe_dump(document), "utf-8")
    terminal.type("kubectl apply -k .")
    assert terminal.cluster.waiting() == []


def test_a_second_ensemble_with_the_same_lines(terminal: Terminal) -> None:
    text = section("guide.rst", CLUSTER)
    terminal.follow(text)
    for name in ("keys", "certs", "token"):
        path = terminal.folder / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    terminal.follow(text.replace("games", "shop"))
    bindings = [name for kind, _, name in terminal.cluster.objects if kind == "ClusterRoleBinding"]
    assert bindings == ["kontrol-nodes-games", "kontrol-nodes-shop"]
    assert terminal.cluster.waiting() == []


def test_the_container_blocks(terminal: Terminal) -> None:
    """Files exist, images are built before they are run, and names are those of the example."""
    terminal.record("docker")
    lines = [
        command
        for language, _, content in blocks(section("guide.rst", "FROM"))
        if language == "console"
        for command in commands(content)
    ]
    terminal.type(f"cd {shlex.quote(str(TOP))}", *lines)
    recorded = [shlex.split(line) for line in terminal.recorded.read_text("utf-8").splitlines()]
    assert len(recorded) == len(lines)
    built, running = {"kontrol", "gcr.io/etcd-development/etcd:v3.6.16"}, set()
    image = load()[-1]
    etcd = named(load(), "StatefulSet", "etcd")["spec"]["template"]["spec"]["containers"][0][
        "image"
    ]
    assert etcd in built, image
    for _, command, *words in recorded:
        match command:
            case "build":
                assert (TOP / words[-1] / "Dockerfile").exists()
                built.add(words[words.index("-t") + 1])
            case "run":
                assert built & set(words), words
                running.add(words[words.index("--name") + 1])
                for word in words:
                    if re.match(r"/.*:/.*", word):
                        assert Path(word.partition(":")[0]).exists(), word
            case "exec" | "logs" | "stop":
                assert running & set(words), words
            case "network":
                assert words[0] == "create"
            case other:
                raise AssertionError(other)


def test_the_host_blocks(terminal: Terminal, tmp_path: Path) -> None:
    terminal.record("python3", "pip", "systemctl", "install")
    (terminal.programs / "pip").rename(tmp_path / "pip")
    lines = [
        command.replace("/opt/kontrol/bin/pip", str(tmp_path / "pip"))
        .replace("/opt/kontrol/bin/kontrol", "true")
        .replace("/etc/kontrol/token", str(tmp_path / "token"))
        for language, _, content in blocks(section("guide.rst", "A plain host"))
        if language == "console"
        for command in commands(content, "# ")
    ]
    assert len(lines) == 11
    terminal.type(*lines)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    Tokens.parse((tmp_path / "token").read_bytes())
    units = [path.read_text("utf-8") for path in (DEPLOY / "systemd").glob("*.service")]
    assert any("LoadCredential=token:/etc/kontrol/token\n" in unit for unit in units)
    recorded = [shlex.split(line) for line in terminal.recorded.read_text("utf-8").splitlines()]
    for program, *words in recorded:
        if program == "install":
            *_, source, target = words
            assert (DEPLOY / "systemd" / source).exists(), source
            assert any(target in unit for unit in units) or target == "/etc/systemd/system/"
        elif program == "systemctl":
            assert (DEPLOY / "systemd" / f"{words[-1]}.service").exists()


def test_every_console_block_of_the_guide_is_in_one_of_these_tests() -> None:
    text = section("guide.rst")
    known = sum(
        content.count("$ ") + content.count("# ")
        for title in (CLUSTER, "FROM", "A plain host")
        for language, _, content in blocks(section("guide.rst", title))
        if language == "console"
    )
    others = [
        command
        for language, _, content in blocks(section("guide.rst", "Troubleshooting"))
        if language == "console"
        for command in commands(content)
    ]
    assert all(command.startswith("etcdctl ") for command in others)  # tried with a full etcd
    every = sum(
        content.count("$ ") + content.count("# ")
        for language, _, content in blocks(text)
        if language == "console"
    )
    assert every == known + len(others)


def test_names_in_kubectl_commands_anywhere_are_those_of_the_manifests() -> None:
    """`kubectl exec NAME`, `logs NAME`: a placeholder, or what deploy/ makes."""
    objects = load("", ("backup",))
    known = {
        f"deploy/{item['metadata']['name']}" for item in objects if item["kind"] == "Deployment"
    }
    known |= {f"etcd-{n}" for n in range(3)} | {"job/backup-now", "POD", "-l"}
    found = 0
    for page in sorted(DOCS.glob("*.rst")):
        for words in re.findall(
            r"kubectl(?: -n \w+)? (?:exec|logs|describe pod) (\S+)", page.read_text("utf-8")
        ):
            assert words.strip("`") in known, f"{page.name}: {words}"
            found += 1
    assert found > 5
