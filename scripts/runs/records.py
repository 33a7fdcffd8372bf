"""A file of records in TensorBoard's form: length, checksum of the length, bytes, checksum of the bytes.

The one idea: the checksum (CRC-32C) is linear over bits, so that each byte's part of it is looked up by the byte's place, and
all parts are added at once. TensorBoard's own writer goes byte by byte, in Python: half of what a step of a small model writes.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np

POLYNOMIAL = 0x82F63B78  # of CRC-32C, its bits reversed
WHOLE = 0xFFFFFFFF
MASK = 0xA282EAD8  # added to a checksum that is stored beside its bytes
PIECE = 256  # bytes that are looked up at a time
FEW = 16  # bytes of which each is looked up by itself


class Crc:
    """CRC-32C of bytes. Making one takes 2 ms."""

    def __init__(self) -> None:
        one = np.arange(256, dtype=np.uint32)
        for _ in range(8):
            one = np.where(one & 1, one >> 1 ^ np.uint32(POLYNOMIAL), one >> 1)
        places = [one]  # of a byte behind which so many bytes come
        while len(places) < PIECE:
            places.append(places[-1] >> 8 ^ one[places[-1] & 0xFF])
        self._one: list[int] = one.tolist()
        self._places = np.concatenate(places[::-1])
        self._starts = np.arange(PIECE, dtype=np.intp) * 256

    def __call__(self, data: bytes) -> int:
        crc = WHOLE
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            crc = self._small(piece, crc) if len(piece) <= FEW else self._large(piece, crc)
        return crc ^ WHOLE

    def _small(self, piece: bytes, crc: int) -> int:
        for byte in piece:
            crc = self._one[(crc ^ byte) & 0xFF] ^ crc >> 8
        return crc

    def _large(self, piece: bytes, crc: int) -> int:
        begun = struct.pack("<I", int.from_bytes(piece[:4], "little") ^ crc) + piece[4:]
        places = np.frombuffer(begun, np.uint8) + self._starts[-len(piece) :]
        return int(np.bitwise_xor.reduce(self._places[places]))


class Records:
    """A writer of records to a file, which it closes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._crc = file, Crc()

    def write(self, record: bytes) -> None:
        length = struct.pack("<Q", len(record))
        self._file.write(b"".join((length, self._checked(length), record, self._checked(record))))

    def _checked(self, data: bytes) -> bytes:
        crc = self._crc(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & WHOLE)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
