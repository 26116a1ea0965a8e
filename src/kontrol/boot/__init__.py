"""Boot: what the pod and its node are, found once, before the pod's processes start.

`discover` asks the Kubernetes API, the downward API, the cloud and the system side by side, and
lays their answers over each other: what the environment says wins. `telegraf` renders telegraf's
configuration from the result. Nothing here knows agent or master: they read the environment.
"""
