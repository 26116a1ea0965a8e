"""A client of the reference library: `reference_client.py PORT HEARTBEAT [passive]`.

Runs each line of its standard input, Python with the client as `c`, and prints the value as JSON.
"""

import json
import sys

import gevent.fileobject
import zerorpc

c = zerorpc.Client(
    f"tcp://127.0.0.1:{sys.argv[1]}",
    heartbeat=float(sys.argv[2]),
    passive_heartbeat="passive" in sys.argv,
    timeout=60,
)
names = {"c": c, "zerorpc": zerorpc}
for line in gevent.fileobject.FileObject(0, "rb", closefd=False):
    try:
        value = eval(line.decode(), names)  # noqa: S307 - the test's own words
    except zerorpc.RemoteError as error:
        value = {"name": error.name, "msg": error.msg, "str": str(error)}
    except zerorpc.LostRemote:
        value = "lost"
    print(json.dumps(value, default=repr), flush=True)
