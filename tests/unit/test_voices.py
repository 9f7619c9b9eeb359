"""Voices on disk and their alignment: what is read back, what is refused, and that nothing of a prefix is left over."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from dia2_engine import ConfigError
from dia2_engine.model.checkpoint import find_checkpoint
from dia2_engine.model.encoder import MimiEncoder
from dia2_engine.model.tokenizer import load_tokenizer
from dia2_engine.text.parser import Encode
from dia2_engine.text.state_machine import TextMachine
from dia2_engine.voice.plan import PrefixPlan, TimedWord, check_plan, plan_prefix
from dia2_engine.voice.prepare import Preparation, align_voice, prepare_voice
from dia2_engine.voice.voice import (
    Clip,
    PreparedVoice,
    VoiceSource,
    codec_sha256,
    faded,
    list_voices,
    load_prepared,
    load_voice_folder,
    padded,
    parse_words,
)
from tests.support import VECTORS, make_engine, write_voices

CHECKPOINT = VECTORS / "small" / "checkpoint"
RATE, FRAME = 24_000, 1920
CODEBOOKS, CODEC_VOCAB = 8, 2048
Machine = Callable[[], TextMachine]


@pytest.fixture(scope="module")
def encode() -> Encode:
    return load_tokenizer(find_checkpoint(str(CHECKPOINT)))[0]


@pytest.fixture(scope="module")
def machine() -> Machine:
    tokens = load_tokenizer(find_checkpoint(str(CHECKPOINT)))[1]
    return lambda: TextMachine(tokens, lookahead_words=2, max_padding=6, initial_padding=2)


@pytest.fixture(scope="module")
def codec() -> MimiEncoder:
    return MimiEncoder.load(CHECKPOINT / "mimi", codebooks=CODEBOOKS)


def preparation(**changes: Any) -> Preparation:
    how = Preparation(sample_rate=RATE, frame_samples=FRAME, cooldown_frames=6, fade_ms=20)
    return dataclasses.replace(how, **changes)


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)


def clip(seconds: float, *words: tuple[str, float]) -> Clip:
    timed = tuple(TimedWord(text, start, start + 0.1) for text, start in words)
    return Clip(noise(seconds), timed, "clip.wav", "0" * 64)


# ---- prepared voices


@pytest.fixture
def prepared() -> PreparedVoice:
    tokens = np.random.default_rng(3).integers(0, CODEC_VOCAB, (CODEBOOKS, 30))
    words = ((TimedWord("Hé,", 0.1, 0.4), TimedWord("you", 0.5, 0.75)), (TimedWord("Sure.", 0.2, 0.3),))
    return PreparedVoice("anna", tokens, words, (18, 12), {"clip_1_sha256": "ab", "fade_ms": "20.0"})


def load(path: Path, **settings: Any) -> PreparedVoice:
    return load_prepared(path, CODEBOOKS, CODEC_VOCAB, **settings)


def test_a_prepared_voice_reads_back_as_it_was(prepared: PreparedVoice, tmp_path: Path) -> None:
    prepared.save(tmp_path / "anna.safetensors")
    back = load(tmp_path / "anna.safetensors")
    assert np.array_equal(back.tokens, prepared.tokens)
    assert dataclasses.replace(back, tokens=prepared.tokens) == prepared


def test_the_file_has_the_rights_of_any_other(prepared: PreparedVoice, tmp_path: Path) -> None:
    """A server often runs as another user than the one who prepared the voice."""
    prepared.save(tmp_path / "anna.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "anna.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_model_with_fewer_codebooks_takes_the_first(prepared: PreparedVoice, tmp_path: Path) -> None:
    prepared.save(tmp_path / "anna.safetensors")
    assert np.array_equal(load_prepared(tmp_path / "anna.safetensors", 3, CODEC_VOCAB).tokens, prepared.tokens[:3])


def test_another_codec_is_told(prepared: PreparedVoice, tmp_path: Path) -> None:
    path = tmp_path / "anna.safetensors"
    prepared.save(path)
    load(path, codec="f" * 64)  # nothing recorded, nothing to compare
    dataclasses.replace(prepared, provenance={"codec_sha256": "e" * 64}).save(path)
    load(path)
    load(path, codec="e" * 64)
    with pytest.raises(ConfigError, match=r"anna\.safetensors: was prepared with another codec .*eeee.*ffff.*noise"):
        load(path, codec="f" * 64)


def test_the_codecs_hash_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    assert codec_sha256(tmp_path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(ConfigError, match=r"nowhere/model\.safetensors: cannot be read"):
        codec_sha256(tmp_path / "nowhere")


def spoiled(prepared: PreparedVoice, path: Path, tokens: Any = None, **metadata: str | None) -> Path:
    """A prepared voice with other tokens or metadata; None removes a field."""
    prepared.save(path)
    with safe_open(path, framework="np") as file:
        fields = {**file.metadata(), **metadata}
    kept = {name: value for name, value in fields.items() if value is not None}
    save_file({"tokens": prepared.tokens if tokens is None else tokens}, path, metadata=kept)
    return path


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "dia2-voice-9"}, "format is 'dia2-voice-9', not 'dia2-voice-1'"),
        ({"format": None}, "format is None"),
        ({"words": None}, "not a prepared voice: 'words'"),
        ({"words": "{"}, "not a prepared voice"),
        ({"words": "3"}, "not a prepared voice"),
        ({"words": "[[], []]"}, "clip 0 needs 'words'"),
        ({"words": '[[{"text": "a", "start": 1, "end": 0}], [{"text": "a", "start": 1, "end": 1}]]'}, "clip 0: words"),
        ({"clip_frames": "[30]"}, "2 clips of .30,. frames do not make 30 frames"),
        ({"clip_frames": "[18, 13]"}, ".*do not make 30 frames"),
        ({"clip_frames": "[-5, 35]"}, ".*do not make 30 frames"),
        ({"clip_frames": "[null, 30]"}, "not a prepared voice"),
    ],
)
def test_bad_metadata(prepared: PreparedVoice, tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = spoiled(prepared, tmp_path / "anna.safetensors", **metadata)
    with pytest.raises(ConfigError, match=rf"anna\.safetensors: {message}"):
        load(path)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((7, 30), np.int32), r"tokens are \[7, 30\]; the checkpoint needs \[8, frames\]"),
        (np.zeros(30, np.int32), r"tokens are \[30\]"),
        (np.zeros((8, 0), np.int32), r"tokens are \[8, 0\]"),
        (np.zeros((8, 30), np.float32), "tokens are float32, not integers"),
        (np.full((8, 30), 2048, np.int32), r"token ids run 2048\.\.2048; allowed: 0\.\.2047"),
        (np.full((8, 30), -2, np.int32), r"token ids run -2\.\.-2; allowed: 0\.\.2047"),
    ],
)
def test_bad_tokens(prepared: PreparedVoice, tmp_path: Path, tokens: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(spoiled(prepared, tmp_path / "anna.safetensors", tokens))


def test_files_that_are_no_prepared_voice(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"other": np.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "dia2-voice-1"})
    for name in ("text", "model", "absent"):
        with pytest.raises(ConfigError, match=rf"{name}\.safetensors: not a prepared voice"):
            load(tmp_path / f"{name}.safetensors")


# ---- voice folders


WORDS = [{"text": " Hello,", "start": 0.1, "end": 0.3}, {"text": "there", "start": 0.4, "end": 0.6}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    voice = tmp_path / "anna"
    voice.mkdir()
    soundfile.write(voice / "clip.wav", noise(1.0), RATE, subtype="PCM_16")
    return voice


def write(folder: Path, manifest: Any) -> Path:
    (folder / "voice.json").write_text(json.dumps(manifest), "utf-8")
    return folder


def one(**changes: Any) -> dict[str, Any]:
    return {"speakers": [{"clip": "clip.wav", "words": WORDS, **changes}]}


def test_one_clip_is_both_speakers_unless_told_otherwise(folder: Path) -> None:
    both = load_voice_folder(write(folder, one()), RATE)
    assert both.name == "anna"
    assert [clip.words[0] for clip in both.clips] == [TimedWord("Hello,", 0.1, 0.3)] * 2
    assert both.clips[0].audio.shape == (RATE,)
    assert load_voice_folder(write(folder, {**one(), "second_speaker": "same"}), RATE).clips[1] is not None
    assert len(load_voice_folder(write(folder, {**one(), "second_speaker": "none"}), RATE).clips) == 1


def test_a_clip_is_resampled_and_mixed_to_the_codecs_form(folder: Path) -> None:
    stereo = np.stack([noise(0.5), noise(0.5)], axis=1)
    soundfile.write(folder / "clip.flac", stereo, 48_000)
    source = load_voice_folder(write(folder, one(clip="clip.flac")), RATE)
    assert source.clips[0].audio.shape == (RATE // 4,)
    assert source.clips[0].audio.dtype == np.float32


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ([], "'speakers' must list one or two clips"),
        ({}, "'speakers' must list one or two clips"),
        ({"speakers": []}, "'speakers' must list one or two clips"),
        ({"speakers": [1, 2, 3]}, "'speakers' must list one or two clips"),
        ({"speakers": ["clip.wav"]}, r"speakers\[0\] needs 'clip'"),
        ({"speakers": [{"words": WORDS}]}, r"speakers\[0\] needs 'clip'"),
        (one(clip=3), r"speakers\[0\] needs 'clip'"),
        (one(words=None), r"speakers\[0\] needs 'words'"),
        (one(words=[]), r"speakers\[0\] needs 'words'"),
        (one(words={"text": "a"}), r"speakers\[0\] needs 'words'"),
        (one(words=["Hello"]), r"speakers\[0\]: words\[0\] is 'Hello'; it needs text, start, end"),
        (one(words=[{"text": "a", "start": 0.1}]), r"words\[0\] is .*; it needs text, start, end"),
        (one(words=[{"text": None, "start": 0, "end": 1}]), r"words\[0\] is .*; it needs text, start, end"),
        (one(words=[{"text": "a", "start": "0", "end": 1}]), r"words\[0\] is .*; it needs text, start, end"),
        (one(words=[{"text": "a", "start": True, "end": 1}]), r"words\[0\] is .*; it needs text, start, end"),
        (one(words=[{"text": "a", "start": 10**400, "end": 1}]), r"words\[0\] is .*; it needs text, start, end"),
        (one(words=[{"text": "a", "start": float("nan"), "end": 1}]), r"words\[0\] is .*; it needs text, start, end"),
        (one(words=[{"text": "a", "start": -0.1, "end": 1}]), r"words\[0\] runs from -0.1 to 1.0 s"),
        (one(words=[{"text": "a", "start": 0.5, "end": 0.4}]), r"words\[0\] runs from 0.5 to 0.4 s"),
        (one(words=[WORDS[1], WORDS[0]]), r"words\[1\] starts at 0.1 s, before the word in front of it"),
        (one(words=[{"text": "  ", "start": 0, "end": 1}]), r"words\[0\] has the text ''; it must be a spoken word"),
        (one(words=[{"text": "[S2]", "start": 0, "end": 1}]), r"words\[0\] has the text '\[S2\]'; it must be a spoken"),
        ({**one(), "second_speaker": "other"}, "'second_speaker' is 'other'; allowed: same, none"),
    ],
)
def test_bad_manifests_name_the_file_and_the_field(folder: Path, manifest: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_voice_folder(write(folder, manifest), RATE)
    assert str(error.value).startswith(str(folder / "voice.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read as JSON"), (b"{", "cannot be read as JSON"), (b"\xff\xfe", "cannot be read as JSON")],
)
def test_manifests_that_are_not_json(folder: Path, content: bytes, message: str) -> None:
    (folder / "voice.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"voice\.json: {message}"):
        load_voice_folder(folder, RATE)


@pytest.mark.parametrize(
    "name", ["../secret.wav", "sub/clip.wav", "/etc/hostname", "", ".", "..", "clip\0.wav", "link.wav"]
)
def test_a_clip_outside_the_voices_own_folder_is_refused(folder: Path, name: str) -> None:
    (folder / "sub").mkdir()
    for path in (folder.parent / "secret.wav", folder / "sub" / "clip.wav"):
        shutil.copy(folder / "clip.wav", path)
    os.symlink(folder.parent / "secret.wav", folder / "link.wav")
    with pytest.raises(ConfigError, match=r"speakers\[0\]: clip .* must lie in the voice's own folder"):
        load_voice_folder(write(folder, one(clip=name)), RATE)


@pytest.mark.parametrize("content", [None, b"", b"no sound", b"RIFF\x00\x00\x00\x00WAVE"])
def test_clips_that_cannot_be_read_are_named(folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / "clip.wav").unlink()
    else:
        (folder / "clip.wav").write_bytes(content)
    with pytest.raises(ConfigError, match=r"anna/clip\.wav: "):
        load_voice_folder(write(folder, one()), RATE)


def test_words_are_kept_as_written_but_for_space_around_them() -> None:
    assert parse_words("here", WORDS)[0] == TimedWord("Hello,", 0.1, 0.3)
    assert parse_words("here", [{"text": "a b", "start": 0, "end": 1, "probability": 0.3}]) == (TimedWord("a b", 0, 1),)


def test_a_prepared_file_wins_over_its_folder_and_the_rest_is_passed_over(
    folder: Path, prepared: PreparedVoice
) -> None:
    voices = folder.parent
    write(folder, one())
    shutil.copytree(folder, voices / "ben")
    shutil.copytree(folder, voices / ".ben.part")
    (voices / "notes").mkdir()
    (voices / "README.md").touch()
    prepared.save(voices / "anna.safetensors")
    assert list_voices(voices) == {"anna": voices / "anna.safetensors", "ben": voices / "ben"}


# ---- preparation and alignment


def spoken(plan: PrefixPlan, text: TextMachine) -> tuple[list[str], TextMachine]:
    """Feed a prefix's steps; the words that begin, and the machine afterwards."""
    text.entries.extend(plan.entries)
    words = []
    for step in range(plan.frames):
        started = text.step(step, step in plan.new_word_steps, forced=True).started
        if started:
            words.append(started.text)
    return words, text


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [(14, "word 'there.' does not begin at its frame 14 of 14"), (15, r"0 words and \d pieces are left over")],
)
def test_a_last_word_near_the_clips_end_gets_the_silence_it_needs(
    encode: Encode, machine: Machine, frames: int, complaint: str
) -> None:
    """A clip of 1.1 s: what of its last word, at 1.0 s, is not reached would be the first that a request speaks."""
    words = [TimedWord("Hello", 0.2, 0.6), TimedWord("there.", 1.0, 1.1)]
    reference = plan_prefix([(words, frames)], encode, 12.5, fit=False)
    with pytest.raises(ConfigError, match=complaint):
        check_plan(reference, machine(), reference.frames)
    _, left = spoken(reference, machine())
    assert left.entries or left.pending
    fitted = plan_prefix([(words, frames)], encode, 12.5, cooldown_frames=0)
    assert fitted.frames > frames
    check_plan(fitted, machine(), fitted.frames)
    texts, after = spoken(fitted, machine())
    assert texts == ["Hello", "there."]
    assert not after.entries
    assert not after.pending


