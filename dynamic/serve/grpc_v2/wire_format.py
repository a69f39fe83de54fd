"""A look at the bytes of a message before they become objects, which take up to 50 times as much memory.

Source: https://protobuf.dev/programming-guides/encoding, "Message Structure".
"""

from typing import Any

_MOST_FIELDS = 100_000  # of a message: some 10 MB as objects
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def has_few_fields(content: bytes, descriptor: Any, most: int = _MOST_FIELDS) -> bool:
    """Whether a message has no more fields than a limit, those of messages inside it included.

    Args:
        content: Its bytes. Where they do not read, what comes before counts: the parser refuses them.
        descriptor: Its type.
        most: The limit. Numbers that are packed are one field.

    Returns:
        Whether it has at most so many.
    """
    count = 0
    parts = [(0, len(content), descriptor)]
    while parts:
        start, end, kind = parts.pop()
        while start < end:
            count += 1
            if count > most:
                return False
            tag, start = _varint(content, start, end)
            wire_type, number = tag & 7, tag >> 3
            if wire_type == _VARINT:
                _, start = _varint(content, start, end)
            elif wire_type == _LENGTH:
                length, start = _varint(content, start, end)
                field = kind.fields_by_number.get(number)
                if field is not None and field.message_type is not None:
                    parts.append((start, min(start + length, end), field.message_type))
                start += length
            elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
                start += 8 if wire_type == _EIGHT_BYTES else 4
            else:
                break
    return True


def _varint(content: bytes, start: int, end: int) -> tuple[int, int]:
    """A number, and where what follows begins."""
    value = shift = 0
    while start < end and shift < 70:
        byte = content[start]
        value |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128:
            break
    return value, start
