#!/usr/bin/env python3
"""Have nginx use the published list: the balancer's KONTROL_ON_PUBLISHED, in nginx's folder."""

import json
import os
import select
import subprocess
from pathlib import Path

BACKENDS = Path("backends.conf")  # of nginx.conf
REPORT = Path("pod.json")  # KONTROL_PAYLOAD: the list that nginx uses


def write(path: Path, text: str) -> None:
    """Replace a file atomically."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)


def use(addresses: list[str], port: str) -> None:
    """Reload nginx with these backends, and wait until no worker has others."""
    before = BACKENDS.read_text(encoding="utf-8")
    hosts = [f"[{each}]" if ":" in each else each for each in addresses]
    servers = [f"server {host}:{port} max_fails=1 fail_timeout=2s;\n" for host in hosts]
    write(BACKENDS, "".join(servers) or "server 127.0.0.1:1 down;\n")
    nginx = ["nginx", "-p", f"{Path.cwd()}/", "-c", "nginx.conf", "-e", "stderr"]
    try:
        subprocess.run([*nginx, "-q", "-t"], check=True)
    except subprocess.CalledProcessError:
        write(BACKENDS, before)  # nginx must be able to start again
        raise
    master = Path("nginx.pid").read_text(encoding="ascii").strip()
    workers = Path(f"/proc/{master}/task/{master}/children").read_text(encoding="ascii").split()
    ends = [os.pidfd_open(int(worker)) for worker in workers]
    subprocess.run([*nginx, "-s", "reload"], check=True)
    for end in ends:  # they finish their requests: worker_shutdown_timeout
        select.select([end], [], [])


published = json.loads(Path(os.environ["KONTROL_PUBLISHED"]).read_text(encoding="utf-8"))
backends = published["documents"].get("backends", {"serve": []})
report = json.dumps({"serve": backends["serve"]})
if not REPORT.exists() or REPORT.read_text(encoding="utf-8") != report:
    use(json.loads(report)["serve"], os.environ["WEB_PORT"])
    write(REPORT, report)
