"""The driving bundle without its models: weights, anchors, tiles, tracking, risk, faces and metrics."""

from __future__ import annotations

import io
import pickle
import sys
from collections import OrderedDict
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
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

FOLDER = EXAMPLES / "driving"

bundle_module = partial(module_of, "driving")
camera, detector, efficientnet, faces, kinds, metric, operators, risk, road, torch_file, tracking, watch = (
    map(
        bundle_module,
        (
            *("camera", "detector", "efficientnet", "faces", "kinds", "metric", "operators", "risk", "road"),
            *("torch_file", "tracking", "watch"),
        ),
    )
)


class FakeModel:
    """Answers every run with what a function makes of the input."""

    input_names = ("x",)

    def __init__(
        self, answer: Callable[[Any], Mapping[str, Any]], assets: Mapping[str, Path] = MappingProxyType({})
    ) -> None:
        self.answer = answer
        self.assets = assets
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Mapping[str, Any]:
        self.shapes.append(feed["x"].shape)
        return self.answer(feed["x"])


# -- what the file says


def test_nothing_that_sees_a_face_leaves_the_place_where_it_arises() -> None:
    pipeline = load_pipeline(FOLDER / "pipeline.toml")
    raw = {"request"}
    for operator in pipeline.operators:
        if raw & set(operator.inputs):
            assert operator.must_run_on == ("origin",), operator.name
            if operator.name == "prepare":
                raw.add(operator.name)
        else:
            assert operator.must_run_on == (), operator.name
    assert pipeline.config_count() == 216
    assert sum(len(list(operator.variants())) for operator in pipeline.operators) == 19


def test_the_fleet_has_a_query_of_the_clouds_own() -> None:
    fleet = load_fleet(FOLDER / "fleet.toml")
    assert {query.origin for query in fleet.queries} == {"car", "phone", "kerb", "cloud"}
    assert len(fleet.queries) == 8


# -- weights and networks


FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
LongStorage = type("LongStorage", (), {"__module__": "torch"})


class Tensor:
    """Pickled as PyTorch does it: a call that rebuilds it from a storage kept elsewhere."""

    def __init__(self, key: str, array: NDArray[Any], size: int | None = None) -> None:
        self.key, self.array, self.size = key, array, array.size if size is None else size


class StoredElsewhere:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def rebuild(*_: object) -> None:
    """Stands for ``torch._utils._rebuild_tensor_v2``."""


rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"


class TorchPickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if not isinstance(obj, StoredElsewhere):
            return None
        kind = LongStorage if obj.tensor.array.dtype == np.int64 else FloatStorage
        return ("storage", kind, obj.tensor.key, "cpu", obj.tensor.size, None)

    def reducer_override(self, obj: object) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        strides = tuple(step // obj.array.itemsize for step in obj.array.strides)
        return rebuild, (StoredElsewhere(obj), 0, obj.array.shape, strides, False, OrderedDict())


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Writes what ``torch.save`` wrote before version 1.6."""
    for thing in (FloatStorage, LongStorage, rebuild):
        module = sys.modules.get(thing.__module__) or ModuleType(thing.__module__)
        monkeypatch.setitem(sys.modules, thing.__module__, module)
        monkeypatch.setattr(module, thing.__qualname__, thing, raising=False)

    def save(state: object, *, magic: int = torch_file.MAGIC) -> bytes:
        stream = io.BytesIO()
        tensors = (
            [one for one in state.values() if isinstance(one, Tensor)] if isinstance(state, dict) else []
        )
        for part in (
            magic,
            torch_file.PROTOCOL,
            {"little_endian": True},
            state,
            [one.key for one in tensors],
        ):
            TorchPickler(stream, protocol=2).dump(part)
        for one in tensors:
            stream.write(one.size.to_bytes(8, "little") + one.array.tobytes(order="A"))
        return stream.getvalue()

    return save


def test_tensors_come_out_of_a_torch_file_as_they_went_in(saved: Callable[..., bytes]) -> None:
    wide = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = OrderedDict(
        wide=Tensor("1", wide),
        turned=Tensor("2", np.asfortranarray(wide)),
        count=Tensor("3", np.array(7, np.int64)),
    )
    read = torch_file.read_tensors(saved(state))
    assert list(read) == ["wide", "turned", "count"]
    assert np.array_equal(read["wide"], wide)
    assert np.array_equal(read["turned"], wide)
    assert read["count"] == 7


def test_a_torch_file_cannot_run_code(saved: Callable[..., bytes], tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    with pytest.raises(ValueError, match="which no tensor needs"):
        torch_file.read_tensors(saved(OrderedDict(weight=Harmful())))
    assert not (tmp_path / "touched").exists()


def test_torch_files_that_are_none_are_refused(saved: Callable[..., bytes]) -> None:
    good = saved(OrderedDict(one=Tensor("1", np.ones(2, np.float32))))
    for bad in (
        b"",
        b"no pickle",
        good[:-1],
        saved(OrderedDict(), magic=1),
        saved([1]),
        saved(OrderedDict(one=Tensor("1", np.ones(4, np.float32), size=2))),
    ):
        with pytest.raises(ValueError, match=r".+"):
            torch_file.read_tensors(bad)


def small_weights(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """A network of three blocks: the first does not widen, the third adds what came in."""
    weights: dict[str, NDArray[np.float32]] = {}

    def layer(name: str, norm: str, shape: tuple[int, ...]) -> None:
        weights[f"{name}.weight"] = rng.normal(0, 0.5, shape).astype(np.float32)
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 1), ("running_mean", -1, 1)):
            weights[f"{norm}.{part}"] = rng.uniform(low, high, shape[0]).astype(np.float32)
        weights[f"{norm}.running_var"] = rng.uniform(0.5, 2, shape[0]).astype(np.float32)

    layer("_conv_stem", "_bn0", (4, 3, 3, 3))
    for index, (come, go) in enumerate([(4, 2), (2, 3), (3, 3)]):
        wide = come
        if index:
            wide = 2 * come
            layer(f"_blocks.{index}._expand_conv", f"_blocks.{index}._bn0", (wide, come, 1, 1))
        layer(f"_blocks.{index}._depthwise_conv", f"_blocks.{index}._bn1", (wide, 1, 3, 3))
        layer(f"_blocks.{index}._project_conv", f"_blocks.{index}._bn2", (go, wide, 1, 1))
    layer("_conv_head", "_bn1", (5, 3, 1, 1))
    weights["_fc.weight"] = rng.normal(0, 1, (1000, 5)).astype(np.float32)
    weights["_fc.bias"] = rng.normal(0, 1, 1000).astype(np.float32)
    return weights


def evaluated(weights: Mapping[str, NDArray[Any]], image: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same network in numpy, batch normalisation as it stands, for one picture ``(3, side, side)``."""

    def convolved(x: NDArray[Any], name: str, norm: str, stride: int = 1, *, clip: bool = True) -> Any:
        kernel = weights[f"{name}.weight"].astype(np.float64)
        size, side = kernel.shape[2], -(-x.shape[1] // stride)
        pad = max((side - 1) * stride + size - x.shape[1], 0)
        before = pad // 2
        x = np.pad(x, ((0, 0), (before, pad - before), (before, pad - before)))
        out = np.zeros((kernel.shape[0], side, side))
        for i in range(size):
            for j in range(size):
                part = x[
                    :, i : i + (side - 1) * stride + 1 : stride, j : j + (side - 1) * stride + 1 : stride
                ]
                depthwise = kernel.shape[1] == 1 and part.shape[0] == kernel.shape[0]
                tap = kernel[:, :, i, j]
                out += tap[:, :, None] * part if depthwise else np.tensordot(tap, part, 1)
        scale, shift, mean, variance = (
            weights[f"{norm}.{part}"].astype(np.float64)[:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        out = (out - mean) / np.sqrt(variance + 1e-3) * scale + shift
        return out.clip(0, 6) if clip else out

    x = convolved(image.astype(np.float64), "_conv_stem", "_bn0", 2)
    for index, stride in enumerate([1, 2, 1]):
        entry, name = x, f"_blocks.{index}"
        if index:
            x = convolved(x, f"{name}._expand_conv", f"{name}._bn0")
        x = convolved(x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        x = convolved(x, f"{name}._project_conv", f"{name}._bn2", clip=False)
        if x.shape == entry.shape:
            x = x + entry
    features = convolved(x, "_conv_head", "_bn1").mean(axis=(1, 2))
    scores = weights["_fc.weight"].astype(np.float64) @ features + weights["_fc.bias"]
    odds: NDArray[np.float64] = np.exp(scores - scores.max())
    odds /= odds.sum()
    return odds


def test_the_network_that_is_written_computes_what_its_weights_say() -> None:
    rng = np.random.default_rng(4)
    weights = small_weights(rng)
    written = efficientnet.network(weights, 16)
    assert written == efficientnet.network(weights, 16)
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    images = rng.normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    (made,) = session.run(None, {"image": images})
    wanted = np.stack([evaluated(weights, image) for image in images])
    assert made == pytest.approx(wanted, rel=1e-3, abs=1e-7)


# -- detector


def test_a_detector_that_moves_no_anchor_finds_the_anchors() -> None:
    anchors = detector.anchors()
    assert anchors.shape == (1917, 4)
    assert anchors[0] == pytest.approx([0.5 / 19, 0.5 / 19, 0.1, 0.1])
    assert anchors[-1] == pytest.approx([0.5, 0.5, (0.95 * 1.0) ** 0.5, (0.95 * 1.0) ** 0.5])
    scores = np.full((1917, 3), -9.0)
    scores[541, 1], scores[700, 2], scores[900, 0] = 2.0, 1.0, 5.0
    found = detector.decode(np.zeros((1917, 4)), scores, np.array([-1, 0, 1]), 0.5)
    assert found.group.tolist() == [0, 1]
    assert found.score == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))])
    x, y, width, height = anchors[541]
    box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2]).clip(0, 1)
    assert found.box[0] == pytest.approx(box, abs=1e-6)


