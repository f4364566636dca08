"""The meeting bundle without its models: utterances, transcripts, networks, passages, clips and metrics."""

from __future__ import annotations

import itertools
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compass_agent.runtimes import open_runtime
from compass_shared.fleet_file import load_fleet
from compass_shared.pipeline_file import load_pipeline
from compass_shared.values import State
from support.applications import EXAMPLES, module_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compass_agent.runtimes import LoadedModel

FOLDER = EXAMPLES / "meeting"
RATE_HZ = 16_000

bundle_module = partial(module_of, "meeting")
meetings, metric, minutes, operators, speech, transcribers, voice, whisper_models, wordpiece = map(
    bundle_module,
    (
        "meetings",
        "metric",
        "minutes",
        "operators",
        "speech",
        "transcribers",
        "voice",
        "whisper_models",
        "wordpiece",
    ),
)


# --- utterances ---------------------------------------------------------------------------------------------


class LoudIsSpeech:
    """A detector that takes every loud frame for speech, and counts the frames before in ``h``."""

    input_names = ("input", "h", "c")
    assets: Mapping[str, Path] = {}

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        frames = feed["input"]
        loud = np.abs(frames[:, voice.CONTEXT :]).mean(axis=1) > 0.1
        return {"speech_probs": loud.astype(np.float32), "hn": feed["h"] + len(frames), "cn": feed["c"]}


def loud_at(*spans_s: tuple[float, float], seconds: float) -> Any:
    sound = np.zeros(round(seconds * RATE_HZ), np.float32)
    for start, end in spans_s:
        sound[round(start * RATE_HZ) : round(end * RATE_HZ)] = 0.5
    return sound


def listened(sound: Any, hop: int) -> list[tuple[float, float]]:
    """First and last second of every utterance, the sound coming in hops."""
    listener = voice.Listener()
    found = []
    for start in range(0, len(sound), hop):
        for frame, heard in listener.listen(sound[start : start + hop], LoudIsSpeech().run):
            first = frame * voice.FRAME
            assert np.array_equal(heard, sound[first : first + len(heard)]), "it is a piece of the stream"
            found.append((first / RATE_HZ, (first + len(heard)) / RATE_HZ))
    return found


def test_utterances_are_found_between_silences() -> None:
    (first, second) = listened(loud_at((1.0, 2.5), (3.5, 4.2), seconds=6), RATE_HZ)
    assert first == pytest.approx((1.0 - 6 * 0.032, 2.5 + 4 * 0.032), abs=0.04)
    assert second == pytest.approx((3.5 - 6 * 0.032, 4.2 + 4 * 0.032), abs=0.04)


@pytest.mark.parametrize("hop", [100, 512, 8_000, 96_000])
def test_it_does_not_matter_how_a_stream_is_cut_into_hops(hop: int) -> None:
    sound = loud_at((0.7, 2.0), (2.9, 3.3), seconds=6)
    assert listened(sound, hop) == listened(sound, RATE_HZ)


def test_short_pauses_do_not_end_an_utterance_and_clicks_are_none() -> None:
    assert len(listened(loud_at((1.0, 2.0), (2.3, 3.0), seconds=5), RATE_HZ)) == 1
    assert listened(loud_at((1.0, 1.1), seconds=3), RATE_HZ) == []


def test_who_never_stops_is_cut() -> None:
    spans = listened(loud_at((0.0, 35.0), seconds=37), RATE_HZ)
    assert len(spans) == 3
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans)), "nothing is heard twice"
    assert max(end - start for start, end in spans) == pytest.approx(
        voice.MOST_FRAMES * voice.FRAME / RATE_HZ
    )


def hops_of(sound: Any) -> list[Any]:
    return list(sound.reshape(-1, RATE_HZ))


def said_in(hops: list[Any], gaps: Mapping[int, int] | None = None) -> list[Any]:
    state, found = State(), []
    for index, hop in enumerate(hops):
        state.gap = (gaps or {}).get(index, 0)
        found += operators.voice({"capture": hop}, {}, LoudIsSpeech(), state)
    return found


def test_the_operator_tells_when_it_was_said() -> None:
    (utterance,) = said_in(hops_of(loud_at((2.5, 3.5), seconds=6)))
    assert utterance["start_s"] == pytest.approx(2.5, abs=0.25)
    assert utterance["end_s"] - utterance["start_s"] == pytest.approx(len(utterance["sound"]) / RATE_HZ)


