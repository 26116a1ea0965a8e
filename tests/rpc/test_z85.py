"""Z85 here is that of libzmq's binding; what is not Z85 is refused in one way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85 as libzmq

from kontrol.rpc.security import z85


@given(st.lists(st.binary(min_size=4, max_size=4), max_size=12).map(b"".join))
def test_it_is_that_of_libzmq(data: bytes) -> None:
    text = z85.encode(data)
    assert text == libzmq.encode(data).decode("ascii")
    assert z85.decode(text) == data


@given(st.text(max_size=12) | st.text(st.sampled_from("09azAZ#$%@"), max_size=12))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        data = z85.decode(text)
    except ValueError:
        return
    assert z85.encode(data) == text


@pytest.mark.parametrize("text", ["0", "0000", "#####", "00 00", "0000é", "%nSc1"])
def test_what_is_no_z85(text: str) -> None:
    with pytest.raises(ValueError, match="Z85"):
        z85.decode(text)
    with pytest.raises(ValueError, match="4 bytes"):
        z85.encode(b"abc")