def test_codes_move_and_stretch_an_anchor() -> None:
    codes, scores = np.zeros((1917, 4)), np.full((1917, 2), -9.0)
    index = 541
    codes[index] = [1.0, -2.0, np.log(0.5) / 0.2, np.log(0.25) / 0.2]
    scores[index, 1] = 3.0
    (left, top, right, bottom) = detector.decode(codes, scores, np.array([-1, 0]), 0.5).box[0]
    x, y, width, height = detector.anchors()[index]
    assert (left + right) / 2 == pytest.approx(x - 0.2 * width, abs=1e-6)
    assert (top + bottom) / 2 == pytest.approx(y + 0.1 * height, abs=1e-6)
    assert right - left == pytest.approx(0.25 * width, abs=1e-6)
    assert bottom - top == pytest.approx(0.5 * height, abs=1e-6)


def boxes(*rows: tuple[float, float, float, float], score: float = 0.9, group: int = 0) -> Any:
    box = np.array(rows, np.float32).reshape(-1, 4)
    return detector.Boxes(box, np.full(len(box), score, np.float32), np.full(len(box), group))


def test_a_tile_that_cuts_a_thing_gives_way_to_one_that_shows_it_whole() -> None:
    left, right = (0.0, 0.0, 0.6, 1.0), (0.4, 0.0, 1.0, 1.0)
    # A car from 0.45 to 0.75 of the frame: cut by the left tile, though with the better score.
    cut = boxes((0.45 / 0.6, 0.4, 1.0, 0.6), score=0.95)
    whole = boxes((0.05 / 0.6, 0.4, 0.35 / 0.6, 0.6), score=0.6)
    found = detector.merged([(cut, left), (whole, right)])
    assert found.box == pytest.approx(np.array([[0.45, 0.4, 0.75, 0.6]]), abs=1e-6)
    alone = detector.merged([(cut, left), (boxes(), right)])
    assert alone.box == pytest.approx(np.array([[0.45, 0.4, 0.6, 0.6]]), abs=1e-6)


