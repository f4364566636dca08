"""Loading bundles: their code, examples and metric, and what is wrong with the ones that fail."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

from compass_agent.bundles import Bundle, load_bundle
from compass_agent.models import ModelStore
from compass_shared.errors import ConfigError
from compass_shared.model_cache import ModelCache
from support.bundles import write_tiny_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(ModelCache(tmp_path / "cache"))


def _edit(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def test_every_operator_has_its_function(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert sorted(bundle.functions) == ["classify", "label", "scale"]
    assert bundle.pipeline.name == "tiny"


def test_two_bundles_may_have_modules_of_one_name(tmp_path: Path) -> None:
    first, second = (load_bundle(write_tiny_bundle(tmp_path, name=name)) for name in ("one", "two"))
    assert first.package != second.package
    assert first.functions["scale"] is not second.functions["scale"]
    assert first.code_sha256 == second.code_sha256
    assert first.pipeline.digest != second.pipeline.digest


def test_the_same_bundle_is_imported_once(folder: Path) -> None:
    assert load_bundle(folder).functions["scale"] is load_bundle(folder).functions["scale"]


def test_changed_code_is_another_bundle(folder: Path) -> None:
    before = load_bundle(folder)
    _edit(folder, "operators.py", '"low"', '"lowest"')
    after = load_bundle(folder)
    assert before.code_sha256 != after.code_sha256
    assert before.functions["label"] is not after.functions["label"]
    assert before.pipeline.digest == after.pipeline.digest


def test_a_renamed_module_changes_the_digest_of_the_code(folder: Path) -> None:
    before = load_bundle(folder)
    (folder / "data.py").rename(folder / "examples.py")
    assert load_bundle(folder).code_sha256 != before.code_sha256


def test_modules_of_a_bundle_import_each_other(folder: Path) -> None:
    (folder / "names.py").write_text("NAMES = ['low', 'middle', 'high']\n")
    _edit(folder, "operators.py", "import numpy as np", "import numpy as np\nfrom .names import NAMES")
    assert load_bundle(folder).functions


def test_a_bundle_with_an_init_runs_it(folder: Path) -> None:
    (folder / "__init__.py").write_text("LOADED = True\n")
    assert sys.modules[load_bundle(folder).package].LOADED is True


def test_installed_functions_go_by_their_full_name(folder: Path) -> None:
    _edit(folder, "pipeline.toml", '".operators:scale"', '"copy:copy"')
    function: object = load_bundle(folder).functions["scale"]
    assert function is copy.copy


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("pipeline.toml", ".operators:scale", ".operators:shrink", "there is no '.operators:shrink'"),
        ("pipeline.toml", ".operators:scale", ".operators:np", "'.operators:np' is not a function"),
        ("pipeline.toml", ".operators:scale", ".missing:scale", "ModuleNotFoundError"),
        ("operators.py", "import numpy as np", "import numpy as np\ndef broken(:", "SyntaxError"),
        ("operators.py", "import numpy as np", "import numpy as np\n1 / 0", "ZeroDivisionError"),
        ("operators.py", "import numpy as np", "raise SystemExit(3)", "SystemExit"),
    ],
    ids=["missing", "not a function", "no module", "syntax", "raises", "exits"],
)
def test_errors_name_file_operator_and_function(
    folder: Path, file: str, old: str, new: str, said: str
) -> None:
    _edit(folder, file, old, new)
    with pytest.raises(ConfigError, match=said) as caught:
        load_bundle(folder)
    assert caught.value.file == str(folder / "pipeline.toml")
    assert caught.value.field == "operators.scale.function"


def test_a_mended_bundle_loads_in_the_same_process(folder: Path) -> None:
    _edit(folder, "operators.py", "import numpy as np", "1 / 0")
    with pytest.raises(ConfigError):
        load_bundle(folder)
    _edit(folder, "operators.py", "1 / 0", "import numpy as np")
    assert load_bundle(folder).functions


def test_a_broken_init_is_named(folder: Path) -> None:
    (folder / "__init__.py").write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match="ZeroDivisionError") as caught:
            load_bundle(folder)
        assert caught.value.file == str(folder / "__init__.py")


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pipeline"):
        load_bundle(tmp_path)


def test_examples_come_with_their_assets(folder: Path, store: ModelStore) -> None:
    bundle = load_bundle(folder)
    examples = bundle.examples("heldout", store)
    assert [example.name for example in examples] == ["heldout-0", "heldout-1"]
    assert examples[0].truth == ["low", "middle", "high"]


def test_an_unknown_split_is_refused(folder: Path, store: ModelStore) -> None:
    with pytest.raises(ConfigError, match="profiling, heldout"):
        load_bundle(folder).examples("test", store)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [('"heldout": 2', '"heldout": 1', "should have 2"), ('"labels"', '"words"', "KeyError")],
    ids=["count", "raises"],
)
def test_wrong_examples_are_refused(folder: Path, store: ModelStore, old: str, new: str, said: str) -> None:
    _edit(folder, "data.py", old, new)
    with pytest.raises(ConfigError, match=said):
        load_bundle(folder).examples("heldout", store)


def test_the_metric_scores(folder: Path) -> None:
    score = load_bundle(folder).metric()
    assert score({"labels": ["low"]}, ["low", "high"]) == 1.0
    assert score({"labels": ["other"]}, ["low", "high"]) == 0.0


def test_a_pipeline_may_have_neither_metric_nor_inputs(folder: Path, store: ModelStore) -> None:
    text = (folder / "pipeline.toml").read_text()
    head, _, rest = text.partition("[inputs]")
    (folder / "pipeline.toml").write_text(head + rest[rest.index("[[operators]]") :])
    bundle: Bundle = load_bundle(folder)
    with pytest.raises(ConfigError, match="no metric"):
        bundle.metric()
    with pytest.raises(ConfigError, match="no split"):
        bundle.examples("heldout", store)
