"""The image's jobs under a real supervisord, by the image's configuration: essential, or broken."""

import asyncio
import configparser
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
ROOT = TOP / "image" / "root"
BIN = Path(sys.executable).parent
ESSENTIAL = {"environment": "ESSENTIAL=true"}


class Supervisord:
    """One supervisord, whose jobs log to its output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = (ROOT / "etc/supervisor/supervisord.conf").read_text("utf-8")
        self.conf = folder / "supervisord.conf"
        jobs = "/etc/supervisor/conf.d/*.conf /home/kontrol/supervisor/*.conf"
        assert jobs in text
        text = text.replace("/tmp", str(folder)).replace(jobs, f"{folder}/jobs/*.conf")
        self.conf.write_text(text, "utf-8")
        (folder / "jobs").mkdir()
        self.process: asyncio.subprocess.Process
        self.seen = ""

    def job(self, name: str, script: str, **options: str) -> None:
        config = configparser.RawConfigParser()
        config[f"program:{name}"] = {
            "command": f"/bin/sh -c '{script}'" if " " in script or ";" in script else script,
            "startsecs": "0",
            "startretries": "0",
            "redirect_stderr": "true",
            "stdout_logfile": "/dev/stdout",
            "stdout_logfile_maxbytes": "0",
            **options,
        }
        with (self.folder / "jobs" / f"{name}.conf").open("w", encoding="utf-8") as file:
            config.write(file)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.process = await asyncio.create_subprocess_exec(
            *(str(BIN / "supervisord"), "-n", "-c", str(self.conf)),
            # In the image it lies beside supervisord.
            env={**os.environ, "PYTHONPATH": str(ROOT / "opt/kontrol/bin")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            yield
        finally:
            if self.process.returncode is None:
                self.process.terminate()
                async with asyncio.timeout(20):
                    await self.process.communicate()

    async def says(self, words: str) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while words not in self.seen:
                line = await self.process.stdout.readline()
                assert line, self.seen
                self.seen += line.decode("utf-8")

    async def ends(self) -> int:
        async with asyncio.timeout(20):
            rest, _ = await self.process.communicate()
        self.seen += rest.decode("utf-8")
        assert self.process.returncode is not None
        return self.process.returncode

    async def run(self, *words: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=self.folder,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(20):
            out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode("utf-8")

    async def health(self) -> tuple[int, str]:
        script = (ROOT / "usr/bin/kontrol-health").read_text("utf-8")
        script = script.replace("/tmp/supervisor.sock", f"{self.folder}/supervisor.sock")
        return await self.run("/bin/sh", "-c", script)


@pytest.fixture
def supervisord(tmp_path: Path) -> Supervisord:
    return Supervisord(tmp_path)


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        ("echo up; exit 7", 7, "essential job main ended: ending all with status 7"),
        ("echo up; exit 0", 0, "essential job main ended: ending all with status 0"),
        ("echo up; kill -9 $$", 137, "essential job main ended: ending all with status 137"),
        ("/no/such/program", 127, "essential job main cannot be started: ending all"),
    ],
)
@pytest.mark.parametrize("restart", ["unexpected", "true"])
async def test_the_end_of_an_essential_job_is_that_of_all(
    supervisord: Supervisord, script: str, status: int, says: str, restart: str
) -> None:
    supervisord.job("main", script, autorestart=restart, **ESSENTIAL)
    supervisord.job("other", "echo other up; exec sleep 60")
    async with supervisord.running():
        assert await supervisord.ends() == status, supervisord.seen
    assert says in supervisord.seen
    assert "stopped: other" in supervisord.seen
    assert supervisord.seen.count("spawned: 'main'") <= 1  # not started again


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("exit 0", 1), ("kill $$", 143)])
async def test_one_that_ends_before_it_counts_as_started(
    supervisord: Supervisord, script: str, status: int
) -> None:
    """It is tried again, as often as startretries says; then it has not started."""
    supervisord.job("main", script + ";", startsecs="5", startretries="1", **ESSENTIAL)
    async with supervisord.running():
        assert await supervisord.ends() == status, supervisord.seen
    assert supervisord.seen.count("spawned: 'main'") == 2


async def test_other_ends_are_no_end(supervisord: Supervisord) -> None:
    """A job that is not marked, an essential one that is stopped by hand, a SIGTERM."""
    supervisord.job("main", "echo main up; exec sleep 60", **ESSENTIAL)
    supervisord.job("other", "echo other up; exit 7", autorestart="false")
    supervisord.job("marked", "exit 7;", autorestart="false", environment="ESSENTIAL=false")
    async with supervisord.running():
        await supervisord.says("exited: other (exit status 7; not expected)")
        await supervisord.run("supervisorctl", "stop", "main")
        await supervisord.run("supervisorctl", "start", "main")
        _, listed = await supervisord.run("supervisorctl", "status", "main")
        assert "RUNNING" in listed
        supervisord.process.send_signal(signal.SIGTERM)
        assert await supervisord.ends() == 0


async def test_health_fails_on_any_job_that_cannot_start(supervisord: Supervisord) -> None:
    supervisord.job("good", "exec sleep 60")
    supervisord.job("off", "true", autostart="false")
    supervisord.job("broken", "exit 1;", startsecs="5", startretries="0", autostart="false")
    async with supervisord.running():
        await supervisord.says("entered RUNNING state")
        assert await supervisord.health() == (0, "")
        await supervisord.run("supervisorctl", "start", "broken")
        await supervisord.says("gave up: broken")
        status, told = await supervisord.health()
        assert (status, "broken" in told, "good" in told) == (1, True, False)


def test_health_reads_every_state(tmp_path: Path) -> None:
    """As supervisorctl prints them, jobs of a group too."""
    script = (ROOT / "usr/bin/kontrol-health").read_text("utf-8")
    for state, healthy in (
        *(("RUNNING", True), ("STARTING", True), ("STOPPED", True), ("STOPPING", True)),
        *(("EXITED", True), ("BACKOFF", False), ("FATAL", False), ("UNKNOWN", False)),
    ):
        for name in ("redis", "group:redis", "kontrol-helper"):
            listing = f"automaton RUNNING pid 7\n{name} {state} FATAL in its words\n"
            command = script.replace('[ -S "$socket" ]', "true").replace(
                "$(timeout 8 supervisorctl status)", f"'{listing}'"
            )
            assert (os.system(f"sh -c {quoted(command)} >/dev/null") == 0) == healthy, state  # noqa: S605


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def test_every_example_waits_five_seconds_for_a_start() -> None:
    files = [*TOP.glob("deploy/examples/**/*.conf"), *ROOT.glob("etc/supervisor/conf.d/*.conf")]
    texts = {str(path): path.read_text("utf-8") for path in files}
    for page in (TOP / "docs").glob("*.rst"):
        text = page.read_text("utf-8")
        if "[program:" in text:
            texts[str(page)] = text
    assert len(texts) >= 3
    for name, text in texts.items():
        lines = [line.strip() for line in text.splitlines()]
        assert lines.count("startsecs=5") == text.count("[program:"), name
