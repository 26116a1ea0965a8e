"""The callback end to end, with real processes: what it sees, and what becomes of what it does."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.process.helpers import Life, is_empty, life

from kontrol.master.callback import Callback, RunRequest
from kontrol.process.clock import boottime
from kontrol.process.guard import Guard
from kontrol.settings.values import argv

Build = Callable[..., Callback]


def request(pods: int = 2, state: bytes | None = b'{"round":1}') -> RunRequest:
    records = [
        {"app": "x", "id": f"pod-{i}", "ip": "10.0.0.1", "key": f"{i}", "role": "r", "seq": i}
        for i in range(pods)
    ]
    return RunRequest(
        run=7,
        term=41,
        attempt=2,
        digest="aa:bb",
        pods=json.dumps(records).encode(),
        changes=b'{"joined":[],"left":[],"lost":[],"changed":[]}',
        state=state,
    )


@pytest.fixture
async def pipe(tmp_path: Path) -> AsyncIterator[Life]:
    async with life(tmp_path) as pipe:
        yield pipe


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
async def build(pipe: Life, scratch: Path) -> AsyncIterator[Build]:
    async with Guard() as guard:

        def build(
            command: str,
            *,
            shell: bool = True,
            timeout: float | None = None,
            environ: dict[str, str] | None = None,
            log: Callable[[str], None] = lambda _: None,
            tier: str = "ns/app",
        ) -> Callback:
            return Callback(
                command,
                argv=argv(command, shell=shell),
                shell=shell,
                timeout=timeout,
                environ={
                    "PATH": os.environ["PATH"],
                    "LIFE": str(pipe.path),
                    "KONTROL_KEYS": "/keys",
                    **(environ or {}),
                },
                secrets={"KONTROL_KEYS", "SECRET"},
                guard=guard,
                on_stderr=log,
                clock=boottime,
                tier=tier,
            )

        yield build
        assert is_empty(scratch)


def soon() -> float:
    return boottime() + 40


async def test_sees_everything_three_ways_and_no_secrets(build: Build, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, sys\n"
        "env = dict(os.environ)\n"
        "files = {n: json.load(open(env[n + '_FILE'])) for n in ('PODS', 'STATE', 'CHANGES')}\n"
        "modes = {oct(os.stat(p).st_mode & 0o777)\n"
        "         for p in [os.path.dirname(env['PODS_FILE'])]}\n"
        "json.dump([env, json.load(sys.stdin), files, sorted(modes), os.getcwd()], sys.stdout)\n",
        encoding="utf-8",
    )
    subject = build(
        f"{sys.executable} -I {program}", shell=False, environ={"SECRET": "s", "PODS": "stale"}
    )
    asked = request()
    outcome = await subject.run(asked, soon())
    assert outcome.ok, outcome
    assert outcome.state is not None
    env, document, files, modes, folder = json.loads(outcome.state)
    assert env["HASH"] == env["MD5"] == "aa:bb"
    assert (env["TERM_ID"], env["RUN"], env["TIER"]) == ("41", "7", "ns/app")
    assert not {"SECRET", "KONTROL_KEYS"} & env.keys()
    for name, value in (("PODS", asked.pods), ("STATE", asked.state), ("CHANGES", asked.changes)):
        assert value is not None
        assert env[name] == value.decode()
        assert files[name] == document[name.lower()] == json.loads(value)
    assert (document["hash"], document["term_id"], document["run"]) == ("aa:bb", 41, 7)
    assert modes == ["0o700"]
    assert folder == os.getcwd()  # noqa: PTH109  # as the callback says it


async def test_without_a_state_or_a_tier_there_is_none(build: Build) -> None:
    unset = 'test -z "${STATE+x}${STATE_FILE+x}${TIER+x}"'
    subject = build(f"{unset} && ! grep -q state", environ={"STATE": "stale"}, tier="")
    outcome = await subject.run(request(state=None), soon())
    assert (outcome.ok, outcome.state, outcome.why) == (True, None, "exit status 0")


async def test_a_shell_reads_every_line_of_the_files_and_of_stdin(build: Build) -> None:
    count = 'n=0; while read -r line; do n=$((n + 1)); done < "$f"; set -- "$@" $n'
    files = '/dev/stdin "$PODS_FILE" "$CHANGES_FILE" "$STATE_FILE"'
    script = f'set --; for f in {files}; do {count}; done; IFS=,; echo "[$*]"'
    outcome = await build(script).run(request(), soon())
    assert outcome.state == b"[1,1,1,1]", outcome


async def test_ten_thousand_pods_come_by_file_and_stdin(build: Build) -> None:
    script = 'echo "[$(wc -c), $(wc -c < "$PODS_FILE"), \\"${PODS-unset}\\", $RUN]"'
    asked = request(10_000)
    assert len(asked.pods) > 700_000
    outcome = await build(script).run(asked, soon())
    assert outcome.ok, outcome
    assert outcome.state is not None
    on_stdin, in_file, variable, run = json.loads(outcome.state)
    assert in_file == len(asked.pods) + len("\n")
    assert on_stdin > in_file
    assert (variable, run) == ("unset", 7)


async def test_several_values_just_within_a_string_leave_room_for_its_own_commands(
    build: Build,
) -> None:
    large = json.dumps("x" * 130_000).encode()
    asked = RunRequest(7, 41, 1, "aa:bb", large, large, large)
    environ = {f"V{i}": "y" * 100_000 for i in range(6)}
    outcome = await build('env | wc -c; test -n "$PODS_FILE"', environ=environ).run(asked, soon())
    assert outcome.ok, outcome
    assert outcome.state is not None
    assert int(outcome.state) > 600_000


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo '{\"a\": tru}'", "printed invalid JSON: line 1 column 7: Expecting value"),
        ("echo Hello", "printed invalid JSON: line 1 column 1: Expecting value"),
        ("echo NaN", "printed invalid JSON: NaN is not a JSON number"),
        ("printf '\"\\377\"'", "printed invalid JSON: not UTF-8 at byte 1"),
        ("head -c 1000000 /dev/zero", "wrote more than 524288 bytes to standard output"),
        ("echo '[1]'; exit 3", "exit status 3"),
        ("echo '[1]'; kill -9 $$", "ended by SIGKILL"),
    ],
)
async def test_what_it_does_wrong_keeps_the_state_and_is_named(
    build: Build, script: str, why: str
) -> None:
    outcome = await build(script).run(request(), soon())
    assert (outcome.ok, outcome.state, outcome.fenced) == (False, None, False)
    assert outcome.why.startswith(why)
    assert "\n" not in outcome.why


async def test_it_may_ask_to_run_again_and_leave_a_note(build: Build) -> None:
    fresh = 'test ! -e "$AGAIN_FILE" && test ! -e "$NOTE_FILE"'
    script = f'{fresh} && echo 5 > "$AGAIN_FILE" && echo "p1 does not answer" > "$NOTE_FILE"'
    subject = build(script, environ={"AGAIN_FILE": "stale", "NOTE_FILE": "stale"})
    for _ in range(2):
        outcome = await subject.run(request(), soon())
        assert (outcome.ok, outcome.state) == (True, None), outcome
        assert (outcome.again, outcome.note) == (5.0, "p1 does not answer")
    outcome = await build("true").run(request(), soon())
    assert (outcome.ok, outcome.again, outcome.note) == (True, None, None)


@pytest.mark.parametrize(
    "leaves",
    [
        "echo soon > $f",
        "echo -1 > $f",
        "echo 1e3 > $f",
        "echo nan > $f",
        "echo 90000 > $f",
        "mkdir $f",
        "mkfifo $f",
        "ln -s /dev/zero $f",
        "head -c 10000000 /dev/zero > $f",
    ],
)
async def test_junk_in_the_file_that_asks_for_a_run_fails_it_and_junk_in_a_note_does_not(
    build: Build, leaves: str, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = await build(f"echo '[1]'; f=$AGAIN_FILE; {leaves}").run(request(), soon())
    assert (outcome.ok, outcome.state, outcome.again, outcome.status) == (False, None, None, 0)
    assert outcome.why.startswith("$AGAIN_FILE ")
    assert outcome.why.isprintable()
    outcome = await build(f"echo '[1]'; f=$NOTE_FILE; {leaves}").run(request(), soon())
    assert (outcome.ok, outcome.state, outcome.again) == (True, b"[1]", None)
    whole = leaves.startswith("echo")
    assert (outcome.note is None) == leaves.startswith(("mk", "ln"))
    assert ("$NOTE_FILE is " in caplog.text) != whole


async def test_what_a_run_that_fails_leaves_is_not_read(build: Build) -> None:
    script = 'echo 5 > "$AGAIN_FILE"; echo note > "$NOTE_FILE"; exit 3'
    outcome = await build(script).run(request(), soon())
    assert (outcome.ok, outcome.why) == (False, "exit status 3")
    assert (outcome.again, outcome.note) == (None, None)


async def test_one_that_does_not_exist(build: Build) -> None:
    outcome = await build("no-such-hook --flag", shell=False).run(request(), soon())
    assert not outcome.ok
    assert outcome.why.startswith("could not be found: 'no-such-hook' in PATH ")


async def test_one_that_may_not_be_executed(build: Build, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.touch(mode=0o644)
    outcome = await build(f"{hook}", shell=False).run(request(), soon())
    assert outcome.why.startswith(f"'{hook}': permission denied: make it executable (chmod +x)")


async def test_one_that_never_ends_times_out(build: Build, pipe: Life) -> None:
    subject = build('exec 9>"$LIFE"; (setsid sleep 600 &); sleep 600; sleep 600', timeout=0.3)
    outcome = await subject.run(request(), soon())
    assert (outcome.ok, outcome.why) == (False, "timed out after 0.3 s")
    assert outcome.seconds >= 0.3
    assert pipe.is_gone()


async def test_past_the_deadline_it_is_killed_or_not_started(build: Build, pipe: Life) -> None:
    subject = build('exec 9>"$LIFE"; echo up >&9; sleep 600')
    assert (await subject.run(request(), boottime() - 1)).fenced
    task = asyncio.ensure_future(subject.run(request(), boottime() + 0.3))
    await asyncio.sleep(0)
    subject.extend(boottime() + 0.6)
    outcome = await task
    assert (outcome.ok, outcome.fenced) == (False, True)
    assert outcome.seconds > 0.5
    assert pipe.is_gone()


async def test_a_stop_ends_it(build: Build, pipe: Life) -> None:
    subject = build(
        "exec 9>\"$LIFE\"; trap 'exit 0' TERM; echo up >&9; while :; do sleep 0.01; done"
    )
    task = asyncio.ensure_future(subject.run(request(), soon()))
    assert await pipe.line() == "up"
    await subject.stop()
    outcome = await task
    assert (outcome.ok, outcome.why, outcome.status) == (False, "stopped", 0)


async def test_a_stop_that_follows_at_once_is_not_lost(build: Build, pipe: Life) -> None:
    subject = build('exec 9>"$LIFE"; sleep 600')
    task = asyncio.ensure_future(subject.run(request(), soon()))
    await asyncio.sleep(0)  # it has begun, and no more
    await subject.stop()
    assert (await task).why == "stopped"
    assert pipe.is_gone()


async def test_cancelled_it_leaves_no_process_and_no_file(
    build: Build, pipe: Life, scratch: Path
) -> None:
    subject = build('exec 9>"$LIFE"; echo up >&9; sleep 600')
    task = asyncio.ensure_future(subject.run(request(), soon()))
    assert await pipe.line() == "up"
    assert not is_empty(scratch)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pipe.is_gone()
    assert is_empty(scratch)


async def test_standard_error_goes_to_the_log_and_its_end_to_the_book(build: Build) -> None:
    lines: list[str] = []
    outcome = await build("echo one >&2; echo two >&2; exit 1", log=lines.append).run(
        request(), soon()
    )
    assert lines == ["one", "two"]
    assert outcome.stderr_tail == "one\ntwo\n"


async def test_without_a_temporary_folder_it_fails_by_name(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = build("true")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/no/such/folder")
        outcome = await subject.run(request(), soon())
    assert not outcome.ok
    assert outcome.why.startswith("no temporary folder: ")
    assert outcome.why.endswith("set TMPDIR to one that is writable")


async def test_the_fingerprint_is_of_the_command_and_its_files(
    build: Build, tmp_path: Path
) -> None:
    hook = tmp_path / "hook"
    hook.write_text("one", encoding="utf-8")
    subject = build(f"sh {hook}", shell=False)
    before = subject.fingerprint()
    assert before == build(f"sh {hook}").fingerprint()
    hook.write_text("two", encoding="utf-8")
    assert subject.fingerprint() != before


async def test_a_callback_that_writes_a_file_it_names_stays_the_same(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = tmp_path / "book"
    subject = build(f"echo $RUN >> {book}")
    seen = []
    for _ in range(4):
        assert (await subject.run(request(), soon())).state is None
        seen.append(subject.fingerprint())
    assert book.read_text(encoding="utf-8") == "7\n" * 4
    assert len(set(seen)) == 1
    assert caplog.text.count(f"{book}, a word of KONTROL_CALLBACK, changed during two runs") == 1
