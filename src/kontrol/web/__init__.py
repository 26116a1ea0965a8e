"""The REST endpoint: health and metrics of every process, and what a master tells and takes.

From the wire inwards: `server` accepts connections and bounds their number; `connection` speaks
HTTP/1.1 (by h11) on one of them; `app` judges a request (host, rate, route, token) and has it
answered by a row of `routes`. `access` knows tokens, `hosts` names, `tls` certificates, `redaction`
what strangers may see. The masters' data come through the protocol `View`; nothing here knows them.
"""
