"""Frames of HTTP/2 (RFC 9113) byte by byte, for clients that do not behave. Headers are HPACK literals without an index."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(text: bytes) -> bytes:
    """A string of HPACK, not Huffman-coded (RFC 7541, 5.2)."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, digits = len(text) - 127, bytearray([127])
    while rest >= 128:
        digits.append(rest % 128 + 128)
        rest //= 128
    return bytes(digits) + bytes([rest]) + text


def headers(stream: int, fields: list[tuple[bytes, bytes]], end_stream: bool = False) -> bytes:
    block = b"".join(b"\x00" + literal(name) + literal(value) for name, value in fields)
    return frame(HEADERS, END_HEADERS | (END_STREAM if end_stream else 0), stream, block)


def split_headers(stream: int, fields: list[tuple[bytes, bytes]], chunk: int = 16384) -> bytes:
    """As `headers`, in frames of a size that every peer takes."""
    block = b"".join(b"\x00" + literal(name) + literal(value) for name, value in fields)
    parts = [block[i:i + chunk] for i in range(0, len(block), chunk)]
    last = len(parts) - 1
    return b"".join(frame(CONTINUATION if i else HEADERS, END_HEADERS if i == last else 0, stream, part)
                    for i, part in enumerate(parts))


def call_fields(path: str, *more: tuple[bytes, bytes], scheme: bytes = b"http") -> list[tuple[bytes, bytes]]:
    """Of a gRPC call."""
    return [(b":method", b"POST"), (b":scheme", scheme), (b":path", path.encode()), (b":authority", b"c3pod"), (b"te", b"trailers"),
            (b"content-type", b"application/grpc"), *more]


def stream_ended(received: bytes, stream: int) -> bool:
    """Whether a peer that sent these bytes, from its first frame on, has ended the stream: with an answer, or by a reset."""
    at = 0
    while at + 9 <= len(received):
        length = int.from_bytes(received[at:at + 3], "big")
        kind, flags, of = received[at + 3], received[at + 4], int.from_bytes(received[at + 5:at + 9], "big")
        at += 9 + length
        if at <= len(received) and of == stream and (kind == RST_STREAM or kind in (DATA, HEADERS) and flags & END_STREAM):
            return True
    return False


def message(payload: bytes, compressed: bool = False) -> bytes:
    """As gRPC prefixes it."""
    return bytes([compressed]) + struct.pack(">I", len(payload)) + payload


def data(stream: int, payload: bytes, end_stream: bool = True, chunk: int = 16384) -> bytes:
    parts = [payload[i:i + chunk] for i in range(0, len(payload), chunk)] or [b""]
    return b"".join(frame(DATA, END_STREAM if end_stream and i == len(parts) - 1 else 0, stream, part)
                    for i, part in enumerate(parts))
