"""The meeting bundle on its real models: recordings with known words, questions with known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import soundfile

from compass_shared.values import State
from support.applications import Application, application

RATE_HZ = 16_000
PRESIDENT = (
    "and so my fellow americans ask not what your country can do for you ask what you can do for your country"
)
LIGHT, HEAVY = "moonshine-tiny", "whisper-base"

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]


class Meeting(Application):
    """The installed bundle with its recordings at hand."""

    def recording(self) -> Any:
        sound, rate_hz = soundfile.read(self.files["recording-jfk"], dtype="float32")
        assert rate_hz == RATE_HZ
        return sound

    def spoken(self, *sentences: str) -> list[Any]:
        said = self.module("speech").spoken(
            [("ben", sentence) for sentence in sentences],
            {"voice": self.files["speech-voice"], "voice-config": self.files["speech-voice-config"]},
        )
        return list(said.values())

    def follow(
        self, sound: Any, transcriber: str, *, ranking: str = "bge-small", codec: str = "flac"
    ) -> list[Any]:
        """What the pipeline makes of every hop of a stream."""
        knobs: dict[str, dict[str, Any]] = {
            "capture": {"codec": "pcm16" if codec == "flac" else codec},
            "voice": {"codec": codec},
            "transcribe": {"model": transcriber},
            "notes": {"ranking": ranking},
        }
        hops = -(-len(sound) // RATE_HZ)
        samples = np.zeros(hops * RATE_HZ, np.int16)
        samples[: len(sound)] = np.round(np.clip(sound, -1, 1) * 32767)
        return self.play(list(samples.reshape(hops, RATE_HZ)), knobs)


@pytest.fixture(scope="module")
def meeting() -> Meeting:
    return application("meeting", Meeting)


def silence(seconds: float) -> Any:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def with_pauses(*sounds: Any) -> Any:
    return np.concatenate([silence(0.5), *(part for sound in sounds for part in (sound, silence(1.2)))])


@pytest.mark.parametrize("transcriber", [LIGHT, "whisper-tiny-en-int8", "whisper-base-int8", HEAVY])
def test_every_transcriber_writes_a_known_recording_down(meeting: Meeting, transcriber: str) -> None:
    utterance = {"start_s": 0.0, "end_s": 11.0, "sound": meeting.recording()}
    (said,) = meeting.run("transcribe", {"voice": [utterance]}, model=transcriber)
    assert meeting.module("metric").words(said["text"]) == PRESIDENT.split()


def test_a_voice_is_found_between_silences(meeting: Meeting) -> None:
    (sentence,) = meeting.spoken("A gardener from the village will remove the wood.")
    voice = meeting.host.bind("meeting", "voice", {"codec": "flac"})
    state, hops = State(), np.concatenate([silence(2.0), sentence, silence(4.0)])
    starts = range(0, len(hops) - RATE_HZ + 1, RATE_HZ)
    found: list[Any] = [voice({"capture": hops[start : start + RATE_HZ]}, state) for start in starts]
    ((at, (utterance,)),) = [(second, ended) for second, ended in enumerate(found) if ended]
    end_s = 2.0 + len(sentence) / RATE_HZ
    assert utterance["start_s"] == pytest.approx(2.0, abs=0.4)
    assert utterance["end_s"] == pytest.approx(end_s, abs=0.4)
    assert 0 <= at + 1 - end_s <= 1.8, "half a second of silence, and the hop in which that ends"


@pytest.mark.parametrize("ranking", ["bge-small", "reranker"])
def test_questions_find_what_was_said_and_what_is_in_the_minutes(meeting: Meeting, ranking: str) -> None:
    said = "We borrow a trailer from the neighbour in the meantime."
    asked = ["From whom do we get a trailer?", "Who may leave a car on the parking deck?"]
    outputs = [
        hop["notes"]
        for hop in meeting.follow(
            with_pauses(*meeting.spoken(said, *asked)), LIGHT, ranking=ranking, codec="opus"
        )
    ]
    truth = [
        [
            {"text": said, "answer": None},
            {"text": asked[0], "answer": said},
            {"text": asked[1], "answer": "The parking deck is reserved for guests of the customer."},
        ]
    ]
    metric = meeting.module("metric")
    assert metric.hit_rate(outputs, truth) == 1.0
    assert metric.word_accuracy(outputs, truth) > 0.8
    assert [output["key"] for output in outputs if output["said"]][-1] == [outputs_said(outputs)[0]]


def outputs_said(outputs: list[Any]) -> list[str]:
    return [text for output in outputs for text in output["said"]]


def test_sentences_of_like_meaning_point_alike(meeting: Meeting) -> None:
    texts = ["The lorry was late.", "The truck did not arrive in time.", "Our soup needs more salt."]
    said = [{"start_s": 0.0, "end_s": 1.0, "text": text} for text in texts]
    late, truck, soup = meeting.run("embed", {"transcribe": said})
    assert np.linalg.norm(late) == pytest.approx(1.0, abs=1e-5)
    assert late @ truck > max(late @ soup, truck @ soup) + 0.05


def test_nothing_is_said_in_silence(meeting: Meeting) -> None:
    for hop in meeting.follow(silence(3.0), LIGHT):
        assert hop["notes"] == {"said": [], "key": [], "answers": []}