def test_of_boxes_that_overlap_the_best_of_each_group_stays() -> None:
    one = boxes((0.1, 0.1, 0.5, 0.5), (0.12, 0.1, 0.52, 0.5), (0.6, 0.6, 0.9, 0.9))
    other = boxes((0.1, 0.1, 0.5, 0.5), score=0.7, group=1)
    found = detector.merged([(one, (0.0, 0.0, 1.0, 1.0)), (other, (0.0, 0.0, 1.0, 1.0))])
    assert found.group.tolist() == [0, 0, 1]
    assert len(found.box) == 3


def test_only_every_nth_frame_is_looked_at_and_lost_ones_count(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(["???", "Car"] + ["Boot"] * 22), encoding="utf-8")
    nothing = {"codes": np.zeros((1, 1917, 4)), "scores": np.full((1, 1917, 24), -9.0)}
    model = FakeModel(lambda _: nothing, {"labels": path})
    inputs = {"blur": np.zeros((40, 60, 3), np.uint8)}

    def looked(gaps: list[int]) -> list[bool]:
        state, made = State(), []
        for state.gap in gaps:
            found = operators.detect(inputs, {"tiles": "2x2", "stride": 4}, model, state)
            made.append(found is not None)
        return made

    assert looked([0] * 6) == [True, False, False, False, True, False]
    assert looked([0, 0, 5, 0]) == [True, False, True, False]
    assert model.shapes == [(1, 300, 300, 3)] * 4 * 4


# -- tracking


