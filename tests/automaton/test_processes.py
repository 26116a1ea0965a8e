"""Process trees, with real processes: each test runs its subject in a subreaper of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontrol_common import processes

SOURCE = Path(processes.__file__).parents[1]
PRELUDE = """
import asyncio, os, signal, subprocess, sys, time
from kontrol_common.processes import *
assert become_subreaper()
def shell(script):
    child = subprocess.Popen(['/bin/sh', '-c', script], stdout=subprocess.PIPE)
    child.stdout.readline()  # the script says when its tree stands
    return child
"""


def run(body: str) -> str:
    """Run the body in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_finds_descendants_that_left_group_and_session() -> None:
    out = run("""
        child = shell('(setsid sh -c "sleep 60 & echo; wait" &) & wait; sleep 60')
        below = descendants(os.getpid())
        away = [pid for pid in below if os.getsid(pid) != os.getsid(0)]
        asyncio.run(kill_orphans(lambda: ()))
        print(bool(away) and child.pid in below, children(os.getpid()))
    """)
    assert out == "True []"


def test_spares_children_and_what_is_below_them() -> None:
    out = run("""
        spared = shell('sleep 60 & echo; wait')
        other = shell('setsid sleep 61 & echo; wait')
        hit = kill_descendants(os.getpid(), spare=[spared.pid])
        assert other.wait(10) == -signal.SIGKILL
        assert spared.poll() is None and spared.pid not in hit
        below = len(descendants(spared.pid))
        left = asyncio.run(kill_orphans(lambda: [spared.pid]))
        print(below, left, children(os.getpid()) == [spared.pid])
        spared.kill(); spared.wait(10)
        asyncio.run(kill_orphans(lambda: ()))
    """)
    assert out == "1 [] True"


def test_spares_a_process_in_the_group_of_one_that_is_killed() -> None:
    out = run("""
        script = 'sleep 60 & echo $!; wait'
        child = subprocess.Popen(
            ['/bin/sh', '-c', script], stdout=subprocess.PIPE, start_new_session=True
        )
        spared = int(child.stdout.readline())
        print(kill_descendants(os.getpid(), spare=[spared]) == [child.pid], child.wait(10))
        asyncio.run(kill_orphans(lambda: [spared]))
        print(descendants(os.getpid()) == [spared])
        asyncio.run(kill_orphans(lambda: ()))
    """)
    assert out == "True -9\nTrue"


def test_sends_a_gentle_signal_once_to_each() -> None:
    out = run("""
        child = subprocess.Popen([sys.executable, '-c', '''if 1:
            import os, signal, sys, time
            count = 0
            def on_term(*_):
                global count
                count += 1
            signal.signal(signal.SIGTERM, on_term)
            os.fork()
            print(flush=True)
            while not count:
                signal.pause()
            time.sleep(0.05)
            sys.exit(count)
        '''], stdout=subprocess.PIPE)
        child.stdout.readline(); child.stdout.readline()
        print(len(kill_descendants(os.getpid(), signal.SIGTERM)), child.wait(10))
        asyncio.run(kill_orphans(lambda: ()))
    """)
    assert out == "2 1"


def test_a_process_that_forks_and_exits_without_end_cannot_outrun_it() -> None:
    out = run("""
        source = '''if 1:
            import os
            os.setsid()
            print(flush=True)
            while True:
                if os.fork(): os._exit(0)
                if os.fork(): os._exit(0)
        '''
        child = subprocess.Popen([sys.executable, '-c', source], stdout=subprocess.PIPE)
        child.stdout.readline()
        child.wait(10)
        print(asyncio.run(kill_orphans(lambda: ())), children(os.getpid()))
    """)
    assert out == "[] []"


def test_a_forking_crowd_dies_to_the_last() -> None:
    out = run("""
        child = shell('f() { setsid sleep 60 & (sleep 60 &) ; }; '
                      'for i in 1 2 3 4 5 6 7 8; do f; done; echo; '
                      'while :; do (setsid sleep 60 &) ; done')
        print(len(descendants(child.pid)) > 0)
        print(asyncio.run(kill_orphans(lambda: ())), children(os.getpid()))
    """)
    assert out == "True\n[] []"


