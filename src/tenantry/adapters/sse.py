"""Server-sent events of a model's stream, passed on untouched while the bill is looked for (HTML §9.2).

Bytes are passed on at the ends of events, which costs nothing where an upstream writes whole events, and lets
an event that carries the bill be a piece of its own, so that a door can leave it out. Only events that hold a
``usage`` object are parsed; the rest is searched, in C.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tenantry.adapters.pricing import ReportedUsage, UsageBlock
from tenantry.core.errors import UpstreamError

EVENT_BYTES_MAX: Final = 4 * 1024 * 1024
# Inside a JSON string these quotes would be escaped, so this is a key; ``"usage": null`` is no bill.
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_DONE: Final = b"[DONE]"
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_EVENT_END: Final = re.compile(rb"\n\n|[\n\r]\r\n?")


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    usage: UsageBlock | None = None
    choices: list[_Choice] | None = None


_DECODER: Final = msgspec.json.Decoder(_Event)


class StreamReader:
    """Reads one stream.

    ``usage`` is what was reported; ``is_complete`` whether the provider said that it is done.
    """

    def __init__(self) -> None:
        self._tail = bytearray()
        self.usage: ReportedUsage | None = None
        self.is_complete = False

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces to pass on now, which together with those before equal the input up to an event's end.

        An event with a ``usage`` object is a piece by itself. Raises `UpstreamError` for an event above
        `EVENT_BYTES_MAX`.
        """
        if self._tail:
            begin = len(self._tail) - 1
            self._tail += data
            end = _last_end(self._tail, begin)
            block = bytes(self._tail[:end])
            del self._tail[:end]
        else:
            end = _last_end(data, 0)
            block = data if end == len(data) else data[:end]
            if end < len(data):
                self._tail += data[end:]
        if len(self._tail) > EVENT_BYTES_MAX:
            raise UpstreamError(f"an event of the stream is larger than {EVENT_BYTES_MAX} bytes", sent=True)
        return self._inspect(block) if block else []

    def finish(self) -> list[bytes]:
        """What is left at the end of the input: an event whose blank line never came."""
        block = bytes(self._tail)
        self._tail.clear()
        return self._inspect(block) if block else []

    def _inspect(self, block: bytes) -> list[bytes]:
        if _DONE not in block and _USAGE.search(block) is None:
            return [block]
        pieces: list[bytes] = []
        passed = begin = 0
        for end in [*(match.end() for match in _EVENT_END.finditer(block)), len(block)]:
            event = block[begin:end]
            if _USAGE.search(event) is not None:
                pieces += [piece for piece in (block[passed:begin], event) if piece]
                passed = end
                self._read_usage(_data_of(event))
            elif _DONE in event and _data_of(event).strip() == _DONE:
                self.is_complete = True
            begin = end
        if passed < len(block):
            pieces.append(block[passed:])
        return pieces

    def _read_usage(self, data: bytes) -> None:
        """Take a bill.

        Where a provider sends several, they are cumulative: the greatest of each count stands.
        """
        try:
            event = _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        reported = event.usage.reported() if event.usage else None
        if reported is None:
            return
        if (before := self.usage) is not None:
            reported = ReportedUsage(
                max(before.prompt, reported.prompt),
                min(before.cached, reported.cached),
                max(before.completion, reported.completion),
            )
        self.usage = reported
        if not event.choices or any(choice.finish_reason for choice in event.choices):
            self.is_complete = True


def _last_end(buffer: bytes | bytearray, begin: int) -> int:
    """The offset after the last blank line that ends at or after `begin`, 0 when there is none.

    A line ends in CR LF, LF or CR; a CR at the very end of the input counts, and a LF that then follows is a
    blank line more, which means nothing.
    """
    end = buffer.rfind(b"\n\n", begin) + 2
    if buffer.find(b"\r", begin) >= 0:
        for pattern in (b"\n\r", b"\r\r"):
            found = buffer.rfind(pattern, begin)
            if found >= 0:
                end = max(end, found + 2 + (buffer[found + 2 : found + 3] == b"\n"))
    return end if end > 1 else 0


def _data_of(event: bytes) -> bytes:
    """The ``data`` lines of one event, joined."""
    lines = _LINE_END.split(event)
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
