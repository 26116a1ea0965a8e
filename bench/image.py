"""The image: its size, how soon a pod based on it reports, and how its first process behaves.

Needs root and podman. Every container has its network before it is started; times count from
`podman start`. The limit is a container of the base image that prints a line, in the same run.
"""

import json
import statistics
import time
from pathlib import Path

from tests.e2e.daemon import exited
from tests.image.containers import Container, Containers
from tests.image.engine import DEFAULT, base_image, build, kontrol_image, podman
from tests.image.tier import tier

from bench import Option
from bench.table import Row, milliseconds, quantiles

TITLE = "The image, in containers on a bridge"
OPTIONS = {"rounds": Option(10, 2, "containers of each kind")}
_EXAMPLE = Path(__file__).parents[1] / "deploy" / "examples" / "image"
_REPORTING = "reporting to"
_ORPHANS = """
i=0; while [ $i -lt 100 ]; do (true & ); i=$((i + 1)); done
sleep 0.1
for stat in /proc/[0-9]*/stat; do cut -d' ' -f3 "$stat"; done
"""


async def _size(image: str) -> float:
    """MB, as `podman images` and `docker images` count them."""
    inspected = json.loads(await podman("image", "inspect", image))
    return float(inspected[0]["Size"]) / 1e6


async def _until(container: Container, pattern: str) -> float:
    """Seconds from the start of a container to a line."""
    await container.log.logged(pattern)
    return time.monotonic() - container.started


async def start(image: str, rounds: int) -> list[Row]:
    """From start to the first acknowledged keepalive: as a supervised job, and as a sidecar."""
    hello = f"{image}-hello"
    await build(hello, _EXAMPLE / "Dockerfile", _EXAMPLE, f"--build-arg=KONTROL={image}")
    bare, job, sidecar = [], [], []
    async with Containers(image) as containers:
        masters = await tier(containers, masters=1)
        environ = masters.environ()
        for number in range(rounds):
            first = await containers.run(f"bare-{number}", "echo", "up", image=base_image(DEFAULT))
            bare.append(await _until(first, "up"))
            pod = await containers.run(f"job-{number}", image=hello, env=environ)
            job.append(await _until(pod, _REPORTING))
            await pod.stop()
            pod = await containers.run(f"side-{number}", "kontrol", env=environ)
            sidecar.append(await _until(pod, _REPORTING))
            await pod.stop()
    limit = f"a bare container: {milliseconds(bare)}"
    least = statistics.median(bare)
    return [
        Row(
            f"start to first acknowledged keepalive, {what}",
            milliseconds(times),
            limit,
            f"{statistics.median(times) / least:.1f}",
            values={**quantiles(name, times), **quantiles("container", bare)},
        )
        for what, name, times in (
            ("a job of supervisord", "job", job),
            ("kontrol alone", "sidecar", sidecar),
        )
    ]


async def first_process(image: str, rounds: int) -> list[Row]:
    """How long a SIGTERM takes to end all, what is left then, and what happens to orphans."""
    ended, left, zombies = [], 0, 0
    async with Containers(image) as containers:
        for number in range(rounds):
            container = await containers.run(f"first-{number}")
            await container.log.logged("supervisord started")
            zombies += (await container.exec("sh", "-c", _ORPHANS)).count("Z")
            pids = await container.processes()
            begun = time.monotonic()
            assert await container.stop() == 0
            ended.append(time.monotonic() - begun)
            left += len([pid for pid in pids if not await exited(pid, 0)])
    return [
        Row(
            "`podman stop` to the container's end, exit status 0",
            milliseconds(ended),
            values=quantiles("stop", ended),
        ),
        Row("   processes left", str(left), values={"left": left}),
        Row(
            "zombies of 100 orphans, 0.1 s after their end",
            f"{zombies / rounds:g}",
            values={"zombies": zombies / rounds},
        ),
    ]


async def run(*, rounds: int) -> list[Row]:
    """Measure."""
    image = await kontrol_image()
    whole, base = await _size(image), await _size(base_image(DEFAULT))
    rows = [
        Row(
            "size of the Debian image, without telegraf",
            f"{whole:.0f} MB",
            f"its base: {base:.0f} MB",
            f"{whole / base:.2f}",
            goal="under 140 MB",
            values={"image_mb": whole, "base_mb": base},
        )
    ]
    rows += await start(image, rounds)
    return rows + await first_process(image, rounds)