def test_reaping_never_steals_the_status_of_a_known_child() -> None:
    out = run("""
        mine = shell('echo; exit 7')
        orphaner = shell('(sh -c "kill -STOP \\\\$\\\\$" & echo)')
        orphaner.wait(10)
        asyncio.run(exited(mine.pid))
        orphan = [p for p in children(os.getpid()) if p != mine.pid]
        assert len(orphan) == 1, orphan
        os.kill(orphan[0], signal.SIGKILL)
        asyncio.run(exited(orphan[0]))
        print(reap_orphans([mine.pid]) == orphan, reap_orphans([mine.pid]), mine.wait(10))
    """)
    assert out == "True [] 7"


def test_a_dead_first_thread_does_not_make_a_zombie() -> None:
    out = run("""
        child = subprocess.Popen([sys.executable, '-c', '''if 1:
            import ctypes, os, threading, time
            threading.Thread(target=time.sleep, args=(60,)).start()
            def tell():
                while b') Z ' not in open('/proc/self/stat', 'rb').read():
                    pass
                print(flush=True)
            threading.Thread(target=tell).start()
            exit_thread = 60 if os.uname().machine == 'x86_64' else 93
            ctypes.CDLL(None).syscall(exit_thread, 0)
        '''], stdout=subprocess.PIPE)
        child.stdout.readline()
        state = open(f'/proc/{child.pid}/stat').read().rpartition(')')[2].split()[0]
        print(state, descendants(os.getpid()) == [child.pid])
        kill_descendants(os.getpid())
        child.wait(10)
    """)
    assert out == "Z True"


def test_the_kernel_ends_a_child_with_its_parent() -> None:
    out = run("""
        parent = subprocess.Popen([sys.executable, '-c', '''if 1:
            import os, signal
            from kontrol_common.processes import die_with_parent
            if os.fork() == 0:
                die_with_parent()
                print(os.getpid(), flush=True)
            signal.pause()
        '''], stdout=subprocess.PIPE)
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait(10)
        asyncio.run(asyncio.wait_for(exited(child), 10))
        print(reap_orphans(()) == [child])
    """)
    assert out == "True"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


async def test_awaits_an_exit_without_reaping(sleeper: subprocess.Popen[bytes]) -> None:
    waiting = asyncio.ensure_future(processes.exited(sleeper.pid))
    await asyncio.sleep(0)
    assert not waiting.done()
    os.kill(sleeper.pid, signal.SIGTERM)
    await asyncio.wait_for(waiting, 10)
    assert sleeper.wait(10) == -signal.SIGTERM


async def test_awaiting_the_absent_returns_at_once(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait(10)
    await processes.exited(sleeper.pid)


def test_a_process_that_took_over_an_id_is_not_signalled(
    sleeper: subprocess.Popen[bytes],
) -> None:
    found = processes._look(sleeper.pid)
    assert found is not None
    found.start -= 1  # as if what we found had been another process, that is gone
    assert not processes._send(found, signal.SIGKILL)
    assert sleeper.poll() is None
    found.start += 1
    assert processes._send(found, signal.SIGKILL)
    assert sleeper.wait(10) == -signal.SIGKILL


def test_a_group_dies_with_the_one_of_its_members_that_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = "sleep 60 & echo; wait"
    with subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        seen = processes._look(leader.pid)
        monkeypatch.setattr(processes, "_tree", lambda pid, spare: iter([seen]))
        assert processes.kill_descendants(os.getpid()) == [leader.pid]
        assert leader.stdout.read() == b""  # the other one held it too


def test_loads_nothing_heavy() -> None:
    code = f"import sys; sys.path.append({str(SOURCE)!r}); import kontrol_common.processes"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{code}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout.split()
    heavy = {"asyncio", "subprocess", "pathlib", "typing", "ctypes", "dataclasses"}
    assert "kontrol_common.processes" in loaded
    assert not heavy & set(loaded)
