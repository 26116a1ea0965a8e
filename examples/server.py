"""A small web server, to have something to balance and to restart.

    python3 server.py NAME ADDRESS PORT

It answers with its name, on `/slow` after two seconds, and writes its process id to `server.pid`
once it listens. On SIGTERM it accepts no more requests, finishes those under way, and ends.
"""

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

name, address, port = sys.argv[1:]


class Handler(BaseHTTPRequestHandler):
    """Answers GET and POST."""

    def do_GET(self) -> None:
        """Answer, after the time that work takes."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(2 if self.path == "/slow" else 0.05)
        self.send_response(200)
        self.send_header("Content-Length", str(len(name) + 1))
        self.end_headers()
        self.wfile.write(f"{name}\n".encode())

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


class Server(ThreadingHTTPServer):
    """Waits for its requests when it ends."""

    daemon_threads = False
    request_queue_size = 128


with Server((address, int(port)), Handler) as server:
    drain = threading.Thread(target=server.shutdown)
    signal.signal(signal.SIGTERM, lambda *_: drain.start())
    Path("server.new").write_text(f"{os.getpid()}\n", encoding="ascii")
    Path("server.new").rename("server.pid")
    print(f"{name} serves", flush=True)
    server.serve_forever()
