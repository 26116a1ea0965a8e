"""Facts of the pod and its node, and what is configured from them."""