def test_after_lost_hops_times_stay_right_and_halves_are_not_joined() -> None:
    hops = hops_of(loud_at((0.5, 1.9), (4.2, 5.5), seconds=8))
    (utterance,) = said_in([hops[0], *hops[4:]], gaps={1: 3})
    assert utterance["start_s"] == pytest.approx(4.2, abs=0.25)


def test_only_16_bit_sound_is_captured() -> None:
    out = operators.capture({"request": np.array([0, 16_384, -32_768], np.int16)}, {}, None)
    assert out.dtype == np.float32
    assert out.tolist() == [0.0, 0.5, -1.0]
    for wrong in (b"sound", np.zeros(4, np.float32), np.zeros((2, 2), np.int16)):
        with pytest.raises(ValueError, match="int16"):
            operators.capture({"request": wrong}, {}, None)


# --- networks -----------------------------------------------------------------------------------------------

WIDTH, TOKENS = 128, 40


def tiny_weights() -> dict[str, Any]:
    """A Whisper of one layer a half, with random weights."""
    rng = np.random.default_rng(3)
    shapes = {
        "encoder/conv1/weight": (WIDTH, 80, 3),
        "encoder/conv2/weight": (WIDTH, WIDTH, 3),
        "encoder/position_encodings/encodings": (1500, WIDTH),
        "decoder/position_encodings/encodings": (448, WIDTH),
        "decoder/embeddings/weight": (TOKENS, WIDTH),
    }
    linear = {"self_attention/linear_0": (3, 1), "self_attention/linear_1": (1, 1)}
    linear |= {"ffn/linear_0": (4, 1), "ffn/linear_1": (1, 4)}
    across = {"attention/linear_0": (1, 1), "attention/linear_1": (2, 1), "attention/linear_2": (1, 1)}
    for part, layers in (("encoder", linear), ("decoder", linear | across)):
        for name, (out, into) in layers.items():
            shapes[f"{part}/layer_0/{name}/weight"] = (out * WIDTH, into * WIDTH)
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float16) for name, shape in shapes.items()}
    for name in [name for name in weights if "linear" in name or "conv" in name]:
        rows = len(weights[name])
        weights[name.replace("weight", "bias")] = rng.normal(0, 0.1, rows).astype(np.float16)
    for place in ("layer_norm", "layer_0/self_attention/layer_norm", "layer_0/ffn/layer_norm"):
        for part in ("encoder", "decoder"):
            weights[f"{part}/{place}/gamma"] = np.ones(WIDTH, np.float16)
            weights[f"{part}/{place}/beta"] = np.zeros(WIDTH, np.float16)
    weights["decoder/layer_0/attention/layer_norm/gamma"] = np.ones(WIDTH, np.float16)
    weights["decoder/layer_0/attention/layer_norm/beta"] = np.zeros(WIDTH, np.float16)
    return weights


