"""``pipeline.toml``: what is valid loads; what is not is refused with file, field and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from compass_shared import toml_file
from compass_shared.errors import ConfigError
from compass_shared.pipeline import Pipeline, variant_key
from compass_shared.pipeline_file import load_pipeline
from compass_shared.resources import data_folder

SHA_A, SHA_B = "a" * 64, "b" * 64
VALID = f"""\
schema = 1
name = "sort-mail"
version = "2.1"
description = "Sorts mail."
output = "decide"

[inputs]
function = ".data:load"
splits = {{ profiling = 3, heldout = 2 }}
assets = {{ words = "words" }}

[metric]
name = "exact"
function = ".data:score"

[[operators]]
name = "decide"
inputs = ["clean", "classify"]
runtime = "python"
function = ".operators:decide"

[[operators]]
name = "clean"
inputs = ["request"]
runtime = "python"
function = ".operators:clean"

[operators.knobs]
side = [320, 640]
gray = [true, false]

[[operators]]
name = "classify"
inputs = ["clean"]
runtime = "onnx"
model_knob = "model"
speed_class = "onnx-int8"
knobs = {{ model = ["small", "large"] }}

[models.words]
uri = "file:words.txt"
sha256 = "{SHA_A}"

[models.small]
uri = "file:small.onnx"
sha256 = "{SHA_A}"
assets = {{ words = "words" }}

[models.large]
uri = "file:large.onnx"
sha256 = "{SHA_B}"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pipeline.toml"


def loaded(file: Path, text: str) -> Pipeline:
    file.write_text(text, encoding="utf-8")
    return load_pipeline(file)


