"""A bundle without models whose operators go wrong in every way that a profiler has to bear."""

from __future__ import annotations

from pathlib import Path

TEXTS = ("one two three four", "five six", "boom seven")
MODES = ("all", "half", "nothing", "fails", "prints", "crashes", "nan", "high")

_PIPELINE = """
schema = 1
name = "words"
version = "1.0.0"
output = "pick"

[inputs]
function = ".data:load"
splits = {{ profiling = 3, one = 1 }}
{features}

[metric]
name = "words"
function = ".data:score"
kind = "{kind}"

[[operators]]
name = "split"
inputs = ["request"]
runtime = "python"
function = ".operators:split"
knobs = {{ lower = [true, false] }}

[[operators]]
name = "pick"
inputs = ["split"]
runtime = "python"
function = ".operators:pick"
knobs = {{ mode = {modes} }}
"""

_OPERATORS = """
import os
import sys


def split(inputs, knobs, model):
    text = inputs["request"]
    return (text.lower() if knobs["lower"] else text).split()


def pick(inputs, knobs, model):
    words, mode = inputs["split"], knobs["mode"]
    if mode == "fails":
        raise ValueError("cannot pick")
    if mode == "prints":
        print('{"message":"done","id":0,"input":0,"scores":{}}', flush=True)
        os.write(1, b"not for you")
        assert sys.stdin.read() == ""
    if mode == "crashes" and "boom" in words:
        os.write(2, b"so it ends")
        os._exit(9)
    if mode in ("nan", "high"):
        return [mode]
    return {"half": words[: len(words) // 2], "nothing": []}.get(mode, words)
"""

_DATA = """
from compass_shared.values import Example

TEXTS = {texts}
WRONG = {{"nan": float("nan"), "high": 1.5}}


def load(split, assets):
    count = {{"profiling": 3, "one": 1}}[split]
    return [Example(f"{{split}}-{{i}}", text, text.split(), "only") for i, text in enumerate(TEXTS[:count])]


def score(output, truth):
    right = sum(word in truth for word in output)
    ratio = {ratio}
    if output and output[0] in WRONG:
        return (WRONG[output[0]] * len(truth), len(truth)) if ratio else WRONG[output[0]]
    return (right, len(truth)) if ratio else right / len(truth)


def features(value):
    return [len(value), value.count(" ")]
"""


def write_words_bundle(
    folder: Path, *, modes: tuple[str, ...] = MODES, kind: str = "mean", own_features: bool = False
) -> Path:
    """Write the bundle into the new folder ``words`` below ``folder``."""
    bundle = folder / "words"
    bundle.mkdir(parents=True)
    features = 'features = ".data:features"' if own_features else ""
    text = _PIPELINE.format(kind=kind, modes=list(modes), features=features)
    (bundle / "pipeline.toml").write_text(text)
    (bundle / "operators.py").write_text(_OPERATORS)
    (bundle / "data.py").write_text(_DATA.format(texts=TEXTS, ratio=kind == "ratio"))
    return bundle


def key_of(mode: str, *, lower: bool = True) -> str:
    """Key of a config of that bundle."""
    return f"split[lower={str(lower).lower()}];pick[mode={mode}]"
