"""The image by itself: what is in it, who runs in it, and how its first process behaves."""

import asyncio
import json
import re
import tempfile
import time
from pathlib import Path

import pytest
from tests.image.containers import Container, Containers
from tests.image.engine import SUITES, VERSION, EngineError, build, podman
from tests.image.tier import tier
from tests.support.etcd import CA

pytestmark = [pytest.mark.privileged("podman", "runc", "debootstrap"), pytest.mark.timeout(300)]

UP = "supervisord started with pid"
# supervisord of a derived image, in the words of the original's own example of one.
ORIGINAL = """\
[program:telegraf]
command=/usr/bin/telegraf
autostart=false
autorestart=unexpected
startretries=0
exitcodes=0

[program:automaton]
command=/usr/bin/automaton /home/kontrol/lifecycle.yml -d -s /tmp/sock
stopsignal=INT
stopasgroup=true
stopwaitsecs=60
stdout_logfile=/dev/stdout
stdout_logfile_maxbytes=0
autorestart=unexpected
exitcodes=0

[program:kontrol]
command=/usr/bin/kontrol -d
stopsignal=INT
stopasgroup=true
stopwaitsecs=60
stdout_logfile=/dev/stdout
stdout_logfile_maxbytes=0
autorestart=unexpected
exitcodes=0
"""


async def status(container: Container) -> dict[str, str]:
    """Return supervisord's jobs, each with its state."""
    try:
        text = await container.exec("supervisorctl", "status")
    except EngineError as error:  # the status is 3 if some job does not run
        text = str(error).partition(": status 3: ")[2]
        assert text, error
    return {line.split()[0]: line.split()[1] for line in text.splitlines() if line.strip()}


async def orphan(container: Container) -> None:
    """Leave a process whose parent ends before it; see that the first process does not keep it."""
    pid = await container.exec("sh", "-c", "(sleep 0.2 & echo $!)")
    # Only its parent hears of a child's end: others have to look.
    await container.exec(
        "timeout", "5", "sh", "-c", f"while [ -e /proc/{pid} ]; do sleep 0.01; done"
    )


@pytest.mark.parametrize("image", SUITES, indirect=True)
async def test_as_it_is(image: str) -> None:
    """What images made from the original's rely on, nothing that only a build needs; and PID 1."""
    async with Containers(image) as containers:
        container = await containers.run("plain")
        await container.log.logged(UP)
        names = ("kontrol", "automaton", "supervisord", "supervisorctl")
        where = await container.exec("which", *names)
        assert where.split() == [f"/usr/bin/{name}" for name in names]
        await container.exec("which", "bc", "curl", "jq", "socat", "python3")
        await container.exec(
            "test", "-x", "boot.sh", "-a", "-f", "lifecycle.yml", "-a", "-d", "supervisor"
        )
        await container.exec("automaton", "check", "lifecycle.yml")
        for absent in ("pip", "gcc", "cc"):
            with pytest.raises(EngineError):
                await container.exec("which", absent)
        assert await container.exec("sh", "-c", "id -u; whoami; pwd; echo $HOME") == (
            "10001\nkontrol\n/home/kontrol\n/home/kontrol"
        )
        assert await container.exec("kontrol", "--version") == f"kontrol {VERSION}"
        # Nothing is started by default, and that is healthy.
        assert await status(container) == {"telegraf": "STOPPED"}
        await container.exec("kontrol-health")

        await orphan(container)
        began = time.monotonic()
        assert await container.stop() == 0
        assert time.monotonic() - began < 5

        inspected = json.loads(await podman("image", "inspect", image))[0]
        assert inspected["Healthcheck"]["Test"] == ["CMD", "kontrol-health"]


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """A service account's folder."""
    (tmp_path / "token").write_text("token", encoding="utf-8")
    (tmp_path / "ca.crt").write_bytes(CA.read_bytes())
    tmp_path.chmod(0o755)
    return tmp_path


async def test_stopped_while_it_boots(image: str, account: Path) -> None:
    """A first process that ignores SIGTERM would make every stop last as long as its grace."""
    async with Containers(image) as containers:
        # An API that never answers: the boot waits for it.
        environ = {"KUBERNETES_SERVICE_HOST": "192.0.2.1", "KUBERNETES_SERVICE_PORT": "443"}
        container = await containers.run(
            "booting",
            env=environ,
            options=(f"--volume={account}:/var/run/secrets/kubernetes.io/serviceaccount:ro",),
        )
        await container.log.logged("192.0.2.1")
        began = time.monotonic()
        await container.stop()
        assert time.monotonic() - began < 5


async def test_a_job_that_gave_up_is_not_healthy(image: str, tmp_path: Path) -> None:
    job = tmp_path / "kontrol.conf"
    job.write_text(
        "[program:kontrol]\ncommand=/usr/bin/kontrol\nstartretries=0\nstartsecs=50\n",
        encoding="utf-8",
    )
    async with Containers(image) as containers:
        broken = await containers.run(
            "broken",
            env={"KONTROL_TTL": "never"},
            options=(f"--volume={job}:/home/kontrol/supervisor/kontrol.conf:ro",),
        )
        await broken.log.logged("gave up: kontrol entered FATAL state")
        with pytest.raises(EngineError, match="FATAL"):
            await broken.exec("kontrol-health")