def refused(file: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loaded(file, text)
    assert caught.value.file == str(file)
    return caught.value


def replaced(old: str, new: str) -> str:
    assert VALID.count(old) >= 1, old
    return VALID.replace(old, new, 1)


def test_a_metric_may_be_a_ratio_and_inputs_may_have_features(file: Path) -> None:
    text = VALID.replace('name = "exact"', 'name = "exact"\nkind = "ratio"')
    pipeline = loaded(file, text.replace("[metric]", 'features = ".data:about"\n\n[metric]'))
    assert pipeline.metric is not None
    assert pipeline.metric.kind == "ratio"
    assert pipeline.inputs is not None
    assert pipeline.inputs.features == ".data:about"


def test_operators_come_in_topological_order(file: Path) -> None:
    pipeline = loaded(file, VALID)
    assert [operator.name for operator in pipeline.operators] == ["clean", "classify", "decide"]
    assert (pipeline.name, pipeline.version, pipeline.output) == ("sort-mail", "2.1", "decide")
    assert pipeline.operator("clean").knobs == {"side": (320, 640), "gray": (True, False)}
    assert pipeline.metric is not None
    assert (pipeline.metric.name, pipeline.metric.kind) == ("exact", "mean")
    assert pipeline.inputs is not None
    assert pipeline.inputs.splits == {"profiling": 3, "heldout": 2}
    assert pipeline.inputs.features is None
    assert pipeline.models["large"].sha256 == SHA_B


def test_where_the_dag_leaves_a_choice_the_order_is_the_authors(file: Path) -> None:
    text = """\
schema = 1
name = "lanes"
version = "1"
output = "end"
"""
    for name, inputs in (
        ("c", ["request"]),
        ("a", ["request"]),
        ("end", ["a", "b", "c"]),
        ("b", ["request"]),
    ):
        text += (
            f'[[operators]]\nname = "{name}"\ninputs = {inputs}\nruntime = "python"\nfunction = ".o:{name}"\n'
        )
    assert [operator.name for operator in loaded(file, text).operators] == ["c", "a", "b", "end"]


def test_a_folder_holds_its_pipeline(file: Path) -> None:
    assert loaded(file, VALID) == load_pipeline(file.parent)


def test_the_digest_is_of_the_content_not_of_the_spelling(file: Path) -> None:
    digest = loaded(file, VALID).digest
    assert loaded(file, "# a comment\n" + VALID.replace('"onnx"', "'onnx'")).digest == digest
    assert loaded(file, replaced("[320, 640]", "[320, 641]")).digest != digest
    assert loaded(file, replaced("[320, 640]", "[640, 320]")).digest != digest, "the first is the default"


def test_configs_and_their_keys(file: Path) -> None:
    pipeline = loaded(file, VALID)
    configs = list(pipeline.configs())
    assert len(configs) == pipeline.config_count() == 8
    keys = [pipeline.config_key(config) for config in configs]
    assert keys[0] == "clean[gray=true,side=320];classify[model=small];decide"
    assert keys[1] == "clean[gray=true,side=320];classify[model=large];decide", "the last varies fastest"
    assert len(set(keys)) == 8
    for config in configs:
        pipeline.check_config(config)


def test_the_models_that_knobs_select(file: Path) -> None:
    text = replaced(
        'function = ".operators:clean"',
        'function = ".operators:clean"\nmodel = "words"\nmodel_when = { gray = true }',
    )
    pipeline = loaded(file, text)
    assert pipeline.operator("classify").model_for({"model": "large"}) == "large"
    clean = pipeline.operator("clean")
    assert clean.model_for({"side": 320, "gray": True}) == "words"
    assert clean.model_for({"side": 320, "gray": False}) is None
    assert pipeline.operator("decide").model_for({}) is None


def test_an_operator_that_is_not_there(file: Path) -> None:
    with pytest.raises(ConfigError, match="no operator 'blur'; it has clean, classify, decide"):
        loaded(file, VALID).operator("blur")


def test_the_example_is_valid() -> None:
    pipeline = load_pipeline(data_folder("examples") / "read_text")
    keys = {pipeline.config_key(config) for config in pipeline.configs()}
    assert len(keys) == pipeline.config_count() == 324


@pytest.mark.parametrize(
    ("old", "new", "place", "problem"),
    [
        ('version = "2.1"', 'verison = "2.1"', "3 verison", "unknown field `verison`"),
        ('version = "2.1"\n', "", "- version", "missing required field `version`"),
        ('version = "2.1"', "version = 2.1", "3 version", "Expected `str`, got `float`"),
        ("schema = 1", "schema = 2", "1 schema", "schema 2 is not 1"),
        ('name = "sort-mail"', 'name = "Sort Mail"', "2 name", "must match [a-z0-9-]{1,64}"),
        ('output = "decide"', 'output = "sort"', "5 output", "no operator is called 'sort'"),
        ('output = "decide"', 'output = "clean"', "17 operators[0].name", "nothing reads 'decide'"),
        ("splits = {", "splits = 3 #", "9 inputs.splits", "Expected `object`, got `int`"),
        ('{ words = "words" }\n\n[me', '{ words = "w" }\n\n[me', "10 inputs.assets", "has no 'w'"),
        ('"exact"', '"exact"\nkind = "max"', "14 metric.kind", "'max' is not one of mean, ratio"),
        # An operator's table; the first one begins on line 16.
        ('e = "decide"', 'e = "decide"\ncolor = 1', "18 operators[0].color", "unknown field `color`"),
        ('e = "decide"', 'e = "clean"', "23 operators[1].name", "two operators are called 'clean'"),
        ('e = "decide"', 'e = "request"', "17 operators[0].name", "not be 'request'"),
        ('e = "decide"', 'e = "Decide"', "17 operators[0].name", "must match"),
        ('inputs = ["clean", "classify"]\n', "", "16 operators[0].inputs", "missing required field `inputs`"),
        ('["clean", "classify"]', "[]", "18 operators[0].inputs", "list the operators it reads"),
        ('["clean", "classify"]', '"clean"', "18 operators[0].inputs", "Expected `array`"),
        ('["clean", "classify"]', '["clean", 1]', "18 operators[0].inputs[1]", "Expected `str`"),
        ('["clean", "classify"]', '["clean", "clasify"]', "18 operators[0].inputs", "called 'clasify'"),
        ('["request"]', '["clean"]', "24 operators[1].inputs", "form a cycle: clean -> clean"),
        ('["request"]', '["classify"]', "24 operators[1].inputs", "form a cycle"),
        ('function = ".operators:decide"\n', "", "16 operators[0].function", "needs a function"),
        ('".operators:decide"', '"decide"', "20 operators[0].function", "is not 'module:function'"),
        ('runtime = "onnx"', 'runtime = "torch"', "35 operators[2].runtime", "python, onnx, tflite"),
        # Knobs; those of the second operator are on lines 29 and 30.
        ("[320, 640]", "[]", "29 operators[1].knobs.side", "at least one value"),
        ("[320, 640]", "320", "28 operators[1].knobs[...]", "Expected `array`"),
        ("[320, 640]", "[320, 320]", "29 operators[1].knobs.side", "must differ"),
        ("[320, 640]", '[320, "320"]', "29 operators[1].knobs.side", "must differ, as text too"),
        ("[true, false]", '[true, "true"]', "30 operators[1].knobs.gray", "must differ, as text too"),
        ("[320, 640]", "[inf]", "29 operators[1].knobs.side", "inf is not a number"),
        ("[320, 640]", "[nan]", "29 operators[1].knobs.side", "nan is not a number"),
        ("[320, 640]", '["a,b"]', "29 operators[1].knobs.side", "none of [ ] , ; ="),
        ("[320, 640]", '[""]', "29 operators[1].knobs.side", "must be printable"),
        ("side = [", "'a=b' = [", "29 operators[1].knobs.a=b", "a knob's name must match"),
        # Models; the operator's begin on line 36.
        (
            'model_knob = "model"',
            'model = "huge"',
            "36 operators[2].model",
            "no 'huge'; it has words, small, l",
        ),
        ('["small", "large"]', '["small", "huge"]', "38 operators[2].knobs.model", "no 'huge'"),
        ('model_knob = "model"\n', "", "32 operators[2].model", "needs model or model_knob"),
        ('model_knob = "model"', 'model_knob = "size"', "36 operators[2].model_knob", "no knob 'size'"),
        ("model_knob =", 'model = "small"\nmodel_knob =', "37 operators[2].model_knob", "not both"),
        (
            'model_knob = "model"',
            'model = "small"\nmodel_when = { model = "medium" }',
            "37 operators[2].model_when",
            "knob 'model' has no value 'medium'",
        ),
        (f'"{SHA_B}"', '"b"', "51 models.large.sha256", "64 lower-case hexadecimal"),
        (f'\nsha256 = "{SHA_B}"', "", "49 models.large.sha256", "is missing"),
        ('"file:large.onnx"', '"ftp:x"', "50 models.large.uri", "must start with file:"),
        ('{ words = "words" }\n\n[mo', '{ words = "w" }\n\n[mo', "47 models.small.assets", "has no 'w'"),
    ],
)
def test_what_is_wrong_is_refused_where_it_stands(
    file: Path, old: str, new: str, place: str, problem: str
) -> None:
    error = refused(file, replaced(old, new))
    assert f"{error.line or '-'} {error.field}" == place
    assert problem in error.problem


def test_too_many_configs_are_refused_before_anybody_lists_them(file: Path) -> None:
    knobs = "\n".join(f"k{index} = {list(range(100))}" for index in range(6))
    error = refused(file, replaced("side = [320, 640]", knobs))
    assert error.problem == "4000000000000 configs are more than 1000000000000"


@pytest.mark.parametrize(
    ("content", "problem", "line"),
    [
        (b"schema = 1\nname = ]", "not valid TOML", 2),
        (b"schema = 1\nschema = 2\n", "not valid TOML", 2),
        (b"\xff\xfe", "not UTF-8 text", None),
        (b"a = " + b"[" * 100_000, "not valid TOML", None),
        (b"schema = " + b"1" * 5000, "not valid TOML", None),
        (b"", "missing required field `schema`", None),
    ],
    ids=["no value", "twice", "not UTF-8", "too deep", "too many digits", "empty"],
)
def test_what_is_not_toml_is_refused(file: Path, content: bytes, problem: str, line: int | None) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_pipeline(file)
    assert problem in caught.value.problem
    assert (caught.value.file, caught.value.line) == (str(file), line)


def test_a_file_that_is_too_large_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toml_file, "MAX_FILE_BYTES", len(VALID.encode()) - 1)
    assert "larger than" in refused(file, VALID).problem


def test_a_file_that_is_not_there_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pipeline\.toml: cannot be read: No such file"):
        load_pipeline(tmp_path)
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load_pipeline(tmp_path / "none.toml")


def test_variant_keys_are_canonical() -> None:
    assert variant_key("crop", {}) == "crop"
    assert variant_key("detect", {"side": 320, "model": "tiny"}) == "detect[model=tiny,side=320]"
    assert variant_key("a", {"x": 1.0, "y": 1, "z": True}) == "a[x=1.0,y=1,z=true]"
