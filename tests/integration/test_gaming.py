"""The gaming bundle on its real models: photographs with known answers, drawn hands with known landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from compass_shared.values import KnobValue
from support.applications import Application, application

HEAVY = {"palm": "palm-full", "hand": "hand-full", "pose": "pose-heavy"}
LIGHT = {"palm": "palm-lite", "hand": "hand-lite", "pose": "pose-lite"}

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]


class Game(Application):
    """The installed bundle, with its photographs at hand."""

    def opened(self, name: str) -> np.ndarray[Any, Any]:
        return np.asarray(Image.open(self.files[name]).convert("RGB"))

    def follow(
        self,
        frames: list[Any],
        models: dict[str, str],
        *,
        stride: int = 1,
        codec: str = "raw",
        side: int = 480,
    ) -> list[Any]:
        """What the pipeline makes of frames of one stream, operator by operator."""
        knobs: dict[str, dict[str, KnobValue]] = {
            "prepare": {"side": side, "codec": codec},
            "palm": {"model": models["palm"], "stride": stride},
            "hand": {"model": models["hand"]},
            "pose-detect": {"stride": stride},
            "pose": {"model": models["pose"]},
        }
        return self.play(frames, knobs)


@pytest.fixture(scope="module")
def game() -> Game:
    return application("gaming", Game)


@pytest.mark.parametrize("models", [HEAVY, LIGHT], ids=["heavy", "light"])
@pytest.mark.parametrize(
    ("photograph", "gesture"), [("photo-fist", "fist"), ("photo-point", "point"), ("photo-hook", "other")]
)
def test_photographed_hands_show_what_they_show(
    game: Game, photograph: str, gesture: str, models: dict[str, str]
) -> None:
    made = game.follow([game.opened(photograph)] * 2, models)[-1]
    assert made["gesture"] == [gesture]
    assert made["game"]["action"] == {"fist": "grab", "point": "aim", "other": ""}[gesture]


def test_the_pointing_finger_and_its_wrist_are_where_the_photograph_has_them(game: Game) -> None:
    # Pixels of the photograph, 480 x 640, read off by eye.
    made = game.follow([game.opened("photo-point")], HEAVY)[0]
    (region,) = made["palm"]
    assert abs(region[:2] / 480 * 640 - [255, 370]).max() < 130, "the region is about the hand"
    (hand,) = made["hand"]
    assert hand[8, :2] * 640 == pytest.approx([220, 115], abs=25), "tip of the index finger"
    assert hand[4, :2] * 640 == pytest.approx([350, 325], abs=30), "tip of the thumb"
    assert hand[0, :2] * 640 == pytest.approx([245, 545], abs=60), "wrist"


@pytest.mark.parametrize("shown", ["open", "victory", "point", "fist", "thumb"])
def test_drawn_hands_are_found_with_their_known_landmarks(game: Game, shown: str) -> None:
    picture = game.module("drawn_hands").draw(shown, palm_px=110, skin=(226, 176, 146), seed=2)
    background = Image.new("RGB", (480, 480), (170, 180, 175))
    cut = Image.fromarray(picture.pixels, "RGBA")
    background.paste(cut, (100, 80), cut)
    made = game.follow([np.asarray(background)] * 2, HEAVY)[-1]
    assert made["gesture"] == [shown]
    away = np.linalg.norm(made["hand"][0][:, :2] * 480 - (picture.landmarks + np.array([100, 80])), axis=1)
    assert away.mean() < 0.1 * 110, "a tenth of the palm"


@pytest.mark.parametrize("models", [HEAVY, LIGHT], ids=["heavy", "light"])
def test_the_astronauts_face_and_shoulders_are_found(game: Game, models: dict[str, str]) -> None:
    # Pixels of the photograph, 512 x 512, read off by eye: nose, and the shoulders of the suit.
    pose = game.follow([game.opened("photo-astronaut")] * 2, models)[-1]["pose"]
    assert pose[0, :2] * 512 == pytest.approx([222, 128], abs=12)
    assert pose[11, :2] * 512 == pytest.approx([308, 240], abs=25)
    assert pose[12, :2] * 512 == pytest.approx([115, 215], abs=25)
    assert (pose[[0, 11, 12], 2] > 0.9).all()
    assert game.follow([np.zeros((240, 320, 3), np.uint8)], models)[0]["pose"] is None


def test_light_and_heavy_variants_agree(game: Game) -> None:
    photograph = [game.opened("photo-point")] * 2
    (light,), (heavy,) = (game.follow(photograph, models)[-1]["hand"] for models in (LIGHT, HEAVY))
    palm = np.linalg.norm(heavy[9, :2] - heavy[0, :2])
    assert np.linalg.norm(light[:, :2] - heavy[:, :2], axis=1).mean() < 0.2 * palm
    person = [game.opened("photo-astronaut")] * 2
    light, heavy = (game.follow(person, models)[-1]["pose"] for models in (LIGHT, HEAVY))
    assert np.linalg.norm((light - heavy)[:13, :2], axis=1).mean() * 512 < 15


def test_a_hand_is_followed_in_frames_that_no_detector_looks_at(game: Game) -> None:
    still = Image.open(game.files["photo-point"]).convert("RGB")
    moved = [still.rotate(2 * i, translate=(6 * i, -4 * i), fillcolor=(205, 198, 190)) for i in range(4)]
    made = game.follow([np.asarray(image) for image in moved], LIGHT, stride=4)
    assert [values["palm"] is None for values in made] == [False, True, True, True]
    tips = np.stack([values["hand"][0][8, :2] for values in made]) * 640
    expected = [_carried((220, 115), 2 * i, (6 * i, -4 * i)) for i in range(4)]
    assert np.linalg.norm(tips - expected, axis=1).max() < 30
    assert [values["gesture"] for values in made] == [["point"]] * 4


def _carried(point: tuple[float, float], degrees: float, by: tuple[float, float]) -> tuple[float, float]:
    """Where ``Image.rotate`` takes a point of a 480 x 640 picture."""
    angle = np.radians(degrees)
    x, y = point[0] - 240, point[1] - 320
    return (
        240 + x * np.cos(angle) + y * np.sin(angle) + by[0],
        320 - x * np.sin(angle) + y * np.cos(angle) + by[1],
    )


def test_what_the_codec_and_a_smaller_frame_lose_is_little(game: Game) -> None:
    photograph = [game.opened("photo-fist")] * 2
    (exact,), (coarse,) = (
        game.follow(photograph, HEAVY, codec=codec, side=side)[-1]["hand"]
        for codec, side in (("raw", 480), ("jpeg-80", 320))
    )
    palm = np.linalg.norm(exact[9, :2] - exact[0, :2])
    assert np.linalg.norm(exact[:, :2] - coarse[:, :2], axis=1).mean() < 0.15 * palm


def test_the_input_sets_people_and_hands_can_be_marked(game: Game) -> None:
    inputs = game.bundle.pipeline.inputs
    assert inputs is not None
    clips = game.module("clips")
    assets = {name: game.files[model] for name, model in inputs.assets.items()}
    cast = clips.cast_of("heldout", assets)
    assert len(cast.people) == 1
    assert cast.people[0].pose[0, :2] == pytest.approx([250, 270], abs=40), "the officer's nose, by eye"
    assert cast.hands[0].gesture == "other"
    assert len(cast.hands) == 1 + len(game.module("drawn_hands").SHOWN)