def ct2_bytes(weights: Mapping[str, Any]) -> bytes:
    """As CTranslate2 writes them down."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(weights))
    for name, array in weights.items():
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", 4, array.nbytes) + array.tobytes()
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("whisper")
    data = ct2_bytes(tiny_weights())
    (folder / "one").write_bytes(data[:5_000])
    (folder / "two").write_bytes(data[5_000:])
    assets = {"weights-2": folder / "two", "weights-1": folder / "one", "tokens": folder / "missing"}
    for kind in ("encoder", "decoder", "encoder_int8", "decoder_int8"):
        (folder / kind).write_bytes(getattr(whisper_models, kind)(assets))
    return {
        kind: open_runtime("onnx").load(folder / kind)
        for kind in ("encoder", "decoder", "encoder_int8", "decoder_int8")
    }


def seen_by(encoder: LoadedModel) -> dict[str, Any]:
    mel = np.random.default_rng(5).normal(size=(1, 80, 200)).astype(np.float32)
    return encoder.run({"mel": mel})


def scores_of(decoder: LoadedModel, seen: Mapping[str, Any], steps: list[list[int]]) -> Any:
    empty = np.zeros((1, WIDTH // 64, 0, 64), np.float32)
    past: dict[str, Any] = {"key_0": empty, "value_0": empty}
    scores = None
    for ids in steps:
        out = decoder.run({"ids": np.array([ids]), **past, **seen})
        scores = out.pop("scores")
        past = {name.removeprefix("next_"): array for name, array in out.items()}
    return scores


def test_the_decoder_says_the_same_of_tokens_one_by_one_and_together(made: dict[str, LoadedModel]) -> None:
    seen = seen_by(made["encoder"])
    assert seen["seen_key_0"].shape == (1, 2, 64, 100)
    together = scores_of(made["decoder"], seen, [[4, 7, 1, 9]])
    assert together.shape == (1, TOKENS)
    assert scores_of(made["decoder"], seen, [[4, 7], [1], [9]]) == pytest.approx(together, abs=1e-4)
    assert scores_of(made["decoder"], seen, [[7, 4, 1, 9]]) != pytest.approx(together, abs=1e-2)


def test_whole_numbers_come_close_to_single_precision(made: dict[str, LoadedModel]) -> None:
    exact = scores_of(made["decoder"], seen_by(made["encoder"]), [[4, 7, 1]])
    whole = scores_of(made["decoder_int8"], seen_by(made["encoder_int8"]), [[4, 7, 1]])
    assert np.corrcoef(exact[0], whole[0])[0, 1] > 0.99
    assert not np.array_equal(exact, whole)


def test_a_matrix_is_its_whole_numbers_times_their_scales() -> None:
    matrix = np.random.default_rng(1).normal(size=(5, 30)).astype(np.float16)
    matrix[2] = 0
    whole, scale = whisper_models.quantised(matrix)
    assert whole.dtype == np.int8
    assert np.abs(whole).max() == whisper_models.INT8_LIMIT
    error = np.abs((whole * scale).T - matrix.astype(np.float32))
    assert (error <= scale[:, None] / 2 + 1e-6).all()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(ct2_bytes(tiny_weights())[:3_000])
    with pytest.raises(ValueError, match=r"CTranslate2|buffer"):
        whisper_models.encoder({"weights": file})
    file.write_bytes(struct.pack("<IH", 5, 1) + b"\0" + struct.pack("<II", 0, 0))
    with pytest.raises(ValueError, match="format 5"):
        whisper_models.encoder({"weights": file})


# --- transcripts --------------------------------------------------------------------------------------------


def test_a_tone_is_where_the_mel_scale_has_it() -> None:
    tone = np.sin(2 * np.pi * 1_000 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    mel = transcribers.log_mel(tone, 3.0)
    assert mel.shape == (80, 300)
    centres = transcribers.mel_to_hertz(np.linspace(0, transcribers.hertz_to_mel(8_000), 82))[1:-1]
    assert abs(centres[mel[:, 50].argmax()] - 1_000) < 40
    assert mel[:, 200].max() == mel.min(), "silence behind it"


def test_both_scales_are_inverse() -> None:
    hertz = np.array([0.0, 500.0, 1_000.0, 4_000.0, 8_000.0])
    mel = np.array([transcribers.hertz_to_mel(each) for each in hertz])
    assert transcribers.mel_to_hertz(mel) == pytest.approx(hertz)


def test_whisper_is_asked_until_it_ends() -> None:
    tokens = ("<|never|>", "\u0120so", "\u0120it", "\u0120is", "<|endoftext|>", "<|start|>")
    vocabulary = transcribers.Vocabulary(tokens, (5,), 4, np.array([0, 5]), np.array([4]))
    asked: list[list[int]] = []

    def encode(feed: Mapping[str, Any]) -> dict[str, Any]:
        assert feed["mel"].shape == (1, 80, 700), "what was said and six seconds of silence"
        return {"seen_key_0": np.zeros((1, 2, 64, 5)), "seen_value_0": np.zeros((1, 2, 5, 64))}

    def decode(feed: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(feed["ids"][0].tolist())
        step = feed["key_0"].shape[2]
        wanted = [1, 2, 3, 4][step]
        scores = np.full((1, 6), -1.0, np.float32)
        scores[0, [0, wanted]] = 9.0, 5.0  # the likeliest token is never to be said
        scores[0, 4] = 8.0 if step == 0 else scores[0, 4]  # nor is the end at once
        longer = np.zeros((1, 2, step + 1, 64), np.float32)
        return {"scores": scores, "next_key_0": longer, "next_value_0": longer}

    sound = np.zeros(RATE_HZ, np.float32)
    assert transcribers.whisper_text(sound, encode=encode, decode=decode, vocabulary=vocabulary) == "so it is"
    assert asked == [[5], [1], [2], [3]]


def test_nobody_speaks_for_ever() -> None:
    vocabulary = transcribers.Vocabulary(("a", "b"), (0,), 1, np.array([], int), np.array([], int))
    calls = []

    def decode(feed: Mapping[str, Any]) -> dict[str, Any]:
        calls.append(feed)
        return {
            "scores": np.array([[1.0, 0.0]]),
            "next_key_0": feed["key_0"],
            "next_value_0": feed["value_0"],
        }

    seen = {"seen_key_0": np.zeros((1, 1, 64, 1)), "seen_value_0": np.zeros((1, 1, 1, 64))}
    text = transcribers.whisper_text(
        np.zeros(RATE_HZ, np.float32), encode=lambda _: dict(seen), decode=decode, vocabulary=vocabulary
    )
    assert text == "a" * 16
    assert len(calls) == transcribers.most_tokens(RATE_HZ) == 16


def test_tokens_become_text() -> None:
    assert transcribers.byte_text(["\u0120caf", "\u00c3\u00a9", "\u0120!"]) == "caf\u00e9 !"
    assert transcribers.piece_text(["<s>", "\u2581na", "<0xC3>", "<0xAF>", "ve", "</s>"]) == "na\u00efve"


# --- passages -----------------------------------------------------------------------------------------------


def passage(text: str, *direction: float) -> Any:
    array = np.array(direction, np.float32)
    return minutes.Passage(minutes.MEETING, text, array / np.linalg.norm(array))


def test_passages_are_ranked_by_meaning() -> None:
    passages = [passage("a", 1, 0), passage("b", 1, 1), passage("c", 0, 1)]
    assert [p.text for p in minutes.closest(np.array([0.1, 1.0]), passages, 2)] == ["c", "b"]
    assert minutes.closest(np.array([1.0, 0.0]), [], 2) == []


def test_key_sentences_stand_for_the_others_in_their_order() -> None:
    passages = [
        passage("odd", -1, 0.1),
        passage("first", 1, 0.2),
        passage("x", 0.2, -1),
        passage("second", 1, 0.3),
    ]
    assert minutes.key_sentences(passages, 2) == ["first", "second"]
    assert minutes.key_sentences([], 2) == []


@pytest.mark.parametrize("text", ["Is it so?", "who signs that", "Where is the door."])
def test_questions_are_told_by_mark_or_first_word(text: str) -> None:
    assert minutes.is_question(text)
    assert not minutes.is_question("The door is where it was.")
    assert not minutes.is_question("")


def test_words_are_cut_into_the_longest_known_pieces() -> None:
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "meet", "##ing", "##s", "!", "cafe", "m"]
    numbers = {token: number for number, token in enumerate(known)}
    assert wordpiece.pieces("Meetings! Caf\u00e9 xyz", numbers) == [4, 5, 6, 7, 8, 1]
    feed = wordpiece.feed_of([("meet", "cafe !"), ("m", "m")], numbers)
    assert feed["input_ids"].tolist() == [[2, 4, 3, 8, 7, 3], [2, 9, 3, 9, 3, 0]]
    assert feed["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert feed["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    (long,) = wordpiece.feed_of([("meet " * 500,)], numbers)["input_ids"]
    assert len(long) == wordpiece.MAX_TOKENS
    assert long[-1] == numbers["[SEP]"]


# --- clips and metrics --------------------------------------------------------------------------------------

SCRIPTS = meetings.read_scripts(meetings.SCRIPTS.read_text("utf-8"))


def test_scripts_are_whole() -> None:
    known = set(minutes.read_minutes())
    assert {script.split for script in SCRIPTS} == set(meetings.SEEDS)
    for script in SCRIPTS:
        said: list[str] = []
        for utterance in script.utterances:
            if utterance.part_s is None:
                assert utterance.who in speech.SPEAKERS
                assert speech.phonemes_of(utterance.text)
            if utterance.answer is not None:
                assert utterance.answer in known or utterance.answer in said, utterance.text
                assert minutes.is_question(utterance.text)
            said.append(utterance.text)
        assert any(utterance.answer for utterance in script.utterances), script.name
    with pytest.raises(ValueError, match="neither"):
        meetings.read_scripts("[heldout a]\nnobody says this")
    with pytest.raises(ValueError, match="has no"):
        speech.phonemes_of("Nobody wrote this down.")


def test_splits_share_no_sentence_and_are_as_large_as_declared() -> None:
    inputs = load_pipeline(FOLDER).inputs
    assert inputs is not None
    texts = {
        split: {u.text for s in SCRIPTS if s.split == split for u in s.utterances} for split in inputs.splits
    }
    assert not texts["profiling"] & texts["heldout"]
    clips = {
        split: sum(len(meetings.SNR_DB) if s.recorded else 1 for s in SCRIPTS if s.split == split)
        for split in inputs.splits
    }
    assert clips == inputs.splits


def test_babble_has_the_stated_power_and_the_gate_closes_in_pauses() -> None:
    rng = np.random.default_rng(0)
    voices = [rng.normal(size=size).astype(np.float32) for size in (5_000, 9_000)]
    crowd = meetings.babble(voices, 40_000, np.random.default_rng(1))
    assert np.sqrt(np.mean(crowd**2)) == pytest.approx(1.0, abs=1e-3)
    gate = meetings.gate(RATE_HZ * 4, [RATE_HZ], [2 * RATE_HZ])
    assert gate[RATE_HZ] == gate[2 * RATE_HZ] == pytest.approx(1.0)
    assert gate[0] == gate[3 * RATE_HZ] == pytest.approx(meetings.GATE)


def test_the_level_of_speech_leaves_its_pauses_out() -> None:
    sound = loud_at((1.0, 2.0), seconds=5)
    assert meetings.active_level(sound) == pytest.approx(0.5, rel=0.02)


def test_resampling_keeps_a_tone() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050)
    out = speech.resampled(tone, 22_050)
    assert len(out) == RATE_HZ
    wanted = np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    assert out == pytest.approx(wanted, abs=1e-3)


def heard(*said: str, answers: tuple[tuple[str, str, str], ...] = ()) -> dict[str, Any]:
    named = [dict(zip(("question", "passage", "source"), answer, strict=True)) for answer in answers]
    return {"said": list(said), "key": [], "answers": named}


TRUTH: list[list[dict[str, Any]]] = [
    [{"text": "The door is green.", "answer": None}],
    [],
    [{"text": "Which colour does the door have?", "answer": "The door is green."}],
]
ASKED = "Which colour does a door have?"


def test_a_perfect_clip_scores_one() -> None:
    outputs = [
        heard("the door, is green"),
        heard(),
        heard(TRUTH[2][0]["text"], answers=((TRUTH[2][0]["text"], "the door is green", "meeting"),)),
    ]
    assert metric.score(outputs, TRUTH) == pytest.approx(1.0)


def test_wrong_words_and_lost_requests_cost_their_share() -> None:
    outputs = [heard("The door was green."), heard(), heard(ASKED)]
    assert metric.word_accuracy(outputs, TRUTH) == pytest.approx(1 - 2 / 10)
    assert metric.hit_rate(outputs, TRUTH) == 0.0
    assert metric.word_accuracy([None, None, outputs[2]], TRUTH) == pytest.approx(1 - 5 / 10)
    assert metric.word_accuracy([heard(*["again"] * 40)], TRUTH) == 0.0
    assert metric.score([], TRUTH) == 0.0


@pytest.mark.parametrize(
    ("answer", "hit"),
    [
        ((ASKED, "door is green", "meeting"), 1.0),
        ((ASKED, "The door is green.", "minutes"), 1.0),
        ((ASKED, "The window is green.", "minutes"), 0.0),
        ((ASKED, ASKED, "meeting"), 0.0),
        (("Who owns this?", "The door is green.", "meeting"), 0.0),
    ],
)
def test_a_hit_is_the_right_passage_to_the_right_question(answer: tuple[str, str, str], hit: float) -> None:
    assert metric.hit_rate([heard(answers=(answer,))], TRUTH) == hit


def test_the_fleet_asks_for_this_pipeline() -> None:
    pipeline, fleet = load_pipeline(FOLDER), load_fleet(FOLDER / "fleet.toml")
    assert {query.pipeline for query in fleet.queries} == {pipeline.name}
    assert any(query.origin == "cloud" for query in fleet.queries)
    extra = {each.name for each in pipeline.extra_metrics}
    assert {name for query in fleet.queries for name in query.slo.metrics} <= extra
