"""The driving bundle on its real models: photographs with known answers, and a clip with known boxes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from support.applications import Application, application

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from compass_shared.values import KnobValue

CLASSIFIERS = {"lite0": 224, "lite1": 240, "lite2": 260}
BULL_MASTIFF, JEEP = 243, 609

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]


class Car(Application):
    """The installed bundle, with its pictures at hand."""

    def picture(self, name: str) -> NDArray[np.uint8]:
        if name == "people":
            with np.load(self.files[name]) as data:
                return np.asarray(data["rgb"])
        return np.asarray(Image.open(self.files[name]).convert("RGB"))

    def drive(self, frames: list[Any], *, stride: int = 1) -> list[Any]:
        """What the pipeline makes of a clip, operator by operator."""
        knobs: dict[str, dict[str, KnobValue]] = {
            "prepare": {"width": 640},
            "faces": {"model": "face-full"},
            "blur": {"codec": "jpeg-90"},
            "detect": {"tiles": "2x2", "stride": stride},
            "crop": {"codec": "jpeg-90"},
            "classify": {"model": "lite0"},
        }
        return self.play(frames, knobs)


@pytest.fixture(scope="module")
def car() -> Car:
    return application("driving", Car)


def overlap(found: Any, box: tuple[float, ...], size: tuple[int, int]) -> NDArray[np.float64]:
    """IoU of every box found with one in pixels of a picture of ``size``."""
    low = np.maximum(found[:, :2], np.array(box[:2]) / size)
    high = np.minimum(found[:, 2:], np.array(box[2:]) / size)
    both = np.prod(np.maximum(high - low, 0), axis=1)
    area = np.prod(found[:, 2:] - found[:, :2], axis=1)
    own = (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
    return np.asarray(both / (area + own - both), np.float64)


@pytest.mark.parametrize(
    ("name", "group", "box"),
    [
        ("suv", 0, (105, 136, 418, 336)),
        ("estate", 0, (43, 155, 502, 390)),
        ("dog", 2, (120, 30, 309, 458)),
        ("people", 1, (161, 66, 316, 231)),  # the man with the hat, as PASCAL VOC's sample has him
        ("people", 1, (377, 64, 500, 239)),
    ],
)
def test_the_detector_finds_what_is_known_to_be_there(
    car: Car, name: str, group: int, box: tuple[int, int, int, int]
) -> None:
    picture = car.picture(name)
    if name == "people":
        with np.load(car.files[name]) as data:
            known = data["bboxes"][data["labels"] == 15][:, [1, 0, 3, 2]]
        box = tuple(known[np.abs(known - np.array(box)).sum(axis=1).argmin()].tolist())
    found = car.run("detect", {"blur": picture}, tiles="whole", stride=1)
    fits = overlap(np.asarray(found["boxes"]), box, (picture.shape[1], picture.shape[0]))
    assert fits[np.asarray(found["groups"]) == group].max() > 0.65


@pytest.mark.parametrize("model", ["face-short", "face-full"])
def test_faces_are_found_and_a_few_squares_are_left_of_them(car: Car, model: str) -> None:
    picture = car.picture("people")
    found = car.run("faces", {"request": picture}, model=model)
    blurred = car.run("blur", {"prepare": picture, "faces": found}, codec="raw")
    for name in ("hat", "cap"):
        face = car.module("cutouts").PEOPLE[name].face
        fits = overlap(found, face, (500, 375))
        assert fits.max() > 0.4
        left, top, right, bottom = np.round(found[fits.argmax()] * [500, 375, 500, 375]).astype(int)
        before, after = (one[top:bottom, left:right].reshape(-1, 3) for one in (picture, blurred))
        assert len(np.unique(before, axis=0)) > 1000
        assert len(np.unique(after, axis=0)) <= car.module("faces").BLOCKS ** 2


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_the_classifier_names_known_pictures(car: Car, model: str) -> None:
    network = car.host.bind("driving", "classify", {"model": model}).model
    assert network is not None
    side = CLASSIFIERS[model]
    for name, expected in (("dog", BULL_MASTIFF), ("suv", JEEP)):
        image = Image.fromarray(car.picture(name)).resize((side, side), Image.Resampling.BILINEAR)
        pixels = (np.asarray(image, np.float32).transpose(2, 0, 1)[None] - 127) / np.float32(128)
        assert np.asarray(network.run({"image": pixels})["probabilities"]).argmax() == expected
    crops = [
        {"track": 1, "group": "animal", "image": car.picture("dog")},
        {"track": 2, "group": "vehicle", "image": car.picture("suv")},
    ]
    dog, suv = car.run("classify", {"crop": crops}, model=model)
    assert (dog["track"], dog["kind"], suv["track"], suv["kind"]) == (1, "dog", 2, "car")
    assert min(dog["support"], suv["support"]) > 0.3


def test_the_made_networks_have_the_stated_hash_and_compute_their_weights(car: Car) -> None:
    for name in CLASSIFIERS:
        written = car.files[name].read_bytes()
        assert hashlib.sha256(written).hexdigest() == car.bundle.pipeline.models[name].sha256
    weights = car.module("torch_file").read_tensors(car.files["lite0-weights"].read_bytes())
    network = car.host.bind("driving", "classify", {"model": "lite0"}).model
    assert network is not None
    image = np.random.default_rng(6).uniform(-1, 1, (3, 224, 224)).astype(np.float32)
    made = np.asarray(network.run({"image": image[None]})["probabilities"])[0]
    assert np.log(made) == pytest.approx(np.log(in_numpy(weights, image)), abs=0.01)


def in_numpy(weights: Mapping[str, Any], image: NDArray[np.float32]) -> NDArray[np.float64]:
    """EfficientNet-lite0 without ONNX, batch normalisation as it stands, by its published table."""

    def layer(x: Any, name: str, norm: str, stride: int = 1, *, clip: bool = True) -> Any:
        kernel = weights[f"{name}.weight"]
        size, side = kernel.shape[2], x.shape[1] // stride
        pad = max((side - 1) * stride + size - x.shape[1], 0)
        x = np.pad(x, ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2)))
        out = np.zeros((kernel.shape[0], side, side), np.float32)
        for row, column in np.ndindex(size, size):
            end = (side - 1) * stride + 1
            part = x[:, row : row + end : stride, column : column + end : stride]
            tap = kernel[:, :, row, column]
            depthwise = kernel.shape[1] == 1
            out += tap[:, :, None] * part if depthwise else np.tensordot(tap, part, 1)
        scale, shift, mean, variance = (
            weights[f"{norm}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        out = (out - mean) / np.sqrt(variance + np.float32(1e-3)) * scale + shift
        return out.clip(0, 6) if clip else out

    x = layer(image, "_conv_stem", "_bn0", 2)
    blocks = [(1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)]
    strides = [stride if not index else 1 for repeats, stride in blocks for index in range(repeats)]
    for index, stride in enumerate(strides):
        entry, name = x, f"_blocks.{index}"
        if f"{name}._expand_conv.weight" in weights:
            x = layer(x, f"{name}._expand_conv", f"{name}._bn0")
        x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        x = layer(x, f"{name}._project_conv", f"{name}._bn2", clip=False)
        if x.shape == entry.shape:
            x = x + entry
    features = layer(x, "_conv_head", "_bn1").mean(axis=(1, 2))
    scores = (weights["_fc.weight"] @ features + weights["_fc.bias"]).astype(np.float64)
    odds: NDArray[np.float64] = np.exp(scores - scores.max())
    odds /= odds.sum()
    return odds


def test_a_clip_is_followed_with_and_without_looking_at_every_frame(car: Car) -> None:
    scenes = car.module("scenes")
    things = car.module("cutouts").load_cutouts(car.files)
    clip = scenes._clip("heldout", 0, things, car.files)
    again = scenes._clip("heldout", 0, things, car.files)
    assert clip.value == again.value
    assert len(clip.value) == len(clip.truth) == scenes.FRAMES
    for truth in clip.truth:
        assert len(truth["boxes"]) == len(truth["groups"]) == len(truth["risks"]) > 0
        assert (truth["boxes"] >= 0).all()
        assert (truth["boxes"] <= 1).all()
    for stride in (1, 4):
        made = car.drive(clip.value, stride=stride)
        assert [one["detect"] is not None for one in made] == [n % stride == 0 for n in range(8)]
        answers = [one["risk"] for one in made]
        assert all("vehicle" in answer["groups"] for answer in answers)
        assert car.module("metric").boxes_f1(answers, clip.truth) > 0.5
        first = set(answers[0]["tracks"])
        assert first & set(answers[-1]["tracks"]), "something was followed from beginning to end"
        looked = [number for one in made for number in (look["track"] for look in one["classify"])]
        assert 0 < len(looked) < sum(len(answer["tracks"]) for answer in answers), "only new ones"
