"""The read-text bundle without its models: pages, metric, and what operators do around a model."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from support.applications import module_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

bundle_module = partial(module_of, "read_text")
metric = bundle_module("metric")
operators = bundle_module("operators")
pages = bundle_module("pages")
regions = bundle_module("regions")


class FakeModel:
    """Answers every run with what a function makes of the input."""

    input_names = ("x",)

    def __init__(self, answer: Any, assets: Mapping[str, Path] = MappingProxyType({})) -> None:
        self.answer = answer
        self.assets = assets
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.shapes.append(feed["x"].shape)
        return {"y": self.answer(feed["x"])}


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


# -- metric


@pytest.mark.parametrize(
    ("output", "truth", "expected"),
    [
        ("Way out", "Way out", 1.0),
        ("Way\n out ", "Way out", 1.0),
        ("Way oat", "Way out", 6 / 7),
        ("kitten", "sitting", 4 / 7),
        ("", "Way out", 0.0),
        (None, "Way out", 0.0),
        (["Way out"], "Way out", 0.0),
        ("far too much text", "ab", 0.0),
        ("", "", 1.0),
        ("x", "", 0.0),
    ],
)
def test_character_accuracy(output: object, truth: str, expected: float) -> None:
    assert metric.score(output, truth) == pytest.approx(expected)


def edits_by_definition(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


@given(a=st.text("abc ", max_size=12), b=st.text("abc ", max_size=12))
def test_edit_distance_is_levenshteins(a: str, b: str) -> None:
    assert metric.edit_distance(a, b) == edits_by_definition(a, b)


# -- pages


def test_a_page_follows_from_split_and_index() -> None:
    first, again = pages.page("profiling", 3, []), pages.page("profiling", 3, [])
    assert first == again
    assert first.group == "heavy"
    assert 3 <= len(first.truth.split("\n")) <= 6
    assert max(Image.open(io.BytesIO(first.value)).size) >= 480
    assert first.value != pages.page("profiling", 7, []).value


def test_splits_share_no_line_and_use_the_whole_corpus() -> None:
    profiling, held_out = (
        {line for section in pages._sections(held_out=held_out) for line in section}
        for held_out in (False, True)
    )
    assert not profiling & held_out
    assert len(profiling) > 150
    assert len(held_out) > 80


def test_load_names_every_page_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pages.SPLITS, "few", pages.Split(seed=1, pages=4, held_out=True))
    examples = pages.load("few", {})
    assert [example.name for example in examples] == [f"few-{index:03d}" for index in range(4)]
    assert {example.group for example in examples} == set(pages.LEVELS)
    with pytest.raises(ValueError, match=r"no split 'all'.*profiling"):
        pages.load("all", {})


# -- prepare


def test_prepare_scales_and_encodes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8)
    request = {"request": encoded(Image.fromarray(noise))}
    full = operators.prepare(request, {"scale": 1.0, "quality": 90}, None)
    poor = operators.prepare(request, {"scale": 1.0, "quality": 40}, None)
    half = operators.prepare(request, {"scale": 0.5, "quality": 90}, None)
    assert Image.open(io.BytesIO(full)).format == "JPEG"
    assert Image.open(io.BytesIO(full)).size == (100, 60)
    assert Image.open(io.BytesIO(half)).size == (50, 30)
    assert len(half) < len(full)
    assert len(poor) < len(full)


@pytest.mark.parametrize(
    "request_value", [b"", b"not an image", encoded(Image.new("RGB", (64, 64)))[:60], "text", None]
)
def test_prepare_refuses_what_is_no_image(request_value: object) -> None:
    with pytest.raises(ValueError, match="image"):
        operators.prepare({"request": request_value}, {"scale": 1.0, "quality": 90}, None)


# -- detect


def flooded(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Components by flood fill, one number per pixel, 0 outside."""
    labels = np.zeros(mask.shape, np.intp)
    for number, seed in enumerate(zip(*np.nonzero(mask), strict=True), start=1):
        stack = [seed]
        while stack:
            y, x = stack.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                labels[y, x] = number
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return labels


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_components_are_those_of_a_flood_fill(mask: NDArray[np.bool_]) -> None:
    runs = regions.find_runs(mask)
    painted = np.zeros(mask.shape, np.intp)
    if runs.row.size:
        for row, start, stop, label in zip(*runs, regions.label_runs(runs), strict=True):
            painted[row, start:stop] = label + 1
    expected = flooded(mask)
    assert np.array_equal(painted > 0, mask)
    pairs = set(zip(painted[mask].tolist(), expected[mask].tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def probability_of(lines: list[tuple[float, float, float, float]], angle_deg: float) -> NDArray[np.float32]:
    """A map with one core per (centre along, centre across, length, thickness), turned about its middle."""
    y, x = np.mgrid[0:240, 0:320].astype(float)
    angle = np.radians(angle_deg)
    u = (x - 160) * np.cos(angle) + (y - 120) * np.sin(angle)
    v = -(x - 160) * np.sin(angle) + (y - 120) * np.cos(angle)
    probability = np.zeros((240, 320), np.float32)
    for along, across, length, thickness in lines:
        probability[(abs(u - along) < length / 2) & (abs(v - across) < thickness / 2)] = 0.9
    return probability


@pytest.mark.parametrize("angle_deg", [-6.0, 0.0, 4.0])
def test_boxes_are_tilted_like_the_page_and_in_reading_order(angle_deg: float) -> None:
    lines = [
        (-60.0, -50.0, 100.0, 8.0),
        (70.0, -50.0, 20.0, 8.0),
        (-20.0, 0.0, 180.0, 8.0),
        (0.0, 50.0, 60.0, 8.0),
    ]
    boxes = regions.text_boxes(probability_of(lines[::-1], angle_deg))
    assert boxes.shape == (4, 4, 2)
    angle = np.radians(angle_deg)
    centres = boxes.mean(axis=1) - (160, 120)
    wanted = [
        (u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)) for u, v, *_ in lines
    ]
    assert np.allclose(centres, wanted, atol=1.5)
    edges = boxes[:, 1] - boxes[:, 0]
    assert np.allclose(np.degrees(np.arctan2(edges[:, 1], edges[:, 0])), angle_deg, atol=0.5)
    assert np.linalg.norm(edges[0]) > 100
    assert np.all(np.linalg.norm(boxes[:, 3] - boxes[:, 0], axis=1) > 12)


def test_specks_and_faint_regions_are_no_lines() -> None:
    probability = probability_of([(0.0, 0.0, 100.0, 8.0)], 0.0)
    probability[10, 10] = 1.0
    probability[200:210, 20:120] = 0.3
    assert len(regions.text_boxes(probability)) == 1
    assert regions.text_boxes(np.zeros((32, 32), np.float32)).shape == (0, 4, 2)


def test_detect_pads_to_strides_and_answers_in_pixels_of_the_image() -> None:
    def core(batch: NDArray[Any]) -> NDArray[Any]:
        probability = np.zeros((1, 1, *batch.shape[2:]), np.float32)
        probability[0, 0, 96:106, 40:200] = 1.0
        probability[0, 0, 210:, :] = 1.0  # only padding lies there
        return probability

    model = FakeModel(core)
    image = encoded(Image.new("RGB", (640, 400)))
    boxes = operators.detect({"prepare": image}, {"model": "any", "side": 320}, model)
    assert model.shapes == [(1, 3, 224, 320)]
    assert len(boxes) == 1
    assert boxes.dtype == np.float32
    assert np.allclose(boxes[0].mean(axis=0), (240, 202), atol=1)


# -- crop, orientation, recognise


def test_crop_straightens_to_one_height_whatever_the_scale() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[40:60, 50:150] = (250, 10, 10)
    boxes = np.array([[(50, 40), (150, 40), (150, 60), (50, 60)]], np.float32)
    image = Image.fromarray(pixels)
    (line,) = operators.crop({"prepare": encoded(image), "detect": boxes}, {}, None)
    assert (line.shape, line.dtype) == ((48, 240, 3), np.uint8)
    assert np.abs(line[4:-4, 4:-4].reshape(-1, 3).mean(axis=0) - (250, 10, 10)).max() < 3
    large = encoded(image.resize((1000, 500)))
    (same,) = operators.crop({"prepare": large, "detect": boxes * 5}, {}, None)
    assert same.shape == line.shape
    assert operators.crop({"prepare": large, "detect": boxes[:0]}, {}, None) == []


def test_crop_follows_the_tilt() -> None:
    pixels = np.zeros((120, 120, 3), np.uint8)
    pixels[50:70, 20:100, 1] = 200
    tilted = Image.fromarray(pixels).rotate(
        -90, expand=True
    )  # a quarter turn, so that no interpolation blurs it
    boxes = np.array([[(70, 20), (70, 100), (50, 100), (50, 20)]], np.float32)
    (line,) = operators.crop({"prepare": encoded(tilted), "detect": boxes}, {}, None)
    assert line.shape == (48, 192, 3)
    assert line[6:-6, 6:-6, 1].min() > 190


def some_lines(*widths: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 255, (48, width, 3), dtype=np.uint8) for width in widths]


