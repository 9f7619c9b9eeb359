"""Every format, decoded by FFmpeg and libsndfile, against the signal that went in."""

from __future__ import annotations

import io
import json
import wave
from itertools import pairwise

import av
import numpy as np
import pytest
import soundfile as sf
from av.container import InputContainer
from dia2_client import pcm16
from dia2_gateway.errors import BadRequest
from dia2_gateway.formats import AudioFormat, Encoder
from dia2_gateway.formats.audio_format import OFFERS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

SOURCE_RATE = 24000
FADE_S = 0.05
FRAME_SAMPLES = 1920  # what the engine makes at a time
FORMATS = [AudioFormat.parse(f"{codec}_{rate}", "format") for codec, offer in OFFERS.items() for rate in offer.rates]
RAW = {"pcm": "s16le", "ulaw": "mulaw", "alaw": "alaw"}  # FFmpeg's names of what has no header,
FRAMES = {"mp3": "mp3", "aac": "aac"}  # and of what it does not recognize by a frame or two

# Of the codec, in samples of the decoded audio: length of a frame, and silence before the signal.
# MP3 and AAC have no field for it in a stream, so players play it; Opus has (the pre-skip).
MP3_FRAME = {24000: 576, 22050: 576, 44100: 1152}
MP3_DELAY, AAC_FRAME, AAC_DELAY = 1105, 1024, 1024

FORMAT = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)


def frame_and_delay(format: AudioFormat) -> tuple[int, int]:
    match format.codec:
        case "mp3":
            return MP3_FRAME[format.sample_rate], MP3_DELAY
        case "aac":
            return AAC_FRAME, AAC_DELAY
        case _:
            return 1, 0


def sweep(seconds: float, rate: int) -> NDArray[np.float32]:
    """A sweep from 100 Hz to 3.2 kHz, inside the band of every format, faded; the same curve at any rate."""
    time_s = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (100 * time_s + (3200 - 100) / (2 * seconds) * time_s**2)
    fade = np.clip(np.minimum(time_s, seconds - time_s) / FADE_S, 0, 1)
    signal: NDArray[np.float64] = 0.5 * np.sin(np.pi / 2 * fade) ** 2 * np.sin(phase)
    return signal.astype(np.float32)


def encode(format: AudioFormat, samples: NDArray[np.float32], cuts: list[int] | None = None) -> bytes:
    """The whole stream, fed in pieces that end at `cuts`, or at once."""
    encoder = Encoder(format, SOURCE_RATE)
    borders = [0, *(cuts or []), len(samples)]
    return b"".join(encoder.encode(samples[start:end]) for start, end in pairwise(borders)) + encoder.finish()


def decode(format: AudioFormat, data: bytes) -> NDArray[np.float32]:
    """What FFmpeg hears, at the rate of the format."""
    options = {"sample_rate": str(format.sample_rate)} if format.codec in RAW else {}
    with av.open(io.BytesIO(data), format=(RAW | FRAMES).get(format.codec), options=options) as container:
        assert isinstance(container, InputContainer)
        (stream,) = container.streams.audio
        assert (stream.rate, stream.channels) == (format.sample_rate, 1)
        frames = [frame.to_ndarray()[0] for frame in container.decode(stream)]
    audio = np.concatenate(frames) if frames else np.zeros(0, np.float32)
    return audio.astype(np.float32) / 32767 if audio.dtype == np.int16 else audio


def odd_cuts(length: int) -> list[int]:
    """Cuts that match no frame of any codec, among them pieces of one sample and of none."""
    return [1, 1, 2, *range(577, length, 1777)]


@FORMAT
def test_a_name_and_its_format(format: AudioFormat) -> None:
    assert AudioFormat.parse(format.name, "format") == format


def test_defaults_of_short_names() -> None:
    names = ["pcm", "wav", "flac", "ulaw", "alaw", "mp3", "mp3_44100", "opus", "aac"]
    assert [AudioFormat.parse(name, "format").name for name in names] == [
        *("pcm_24000", "wav_24000", "flac_24000", "ulaw_8000", "alaw_8000"),
        *("mp3_24000_128", "mp3_44100_128", "opus_48000_64", "aac_48000_96"),
    ]


@pytest.mark.parametrize(
    "name",
    ["", "mp4", "PCM_24000", "pcm_", "pcm_11025", "pcm_24000_128", "ulaw_16000", "mp3_24000_192", "opus_48000_64_1"],
)
def test_an_unknown_format_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(BadRequest) as raised:
        AudioFormat.parse(name, "output_format")
    assert raised.value.field == "output_format"
    assert f"output_format is {json.dumps(name)}; allowed: pcm[_8000|" in raised.value.message


# At least: SNR in dB; at most: the error of any sample, which a click would exceed.
QUALITY = {
    "pcm": (85, 5e-5),
    "wav": (85, 5e-5),
    "flac": (85, 5e-5),
    "ulaw": (35, 0.02),
    "alaw": (35, 0.02),
    "mp3": (50, 0.01),
    "opus": (30, 0.05),
    "aac": (40, 0.05),
}
MP3_GAIN = 0.95  # LAME's headroom


