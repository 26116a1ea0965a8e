"""A small web server, to have something whose life can be scripted.

python3 server.py run                serve; SIGUSR1 lets requests under way finish, and ends
python3 server.py check              exit status 0 if it answers
python3 server.py get /slow          print what it answers
"""

import json
import signal
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

config = json.loads(Path("server.json").read_text(encoding="utf-8"))


class Handler(BaseHTTPRequestHandler):
    """Answers with the greeting, on `/slow` after two seconds."""

    def do_GET(self) -> None:
        """Answer."""
        print("GET", self.path, flush=True)
        if self.path == "/slow":
            time.sleep(2)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{config['greeting']}\n".encode())

    def log_message(self, *_: object) -> None:
        """Say nothing more."""


class Server(ThreadingHTTPServer):
    """Waits for its requests when it ends."""

    daemon_threads = False


def run() -> None:
    """Serve until SIGUSR1."""
    with Server(("127.0.0.1", config["port"]), Handler) as server:
        drain = threading.Thread(target=server.shutdown)
        signal.signal(signal.SIGUSR1, lambda *_: drain.start())
        server.serve_forever()


def get(path: str) -> str:
    """Ask the server."""
    url = f"http://127.0.0.1:{config['port']}{path}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


match sys.argv[1:]:
    case ["run"]:
        run()
    case ["check"]:
        try:
            get("/")
        except OSError:
            sys.exit(1)
    case ["get", path]:
        print(get(path), end="")
    case _:
        sys.exit(__doc__)
