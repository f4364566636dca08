"""The gaming bundle without its models: anchors, boxes, regions, gestures, tracking, clips and metrics."""

from __future__ import annotations

import io
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compass_shared.fleet_file import load_fleet
from compass_shared.pipeline_file import load_pipeline
from compass_shared.values import State
from support.applications import EXAMPLES, module_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

FOLDER = EXAMPLES / "gaming"
ANGLES = st.floats(-3.0, 3.0)

bundle_module = partial(module_of, "gaming")
clips, detection, drawn_hands, gestures, metric, operators, regions, subjects = map(
    bundle_module,
    ("clips", "detection", "drawn_hands", "gestures", "metric", "operators", "regions", "subjects"),
)


class FakeModel:
    """A landmark network: says the same of every cut, and is as sure of it as ``score`` of the call says."""

    input_names = ("input",)

    def __init__(self, landmarks: NDArray[np.float32], score: Callable[[int], float] = lambda _: 1.0) -> None:
        self.landmarks = landmarks
        self.score = score
        self.cuts: list[NDArray[Any]] = []

    @property
    def assets(self) -> Mapping[str, Path]:
        return {}

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.cuts.append(feed["input"])
        score = np.array([[self.score(len(self.cuts))]], np.float32)
        return {"Identity": self.landmarks.reshape(1, -1), "Identity_1": score}


def frame(width: int = 480, height: int = 360) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)


def upright_hand(gesture: str = "open") -> NDArray[np.float32]:
    """Landmarks with depth in pixels of a cut of 224: a hand that fills half of it."""
    joints = drawn_hands.skeleton(gesture) * [55, -55, -55] + [112, 170, 0]
    landmarks: NDArray[np.float32] = joints.astype(np.float32)
    return landmarks


# --- files --------------------------------------------------------------------------------------------------


def test_the_bundle_and_its_fleet_fit_together() -> None:
    pipeline = load_pipeline(FOLDER)
    assert pipeline.config_count() == 288
    assert sum(1 for operator in pipeline.operators for _ in operator.variants()) == 19
    assert {each.name for each in pipeline.operators if each.stateful} == {
        *("palm", "hand", "pose-detect", "pose", "game")
    }
    assert pipeline.inputs is not None
    assert dict(pipeline.inputs.splits) == {name: split.clips for name, split in clips.SPLITS.items()}
    used = {name for split in clips.SPLITS.values() for name in (*split.people, *split.hands)}
    assert used | {"palm", "hand", "pose-detect", "pose"} == set(pipeline.inputs.assets)
    known = {each.name for each in pipeline.extra_metrics}
    for each in (pipeline.metric, *pipeline.extra_metrics):
        assert each is not None
        assert callable(getattr(metric, each.function.partition(":")[2]))
    queries = load_fleet(FOLDER / "fleet.toml").queries
    assert {query.origin for query in queries} == {"phone", "headset", "laptop", "cloud"}
    assert all(set(query.slo.metrics) <= known for query in queries)


# --- detection ----------------------------------------------------------------------------------------------


def test_anchors_are_the_places_that_the_published_parameters_mean() -> None:
    assert detection.PALM.anchors.shape == (24 * 24 * 2 + 12 * 12 * 6, 2)
    assert detection.POSE.anchors.shape == (28 * 28 * 2 + 14 * 14 * 2 + 7 * 7 * 6, 2)
    assert detection.PALM.anchors[:3] * 24 == pytest.approx(np.array([[0.5, 0.5], [0.5, 0.5], [1.5, 0.5]]))
    assert detection.PALM.anchors[24 * 2] * 24 == pytest.approx([0.5, 1.5]), "rows after columns"
    assert detection.PALM.anchors[-1] * 12 == pytest.approx([11.5, 11.5])


