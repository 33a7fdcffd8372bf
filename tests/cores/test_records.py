"""Records have the checksums that TensorBoard's readers look at."""

from __future__ import annotations

import io

import pytest

from shoal.runs.records import FEW, PIECE, Crc, Records

PUBLISHED = {
    b"": 0x00000000,
    b"123456789": 0xE3069283,  # the check value of CRC-32C/ISCSI in the catalogue of parametrised CRCs
    bytes(32): 0x8A9136AA,  # RFC 3720, B.4
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
}


@pytest.mark.parametrize(("data", "expected"), PUBLISHED.items(), ids=lambda one: repr(one)[:12])
def test_checksums_are_the_published_ones(data: bytes, expected: int) -> None:
    assert Crc()(data) == expected


def by_bits(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_checksums_of_any_length_are_those_of_a_loop_over_bits() -> None:
    crc = Crc()
    for length in (1, 3, 4, FEW, FEW + 1, PIECE - 1, PIECE, PIECE + 1, PIECE + FEW, PIECE + FEW + 1, 3 * PIECE + 5):
        data = bytes((7 * at + length) % 251 for at in range(length))
        assert crc(data) == by_bits(data)


def test_a_record_is_length_checksum_bytes_checksum() -> None:
    file = io.BytesIO()
    Records(file).write(b"123456789")
    masked = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
    assert file.getvalue()[:8] == (9).to_bytes(8, "little")
    assert file.getvalue()[12:] == b"123456789" + masked.to_bytes(4, "little")
