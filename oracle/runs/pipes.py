"""Messages through a pipe, each with its length before it."""

from __future__ import annotations

import os


def send(number: int, data: bytes) -> None:
    """Write a message, whole."""
    view = memoryview(len(data).to_bytes(8, "little") + data)
    while view:
        view = view[os.write(number, view) :]


def received(number: int) -> bytes | None:
    """A message, or None where the other side has gone."""
    head = _read(number, 8)
    return None if head is None else _read(number, int.from_bytes(head, "little"))


def _read(number: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = os.read(number, min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)