def raw(boxes: Mapping[int, tuple[float, list[float]]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Outputs of a palm detector: anchor -> (logit, box and key points from the anchor in pixels)."""
    offsets = np.zeros((len(detection.PALM.anchors), 18), np.float32)
    logits = np.full(len(detection.PALM.anchors), -50.0, np.float32)
    for anchor, (logit, values) in boxes.items():
        logits[anchor] = logit
        offsets[anchor, : len(values)] = values
    return offsets, logits


def test_a_detection_lies_where_its_anchor_and_offsets_say() -> None:
    (found,) = detection.detections(
        *raw({50: (2.0, [19.2, -9.6, 38.4, 57.6, 9.6, 0.0])}), detection.PALM, most=2
    )
    place = detection.PALM.anchors[50]
    assert found.score == pytest.approx(1 / (1 + math.exp(-2)))
    assert found.box == pytest.approx([place[0] + 0.1, place[1] - 0.05, 0.2, 0.3])
    assert found.points[0] == pytest.approx([place[0] + 0.05, place[1]])
    assert found.points.shape == (7, 2)


def test_boxes_of_one_thing_are_blended_and_others_kept_apart() -> None:
    outputs = raw(
        {
            0: (3.0, [0, 0, 40, 40]),
            1: (3.0, [4, 0, 40, 40]),
            1000: (1.0, [0, 0, 40, 40]),
            9: (-1.0, [0, 0, 9, 9]),
        }
    )
    first, second = detection.detections(*outputs, detection.PALM, most=5)
    assert first.box[0] == pytest.approx(detection.PALM.anchors[0][0] + 2 / 192), "halfway between both"
    assert first.score > second.score
    assert second.box[:2] == pytest.approx(detection.PALM.anchors[1000])
    assert len(detection.detections(*outputs, detection.PALM, most=1)) == 1
    assert detection.detections(*raw({}), detection.PALM, most=1) == []


def test_overlap_is_intersection_over_union() -> None:
    box = np.array([0, 0, 2, 2], np.float32)
    others = np.array([[0, 0, 2, 2], [1, 0, 2, 2], [5, 5, 2, 2], [0, 0, 0, 0]], np.float32)
    assert detection.overlaps(box, others) == pytest.approx([1, 1 / 3, 0, 0])


# --- regions ------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(x=st.floats(0, 480), y=st.floats(0, 360), side=st.floats(20, 900), angle=ANGLES)
def test_the_way_back_from_a_cut_undoes_the_cut(x: float, y: float, side: float, angle: float) -> None:
    of = regions.region(x, y, side, angle)
    points = np.array([[0, 0], [224, 0], [112, 112], [30, 200]], np.float64)
    back = regions.placed(points, of, 224)
    assert back[2] == pytest.approx([x, y], abs=1e-2), "the cut's middle is the region's"
    matrix = np.vstack([regions.from_cut(of, 224), [0, 0, 1]])
    again = (np.hstack([back, np.ones((4, 1))]) @ np.linalg.inv(matrix).T)[:, :2]
    assert again == pytest.approx(points, abs=0.1)
    up = back[0] - regions.placed(np.array([[0.0, 224.0]]), of, 224)[0]
    assert math.remainder(regions.upright_angle(np.zeros(2), up) - angle, math.tau) == pytest.approx(
        0, abs=1e-3
    )


def test_a_cut_shows_upright_what_lies_turned_in_the_frame() -> None:
    picture = np.zeros((200, 300, 3), np.uint8)
    picture[95:105, 170:180] = 255
    # The mark is to the right of the region's middle; a region turned clockwise by a quarter has it above.
    cut = regions.cut(picture, regions.region(150, 100, 100, math.pi / 2), 100)
    rows, columns = np.nonzero(cut[:, :, 0] > 128)
    assert rows.mean() == pytest.approx(24.5, abs=1.5)
    assert columns.mean() == pytest.approx(49.5, abs=1.5)
    assert regions.cut(picture, regions.region(-500, -500, 50, 0), 16).max() == 0, "outside is black"


def test_a_palm_makes_a_region_that_is_wider_and_further_up_along_the_fingers() -> None:
    points = np.zeros((7, 2), np.float32)
    points[0], points[2] = (100, 200), (100, 150)
    upright = detection.Detection(score=1.0, box=np.array([100, 175, 40, 50], np.float32), points=points)
    assert regions.palm_region(upright) == pytest.approx([100, 150, 130, 0])
    points = points.copy()
    points[0], points[2] = (100, 200), (150, 200)
    lying = detection.Detection(score=1.0, box=np.array([125, 200, 50, 40], np.float32), points=points)
    assert regions.palm_region(lying) == pytest.approx([150, 200, 130, math.pi / 2])


@settings(max_examples=20)
@given(angle=ANGLES)
def test_the_region_of_a_hand_turns_with_it(angle: float) -> None:
    hand = upright_hand()
    straight = regions.hand_region(hand)
    turned = hand.copy()
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned[:, :2] = hand[:, :2] @ turn.T
    region = regions.hand_region(turned)
    assert region[2] == pytest.approx(straight[2], rel=1e-3)
    assert region[:2] == pytest.approx(turn @ straight[:2], abs=0.05)
    assert math.remainder(region[3] - straight[3] - angle, math.tau) == pytest.approx(0, abs=1e-3)


def test_a_frame_is_fitted_into_a_square_without_distortion() -> None:
    square, scale, corner = regions.fitted(np.full((100, 200, 3), 9, np.uint8), 50)
    assert (scale, corner) == (0.25, (0.0, 12.0))
    assert square[12:37].min() == 9
    assert square[:12].max() == square[37:].max() == 0


# --- gestures -----------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    shown=st.sampled_from(list(drawn_hands.SHOWN)),
    angle=ANGLES,
    size=st.floats(0.01, 500),
    mirror=st.booleans(),
)
def test_gestures_are_named_at_any_size_and_turn_and_in_a_mirror(
    shown: str, angle: float, size: float, mirror: bool
) -> None:
    joints = drawn_hands.skeleton(shown) * ([-size, size, size] if mirror else size)
    turn = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    assert gestures.gesture(joints @ turn) == shown


def test_what_is_neither_bent_nor_stretched_is_no_gesture() -> None:
    hook = drawn_hands.skeleton("fist")
    for joint, place in zip(range(6, 9), [(0, 0.4), (0.15, 0.6), (0.3, 0.65)], strict=True):
        hook[joint] = hook[5] + [*place, 0]
    assert gestures.BENT < gestures.straightness(hook[5:9, :]) < gestures.STRETCHED
    assert gestures.gesture(hook) == "other"
    ring = drawn_hands.skeleton("fist")
    ring[13:17] = drawn_hands.skeleton("open")[13:17]
    assert gestures.gesture(ring) == "other", "a ring finger alone means nothing"
    with pytest.raises(ValueError, match=r"21 landmarks, got an array of \(20, 2\)"):
        gestures.gesture(np.zeros((20, 2)))


# --- operators ----------------------------------------------------------------------------------------------


def looked(stride: int, frames: int, *, lead: int = 0, gaps: Mapping[int, int] = {}) -> list[int]:
    state = State()
    seen = []
    for index in range(frames):
        state.gap = gaps.get(index, 0)
        if operators.due(state, stride, lead=lead):
            seen.append(index)
    return seen


def test_detectors_look_at_every_nth_frame_and_take_turns() -> None:
    assert looked(1, 4) == looked(1, 4, lead=1) == [0, 1, 2, 3]
    assert looked(4, 10) == [0, 4, 8]
    assert looked(4, 10, lead=1) == [0, 3, 7]
    assert looked(4, 10, gaps={2: 2}) == [0, 2, 6], "frames that were lost have passed as well"
    assert looked(4, 10, gaps={2: -1}) == [0, 5, 9], "one that came late has not"


def test_prepare_takes_pictures_and_arrays_and_nothing_else() -> None:
    encoded = io.BytesIO()
    Image.fromarray(frame(640, 480)).save(encoded, "JPEG")
    assert operators.prepare({"request": encoded.getvalue()}, {"side": 320}, None).shape == (240, 320, 3)
    assert operators.prepare({"request": frame(640, 480)}, {"side": 480}, None).shape == (360, 480, 3)
    assert operators.prepare({"request": frame(64, 48)}, {"side": 480}, None).shape == (48, 64, 3), (
        "never larger"
    )
    with pytest.raises(ValueError, match="not an image that can be opened"):
        operators.prepare({"request": b"JPEG?"}, {"side": 320}, None)
    with pytest.raises(ValueError, match="got float64 of"):
        operators.prepare({"request": np.zeros((4, 4, 3))}, {"side": 320}, None)


def test_a_hand_is_followed_between_detections_until_it_is_lost() -> None:
    model = FakeModel(upright_hand(), lambda call: 0.9 if call < 3 else 0.1)
    state = State()
    found = regions.region(240, 180, 200, 0.3)
    first = operators.hand({"prepare": frame(), "palm": found[None]}, {}, model, state)
    assert len(first) == 1
    assert first[0][:, :2] * 480 == pytest.approx(regions.placed(upright_hand(), found, 224)[:, :2], abs=1e-3)
    assert state["regions"][0] == pytest.approx(regions.hand_region(first[0] * 480), abs=1e-3)
    assert len(operators.hand({"prepare": frame(), "palm": None}, {}, model, state)) == 1
    assert operators.hand({"prepare": frame(), "palm": None}, {}, model, state) == []
    assert operators.hand({"prepare": frame(), "palm": None}, {}, model, state) == []
    assert len(model.cuts) == 3, "what is lost is not looked at again"


def test_a_detection_of_a_hand_that_is_followed_already_adds_none() -> None:
    model = FakeModel(upright_hand())
    state = State()
    left, right = regions.region(100, 180, 120, 0), regions.region(380, 180, 120, 0)
    for palms, hands in (([left], 1), ([left], 1), ([right, left], 2), ([regions.region(240, 60, 90, 0)], 2)):
        made = operators.hand({"prepare": frame(), "palm": np.stack(palms)}, {}, model, state)
        assert len(made) == hands


def body_landmarks() -> NDArray[np.float32]:
    landmarks = np.zeros((39, 5), np.float32)
    landmarks[:, :2] = np.linspace(60, 200, 78).reshape(39, 2)
    landmarks[:33, 3] = np.where(np.arange(33) < 20, 8.0, -8.0)
    landmarks[33, :2], landmarks[34, :2] = (128, 160), (128, 60)
    return landmarks


def test_the_body_is_followed_by_the_landmarks_made_for_it() -> None:
    model = FakeModel(body_landmarks(), lambda call: 0.2 if call == 3 else 0.9)
    state = State()
    found = regions.region(240, 180, 256, 0)
    pose = operators.pose({"prepare": frame(), "pose-detect": found[None]}, {}, model, state)
    assert pose.shape == (33, 3)
    assert pose[0, :2] * 480 == pytest.approx([60 + 240 - 128, 60 + 180 - 128 + 1.8], abs=0.1)
    assert (pose[:20, 2] > 0.99).all()
    assert (pose[20:, 2] < 0.01).all()
    assert state["region"] == pytest.approx([240, 212, 250, 0])
    assert operators.pose({"prepare": frame(), "pose-detect": None}, {}, model, state) is not None
    again = operators.pose({"prepare": frame(), "pose-detect": found[None]}, {}, model, state)
    assert again is not None, "where following fails, a fresh detection helps"
    assert len(model.cuts) == 4
    nobody = operators.pose({"prepare": frame(), "pose-detect": np.zeros((0, 4))}, {}, model, State())
    assert nobody is None


def test_a_gesture_triggers_once_when_it_has_lasted() -> None:
    state = State()
    shown = [["fist"], ["fist"], ["fist"], ["point"], ["fist"], ["fist", "open"], [], []]
    made = [
        operators.game({"hands": [], "hand": [], "gesture": names, "pose": None}, {}, None, state)
        for names in shown
    ]
    assert [each["action"] for each in made] == ["", "grab", "", "", "", "grab", "", ""]
    assert made[5]["gestures"] == ["fist", "open"]


def test_operators_refuse_what_is_none_of_theirs() -> None:
    with pytest.raises(ValueError, match="needs a model"):
        operators.palm({"prepare": frame()}, {"stride": 1}, None, State())
    with pytest.raises(ValueError, match="one value a hand, got str"):
        operators.gesture({"hand": "open"}, {}, None)


# --- clips --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cast() -> Any:
    pose = np.column_stack([np.linspace(20, 180, 33), np.linspace(20, 140, 33), np.ones(33)])
    person = subjects.Person(image=Image.fromarray(frame(200, 160)), pose=pose, hands=())
    hands = tuple(
        drawn_hands.draw(name, palm_px=30, skin=(200, 150, 120), seed=1) for name in ("open", "fist")
    )
    return clips.Cast(people=(person,), hands=hands, photographed=1)


@pytest.fixture(scope="module")
def brisk(cast: Any) -> Any:
    return clips.clip("profiling", 1, cast)


def test_drawn_hands_cover_their_own_landmarks() -> None:
    picture = drawn_hands.draw("victory", palm_px=40, skin=(200, 150, 120), seed=3)
    columns, rows = np.round(picture.landmarks).astype(int).T
    assert picture.pixels[rows, columns, 3].min() > 128
    assert picture.pixels[0, 0, 3] == 0
    mirror = subjects.mirrored(picture)
    columns, rows = np.floor(mirror.landmarks).astype(int).T
    assert mirror.pixels[rows, columns, 3].min() > 128
    assert mirror.gesture == "victory"


def test_a_clip_is_frames_that_can_be_opened_with_a_truth_each(cast: Any) -> None:
    clip = clips.clip("profiling", 2, cast)
    assert clip.group == "entering"
    assert len(clip.value) == len(clip.truth) == clips.FRAMES
    assert {Image.open(io.BytesIO(encoded)).size for encoded in clip.value} == {(640, 480)}
    with_hand = [bool(truth["hands"]) for truth in clip.truth]
    assert with_hand == sorted(with_hand), "once it is in, it stays"
    assert not with_hand[0]
    assert with_hand[-1]
    assert clip.truth[-1]["gestures"] == ["open"], "photographed ones first"


def test_a_clip_follows_from_its_split_and_number(cast: Any, brisk: Any) -> None:
    again = clips.clip("profiling", 1, cast)
    assert again.value == brisk.value
    assert again.name == "profiling-01"


def test_truth_follows_the_camera_and_the_hand(brisk: Any) -> None:
    poses = np.stack([truth["pose"] for truth in brisk.truth])
    assert np.ptp(poses[:, 0, 0]) > 0.01, "the camera moves in a brisk clip"
    sizes = [metric.palm_length(np.asarray(truth["hands"][0], float)) for truth in brisk.truth]
    assert np.ptp(sizes) < 1e-5, "a hand does not grow"
    first, last = (np.asarray(brisk.truth[i]["hands"][0]) for i in (0, -1))
    assert abs(last - first)[:, 0].mean() == pytest.approx(clips.LEVELS["brisk"].hand, abs=0.1)
    assert all(0 < truth["torso"] < 1 for truth in brisk.truth)


def test_what_a_hand_covers_or_the_frame_leaves_out_does_not_count(cast: Any) -> None:
    person, hand = cast.people[0], cast.hands[0]
    still = clips.similarity(3.2, 0.0, np.zeros(2), np.zeros(2))
    over = clips.similarity(1.0, 0.0, hand.landmarks[0], person.pose[16, :2] * 3.2 + [0, 20])
    truth = clips._truth(person, hand, still, over)
    assert truth["pose"][0, 2] == 1
    assert truth["pose"][16, 2] == 0
    away = clips.similarity(1.0, 0.0, hand.landmarks[0], np.array([320.0, 481.0]))
    part = clips._truth(person, hand, still, away)
    assert part["hands"] == []
    assert len(part["optional"]) == 1, "a hand that is partly in sight may be found or not"
    left_out = clips._truth(
        person, hand, clips.similarity(3.2, 0.0, np.zeros(2), np.array([-900.0, 0])), away
    )
    assert left_out["pose"][:, 2].sum() == 0


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="no split 'test'; there are profiling, heldout"):
        clips.load("test", {})


# --- metrics ------------------------------------------------------------------------------------------------


def truth_of(*, hands: int = 1) -> dict[str, Any]:
    shares = (upright_hand()[:, :2] / 224).astype(float)
    pose = np.column_stack([np.linspace(0.1, 0.9, 33), np.full(33, 0.5), np.arange(33) < 20])
    return {
        "hands": [shares] * hands,
        "gestures": ["open"] * hands,
        "optional": [],
        "pose": pose,
        "torso": 0.5,
    }


def answer(truth: Mapping[str, Any], *, off: float = 0.0, joints: int = 33) -> dict[str, Any]:
    pose = np.array(truth["pose"])
    pose[:joints, 0] += off
    hands = [np.array(hand) for hand in truth["hands"]]
    for hand in hands:
        hand[:joints, 0] += off
    return {"hands": hands, "gestures": list(truth["gestures"]), "pose": pose, "action": ""}


def test_exact_answers_score_one_and_lost_frames_nothing() -> None:
    truth = truth_of()
    assert metric.score([answer(truth)] * 2, [truth] * 2) == 1.0
    assert metric.gesture_accuracy([answer(truth)], [truth]) == 1.0
    assert metric.score([answer(truth), None], [truth] * 2) == 0.5
    assert metric.gesture_accuracy([None], [truth]) == 0.0


def test_landmarks_count_within_a_share_of_the_palm_or_torso() -> None:
    truth = truth_of()
    palm = metric.palm_length(truth["hands"][0])
    near, far = metric.HAND_WITHIN * palm * 0.99, metric.HAND_WITHIN * palm * 1.01
    assert metric.hand_pck([answer(truth, off=near)], [truth]) == 1.0
    assert metric.hand_pck([answer(truth, off=far, joints=7)], [truth]) == pytest.approx(14 / 21)
    assert metric.pose_pck([answer(truth, off=0.049)], [truth]) == 1.0
    assert metric.pose_pck([answer(truth, off=0.051, joints=5)], [truth]) == pytest.approx(15 / 20), (
        "in sight"
    )


def test_hands_that_are_missed_or_made_up_cost_and_optional_ones_do_not() -> None:
    truth, none = truth_of(), truth_of(hands=0)
    made_up = answer(truth)
    made_up["hands"] = [truth["hands"][0], truth["hands"][0] + 0.5]
    assert metric.hand_pck([answer(none)], [truth]) == 0.0
    assert metric.hand_pck([made_up], [truth]) == 0.5
    assert metric.hand_pck([made_up], [{**truth, "optional": [truth["hands"][0] + 0.5]}]) == 1.0
    assert metric.hand_pck([answer(truth)], [none]) == 0.0
    assert metric.hand_pck([answer(none), answer(truth)], [none, truth]) == 1.0, (
        "no hand, nothing to be right"
    )
    assert metric.gesture_accuracy([answer(none)], [none]) == 1.0


def test_the_gesture_of_the_right_hand_is_what_counts() -> None:
    truth = truth_of()
    made = answer(truth)
    made["hands"] = [truth["hands"][0] + 0.5, truth["hands"][0]]
    made["gestures"] = ["fist", "open"]
    assert metric.gesture_accuracy([made], [truth]) == 1.0
    made["gestures"] = ["open", "fist"]
    assert metric.gesture_accuracy([made], [truth]) == 0.0
    assert metric.pose_pck([{**made, "pose": None}], [truth]) == 0.0
