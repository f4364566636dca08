"""What pipeline.toml says of places, state, items, codecs, metrics, endpoints and splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from compass_shared.errors import ConfigError
from compass_shared.pipeline import ENDPOINT_CLASS, Pipeline
from compass_shared.pipeline_file import load_pipeline

VALID = """\
schema = 1
name = "streams"
version = "1"
output = "write"

[inputs]
function = ".data:load"
splits = { profiling = 2 }
sequences = true

[metric]
name = "first"
function = ".data:score"

[[extra_metrics]]
name = "second"
function = ".data:other"
kind = "ratio"

[fixed_split]
hide = "device"
follow = "edge"
each = "edge"
write = "cloud"

[[operators]]
name = "hide"
inputs = ["request"]
runtime = "python"
function = ".operators:hide"
must_run_on = "origin"
codec_knob = "codec"
knobs = { codec = ["raw", "jpeg-80"] }

[[operators]]
name = "follow"
inputs = ["hide"]
runtime = "python"
function = ".operators:follow"
stateful = true

[[operators]]
name = "each"
inputs = ["hide", "follow"]
items = "follow"
items_batch = 4
runtime = "python"
function = ".operators:each"

[[operators]]
name = "write"
inputs = ["each"]
runtime = "openai"
model_knob = "writer"
must_run_on = ["edge", "cloud"]
knobs = { writer = ["small", "large"] }

[endpoints.small]
model = "tiny"

[endpoints.large]
model = "huge"
"""


def loaded(folder: Path, text: str) -> Pipeline:
    file = folder / "pipeline.toml"
    file.write_text(text)
    return load_pipeline(file)


def test_everything_is_read(tmp_path: Path) -> None:
    pipeline = loaded(tmp_path, VALID)
    hide, follow, each, write = pipeline.operators
    assert hide.must_run_on == ("origin",)
    assert hide.codec_knob == "codec"
    assert follow.stateful
    assert pipeline.stateful
    assert (each.items, each.items_batch) == ("follow", 4)
    assert write.must_run_on == ("edge", "cloud")
    assert write.speed_class == ENDPOINT_CLASS
    assert write.endpoint_for({"writer": "large"}) == "large"
    assert write.model_for({"writer": "large"}) is None
    assert pipeline.endpoints["large"].model == "huge"
    assert [metric.name for metric in pipeline.extra_metrics] == ["second"]
    assert pipeline.fixed_split["write"] == "cloud"
    assert pipeline.inputs is not None
    assert pipeline.inputs.sequences


@pytest.mark.parametrize(
    ("old", "new", "field", "problem"),
    [
        (
            '"origin"',
            '"phone"',
            "operators[0].must_run_on",
            "'phone' is not one of origin, device, edge, cloud",
        ),
        ('["edge", "cloud"]', '["edge", "fog"]', "operators[3].must_run_on", "'fog' is not one of"),
        ('codec_knob = "codec"', 'codec_knob = "codex"', "operators[0].codec_knob", "no knob 'codex'"),
        ('"jpeg-80"', '"jpeg-800"', "operators[0].knobs.codec", "'jpeg-800' is no codec"),
        ('"jpeg-80"', "80", "operators[0].knobs.codec", "80 is no codec"),
        ('items = "follow"', 'items = "request"', "operators[2].items", "is not among its inputs"),
        ("items_batch = 4", "items_batch = 0", "operators[2].items_batch", "0 must lie between 1 and 4096"),
        ("items_batch = 4", "stateful = true", "operators[2].stateful", "keeps no state"),
        (
            'runtime = "openai"',
            'runtime = "openai"\ncodec_knob = "writer"',
            "operators[3].codec_knob",
            "not encoded",
        ),
        (
            '["small", "large"]',
            '["small", "other"]',
            "operators[3].knobs.writer",
            "[endpoints] has no 'other'",
        ),
        ('model = "huge"', 'model = " "', "endpoints.large.model", "what the endpoint calls the model"),
        (
            "[endpoints.large]",
            '[endpoints."La Rge"]\nmodel = "x"\n[endpoints.large]',
            "endpoints.La Rge",
            "must match",
        ),
        ('name = "second"', 'name = "first"', "extra_metrics[0].name", "two metrics are called 'first'"),
        ('kind = "ratio"', 'kind = "sum"', "extra_metrics[0].kind", "'sum' is not one of mean, ratio"),
        ('[metric]\nname = "first"\nfunction = ".data:score"', "", "metric", "[metric] comes first"),
        ('each = "edge"', 'each = "fog"', "fixed_split.each", "'fog' is not one of device, edge, cloud"),
        ('each = "edge"\n', "", "fixed_split", "names no tier for operator 'each'"),
        (
            'each = "edge"',
            'each = "edge"\nother = "edge"',
            "fixed_split.other",
            "no operator is called 'other'",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_field(
    tmp_path: Path, old: str, new: str, field: str, problem: str
) -> None:
    assert VALID.count(old) >= 1
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, VALID.replace(old, new, 1))
    assert caught.value.field == field
    assert problem in caught.value.problem