def test_orientation_turns_the_whole_page_and_its_order() -> None:
    lines = some_lines(60, 200, 90)
    model = FakeModel(
        lambda batch: np.array([[0.9, 0.1], [0.05, 0.95], [0.5, 0.5]], np.float32)[: len(batch)]
    )
    turned = operators.orientation({"crop": lines}, {"enabled": True}, model)
    assert [line.shape[1] for line in turned] == [90, 200, 60]
    assert np.array_equal(turned[2], lines[0][::-1, ::-1])


def test_orientation_leaves_an_upright_page_alone() -> None:
    lines = some_lines(60, 200, 90)
    model = FakeModel(lambda batch: np.tile(np.array([0.7, 0.3], np.float32), (len(batch), 1)))
    doubtful = FakeModel(lambda batch: np.tile(np.array([0.45, 0.55], np.float32), (len(batch), 1)))
    unturned = operators.orientation({"crop": lines}, {"enabled": True}, doubtful)
    assert [line.shape[1] for line in unturned] == [60, 200, 90]
    kept = operators.orientation({"crop": lines}, {"enabled": True}, model)
    assert all(np.array_equal(a, b) for a, b in zip(kept, lines, strict=True))
    assert operators.orientation({"crop": []}, {"enabled": True}, model) == []
    assert len(model.shapes) == 1
    assert len(operators.orientation({"crop": lines}, {"enabled": False}, None)) == 3


