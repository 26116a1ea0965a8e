"""Z85: bytes as text, as CURVE keys are written (RFC 32 of ZeroMQ). Pure."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}


def encode(data: bytes) -> str:
    """Return `data`, whose length must be a multiple of 4, as text. Raises `ValueError`."""
    if len(data) % 4:
        raise ValueError(f"Z85 is of 4 bytes at a time, and these are {len(data)}")
    text: list[str] = []
    for at in range(0, len(data), 4):
        number = int.from_bytes(data[at : at + 4])
        text += (_DIGITS[number // 85**place % 85] for place in (4, 3, 2, 1, 0))
    return "".join(text)


def decode(text: str) -> bytes:
    """Return the bytes that `text` stands for. Raises `ValueError`."""
    if len(text) % 5:
        raise ValueError(f"Z85 is of 5 characters at a time, and these are {len(text)}")
    data = bytearray()
    for at in range(0, len(text), 5):
        number = 0
        for digit in text[at : at + 5]:
            value = _VALUES.get(digit)
            if value is None:
                raise ValueError(f"{digit!r} is no character of Z85")
            number = number * 85 + value
        if number >= 2**32:
            raise ValueError("five characters of Z85 say more than 32 bits hold")
        data += number.to_bytes(4)
    return bytes(data)
