"""Probes: what they print is reported, whatever they do is bounded, and none is left behind."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.automaton.support import DEADLINE, automaton
from tests.automaton.test_manifest import parse as read_manifest

from automaton.manifest import ManifestError, Probe
from automaton.probe import DEPTH, LIVE_LIMIT, PAYLOAD_LIMIT, ProbeError, parse
from kontrol.agent.live import LiveFile
from kontrol.ensemble.canonical import parse as strict
from kontrol.ensemble.pod import MAX_DEPTH
from kontrol.filewatch import Watch

STATES = """
- {tag: up, next: [up, down]}
- {tag: down, shell: exec sleep 600, next: [up]}
- {tag: end}
"""


def bot(states: str = STATES, **reports: dict[str, Any]) -> str:
    top = "".join(f"{name}: {json.dumps(report)}\n" for name, report in reports.items())
    return f"initial: up\nterminal: end\n{top}states:{states}"


def live(script: str, every: float = 0.2, **more: float) -> dict[str, Any]:
    return {"file": "live.json", "probe": script, "every": every, **more}


def text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


async def until(path: Path, wanted: Callable[[str], object]) -> str:
    """Await that the file is there and has what is wanted; return that."""
    with Watch("a test", interval=0.05) as watch:
        async with asyncio.timeout(DEADLINE):
            while True:
                watch.arm([path])
                found = text(path)
                if found is not None and wanted(found):
                    return found
                await watch.changed()


async def content(path: Path, wanted: Callable[[Any], object]) -> Any:  # noqa: ANN401 - JSON
    """Await that the file holds the JSON that is wanted; return it."""
    return json.loads(await until(path, lambda found: wanted(json.loads(found))))


async def lines(path: Path, count: int) -> None:
    """Await that the file has so many lines."""
    await until(path, lambda found: found.count("\n") >= count)


async def test_what_probes_print_is_in_payload_and_live_file(tmp_path: Path) -> None:
    count = 'n=$(cat n || echo 0); echo $((n + 1)) > n; echo "{\\"offset\\": $n}"'
    payload = {"file": "payload.json", "probe": """echo '{"role": "primary"}'""", "every": 0.5}
    async with automaton(tmp_path, bot(payload=payload, live=live(count))) as it:
        found = await content(tmp_path / "payload.json", lambda each: "role" in each)
        assert (found["state"], found["role"]) == ("up", "primary")
        first = await content(tmp_path / "live.json", lambda each: "offset" in each)
        await content(tmp_path / "live.json", lambda each: each["offset"] > first["offset"] + 2)
        assert await it.ask("WAIT up") == "OK"
        assert await it.ask("GOTO down") == "OK"
        now = await content(tmp_path / "payload.json", lambda each: each["state"] == "down")
        assert now["role"] == "primary", "it stays when the state changes"
        assert now["since"] > found["since"]
        assert await it.die() == 0
    assert json.loads((tmp_path / "live.json").read_text()) == {}, "nothing is true any more"
    assert json.loads((tmp_path / "payload.json").read_text()).keys() == {"state", "since"}


async def test_a_probe_has_the_environment_of_scripts(tmp_path: Path) -> None:
    ask = f"{sys.executable} -m automaton ctl $SOCKET STATE"
    script = f"""printf '{{"word": "%s", "state": "%s"}}' "$WORD" "$({ask})" """
    async with automaton(tmp_path, bot(live=live(script, 5.0))) as it:
        assert await it.ask("SET WORD hello") == "OK"
        wanted = {"word": "hello", "state": "up"}
        await content(tmp_path / "live.json", lambda each: each == wanted)
        assert await it.die() == 0


FAULTS = [
    ("exit 3", "exit status 3"),
    ("kill -9 $$", "signal 9"),
    ("echo READY", "which is not JSON"),
    ("true", "which is not JSON"),
    ("echo 7", "expected a JSON object"),
    ("""printf '{"a": NaN}'""", "not JSON"),
    ("head -c 10000000 /dev/zero", f"printed over {LIVE_LIMIT} bytes"),
    ("yes", f"printed over {LIVE_LIMIT} bytes"),
    ("sleep 600", "was killed after 1 s"),
    ("trap '' TERM; while :; do sleep 1; done", "was killed after 1 s"),
    ("echo '{}'; exec >&-; sleep 600", "was killed after 1 s"),
]


@pytest.mark.parametrize(("script", "complaint"), FAULTS)
async def test_a_probe_that_fails_leaves_its_facts_out_and_is_logged_once(
    tmp_path: Path, script: str, complaint: str
) -> None:
    whole = f"""echo run >> runs; [ -e fail ] || {{ echo '{{"good": 1}}'; exit; }}; {script}"""
    async with automaton(
        tmp_path, bot(live=live(whole, timeout=1.0 if "killed" in complaint else 5.0))
    ) as it:
        await content(tmp_path / "live.json", lambda each: each == {"good": 1})
        (tmp_path / "fail").touch()
        line = await it.says("probe of live:")
        assert complaint in line
        assert "left out" in line or complaint in line
        await content(tmp_path / "live.json", lambda each: each == {})
        done = (tmp_path / "runs").read_text().count("run") + 2
        await lines(tmp_path / "runs", done)
        (tmp_path / "fail").unlink()
        await it.says("probe of live: works again")
        await content(tmp_path / "live.json", lambda each: each == {"good": 1})
        assert sum("probe of live: " in each and "left out" in each for each in it.lines) == 1
        assert await it.ask("STATE") == "up"
        assert await it.die() == 0


@pytest.mark.parametrize(
    "fork",
    ["sleep 600 &", "setsid sleep 600 &", "(setsid sleep 600 &) &", "env -i /bin/sleep 600 &"],
)
async def test_what_a_probe_leaves_in_the_background_ends_with_it(
    tmp_path: Path, fork: str
) -> None:
    script = f"exec 3>&1; {{ {fork} }} >/dev/null 2>&1 3>&-; echo $$ >> runs; echo '{{}}'"
    async with automaton(tmp_path, bot(live=live(script))) as it:
        await lines(tmp_path / "runs", 4)
        assert sleeping() <= 1, "of the probe that runs now, if any"
        assert await it.die() == 0


def sleeping() -> int:
    """How many processes sleep for 600 s."""
    found = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                found += (folder / "cmdline").read_bytes().endswith(b"sleep\x00600\x00")
            except OSError:
                continue
    return found


async def test_a_probe_that_runs_or_hangs_ends_with_the_machine(tmp_path: Path) -> None:
    hangs = "trap '' TERM; touch hangs; while :; do sleep 1; done"
    async with automaton(tmp_path, bot(live=live(hangs, 100.0, timeout=100.0))) as it:
        await until(tmp_path / "hangs", lambda _: True)
        assert await it.die() == 0  # which finds no survivor


BACKGROUND = """
- tag: up
  shell: |
    setsid sleep 700 & echo $! > server
    env -i setsid sleep 700 & echo $! > hidden
  next: [work]