@FORMAT
def test_the_signal_comes_through_however_it_is_cut(format: AudioFormat) -> None:
    seconds = 1.5
    source = sweep(seconds, SOURCE_RATE)
    data = encode(format, source, odd_cuts(len(source)))
    assert data == encode(format, source)

    heard = decode(format, data)
    signal = sweep(seconds, format.sample_rate) * np.float32(MP3_GAIN if format.codec == "mp3" else 1)
    frame, delay = frame_and_delay(format)
    assert len(heard) == -(-(len(signal) + delay) // frame) * frame
    heard = heard[delay : delay + len(signal)]
    error = heard - signal
    least_snr_db, largest_error = QUALITY[format.codec]
    assert 10 * np.log10(np.mean(signal**2) / np.mean(error**2)) > least_snr_db
    assert np.abs(error).max() < largest_error


@settings(deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.just(0) | st.integers(min_value=240, max_value=9000),
    st.lists(st.integers(min_value=0, max_value=9000), max_size=20),
)
def test_any_length_cut_anywhere(format: AudioFormat, length: int, cuts: list[int]) -> None:
    source = sweep(9000 / SOURCE_RATE, SOURCE_RATE)[:length]
    data = encode(format, source, sorted(min(cut, length) for cut in cuts))
    assert data == encode(format, source)
    if data:
        frame, delay = frame_and_delay(format)
        padding = len(decode(format, data)) - length * format.sample_rate / SOURCE_RATE - delay
        overlap = 48 if format.codec == "mp3" else 1  # LAME fills up a frame that ends so far behind the last sample
        assert -1 < padding < frame + overlap


# What an encoder may keep back of chunks of 80 ms, in ms. MP3 and AAC: their delay, and less than a frame.
HELD_BACK_MS = {"pcm": 4.2, "wav": 4.2, "ulaw": 4.2, "alaw": 4.2, "flac": 24, "mp3": 100, "opus": 7, "aac": 90}


@FORMAT
def test_what_is_complete_is_sent_at_once(format: AudioFormat) -> None:
    encoder = Encoder(format, SOURCE_RATE)
    source = sweep(1, SOURCE_RATE)
    sent = b""
    for end in range(FRAME_SAMPLES, len(source), FRAME_SAMPLES):
        sent += encoder.encode(source[end - FRAME_SAMPLES : end])
        assert sent, "the first chunk must give something to send"
        heard_s = (len(decode(format, sent)) - frame_and_delay(format)[1]) / format.sample_rate
        assert 1000 * (end / SOURCE_RATE - heard_s) <= HELD_BACK_MS[format.codec]


@pytest.mark.parametrize("rate", [22050, 44100])
def test_a_minute_does_not_drift(rate: int) -> None:
    format = AudioFormat("pcm", rate)
    source, signal = sweep(60, SOURCE_RATE), sweep(60, rate)
    heard = decode(format, encode(format, source, list(range(0, len(source), FRAME_SAMPLES))))
    assert len(heard) == len(signal)
    assert np.abs(heard - signal)[-rate:].max() < 5e-5


def test_pcm_is_the_engines_own_and_flac_loses_nothing() -> None:
    source = np.random.default_rng(0).uniform(-1.1, 1.1, 5000).astype(np.float32)
    pcm = encode(AudioFormat("pcm", SOURCE_RATE), source, [7, 1920])
    assert pcm == pcm16(source)
    flac = AudioFormat("flac", SOURCE_RATE)
    assert np.array_equal(decode(flac, encode(flac, source)), np.frombuffer(pcm, np.int16) / np.float32(32767))


@pytest.mark.parametrize(("codec", "values"), [("ulaw", [0xFF, 0x80, 0x00]), ("alaw", [0xD5, 0xAA, 0x2A])])
def test_the_telephone_codes_are_those_of_g711(codec: str, values: list[int]) -> None:
    encoder = Encoder(AudioFormat.parse(codec, "format"), source_rate=8000)
    assert list(encoder.encode(np.array([0, 2, -2], np.float32)) + encoder.finish()) == values


@FORMAT
def test_too_loud_is_clipped_and_does_not_wrap(format: AudioFormat) -> None:
    source = 4 * sweep(0.5, SOURCE_RATE)
    heard = decode(format, encode(format, source))
    _, delay = frame_and_delay(format)
    signal = np.clip(4 * sweep(0.5, format.sample_rate), -1, 1)
    assert np.corrcoef(heard[delay : delay + len(signal)], signal)[0, 1] > 0.9


@FORMAT
def test_streams_side_by_side_are_their_own(format: AudioFormat) -> None:
    sources = [sweep(0.3, SOURCE_RATE), -0.5 * sweep(0.3, SOURCE_RATE)[::-1]]
    encoders = [Encoder(format, SOURCE_RATE) for _ in sources]
    data = [b"", b""]
    for start in range(0, len(sources[0]), FRAME_SAMPLES):
        for i, source in enumerate(sources):
            data[i] += encoders[i].encode(source[start : start + FRAME_SAMPLES])
    for i, source in enumerate(sources):
        assert data[i] + encoders[i].finish() == encode(format, source)


@FORMAT
def test_a_stream_without_audio(format: AudioFormat) -> None:
    data = encode(format, np.zeros(0, np.float32))
    if format.codec in ("pcm", "ulaw", "alaw", "mp3", "aac"):
        assert data == b""  # these have frames and nothing else
    else:
        assert len(decode(format, data)) == 0


def test_other_decoders_read_the_streaming_headers() -> None:
    source = sweep(0.5, SOURCE_RATE)
    with wave.open(io.BytesIO(encode(AudioFormat("wav", SOURCE_RATE), source))) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, SOURCE_RATE)
        assert wav.readframes(len(source) + 1) == pcm16(source)
    opus, rate = sf.read(io.BytesIO(encode(AudioFormat.parse("opus", "format"), source)))
    assert (len(opus), rate) == (len(source), SOURCE_RATE)  # libsndfile goes back to the rate of the input
