"""Each command against a master that answers as it is told."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run
from tests.cli.master import DIGEST, FAILED, PODS, Master, Reply, entry, held, pod, status

from kontrol.cli.operate.document import UntrustedJson
from kontrol.cli.operate.runs import explain, now
from kontrol.cli.operate.status import screen
from kontrol.cli.table import Console

Read = Callable[[], tuple[str, str]]

CERTS = Path(__file__).parents[1] / "support" / "certs"

WELL = f"""\
All is well: 3 pods; nothing is due.

tier      default/redis
asked     redis-m-1 at URL, version 1.0.0
leader    redis-m-0 at 10.0.0.5:8000, term 318
masters   2: redis-m-0, redis-m-1
etcd      answers, mirror confirmed 410 ms ago
pods      3: 2 cache, 1 proxy
digest    {DIGEST}
callback  idle: nothing is due, since run 42 was for exactly these pods

RUN  STARTED     TOOK  PODS  RESULT                 WHY     CHANGES
 42  5 min ago  1.2 s     3  ok                     change  2 joined (#7 redis-7, #8 redis-8)
 41  5 min ago  1.2 s     3  failed: exit status 3  retry   2 joined (#7 redis-7, #8 redis-8)
"""
BRAKE = {
    "what": "BRAKE: 2 of 3 pods are lost, and the callback is held for 37 s more",
    "fix": "see where they are; `kontrol release` runs the callback without them",
}
NARROW = """\
1 thing is wrong:
- BRAKE: 2 of 3 pods are lost, and the
  callback is held for 37 s more
  see where they are; `kontrol release`
  runs the callback without them

tier      default/redis
asked     redis-m-1 at http://m:8001,
          version 1.0.0
leader    redis-m-0 at 10.0.0.5:8000,
          term 318
masters   2: redis-m-0, redis-m-1
etcd      answers, mirror confirmed 410
          ms ago
pods      3: 2 cache, 1 proxy
digest    1f:00:ad:3c:77:80:4e:91:b2:0d:
          5c:66:e8:19:fa:2b
callback  HELD BY THE BRAKE for 37 s
          more: 2 of 3 pods (#1 redis-1,
          #2 redis-2) are lost. It
          continues when they return or
          after `kontrol release`
applied   run 42, for 3 pods; the pods
          changed since

RUN  STARTED     TOOK  PODS  RESULT
 42  5 min ago  1.2 s     3  ok
 41  5 min ago  1.2 s     3  failed: ex…
"""


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str]) -> Read:
    """Return what was printed, and what was said."""
    return capsys.readouterr


def test_status_is_one_screen(run: Run, master: Master, read: Read) -> None:
    assert run("status") == 0
    out, err = read()
    assert out.replace(master.url, "URL") == WELL
    assert err == ""


def test_status_on_a_narrow_terminal_begins_with_what_is_wrong() -> None:
    lines = screen(
        UntrustedJson.of(held("brake", problems=[BRAKE])), "http://m:8001", Console(40, 50)
    )
    assert "\n".join(lines) + "\n" == NARROW


def test_the_fix_of_a_master_of_an_earlier_version_is_shown() -> None:
    earlier = {"what": BRAKE["what"], "mend": BRAKE["fix"]}
    for problem in (earlier, {**BRAKE, "mend": "see elsewhere"}):
        lines = screen(UntrustedJson.of(status(problems=[problem])), "URL", Console())
        assert lines[:3] == ["1 thing is wrong:", f"- {BRAKE['what']}", f"  {BRAKE['fix']}"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            ["status"],
            "  see where they are; `kontrol release --master {}` runs the callback without",
        ),
        (["status"], "return or after `kontrol release --master {}`\n"),
        (["explain", "42"], "kept: `kontrol rollback 42 --master {}` restores it"),
        (["explain", "41"], "`kontrol explain 40 --master {}` shows one"),
        (["explain"], "return or after `kontrol release --master {}`."),
        (["pods", "none"], "`kontrol pods --master {}` lists all pods"),
        (["explain", "7"], "`kontrol runs --master {}` lists them, `kontrol keys` does not\n"),
        (["rollback", "7"], "`kontrol status --master http://other:1` and `kontrol explain --m"),
        (["forget", "7"], "`kontrol pods --limit 3 --master {}`"),
        (["run-now"], "`kontrol status --master {}` before"),
    ],
)
def test_the_commands_that_are_shown_reach_the_same_masters(
    run: Run, master: Master, read: Read, words: list[str], shown: str
) -> None:
    where = f"http://127.0.0.1:{master.port}|http://[::1]:{master.port}"
    master.replies["GET /v1/status"] = Reply(held("brake", problems=[BRAKE]))
    lists = {"name": "NoSuchRun", "message": "`kontrol runs` lists them, `kontrol keys` does not"}
    master.replies["GET /v1/runs/7"] = Reply({"error": lists}, status=404)
    message = "`kontrol status --master http://other:1` and `kontrol explain`"
    refused = {"name": "Refused", "message": message}
    master.replies["POST /v1/rollback"] = Reply({"error": refused}, status=409)
    done = {"done": True, "message": "see `kontrol pods --limit 3`"}
    master.replies["POST /v1/forget"] = Reply(done)
    master.replies["POST /v1/runs"] = Reply({}, status=500)
    run(*words, "--master", where)
    assert shown.format(f"'{where}'") in "".join(read())
    run(*words)  # the environment names the master: there is nothing to add
    assert "--master 'http" not in "".join(read())


def test_the_commands_that_are_shown_have_the_authority_too(
    run: Run, master: Master, read: Read, tmp_path: Path
) -> None:
    ca = tmp_path / "an authority.pem"
    ca.write_bytes((CERTS / "ca.pem").read_bytes())
    assert run("explain", "41", "--master", master.url, "--ca", str(ca)) == 0
    assert f"`kontrol explain 40 --master {master.url} --ca '{ca}'` shows one" in read()[0]


def test_status_fits_80_columns_and_24_lines() -> None:
    runs = [entry(42 - i, why="x" * 500, ok=False) for i in range(5)]
    document = UntrustedJson.of(held("gap", problems=[BRAKE], runs=runs))
    lines = screen(document, "http://10.0.0.5:8001", Console(80, 24))
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        (status(), False),
        (held("damper"), False),
        (status(problems=[BRAKE]), True),
        (status(leader=None), True),
        (status(etcd={"ok": False, "seconds": 31.0}), True),
        ({}, True),
    ],
)
def test_status_tells_programs_whether_all_is_well(
    run: Run, master: Master, read: Read, document: dict[str, Any], wrong: bool
) -> None:
    master.replies["GET /v1/status"] = Reply(document)
    assert run("status") == (6 if wrong else 0)
    first = read()[0].splitlines()[0]
    assert first.startswith("All is well: ") is not wrong
    assert first.endswith("wrong:") is wrong
    assert run("status", "--json") == (6 if wrong else 0)
    assert json.loads(read()[0]) == document


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (status(), "idle: nothing is due, since run 42 was for exactly these pods"),
        (status(applied=None), "idle: nothing is due"),
        (held("damper"), "held by the damper for 37 s more: the ensemble changed"),
        (
            held("retry", running={"run": 43, "ended": True, "why": "exit status 3"}),
            "run 43 failed (exit status 3); it is retried in 37 s, or immediately if ",
        ),
        (held("gap"), "held for 37 s more: 2 of 3 pods (#1 redis-1, #2 redis-2) missing"),
        (held("brake"), "HELD BY THE BRAKE for 37 s more: 2 of 3 pods (#1 redis-1, #2"),
        (held("something new"), "held for 37 s more"),
        (status(plan={"what": "run", "reason": "callback"}), "a run is starting: the callback "),
        (status(plan=None), "unknown to the master that answered"),
        (
            held("damper", running={"run": 43, "attempt": 2, "started": "2026-01-05T03:12:14Z"}),
            "run 43 is under way (attempt 2) for 30 s",
        ),
        (status(running={"run": 43}), "run 43 is under way"),
        (status(running={"run": 43}, leader={"id": "m", "silent": 4.0}), "run 43 was cut off: "),
        (status(running={"run": 43}, leader={"last_seen_seconds": 4}), "run 43 was cut off: "),
        (status(running={"run": 43}, leader=None, plan={}), "run 43 was cut off: its leader "),
        (
            status(
                running={"run": 43, "age": 44.2},
                usual_run_seconds=0.2,
                changes_waiting_seconds=40.0,
            ),
            "run 43 is under way for 44 s; runs usually take 200 ms; changes have waited 40 s",
        ),
        (  # a master of the version before
            status(running={"run": 43, "age": 44.2}, usual=0.2, waiting=40.0),
            "run 43 is under way for 44 s; runs usually take 200 ms; changes have waited 40 s",
        ),
    ],
)
def test_why_nothing_runs_now_is_told(document: dict[str, Any], told: str) -> None:
    assert now(UntrustedJson.of(document)).startswith(told)


def test_a_deploy_under_way_is_told() -> None:
    candidates = [{"id": "m-0", "fingerprint": "9b" * 32}, {"id": "m-1", "fingerprint": "00"}]
    text = "\n".join(screen(UntrustedJson.of(status(candidates=candidates)), "", Console()))
    assert "masters   2: m-0, m-1 (another callback)" in text


def test_the_alarms_of_etcd_are_shown() -> None:
    full = status(etcd={"ok": True, "seconds": 0.41, "alarms": ["NOSPACE"]})
    lines = screen(UntrustedJson.of(full), "URL", Console())
    assert "etcd      has raised NOSPACE, mirror confirmed 410 ms ago" in lines


def test_what_is_known_without_etcd_is_told_as_past() -> None:
    without = status(etcd={"ok": False, "seconds": 31.0}, plan={"what": "unknown"})
    lines = screen(UntrustedJson.of(without), "URL", Console())
    assert "leader    redis-m-0 at 10.0.0.5:8000, term 318, when etcd last answered" in lines
    assert "callback  unknown, because etcd does not answer; nothing runs without it" in lines


def test_status_names_the_masters_that_are_silent(run: Run, master: Master, read: Read) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # nothing listens there
        closed = f"http://127.0.0.1:{dead.getsockname()[1]}"
        master.replies["GET /v1/status"] = Reply(status())
        assert run("status", KONTROL_MASTER=f"{closed}|{master.url}") == 0
    out, err = read()
    assert out.startswith("All is well")
    assert f"another master did not answer: {closed}/v1/status: connection refused" in err


def test_pods_are_a_table(run: Run, master: Master, read: Read) -> None:
    master.replies["GET /v1/pods"] = Reply({"pods": [*PODS, pod(12, id="pöd-✓")]})
    assert run("pods") == 0
    assert read()[0] == (
        "SEQ  ID       ROLE   ADDRESS    KEY     NODE    PAYLOAD\n"
        " #0  redis-0  proxy  10.0.1.0   2Ky00   node-a\n"
        ' #7  redis-7  cache  10.0.1.7   2Ky07   node-a  {"state": "READY"}\n'
        ' #8  redis-8  cache  10.0.1.8   2Ky08   node-a  {"state": "READY"}\n'
        '#12  pöd-✓    cache  10.0.1.12  2Ky012  node-a  {"state": "READY"}\n'
    )


def test_pods_of_a_role(run: Run, master: Master, read: Read) -> None:
    assert run("pods", "--role", "cache", "--json") == 0
    assert json.loads(read()[0]) == {"pods": PODS[1:], "digest": DIGEST}
    assert run("pods", "--role", "proxy", "--role", "cache", "--json") == 0
    assert json.loads(read()[0])["pods"] == PODS
    assert run("pods", "--role", "none") == 3
    assert read() == ("", "kontrol: no pods of role none among 3\n")
    master.replies["GET /v1/pods"] = Reply({"pods": [], "digest": DIGEST})
    assert run("pods") == 0
    assert read() == ("", "kontrol: no pods\n")


@pytest.mark.parametrize("name", ["2Ky07", "redis-7", "#7", "7"])
def test_one_pod_by_key_id_or_number(run: Run, master: Master, read: Read, name: str) -> None:
    assert run("pods", name, "--json") == 0
    assert json.loads(read()[0]) == PODS[1]
    assert run("pods", name) == 0
    assert read()[0].startswith("seq    7\nid     redis-7\nrole   cache\nip     10.0.1.7\n")


def test_no_such_pod(run: Run, master: Master, read: Read) -> None:
    assert run("pods", "no/such") == 3
    assert "no pod has the id, key or number 'no/such'" in read()[1]
    assert master.asked[0].path == "/v1/pods/no%2Fsuch"


def test_one_pod_is_not_watched(run: Run, master: Master, read: Read) -> None:
    assert run("pods", "a", "--watch") == 2
    assert read() == ("", "kontrol: --watch shows all pods, or those of a --role: remove 'a'\n")
    assert master.asked == []


def test_state_is_json(run: Run, master: Master, read: Read) -> None:
    assert run("state") == 0
    assert json.loads(read()[0]) == {"primary": "redis-7"}
    assert run("state", "--json") == 0
    assert json.loads(read()[0]) == {"run": 42, "state": {"primary": "redis-7"}}
    master.replies["GET /v1/state"] = Reply({"run": 0, "state": None})
    assert run("state") == 0
    assert read() == ("null\n", "kontrol: no state: no run has been acknowledged yet\n")
    master.replies["GET /v1/state"] = Reply({"run": 0, "state": None, "acknowledged": 12})
    assert run("state") == 0
    out, err = read()
    assert out == "null\n"
    assert err.startswith(
        "kontrol: no state: run 12 was acknowledged, but no run has printed one yet."
    )


def test_runs_are_a_table(run: Run, master: Master, read: Read) -> None:
    assert run("runs", "--limit", "2") == 0
    assert read()[0].splitlines()[0].split() == [
        *("RUN", "TERM", "TRY", "STARTED", "TOOK", "PODS", "RESULT", "WHY", "CHANGES")
    ]
    assert master.asked[0].path == "/v1/runs?limit=2"
    assert run("runs", "--json") == 0
    assert json.loads(read()[0]) == {"runs": [entry(42), FAILED]}
    master.replies["GET /v1/runs"] = Reply({"runs": []})
    assert run("runs") == 0
    assert read() == ("", "kontrol: no run yet; `kontrol explain` shows why\n")


def test_explain_a_run(run: Run, master: Master, read: Read) -> None:
    assert run("explain", "41") == 0
    assert read()[0] == (
        "Run 41 failed: its output was discarded.\n"
        "why       the run before it was not acknowledged\n"
        "attempt   2, after earlier ones failed; `kontrol explain 40` shows one\n"
        "started   2026-01-05 03:08:12 UTC, took 1.2 s\n"
        "term      318\n"
        f"pods      3, digest {DIGEST}\n"
        "callback  fingerprint 9b9b9b9b9b9b9b9b\n"
        "joined    2: #7 redis-7, #8 redis-8\n"
        "ended     exit status 3\n"
        "end of standard error:\n"
        "  | connecting\n"
        "  | no route to 10.0.0.9\n"
    )
    assert run("explain", "41", "--json") == 0
    assert json.loads(read()[0]) == {**FAILED, "state_kept": False}
    assert run("explain", "7") == 3
    assert read()[1] == "kontrol: there is no /v1/runs/7\n"  # what the master says, and no HTTP


def test_explain_the_last_run_and_why_nothing_runs(run: Run, master: Master, read: Read) -> None:
    assert run("explain") == 0
    lines = read()[0].splitlines()
    assert lines[0] == "Now: idle: nothing is due, since run 42 was for exactly these pods."
    assert lines[2] == "Run 42 was acknowledged."
    assert "state     kept: `kontrol rollback 42` restores it" in lines
    assert run("explain", "--json") == 0
    document = json.loads(read()[0])
    assert document == {"run": entry(42, state_kept=True), "status": status()}
    master.replies["GET /v1/runs"] = Reply({"runs": []})
    assert run("explain") == 0
    assert read()[0].endswith("No run yet.\n")


def test_explain_tells_what_a_run_asked_for_and_its_note() -> None:
    left = entry(42, reason="again", again=90.0, note="p1 \x1b[31mdoes not answer")
    text = "\n".join(explain(UntrustedJson.of(left), Console()))
    assert "why       the run before requested it ($AGAIN_FILE)\n" in text
    assert "again     it requested another run in 90 s\n" in text
    assert "note      p1 \\x1b[31mdoes not answer\n" in text
    scheduled = "\n".join(explain(UntrustedJson.of(entry(42, reason="schedule")), Console()))
    assert "why       KONTROL_EVERY had passed since the last acknowledged run\n" in scheduled
    assert "note" not in scheduled


@pytest.mark.parametrize(
    ("reason", "says"),
    [("again", "it runs again in 5.0 s"), ("schedule", "by KONTROL_EVERY it runs in 5.0 s")],
)
def test_the_next_run_that_needs_no_change_is_shown(
    run: Run, master: Master, read: Read, reason: str, says: str
) -> None:
    idle = {**status()["plan"], "reason": reason, "seconds": 5.0}
    master.replies["GET /v1/status"] = Reply(status(plan=idle))
    assert run("status") == 0
    text = " ".join(read()[0].split())
    assert text.startswith(f"All is well: 3 pods; nothing is due; {says}.")
    assert f"since run 42 was for exactly these pods; {says}" in text


def test_a_note_is_a_problem_for_scripts(run: Run, master: Master, read: Read) -> None:
    what = "the callback runs again in 5.0 s: p1 does not answer"
    note = {"kind": "note", "what": what, "fix": "the callback wrote this"}
    master.replies["GET /v1/status"] = Reply(status(problems=[note]))
    assert run("status") == 6
    assert what in " ".join(read()[0].split())


def test_explain_tells_what_is_withheld_and_who_asked() -> None:
    told = entry(42, reason="asked", by="REST from 10.0.0.9", why="over time", signal=9)
    del told["stderr"]
    text = "\n".join(explain(UntrustedJson.of(told), Console()))
    assert "why       it was requested, by REST from 10.0.0.9\n" in text
    assert "ended     over time; killed by signal 9\n" in text
    assert "standard error requires a token" in text


@pytest.mark.parametrize(
    ("words", "path", "message"),
    [
        (["run-now"], "/v1/runs", "run 43 starts"),
        (["release"], "/v1/release", "released"),
        (["rollback", "42"], "/v1/rollback", "put back"),
        (["forget", "#4"], "/v1/forget", "forgotten"),
    ],
)
def test_the_leader_is_asked(
    run: Run, master: Master, read: Read, *, words: list[str], path: str, message: str
) -> None:
    bodies: dict[str, dict[str, object]] = {"rollback": {"run": 42}, "forget": {"pod": "#4"}}
    body = bodies.get(words[0], {})
    assert run(*words) == 0
    assert read() == (f"{message}\n", "")
    [asked] = master.asked
    assert (asked.method, asked.path, json.loads(asked.body)) == ("POST", path, body)
    assert run(*words, "--json") == 0
    assert json.loads(read()[0])["done"] is True

    late = {"request": "1", "done": False, "message": "the leader has not answered yet"}
    master.replies[f"POST {path}"] = Reply(late, status=202)
    assert run(*words) == 4
    assert read() == ("", "kontrol: the leader has not answered yet\n")

    error = {"name": "Refused", "message": "the brake does not hold"}
    master.replies[f"POST {path}"] = Reply({"error": error}, status=409)
    assert run(*words) == 5
    assert read()[1] == "kontrol: refused: the brake does not hold\n"


@pytest.mark.parametrize(
    "words",
    [
        ["rollback"],
        ["forget"],
        ["rollback", "0"],
        ["rollback", "x"],
        ["explain", "-1"],
        ["explain", "1" * 19],
        ["runs", "--limit", "0"],
        ["runs", "--limit", "201"],
        ["runs", "--limit", "9" * 99],
        ["status", "--timeout", "0"],
        ["status", "x"],
        ["pods", "a", "b"],
        ["completion", "csh"],
    ],
)
def test_bad_usage(run: Run, master: Master, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2
    assert master.asked == []


def test_verbose_tells_who_was_asked(run: Run, master: Master, read: Read) -> None:
    assert run("state", "-v") == 0
    assert read()[1] == (
        f"kontrol: asking {master.url} (from KONTROL_MASTER)\n"
        f"kontrol: {master.url}/v1/state answered\n"
    )
