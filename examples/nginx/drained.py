#!/usr/bin/env python3
"""End this backend once it is published that it may: its KONTROL_ON_PUBLISHED."""

import json
import os
import subprocess
from pathlib import Path

AUTOMATON = ("automaton", "ctl", "automaton.sock")

published = json.loads(Path(os.environ["KONTROL_PUBLISHED"]).read_text(encoding="utf-8"))
if os.environ["POD_IP"] in published["documents"].get("backends", {}).get("end", ()):
    # The document may be an old one: the agent starts, and an earlier backend had this address.
    state = subprocess.run([*AUTOMATON, "STATE"], stdout=subprocess.PIPE, text=True, check=True)
    if state.stdout.strip() == "stopping":
        subprocess.run([*AUTOMATON, "DIE"], check=True)