- tag: work
  shell: "until [ -e go ]; do sleep 0.05; done; exit 7"
  next: [up]
  on: {failure: idle}
- {tag: idle, next: [up]}
- {tag: end}
"""


async def test_probes_and_the_scripts_of_states_leave_each_other_alone(tmp_path: Path) -> None:
    """A probe that ends kills no server of a state, and takes no state's exit status."""
    script = "setsid sleep 600 >&- 2>&- & echo run >> runs; echo '{}'"
    async with automaton(tmp_path, bot(BACKGROUND, live=live(script, 0.1))) as it:
        await it.says("up.*exit status 0")
        assert await it.ask("GOTO work") == "OK"
        await lines(tmp_path / "runs", 1)  # it may not have begun
        await lines(tmp_path / "runs", (tmp_path / "runs").read_text().count("run") + 8)
        (tmp_path / "go").touch()
        await it.says("work.*exit status 7")
        await it.says("work -> idle")
        for name in ("server", "hidden"):
            os.kill(int((tmp_path / name).read_text()), 0)
        assert await it.die() == 0


async def test_the_state_that_is_killed_takes_no_probe_with_it(tmp_path: Path) -> None:
    script = "echo begin >> runs; sleep 0.3; echo '{\"ok\": 1}'"
    async with automaton(tmp_path, bot(live=live(script, 0.4))) as it:
        for _ in range(3):
            assert await it.ask("GOTO down") == "OK"
            await it.says("up -> down")
            assert await it.ask("GOTO up") == "OK"
            await it.says("down -> up")
        assert not any("probe of live:" in line for line in it.lines)
        assert await it.die() == 0


async def test_a_file_that_cannot_be_written_is_logged_once(tmp_path: Path) -> None:
    report = {
        "file": "no/live.json",
        "probe": "echo run >> runs; date +'{\"at\": %N.5}'",
        "every": 0.1,
    }
    async with automaton(tmp_path, bot(live=report)) as it:
        await it.says("live: .*the file is not changed")
        await lines(tmp_path / "runs", 5)
        assert sum("the file is not changed" in line for line in it.lines) == 1
        (tmp_path / "no").mkdir()
        await content(tmp_path / "no" / "live.json", lambda each: "at" in each)
        assert await it.die() == 0


PYTHON = """
import os
from automaton.api import Probe, State, States

def up():
    pass

def end():
    pass

def role():
    print("noise")
    return {"role": "replica", "pid": os.getpid()}

States(
    [State(up, ["up"]), State(end)],
    initial=up,
    terminal=end,
    payload=Probe("payload.json", role, every=2),
    live=Probe("live.json", "echo '{\\"offset\\": 5}'", every=1, timeout=0.5),
)
"""


