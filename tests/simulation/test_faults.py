"""The simulation finds each fault that the control loop once had, when it is put back."""

from dataclasses import replace

import pytest
from tests.simulation.faults import FAULTS, Fault
from tests.simulation.simulate import judge

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.timeout(300)]

SOUND = range(3)  # seeds with which each schedule passes
BROKEN = range(60)  # seeds of which one must show what is put back


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_it_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in SOUND:
        assert judge(replace(fault.schedule, seed=seed)) == []
    fault.put_back(monkeypatch)
    begins = tuple(f"invariant {name}" for name in fault.breaks)
    assert any(
        text.startswith(begins)
        for seed in BROKEN
        for text in judge(replace(fault.schedule, seed=seed))
    )