def test_no_more_silence_is_added_than_the_last_word_needs(encode: Encode) -> None:
    words = [TimedWord("Hello", 0.2, 0.6)]
    assert plan_prefix([(words, 40)], encode, 12.5, cooldown_frames=0).frames == 40
    assert plan_prefix([(words, 40)], encode, 12.5, cooldown_frames=6).frames == 46
    tight = plan_prefix([(words, 3)], encode, 12.5, cooldown_frames=0)
    assert tight.frames == tight.new_word_steps[0] + 1 + len(tight.entries[0].tokens)


def test_speaker_1_ends_before_speaker_2_begins(encode: Encode, machine: Machine) -> None:
    """Unfitted, the shift of speaker 1's words moves its last one behind speaker 2's first."""
    first = [TimedWord("Hello", 0.1, 0.3), TimedWord("you.", 0.75, 0.8)]
    second = [TimedWord("Sure.", 0.0, 0.3)]
    clips = [(first, 10), (second, 20)]
    reference = plan_prefix(clips, encode, 12.5, fit=False)
    assert list(reference.new_word_steps) != sorted(reference.new_word_steps)
    with pytest.raises(ConfigError, match="does not begin at its frame"):
        check_plan(reference, machine(), reference.frames)
    fitted = plan_prefix(clips, encode, 12.5, cooldown_frames=6)
    assert list(fitted.new_word_steps) == sorted(fitted.new_word_steps)
    assert fitted.clip_frames[0] > 10
    assert fitted.clip_frames[1] == 26
    check_plan(fitted, machine(), fitted.frames)
    assert spoken(fitted, machine())[0] == ["Hello", "you.", "Sure."]