def test_ctc_drops_repeats_then_blanks() -> None:
    scores = np.eye(4, dtype=np.float32)[[0, 1, 1, 0, 1, 2, 2, 3, 0, 0]]
    assert operators.ctc_text(scores, ("", "a", "b", " ")) == "aab "


@given(st.lists(st.integers(12, 640), max_size=12))
def test_batches_hold_every_line_once_with_little_padding(widths: list[int]) -> None:
    groups = operators.batches(widths)
    assert sorted(index for group in groups for index in group) == list(range(len(widths)))
    for group in groups:
        area = len(group) * max(widths[index] for index in group)
        assert area - sum(widths[index] for index in group) <= operators.MAX_PADDING * area


def test_recognise_keeps_the_reading_order_across_batches(tmp_path: Path) -> None:
    dictionary = tmp_path / "keys.txt"
    dictionary.write_bytes("a\r\n\u2028\r\nb\r\n".encode())

    def by_width(batch: NDArray[Any]) -> NDArray[Any]:
        classes = np.array([1 if batch.shape[3] > 100 else 3, 0, 4])
        return np.tile(np.eye(5, dtype=np.float32)[classes], (len(batch), 1, 1))

    model = FakeModel(by_width, {"dictionary": dictionary})
    lines = some_lines(300, 50, 296)
    assert operators.recognise({"orientation": lines}, {}, model) == "a\nb\na"
    assert model.shapes == [(2, 3, 48, 304), (1, 3, 48, 56)]
    assert operators.recognise({"orientation": []}, {}, model) == ""


def test_recognise_refuses_a_dictionary_of_another_model(tmp_path: Path) -> None:
    dictionary = tmp_path / "other.txt"
    dictionary.write_text("a\nb\n")
    model = FakeModel(lambda batch: np.zeros((len(batch), 3, 9), np.float32), {"dictionary": dictionary})
    with pytest.raises(ValueError, match=r"other\.txt has 2 characters, the model 7"):
        operators.recognise({"orientation": some_lines(60)}, {}, model)
