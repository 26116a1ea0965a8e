"""Metrics: what a part describes of itself in a table, and the two forms in which they leave.

`exposition` is Prometheus' text format, `process` what every process tells, `statsd` the original's
counters. Each part keeps plain numbers, and beside them a table of `Metric` that reads them when
somebody asks: to count costs an addition, and nothing is kept twice.
"""