def test_a_prepared_voice_is_encoded_whole_and_serves_without_leftovers(
    encode: Encode, machine: Machine, codec: MimiEncoder
) -> None:
    source = VoiceSource("short", (clip(1.15, ("Hello", 0.2), ("there.", 1.0)), clip(0.8, ("Sure.", 0.0))))
    voice = prepare_voice(source, encode, codec.encode, preparation(codec_sha256="c" * 64))
    assert voice.tokens.shape == (CODEBOOKS, sum(voice.clip_frames))
    assert voice.provenance == {
        "clip_1_sha256": "0" * 64,
        "clip_2_sha256": "0" * 64,
        "cooldown_frames": "6",
        "fade_ms": "20",
        "codec_sha256": "c" * 64,
    }
    plan = align_voice(voice, encode, machine(), 12.5)
    assert plan.frames == voice.tokens.shape[1]
    texts, after = spoken(plan, machine())
    assert texts == ["Hello", "there.", "Sure."]
    assert not after.entries
    assert not after.pending


def test_clip_and_cooldown_are_one_signal_that_ends_in_silence(encode: Encode) -> None:
    heard: list[NDArray[np.float32]] = []

    def listen(audio: NDArray[np.float32]) -> NDArray[np.int64]:
        heard.append(audio)
        return np.zeros((CODEBOOKS, len(audio) // FRAME), np.int64)

    source = VoiceSource("v", (clip(1.0, ("Hello", 0.2)), clip(0.9, ("Sure.", 0.1))))
    voice = prepare_voice(source, encode, listen, preparation())
    [audio] = heard
    assert len(audio) == sum(voice.clip_frames) * FRAME
    fade = round(0.02 * RATE)
    starts = (0, voice.clip_frames[0] * FRAME)
    for start, recorded, frames in zip(starts, source.clips, voice.clip_frames, strict=True):
        end = start + len(recorded.audio)
        assert np.array_equal(audio[start : end - fade], recorded.audio[:-fade])
        assert abs(audio[end - 1]) < 1e-6
        assert not audio[end : start + frames * FRAME].any()
    assert not audio[-6 * FRAME :].any()


def test_the_reference_way_leaves_clips_alone(encode: Encode) -> None:
    heard: list[NDArray[np.float32]] = []

    def listen(audio: NDArray[np.float32]) -> NDArray[np.int64]:
        heard.append(audio)
        return np.zeros((CODEBOOKS, -(-len(audio) // FRAME)), np.int64)

    source = VoiceSource("v", (clip(1.0, ("Hello", 0.2)), clip(0.9, ("Sure.", 0.1))))
    voice = prepare_voice(source, encode, listen, preparation(plain=True))
    assert voice.clip_frames == (13, 12)
    assert all(np.array_equal(audio, recorded.audio) for audio, recorded in zip(heard, source.clips, strict=True))


@pytest.mark.parametrize(("samples", "fade"), [(1000, 480), (480, 480), (100, 480), (1, 480), (1000, 1)])
def test_a_fade_ends_in_silence_and_only_ever_lowers(samples: int, fade: int) -> None:
    audio = np.ones(samples, np.float32)
    out = faded(audio, fade)
    assert out.shape == audio.shape
    assert out.dtype == np.float32
    assert abs(out[-1]) < 1e-7
    assert (np.diff(out) <= 0).all()
    assert (out[: samples - fade] == 1).all()
    assert (audio == 1).all(), "the clip itself is not changed: it may serve as the second speaker too"


def test_no_fade_is_no_change() -> None:
    audio = noise(0.1)
    assert np.array_equal(faded(audio, 0), audio)


def test_padding_fills_each_part_to_its_frames() -> None:
    out = padded([np.ones(5, np.float32), np.ones(4, np.float32)], [2, 1], 4)
    assert out.tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1]


def test_a_word_behind_the_clips_end_is_refused_by_name(encode: Encode, codec: MimiEncoder) -> None:
    source = VoiceSource("anna", (clip(1.0, ("Hello", 0.2), ("late", 1.0)),))
    with pytest.raises(ConfigError, match=r"'anna': clip\.wav lasts 1.00 s but its word 'late' starts at 1.00 s"):
        prepare_voice(source, encode, codec.encode, preparation())


def test_alignment_names_the_voice_and_what_is_wrong(encode: Encode, machine: Machine) -> None:
    tokens = np.zeros((CODEBOOKS, 10), np.int64)
    late = PreparedVoice("anna", tokens, ((TimedWord("Hello", 0.7, 0.8),),), (10,), {})
    with pytest.raises(ConfigError, match=r"voice 'anna': word 'Hello' does not begin at its frame"):
        align_voice(late, encode, machine(), 12.5)
    align_voice(late, encode, machine(), 12.5, check=False)
    unspoken = PreparedVoice("ben", tokens, ((TimedWord("Hello", 0.1, 0.2), TimedWord("<pad>", 0.4, 0.5)),), (10,), {})
    with pytest.raises(ConfigError, match="voice 'ben': word '<pad>' of the voice has no pronounceable piece"):
        align_voice(unspoken, encode, machine(), 12.5)


def test_check_plan_counts_frames_and_words(encode: Encode, machine: Machine) -> None:
    plan = plan_prefix([([TimedWord("Hello", 0.2, 0.6)], 20)], encode, 12.5)
    with pytest.raises(ConfigError, match="the prefix has 19 frames of audio but its plan covers 20"):
        check_plan(plan, machine(), 19)
    with pytest.raises(ConfigError, match="the prefix has no words"):
        check_plan(PrefixPlan((), (), (5,)), machine(), 5)
    text = machine()
    check_plan(plan, text, 20)
    assert not text.entries, "checking leaves the machine as it is"


# ---- in the engine


def test_the_engine_refuses_a_voice_called_none(tmp_path: Path) -> None:
    (write_voices(tmp_path) / "solo").rename(tmp_path / "none")
    with pytest.raises(ConfigError, match="the voice name 'none' is reserved"):
        make_engine(voices=str(tmp_path))


def test_the_engine_refuses_a_voice_that_leaves_no_room(encode: Encode) -> None:
    engine = make_engine()
    words = (TimedWord("Hello", 0.2, 0.6),)
    context = engine.model_config.max_context_steps
    room = context - engine.model_config.max_delay
    voice = PreparedVoice("long", np.zeros((CODEBOOKS, room), np.int64), (words,), (room,), {})
    with pytest.raises(ConfigError, match=rf"'long' takes {room} of the model's {context} steps of context"):
        engine.add_voice(voice)


def test_a_prepared_voice_is_the_folder_it_was_made_from(tmp_path: Path, codec: MimiEncoder, encode: Encode) -> None:
    folders = write_voices(tmp_path / "folders")
    ready = tmp_path / "ready"
    ready.mkdir()
    for name, path in list_voices(folders).items():
        voice = prepare_voice(load_voice_folder(path, RATE), encode, codec.encode, preparation())
        voice.save(ready / f"{name}.safetensors")
    slow, fast = make_engine(voices=str(folders)), make_engine(voices=str(ready))
    assert list(slow.voices) == list(fast.voices) == ["duo", "solo"]
    for name, voice_ in slow.voices.items():
        same = fast.voices[name]
        assert np.array_equal(voice_.prefix.columns, same.prefix.columns)
        assert np.array_equal(voice_.prefix.tokens, same.prefix.tokens)
        assert voice_.prefix.cut_text == same.prefix.cut_text