async def test_a_manifest_in_python_has_functions_or_scripts(tmp_path: Path) -> None:
    async with automaton(tmp_path, PYTHON) as it:
        found = await content(tmp_path / "payload.json", lambda each: "role" in each)
        assert found["role"] == "replica"
        assert found["pid"] != it.pid
        await content(tmp_path / "live.json", lambda each: each == {"offset": 5})
        assert await it.die() == 0


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ("live: live.json", "3:7: error: 'live' is 'live.json'; expected a map"),
        ("live: {file: l}", "3:7: error: 'probe' is missing in 'live'"),
        ("live: {probe: x, every: 1}", "3:7: error: 'file' is missing in 'live'"),
        ("live: {file: l, probe: x}", "3:7: error: 'every' is missing in 'live'"),
        ("live: {file: l, probe: x, every: 0}", "3:34: error: 'live: every' is '0'"),
        ("live: {file: l, probe: x, every: soon}", "3:34: error: 'live: every' is 'soon'"),
        ("live: {file: l, probe: x, every: .inf}", "3:34: error: 'live: every' is '.inf'"),
        ("live: {file: l, probe: '', every: 1}", "3:24: error: 'live: probe' is ''"),
        ("live: {file: l, probe: [x], every: 1}", "3:24: error: 'live: probe' is a list"),
        ("live: {file: '', probe: x, every: 1}", "3:14: error: 'live: file' is ''"),
        (
            "live: {file: l, probe: x, every: 1, timeout: -2}",
            "3:46: error: 'live: timeout' is '-2'",
        ),
        (
            "live: {file: l, prob: x, every: 1}",
            "3:17: error: unknown key 'prob' in 'live'; did you",
        ),
        ("payload: {file: p, every: 1}", "3:27: error: 'every' in 'payload' is of a 'probe'"),
        ("payload: [p]", "3:10: error: 'payload' is a list; expected the path of a file, or"),
        (
            "payload: p\nlive: {file: ./p, probe: x, every: 1}",
            "4:7: error: 'live' and 'payload' have one file",
        ),
    ],
)
def test_a_faulty_probe_is_named_with_its_place(reports: str, expected: str) -> None:
    text = f"initial: up\nterminal: end\n{reports}\nstates:{STATES}"
    with pytest.raises(ManifestError) as refusal:
        read_manifest(text)
    assert f"bot.yml:{expected}" in str(refusal.value)


def test_a_good_probe_has_defaults() -> None:
    text = bot(payload={"file": "p"}, live=live("x", 60))
    manifest, warnings = read_manifest(text)
    assert (manifest.payload, manifest.live, warnings) == ("p", "live.json", [])
    assert manifest.probes == {"live": Probe(("/bin/sh", "-c", "x"), 60.0, 5.0)}
    longer = read_manifest(bot(live={**live("x", 3), "timeout": 4}))
    assert (longer[0].probes["live"].timeout, longer[1]) == (4.0, [])


@pytest.mark.parametrize(
    ("printed", "kind"),
    [
        (b"", "JSON"),
        (b"\xff", "JSON"),
        (b"{}{}", "JSON"),
        (b'{"a": 1e999}', "JSON"),
        (b'{"a": Infinity}', "JSON"),
        (b'{"a": 1, "a": 2}', "JSON"),
        (b'{"a": "\\ud800"}', "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'{"a":' + b"[" * DEPTH + b"]" * DEPTH + b"}", "depth"),
        (b'{"state": 1}', "reserved state"),
        (b'{"since": 1}', "reserved since"),
        (json.dumps({"a": "x" * PAYLOAD_LIMIT}).encode(), "too much"),
    ],
)
def test_what_is_printed_and_is_no_facts(printed: bytes, kind: str) -> None:
    with pytest.raises(ProbeError) as error:
        parse(printed, PAYLOAD_LIMIT, ("state", "since"))
    assert error.value.kind == kind
    assert len(str(error.value)) < 300


@given(st.binary() | st.text().map(str.encode) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_what_a_probe_may_print_an_agent_takes(printed: bytes) -> None:
    try:
        facts = parse(printed, LIVE_LIMIT, ())
    except ProbeError:
        return
    written = json.dumps({"state": "up", "since": "now", **facts})
    strict(written, depth=MAX_DEPTH)


async def test_an_agent_takes_what_is_written(tmp_path: Path) -> None:
    async with automaton(tmp_path, bot(live=live("echo '{\"x\": [1, 2.5]}'"))) as it:
        await content(tmp_path / "live.json", lambda each: "x" in each)
        file = LiveFile(tmp_path / "live.json")
        assert file.read(0.0, keep=0.0) == '{"x":[1,2.5]}'
        assert await it.die() == 0
