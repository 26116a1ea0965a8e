"""podman, as the tests of the images use it: images, networks, and what a build needs from us.

The base images are made from Debian's packages (`image/base`) unless their names are there already,
so that no registry is asked. `python -m tests.image.engine` makes the images beforehand. A build
gets the settings of pip that hold here as a secret, and a certificate bundle that they name, so
that a private index works, and nothing of it is kept.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TOP = Path(__file__).parents[2]
DEFAULT, OLDER = "debian-13", "debian-12"  # the folders of the Dockerfiles
SUITES = {DEFAULT: "trixie", OLDER: "bookworm"}
NAME = "localhost/kontrol-test"
VERSION = "98.7.6"  # not this checkout's, which changes with each commit
PODMAN = ("podman", "--runtime", "runc")
BUILD = 420.0  # seconds for a build: it downloads
COMMAND = 60.0
OLD = 3600.0  # seconds after which an image of another state of the checkout may go
_CONTEXT = ("debian-12", "debian-13", "image", "pyproject.toml", "requirements", "src")
_BUNDLE = "/etc/pip-cert.pem"  # where nothing is that packages would replace
_PIP = ("cert", "index-url", "extra-index-url", "proxy", "timeout", "trusted-host")


class EngineError(Exception):
    """podman failed; the message has its words and what it said."""


async def podman(*words: str, within: float = COMMAND) -> str:
    """Run podman; returns its standard output without the last newline. Raises `EngineError`."""
    process = await asyncio.create_subprocess_exec(
        *PODMAN,
        *words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within):
            output, errors = await process.communicate()
    except TimeoutError:
        raise EngineError(f"podman {shlex.join(words)}: not done within {within:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        text = (output + errors).decode("utf-8", "replace")[-4000:]
        raise EngineError(f"podman {shlex.join(words)}: status {process.returncode}: {text}")
    return output.decode("utf-8").rstrip("\n")


async def build(
    name: str, dockerfile: Path, context: Path, *options: str, within: float = BUILD
) -> None:
    """Build an image, in Docker's format: OCI's has no health check."""
    await podman(
        "build",
        "--isolation=chroot",
        "--network=host",
        "--format=docker",
        f"--tag={name}",
        f"--file={dockerfile}",
        *options,
        str(context),
        within=within,
    )


def base_image(system: str) -> str:
    """Return the name of the image that this system's is built on."""
    return f"docker.io/library/debian:{SUITES[system]}-slim"


async def kontrol_image(system: str = DEFAULT) -> str:
    """Return the name of the image made from this checkout, built if it is not there yet."""
    name = f"{NAME}:{_digest()}-{system}"
    with _alone():
        if not await _exists(name):
            if not await _exists(base_image(system)):
                await _make_base(SUITES[system])
            with _pip_settings() as options:
                await build(
                    name,
                    TOP / system / "Dockerfile",
                    TOP,
                    "--build-arg=TELEGRAF=none",
                    f"--build-arg=VERSION={VERSION}",
                    *options,
                )
            await _forget_others()
    return name


async def _exists(name: str) -> bool:
    with contextlib.suppress(EngineError):
        await podman("image", "exists", name)
        return True
    return False


async def _make_base(suite: str) -> None:
    process = await asyncio.create_subprocess_exec(
        TOP / "image" / "base", suite, stdin=subprocess.DEVNULL, stdout=2
    )
    async with asyncio.timeout(BUILD):
        if await process.wait():
            raise EngineError(f"image/base {suite} failed: see above")


async def _forget_others() -> None:
    """Remove what earlier states of the checkout left, unless another run may test them."""
    images = json.loads(await podman("images", "--format=json", NAME))
    for other in images:
        if time.time() - other["Created"] > OLD:
            for tag in set(other["Names"]):
                if f":{_digest()}-" not in tag:
                    with contextlib.suppress(EngineError):
                        await podman("rmi", tag)


def _digest() -> str:
    """Return a digest of all that an image is made from."""
    digest = hashlib.sha256()
    for part in _CONTEXT:
        top = TOP / part
        paths = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in paths:
            if path.is_file() and path.name != "_version.py" and "__pycache__" not in path.parts:
                mode = path.stat().st_mode & 0o111
                digest.update(f"{path.relative_to(TOP)} {mode} {path.stat().st_size}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold a lock among the processes that run tests of this checkout: one of them builds."""
    where = hashlib.sha256(str(TOP).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"kontrol-image-{where}.lock"
    with path.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _pip_settings() -> Iterator[Sequence[str]]:
    """Give the options of a build by which pip finds there what it finds here."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        timeout=COMMAND,
        check=True,
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"")
    wanted = {key: value for key, value in settings.items() if key in _PIP and "file:" not in value}
    options = []
    if "cert" in wanted:
        options.append(f"--volume={wanted['cert']}:{_BUNDLE}:ro")
        wanted["cert"] = _BUNDLE
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".conf") as file:
        file.write("[global]\n" + "".join(f"{k} = {v}\n" for k, v in wanted.items()))
        file.flush()
        yield [*options, f"--secret=id=pip.conf,src={file.name}"]


if __name__ == "__main__":  # to have them ready before the tests want them
    for each in SUITES:
        print(asyncio.run(kontrol_image(each)))
