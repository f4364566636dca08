"""The five operators: capture, voice, transcribe, embed, notes; the models are named in pipeline.toml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compass_agent.runtimes import LoadedModel, open_runtime

from .minutes import MEETING, Passage, closest, is_question, key_sentences, read_minutes
from .transcribers import RATE_HZ, moonshine_text, moonshine_tokens, whisper_text, whisper_vocabulary
from .voice import FRAME, Listener
from .wordpiece import feed_of, vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compass_shared.values import KnobValue, Model, State, Value

    Inputs = Mapping[str, Value]
    Knobs = Mapping[str, KnobValue]

KEY_SENTENCES = 3
CANDIDATES = 8
"""Passages that the reranker looks at."""
AT_ONCE = 16
"""Texts that go through a model together."""


def capture(inputs: Inputs, knobs: Knobs, model: Model | None) -> NDArray[np.float32]:  # noqa: ARG001
    """Check a hop of sound and bring it to [-1, 1]; the codec knob packs it for the way.

    Raises:
        ValueError: If the request is no 16-bit sound.
    """
    samples = inputs["request"]
    if not isinstance(samples, np.ndarray) or samples.dtype != np.int16 or samples.ndim != 1:
        raise ValueError(f"a hop is (samples,) int16 at {RATE_HZ} Hz")
    return np.divide(samples, 32768, dtype=np.float32)


def voice(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> list[Value]:  # noqa: ARG001
    """Cut the stream into utterances.

    Returns:
        Those that ended in this hop: ``start_s``, ``end_s`` in the stream, and ``sound``.
    """
    sound = np.asarray(inputs["capture"], np.float32)
    hop = state.get("hops", 0) + state.gap
    state["hops"] = hop + 1
    if state.gap or "listener" not in state:
        # After a hole the rest of what was open stands alone: better than two halves as one.
        state["listener"], state["from_s"] = Listener(), hop * len(sound) / RATE_HZ
    listener: Listener = state["listener"]
    utterances: list[Value] = []
    for frame, spoken in listener.listen(sound, _present(model).run):
        began_s = state["from_s"] + frame * FRAME / RATE_HZ
        utterances.append({"start_s": began_s, "end_s": began_s + len(spoken) / RATE_HZ, "sound": spoken})
    return utterances


def transcribe(inputs: Inputs, knobs: Knobs, model: Model | None) -> list[Value]:  # noqa: ARG001
    """Write down every utterance: ``start_s``, ``end_s`` and ``text``."""
    model = _present(model)
    return [
        {
            "start_s": utterance["start_s"],
            "end_s": utterance["end_s"],
            "text": _heard(utterance["sound"], model),
        }
        for utterance in _maps(inputs["voice"])
    ]


def embed(inputs: Inputs, knobs: Knobs, model: Model | None) -> list[Value]:  # noqa: ARG001
    """Directions of meaning: of every transcript ``(384,) float32`` of length one."""
    model = _present(model)
    texts = [str(said["text"]) for said in _maps(inputs["transcribe"])]
    return list(_embedded(texts, model, model.assets["vocabulary"]))


def notes(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> dict[str, Value]:  # noqa: ARG001
    """Keep what was said, point out the key sentences, and find the passages that questions ask for.

    Passages are the minutes of earlier meetings and what was said in this one. Their meaning alone ranks
    them; or a reranker, if the model is one, reads the best of them together with the question.

    Returns:
        ``said`` in this hop; ``key``: sentences that stand for the meeting so far, in their order, empty if
        nothing was said; ``answers``: ``question``, ``passage`` and its ``source`` for every question.
    """
    model = _present(model)
    # Also before anybody asks: the first call reads the minutes, which takes longest.
    minutes = _minutes(model.assets.get("embedder", model.assets["model"]), model.assets["vocabulary"])
    meeting: list[Passage] = state.setdefault(MEETING, [])
    answers: list[Value] = []
    said = [str(item["text"]) for item in _maps(inputs["transcribe"])]
    for text, direction in zip(said, _listed(inputs["embed"]), strict=True):
        if is_question(text):
            found = closest(np.asarray(direction), [*minutes, *meeting], CANDIDATES)
            best = _reranked(text, found, model) if "embedder" in model.assets else found[0]
            answers.append({"question": text, "passage": best.text, "source": best.source})
        elif text:
            meeting.append(Passage(MEETING, text, np.asarray(direction)))
    return {
        "said": said,
        "key": list(key_sentences(meeting, KEY_SENTENCES)) if said else [],
        "answers": answers,
    }


def _heard(sound: NDArray[np.float32], model: Model) -> str:
    assets = model.assets
    decode = _opened(assets["decoder"]).run
    if "config" in assets:
        words = whisper_vocabulary(assets["tokens"], assets["config"])
        return whisper_text(sound, encode=model.run, decode=decode, vocabulary=words)
    return moonshine_text(sound, encode=model.run, decode=decode, tokens=moonshine_tokens(assets["tokens"]))


def _reranked(question: str, passages: Sequence[Passage], model: Model) -> Passage:
    pairs = [(question, passage.text) for passage in passages]
    feed = feed_of(pairs, vocabulary(model.assets["vocabulary"]))
    return passages[int(model.run(feed)["logits"][:, 0].argmax())]


@lru_cache(maxsize=2)
def _minutes(embedder: Path, words: Path) -> tuple[Passage, ...]:
    texts = read_minutes()
    directions = _embedded(texts, _opened(embedder), words)
    return tuple(
        Passage("minutes", text, direction) for text, direction in zip(texts, directions, strict=True)
    )


def _embedded(texts: Sequence[str], model: Model | LoadedModel, words: Path) -> NDArray[np.float32]:
    """``(texts, width)``: the first token of each stands for all, brought to length one."""
    parts = []
    for start in range(0, len(texts), AT_ONCE):
        feed = feed_of([(text,) for text in texts[start : start + AT_ONCE]], vocabulary(words))
        parts.append(model.run(feed)["last_hidden_state"][:, 0])
    directions = np.concatenate(parts).astype(np.float32)
    lengths: NDArray[np.float32] = np.linalg.norm(directions, axis=1, keepdims=True)
    return directions / lengths


@lru_cache(maxsize=8)
def _opened(path: Path) -> LoadedModel:
    """A second model beside the operator's own, in the same runtime."""
    return open_runtime("onnx").load(path)


def _present(model: Model | None) -> Model:
    if model is None:
        raise ValueError("this operator needs a model; check its entry in pipeline.toml")
    return model


def _listed(value: Value) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, got {type(value).__name__}")  # noqa: TRY004
    return value


def _maps(value: Value) -> Sequence[Mapping[str, Any]]:
    for item in _listed(value):
        if not isinstance(item, Mapping):
            raise ValueError(f"expected a list of maps, one is {type(item).__name__}")  # noqa: TRY004
    return _listed(value)
