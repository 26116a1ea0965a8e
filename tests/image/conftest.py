"""What the tests of the images share: the images, built once however many workers run them."""

import asyncio

import pytest
from tests.image.engine import DEFAULT, kontrol_image


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> str:
    """The image made from this checkout, on Debian, without telegraf.

    It is the default one, but in tests that name others (`parametrize`, indirect).
    """
    return asyncio.run(kontrol_image(getattr(request, "param", DEFAULT)))
