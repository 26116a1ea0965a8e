"""What the tests of the images share: the image, built once however many workers run them."""

import asyncio

import pytest
from tests.image.engine import kontrol_image


@pytest.fixture(scope="session")
def image() -> str:
    """The image made from this checkout, on Debian, without telegraf."""
    return asyncio.run(kontrol_image())
