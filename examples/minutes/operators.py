"""The three operators: prompt, write, check."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compass_shared.values import ChatModel, KnobValue, Model, Value

    Inputs = Mapping[str, Value]
    Knobs = Mapping[str, KnobValue]

INSTRUCTION = "Summarise what the meeting decided in one or two short sentences. Add nothing."


def prompt(inputs: Inputs, knobs: Knobs, model: Model | None) -> dict[str, Value]:  # noqa: ARG001
    """Take the first ``sentences`` key sentences.

    Raises:
        ValueError: If the request is not a list of sentences.
    """
    sentences = inputs["request"]
    if not isinstance(sentences, list | tuple) or not all(isinstance(text, str) for text in sentences):
        raise ValueError("a request is a list of sentences")
    kept = [str(text) for text in sentences[: int(knobs["sentences"])]]
    return {"sentences": kept, "text": " ".join(kept)}


def write(inputs: Inputs, knobs: Knobs, model: Model | None) -> str:
    """Ask the generator for a summary of at most ``tokens`` tokens."""
    made = cast("Mapping[str, Value]", inputs["prompt"])
    messages = [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": str(made["text"])},
    ]
    return cast("ChatModel", model).complete(messages, max_tokens=int(knobs["tokens"])).strip()


def check(inputs: Inputs, knobs: Knobs, model: Model | None) -> dict[str, Value]:  # noqa: ARG001
    """Put summary and sources side by side; a generator that wrote nothing leaves the first sentence."""
    made = cast("Mapping[str, Value]", inputs["prompt"])
    sentences = cast("list[Value]", made["sentences"])
    summary = str(inputs["write"]) or str(sentences[0] if sentences else "")
    return {"summary": summary, "sources": sentences}