def textured(rng: np.random.Generator, height: int = 90, width: int = 160) -> NDArray[np.float32]:
    """Noise whose neighbours are alike, as in a picture."""
    noise = Image.fromarray(rng.integers(0, 255, (height // 4, width // 4), np.uint8))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def moved(grey: NDArray[np.float32], dx: int, dy: int) -> NDArray[np.float32]:
    return np.roll(grey, (dy, dx), axis=(0, 1))


@given(dx=st.integers(-7, 7), dy=st.integers(-5, 5), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_a_box_is_found_again_where_its_content_went(dx: int, dy: int, seed: int) -> None:
    grey = textured(np.random.default_rng(seed))
    box = np.array([0.4, 0.35, 0.65, 0.7])
    found = tracking.located(grey, moved(grey, dx, dy), box, box)
    assert found == pytest.approx(box + np.array([dx / 160, dy / 90] * 2), abs=0.016)


def test_what_nothing_looks_like_is_not_found() -> None:
    box = np.array([0.4, 0.35, 0.65, 0.7])
    flat = np.full((90, 160), 100, np.float32)
    assert tracking.located(textured(np.random.default_rng(1)), flat, box, box) is None


def test_a_track_keeps_its_number_between_detections_and_ends_when_it_is_missed() -> None:
    grey = textured(np.random.default_rng(3))
    tracker = tracking.Tracker()
    box = (0.4, 0.35, 0.65, 0.7)
    (first,) = tracker.advance(grey, boxes(box))
    number = first.number
    for step in (1, 2, 3):
        (followed,) = tracker.advance(moved(grey, 3 * step, 0), None)
        assert followed.number == number
        assert followed.box[0] == pytest.approx(0.4 + 3 * step / 160, abs=0.02)
    (again, new) = tracker.advance(
        moved(grey, 9, 0), boxes((0.45, 0.35, 0.7, 0.7), (0.05, 0.1, 0.2, 0.3), score=0.6)
    )
    assert (again.number, again.looks, new.number) == (number, 2, number + 1)
    for _ in range(tracking.MAX_MISSES + 1):
        assert tracker.advance(moved(grey, 9, 0), boxes()) == []
    assert tracker.tracks == []


def test_a_new_track_needs_a_better_score_than_an_old_one() -> None:
    grey = textured(np.random.default_rng(3))
    tracker = tracking.Tracker()
    box = (0.4, 0.35, 0.65, 0.7)
    assert tracker.advance(grey, boxes(box, score=tracking.START_SCORE - 0.1)) == []
    assert len(tracker.advance(grey, boxes(box))) == 1
    (kept,) = tracker.advance(grey, boxes(box, score=tracking.START_SCORE - 0.1))
    assert kept.score < tracking.START_SCORE


def test_boxes_go_to_the_tracks_that_they_overlap_most_within_their_group() -> None:
    tracks = [np.array([0.1, 0.1, 0.3, 0.3]), np.array([0.15, 0.1, 0.35, 0.3])]
    found = np.array([[0.15, 0.1, 0.35, 0.3], [0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.3, 0.3]])
    assert tracking.matched(tracks, [0, 0], found, np.array([0, 0, 1])) == {0: 1, 1: 0}
    assert tracking.matched(tracks, [1, 1], found, np.array([0, 0, 2])) == {}
    assert tracking.matched([], [], found, np.array([0, 0, 1])) == {}


# -- risk


@given(x=st.floats(-20, 20), z=st.floats(3, 100))
def test_where_a_point_of_the_road_appears_tells_where_it_is(x: float, z: float) -> None:
    column, row, scale = camera.image_of(x, z)
    half = 0.5 * scale
    box = np.array([[column - half, row - scale, column + half, row]]) / np.tile(
        [camera.WIDTH, camera.HEIGHT], 2
    )
    across, ahead = camera.ground_of(box)
    assert (across[0], ahead[0]) == (pytest.approx(x, abs=1e-6), pytest.approx(z))


@pytest.mark.parametrize(
    ("group", "x_m", "z_m", "closing_m", "expected"),
    [
        ("vehicle", 0.0, 30.0, 0.0, False),
        ("vehicle", 0.0, 7.9, 0.0, True),
        ("vehicle", 0.0, 19.9, 1.0, True),
        ("vehicle", 0.0, 20.1, 1.0, False),
        ("vehicle", 0.0, 15.0, -1.0, False),
        ("vehicle", 2.3, 5.0, 1.0, False),
        ("person", -2.3, 5.0, 1.0, True),
    ],
)
def test_a_risk_is_in_the_way_and_close_or_soon(
    group: str, x_m: float, z_m: float, closing_m: float, expected: bool
) -> None:
    assert risk.is_risk(group, x_m, z_m, closing_m) is expected


def seen_at(z: float, *, number: int = 4, score: float = 0.9) -> dict[str, Any]:
    column, row, scale = camera.image_of(0.0, z)
    box = np.array([[column - scale, row - 1.8 * scale, column + scale, row]])
    box /= np.tile([camera.WIDTH, camera.HEIGHT], 2)
    return {"boxes": box, "scores": [score], "groups": ["vehicle"], "tracks": [number]}


def test_what_grows_is_coming_nearer() -> None:
    keeper = watch.Watch()
    flags = [keeper.advance(seen_at(24.0 - 1.0 * step), ())["risks"][0] for step in range(9)]
    assert flags[0] is False, "one frame tells nothing"
    assert flags[-1] is True, "16 m at 10 m/s"
    resting = watch.Watch()
    assert not any(resting.advance(seen_at(16.0), ())["risks"][0] for _ in range(9))


def test_what_the_classifier_knows_better_stays_known() -> None:
    keeper = watch.Watch()
    assert keeper.advance(seen_at(20.0), ())["kinds"] == ["vehicle"]
    assert keeper.advance(seen_at(20.0), [{"track": 4, "kind": "bus", "support": 0.4}])["kinds"] == ["bus"]
    assert keeper.advance(seen_at(20.0), [{"track": 4, "kind": "car", "support": 0.3}])["kinds"] == ["bus"]
    assert keeper.advance(seen_at(20.0), ())["kinds"] == ["bus"]


def test_a_doubtful_find_that_the_classifier_does_not_support_is_dropped() -> None:
    nothing = [{"track": 4, "kind": "car", "support": 0.01}]
    assert watch.Watch().advance(seen_at(20.0, score=0.5), nothing)["groups"] == []
    assert watch.Watch().advance(seen_at(20.0, score=0.7), nothing)["groups"] == ["vehicle"]
    assert watch.Watch().advance(seen_at(20.0, score=0.5), ())["groups"] == ["vehicle"]


def test_kinds_are_sums_of_classes() -> None:
    probabilities = np.zeros(1000)
    probabilities[[609, 656, 779, 479, 243]] = [0.2, 0.15, 0.3, 0.1, 0.25]
    assert kinds.evidence(probabilities, "vehicle") == ("car", pytest.approx(0.75))
    assert kinds.evidence(probabilities, "animal") == ("dog", pytest.approx(0.25))


def test_classes_belong_to_one_kind() -> None:
    named = [one for group in kinds.KINDS.values() for classes in group.values() for one in classes]
    named += [one for parts in kinds.PARTS.values() for one in parts]
    assert len(named) == len(set(named))


# -- faces


@given(width=st.integers(200, 900), height=st.integers(100, 500))
def test_the_squares_lie_in_the_frame_and_reach_both_sides(width: int, height: int) -> None:
    width = max(width, height)
    squares = faces.squares(width, height)
    assert all(left >= 0 and top >= 0 for left, top, _ in squares)
    assert all(left + side <= width + 1e-6 and top + side <= height + 1e-6 for left, top, side in squares)
    small = sorted(left for left, _, side in squares if side < height)
    assert small[0] == 0
    assert all(later - former <= faces.BAND * height + 1e-6 for former, later in pairwise(small))


def test_a_face_is_decoded_around_its_anchor() -> None:
    code, logit = np.zeros((896, 16)), np.full(896, -5.0)
    code[0, :4], logit[0] = [12.8, 0, 25.6, 12.8], 3.0
    (box,), (score,) = faces.decoded(code, logit, 128)
    assert box == pytest.approx([0.5 / 16 + 0.1 - 0.1, 0.5 / 16 - 0.05, 0.5 / 16 + 0.2, 0.5 / 16 + 0.05])
    assert score == pytest.approx(1 / (1 + np.exp(-3)))


def test_only_faces_are_blurred_and_nothing_of_them_is_left() -> None:
    frame = np.random.default_rng(2).integers(0, 255, (120, 200, 3), np.uint8)
    made = faces.blurred(frame, np.array([[0.4, 0.4, 0.6, 0.6]]))
    box = (slice(48 - 4, 72 + 4), slice(80 - 6, 120 + 6))
    outside = np.ones((120, 200), bool)
    outside[box] = False
    assert np.array_equal(made[outside], frame[outside])
    assert len(np.unique(made[48:72, 80:120].reshape(-1, 3), axis=0)) <= faces.BLOCKS**2
    assert faces.blurred(frame, np.zeros((0, 4))) is frame


# -- operators


def test_only_new_vehicles_and_animals_are_cut_out() -> None:
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[30:70, 80:120] = 200
    tracks = {
        "boxes": [[0.4, 0.3, 0.6, 0.7], [0.0, 0.0, 0.1, 0.1]],
        "tracks": [7, 8],
        "groups": ["vehicle", "person"],
        "look": [True, False],
    }
    (cut,) = operators.crop({"blur": frame, "track": tracks}, {"codec": "raw"}, None)
    assert (cut["track"], cut["group"], cut["image"].shape) == (7, "vehicle", (260, 260, 3))
    assert cut["image"].mean() == pytest.approx(200 / 1.2**2, rel=0.03), "a tenth of margin on every side"


def test_crops_are_brought_to_the_classifiers_side_in_one_batch() -> None:
    model = FakeModel(lambda x: {"p": np.tile(np.eye(1000, dtype=np.float32)[779], (len(x), 1))})
    crops = [{"track": n, "group": "vehicle", "image": np.zeros((260, 260, 3), np.uint8)} for n in (3, 5)]
    made = operators.classify({"crop": crops}, {"model": "lite1"}, model)
    assert made == [{"track": n, "kind": "bus", "support": 1.0} for n in (3, 5)]
    assert model.shapes == [(2, 3, 240, 240)]


def test_frames_come_as_arrays_or_jpeg_and_nothing_else() -> None:
    frame = np.full((96, 160, 3), 90, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG")
    for request in (frame, stream.getvalue()):
        assert operators.prepare({"request": request}, {"width": 80}, None).shape == (48, 80, 3)
    for wrong in (b"no picture", "text", None, np.zeros((4, 4)), frame.astype(float)):
        with pytest.raises(ValueError, match=r"picture|frame"):
            operators.prepare({"request": wrong}, {"width": 80}, None)


def test_the_road_moves_under_the_camera() -> None:
    one, same, later = (np.asarray(road.painted_road(at, seed=3)) for at in (0.0, 0.0, 1.0))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, later)
    assert not one[: int(camera.HORIZON_PX)].any()


# -- metrics


def answer(*rows: tuple[float, float, float, float], **others: Any) -> dict[str, Any]:
    count = len(rows)
    given_ = {"groups": ["vehicle"] * count, "kinds": ["car"] * count, "risks": [False] * count, "faces": []}
    return {"boxes": list(rows), **given_, **others}


CAR, FAR = (0.1, 0.1, 0.5, 0.5), (0.7, 0.7, 0.9, 0.9)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (answer(CAR), 1.0),
        (answer((0.12, 0.1, 0.52, 0.5)), 1.0),
        (answer((0.4, 0.1, 0.8, 0.5)), 0.0),
        (answer(CAR, groups=["person"]), 0.0),
        (answer(CAR, CAR), 2 / 3),
        (answer(CAR, FAR), 2 / 3),
        (answer(), 0.0),
        (None, 0.0),
    ],
)
def test_boxes_count_if_they_fit_and_are_of_the_right_group(output: object, expected: float) -> None:
    assert metric.boxes_f1([output], [answer(CAR)]) == pytest.approx(expected)


def test_f1_is_of_the_whole_clip() -> None:
    assert metric.boxes_f1([answer(CAR), None], [answer(CAR), answer(CAR)]) == pytest.approx(2 / 3)
    assert metric.boxes_f1([answer(), None], [answer(), answer()]) == 1.0


def test_flags_on_what_was_missed_or_is_not_there_are_wrong() -> None:
    truth = answer(CAR, FAR, risks=[True, False])
    assert metric.risk_accuracy([truth], [truth]) == (2, 2)
    assert metric.risk_accuracy([None], [truth]) == (1, 2)
    assert metric.risk_accuracy([answer((0.0, 0.8, 0.1, 0.9), risks=[True])], [truth]) == (1, 3)
    assert metric.risk_accuracy([truth], [answer(CAR, risks=[])]) == (0, 0)


def test_kinds_count_for_vehicles_and_animals_that_were_found() -> None:
    truth = answer(CAR, FAR, groups=["vehicle", "person"], kinds=["car", "person"])
    assert metric.kind_accuracy([truth], [truth]) == (1, 1)
    assert metric.kind_accuracy([answer(CAR, kinds=["bus"])], [truth]) == (0, 1)
    assert metric.kind_accuracy([None], [truth]) == (0, 0)


def test_a_face_is_covered_if_half_of_it_is() -> None:
    truth = answer(faces=[(0.2, 0.2, 0.4, 0.4)])
    assert metric.faces_covered([truth], [truth]) == (1, 1)
    assert metric.faces_covered([answer(faces=[(0.29, 0.2, 0.9, 0.9)])], [truth]) == (1, 1)
    assert metric.faces_covered([answer(faces=[(0.31, 0.2, 0.9, 0.9)])], [truth]) == (0, 1)
    assert metric.faces_covered([None], [truth]) == (0, 1)
