"""Roles in the metrics: as many as agents think of, and as they call them."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kontrol.master.operator.metrics import METRICS
from kontrol.metrics import render


@pytest.mark.parametrize("first", ["(others)", 'a"b\\', "r"])
def test_no_role_is_told_twice_and_few_are_told(first: str) -> None:
    roles = [first, first, *(f"role{i}" for i in range(500))]
    mirror = SimpleNamespace(ensemble=[SimpleNamespace(role=role) for role in roles])
    [pods] = [metric for metric in METRICS if metric.name == "kontrol_master_pods"]
    text = render([pods], cast("Any", SimpleNamespace(mirror=mirror)))
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    assert len({name for name, _, _ in samples}) == len(samples) <= 101
    assert sum(int(count) for _, _, count in samples) == 502
