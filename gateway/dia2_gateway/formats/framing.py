"""What is written around the packets of a codec: headers and pages, in a form that leaves the length open."""

from __future__ import annotations

import struct

UNKNOWN_SIZE = 0xFFFFFFFF  # of a WAV whose end has not come: players read on to the end of the stream
OPUS_RATE = 48000  # Hz; what an Ogg stream of Opus counts in, whatever went into the encoder

ADTS_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


def wav_header(sample_rate: int) -> bytes:
    """The header of 16-bit mono PCM of unknown length, 44 bytes."""
    fmt = struct.pack("<HHIIHH", 1, 1, sample_rate, sample_rate * 2, 2, 16)
    riff = struct.pack("<4sI4s4sI", b"RIFF", UNKNOWN_SIZE, b"WAVE", b"fmt ", len(fmt))
    return riff + fmt + struct.pack("<4sI", b"data", UNKNOWN_SIZE)


def flac_header(stream_info: bytes) -> bytes:
    """The marker and the only block of metadata: the encoder's `stream_info`, which leaves the length open."""
    last_block = 0x80
    return b"fLaC" + struct.pack(">I", (last_block << 24) | len(stream_info)) + stream_info


def adts_frame(packet: bytes, sample_rate: int) -> bytes:
    """A packet of mono AAC-LC behind its 7 bytes of ADTS header (ISO 13818-7, without the checksum)."""
    size = len(packet) + 7
    sync, low_complexity, mono, fullness = 0xFFF1, 1, 1, 0x7FF
    header = sync << 40 | low_complexity << 38 | ADTS_RATES.index(sample_rate) << 34 | mono << 30
    header |= size << 13 | fullness << 2
    return header.to_bytes(7, "big") + packet


class OggOpus:
    """An Ogg stream (RFC 3533) of Opus packets (RFC 7845), each on a page of its own, so that none waits for another.

    `head` is the identification packet. Positions are in samples at 48 kHz and include the pre-skip.
    """

    SERIAL = 1  # one stream in the file, so any number does

    def __init__(self, head: bytes) -> None:
        self.pre_skip_samples: int = struct.unpack_from("<H", head, 10)[0]
        self._head = head
        self._pages = 0

    def header(self) -> bytes:
        vendor = b"stream-dia2"
        tags = b"OpusTags" + struct.pack("<I", len(vendor)) + vendor + struct.pack("<I", 0)
        return self._page(self._head, 0, first=True) + self._page(tags, 0)

    def packet(self, packet: bytes, position_samples: int, last: bool = False) -> bytes:
        """The page of one packet, which ends at `position_samples`; on the `last` one, what lies behind is cut off.

        An empty packet makes a page that only ends the stream.
        """
        return self._page(packet, position_samples, last=last)

    def _page(self, packet: bytes, position_samples: int, *, first: bool = False, last: bool = False) -> bytes:
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255]) if packet else b""
        flags = 2 * first + 4 * last
        header = struct.pack("<4sBBqII", b"OggS", 0, flags, position_samples, self.SERIAL, self._pages)
        segments = bytes([len(lacing)]) + lacing
        self._pages += 1
        checksum = ogg_checksum(header + bytes(4) + segments + packet)
        return header + struct.pack("<I", checksum) + segments + packet


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of Ogg: polynomial 0x04c11db7, not reflected, begun and ended with zero."""
    crc = 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _CRC_TABLE[crc >> 24 ^ byte]
    return crc


def _crc_of_byte(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


_CRC_TABLE = tuple(_crc_of_byte(byte) for byte in range(256))
