"""Random requests, a few seconds of them; `python -m tests.web.fuzz` is the long version."""

import asyncio
import gc
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.web import fuzz
from tests.web.support import REMOTE, FakeView, Outage, endpoint

from kontrol.web.message import Request

TARGETS = st.one_of(
    st.sampled_from(fuzz._TARGETS),
    st.text(st.characters(max_codepoint=255), max_size=40).map(lambda text: f"/{text}"),
    st.text(st.characters(max_codepoint=255), max_size=40).map(lambda text: f"/v1/runs?{text}"),
)
HEADERS = st.dictionaries(
    st.sampled_from(["host", "authorization", "x-forwarded-for"]),
    st.one_of(
        st.sampled_from(["127.0.0.1", "Bearer x", "localhost"]),
        st.text(st.characters(max_codepoint=255), max_size=60),
    ),
)


async def test_random_requests_do_no_harm() -> None:
    async with fuzz.endpoint() as port:
        await fuzz.flood(port, 500, "first")  # fills caches and free lists
        gc.collect()
        before = fuzz.resident()
        tally = await fuzz.flood(port, 2500, str(random.randrange(1 << 30)))
        gc.collect()
        assert fuzz.resident() - before < 8 * 1024  # KiB
    assert {200, 400, 401, 403, 404, 405, 413, 414, 421, 431} <= set(tally.answers)
    assert 500 not in tally.answers


REQUESTS = st.builds(
    Request,
    st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "X"]),
    TARGETS,
    st.sampled_from(["127.0.0.1", "::1", REMOTE]),
    HEADERS,
    st.binary(max_size=100),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS, st.sampled_from([None, Outage("away")]))
def test_every_request_is_answered_with_what_the_table_says(
    request: Request, wrong: Exception | None
) -> None:
    view = FakeView()
    view.wrong = wrong
    web = endpoint(None, view)
    answer = asyncio.run(web.app.respond(request))
    assert answer.status in {200, 204, 400, 403, 404, 405, 421, 503}
    assert web.app.failures == 0
    assert not view.asked
