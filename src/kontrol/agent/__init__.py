"""The agent, one per pod: it reports keepalives and runs commands. It does not use etcd."""