async def derive(image: str, name: str) -> None:
    """Build an image as one made from the original's was."""
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / "jobs.conf").write_text(ORIGINAL, encoding="utf-8")
        dockerfile = context / "Dockerfile"
        dockerfile.write_text(f"FROM {image}\nADD jobs.conf ./supervisor/\n", encoding="utf-8")
        await build(name, dockerfile, context)


async def test_an_image_made_from_the_originals(image: str) -> None:
    """Its jobs run as they are, under its names and paths, and end as it says."""
    name = f"{image}-original"
    await derive(image, name)
    async with Containers(name) as containers:
        masters = await tier(containers, masters=1)
        pod = await containers.run("pod", env=masters.environ())
        run = await masters.settled(lambda run: set(run.pods) == {"pod"}, "run with the pod")
        await pod.log.logged("kontrol entered RUNNING state")
        jobs = await status(pod)
        assert jobs["kontrol"] == "RUNNING"
        assert jobs["telegraf"] == "STOPPED"
        assert await pod.exec("sh", "-c", "echo STATE | socat -t5 - /tmp/sock") == "setup"
        await pod.exec("kontrol-health")
        await masters.masters[0].exec("kontrol-health")  # where there is no supervisord
        await orphan(masters.masters[0])
        # Telegraf was left out of this image: said so, not started without effect.
        with pytest.raises(EngineError, match="no such file"):
            await pod.exec("supervisorctl", "start", "telegraf")
        # A job that an operator stopped is no failure, and kontrol deregisters.
        await pod.exec("supervisorctl", "stop", "kontrol")
        await pod.exec("kontrol-health")
        await masters.settled(lambda run: not run.pods, "run without it")
        assert masters.since(run)["left"] == {"pod"}
        assert await pod.stop() == 0


async def test_telegraf_is_started_by_the_lifecycle(image: str, tmp_path: Path) -> None:
    """With what the boot wrote and the script appended; a stand-in for it, which shows that."""
    telegraf = tmp_path / "telegraf"
    telegraf.write_text('#!/bin/sh\ncat "$2"\nexec sleep 1000\n', encoding="utf-8")
    telegraf.chmod(0o755)
    job = tmp_path / "automaton.conf"
    job.write_text(
        "[program:automaton]\ncommand=/usr/bin/automaton lifecycle.yml -s /tmp/sock\n",
        encoding="utf-8",
    )
    annotations = {"kontrol.unity3d.com/opentsdb": "opentsdb.example.com"}
    async with Containers(image) as containers:
        pod = await containers.run(
            "pod",
            env={
                "KONTROL_LABELS": json.dumps({"app": "hello", "role": "web"}),
                "KONTROL_ANNOTATIONS": json.dumps(annotations),
            },
            options=(
                f"--volume={telegraf}:/usr/bin/telegraf:ro",
                f"--volume={job}:/home/kontrol/supervisor/automaton.conf:ro",
                "--read-only",
                "--tmpfs=/tmp",
            ),
        )
        await pod.log.logged("telegraf entered RUNNING state")
        await pod.log.logged("opentsdb.example.com")
        await pod.log.logged(r"inputs\.statsd")
        assert (await status(pod))["telegraf"] == "RUNNING"


@pytest.mark.parametrize("image", SUITES, indirect=True)
async def test_read_only_and_any_user(image: str) -> None:
    """The whole of it with one writable folder, under user ids that the image does not know."""
    name = f"{image}-hello"
    example = Path(__file__).parents[2] / "deploy" / "examples" / "image"
    await build(name, example / "Dockerfile", example, f"--build-arg=KONTROL={image}")
    users = {"of-group-root": "20001:0", "of-no-group": "20001:20001"}
    async with Containers(name) as containers:
        # A master without compiled Protocol Buffers, as on Alpine, which has no wheel of it.
        masters = await tier(containers, masters=1, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")

        async def serve(pod: str) -> Container:
            return await containers.run(
                pod,
                env=masters.environ(),
                options=(
                    "--read-only",
                    "--read-only-tmpfs=false",
                    "--tmpfs=/tmp",
                    f"--user={users[pod]}",
                    "--cap-drop=all",
                    "--security-opt=no-new-privileges",
                ),
            )

        pods = await asyncio.gather(*map(serve, users))
        run = await masters.settled(
            lambda run: [pod["state"] for pod in run.pods.values()] == ["serve", "serve"],
            "run with both pods",
        )
        for pod in pods:
            answer = await pod.exec("curl", "-fsS", "http://localhost:8080/")
            assert answer == f"hello from {pod.name}"
            assert await pod.exec("id", "-u") == "20001"
            await pod.exec("kontrol-health")
            unwelcome = re.compile(r"[Rr]ead-only|[Pp]ermission denied|Traceback")
            assert not [line for line in pod.log.lines if unwelcome.search(line)]
        assert await asyncio.gather(*(pod.stop() for pod in pods)) == [0, 0]
        await masters.settled(lambda run: not run.pods, "run without them")
        assert masters.since(run)["left"] == set(users)


async def test_a_command_in_place_of_supervisord(image: str) -> None:
    async with Containers(image) as containers:
        container = await containers.run(
            "once", "sh", "-c", "echo $0 is of $PPID, $KONTROL_ID; exit 7", "it"
        )
        assert await container.log.ended() == 7
        assert container.log.find("it is of 1, once")
