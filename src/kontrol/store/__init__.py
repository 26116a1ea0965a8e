"""The store: what Kontrol needs of etcd v3, and the two that give it (etcd itself and a model)."""
