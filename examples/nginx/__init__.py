"""A balancer that follows a published list."""
