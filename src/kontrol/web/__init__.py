"""The REST endpoint: health and metrics of every process, and what a master shows and accepts.

From the wire inwards: `kontrol.listener` accepts connections and bounds their number; `web` sets
one up, with TLS or without; `connection` speaks HTTP/1.1 (by h11) on it; `app` judges a request
(host, rate, route, token) and has it answered by a row of `routes`, which names one of `handlers`.
`access` knows tokens, `hosts` names, `tls` certificates, `redaction` what a client without a token
may see. A master's data come through the protocol `View`; nothing here knows masters or agents.
"""
