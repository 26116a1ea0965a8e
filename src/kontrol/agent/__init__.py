"""The agent: one per pod. It reports keepalives, and knows nothing of etcd."""
