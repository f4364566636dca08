"""Measures the truth: every config on every page, each distinct operator run once. Hours; resumable.

A process a core; what a page gave is a line of the checkpoint, so a run that was stopped goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from common import READ_TEXT, machine
from compass_agent.bundles import load_bundle
from compass_agent.inputs import load_examples
from compass_agent.measure.features import features_of
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_shared.framing import encode_value
from compass_shared.measured import InputInfo
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.pipeline import REQUEST, variant_key
from compass_shared.values import Value
from profiling.truth import Kept, Page, keep_truth, variants_of

SPLIT = "profiling"


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the checkpoint."""

    index: int
    page: Page


class _Contents:
    """Numbers the contents of one page in the order in which they come up."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self.size_bytes: list[int] = []

    def number(self, value: Value) -> int:
        """Equal contents have equal numbers."""
        encoded = encode_value(value)
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        if digest not in self._known:
            self._known[digest] = len(self._known)
            self.size_bytes.append(len(encoded))
        return self._known[digest]


class _Measurer:
    """One process's bundle, models and pages."""

    def __init__(self) -> None:
        store = ModelStore(ModelCache(default_cache_dir(os.environ)))
        self.bundle = load_bundle(READ_TEXT)
        self.host = OperatorHost([self.bundle], store)
        self.examples = load_examples(self.bundle, SPLIT, store)
        self.features = features_of(self.examples, self.bundle.features())
        self.score = self.bundle.metric()
        self.variants = {key: at for at, key in enumerate(variants_of(self.bundle.pipeline))}

    def page(self, index: int) -> Page:
        """All configs on one page."""
        pipeline, example = self.bundle.pipeline, self.examples[index]
        contents = _Contents()
        request = example.value, contents.number(example.value)
        known: dict[tuple[int, ...], tuple[Value, int]] = {}
        times: list[tuple[int, int]] = []
        scores: dict[int, float] = {}
        for config in pipeline.configs():
            values = {REQUEST: request}
            for operator in pipeline.operators:
                knobs = config[operator.name]
                variant = self.variants[variant_key(operator.name, knobs)]
                key = (variant, *(values[name][1] for name in operator.inputs))
                if key not in known:
                    inputs = {name: values[name][0] for name in operator.inputs}
                    wall_s, cpu_s = time.perf_counter(), time.thread_time()
                    made = self.host.run(pipeline.name, operator.name, inputs, knobs)
                    cpu_s, wall_s = time.thread_time() - cpu_s, time.perf_counter() - wall_s
                    times.append((round(1e6 * cpu_s), round(1e6 * wall_s)))
                    known[key] = made, contents.number(made)
                values[operator.name] = known[key]
            output, number = values[pipeline.output]
            if number not in scores:
                scores[number] = round(float(self.score(output, example.truth)), 6)
        return Page(
            info=InputInfo(
                name=example.name,
                group=example.group,
                features=self.features[index],
                size_bytes=contents.size_bytes[request[1]],
            ),
            variant=[key[0] for key in known],
            read=[list(key[1:]) for key in known],
            made=[number for _, number in known.values()],
            cpu_us=[cpu for cpu, _ in times],
            wall_us=[wall for _, wall in times],
            size_bytes=contents.size_bytes,
            scores=scores,
        )


@lru_cache(maxsize=1)
def _measurer() -> _Measurer:
    """Of this process; a page is measured and forgotten, so that models are loaded and warm."""
    found = _Measurer()
    found.page(0)
    return found


def _line(index: int) -> _Line:
    return _Line(index=index, page=_measurer().page(index))


def measure_truth(file: Path, checkpoint: Path, processes: int) -> None:
    """Measure what the checkpoint lacks, and keep all of it in ``file``.

    Args:
        file: Written when nothing is missing any more.
        checkpoint: Lines of measured pages; removed at the end.
        processes: Each measures one page at a time, on one thread.
    """
    bundle = load_bundle(READ_TEXT)
    inputs = bundle.pipeline.inputs
    assert inputs is not None
    found = dict(_read(checkpoint))
    missing = [index for index in range(inputs.splits[SPLIT]) if index not in found]
    with get_context("spawn").Pool(processes) as pool, checkpoint.open("ab") as lines:
        for line in pool.imap_unordered(_line, missing):
            lines.write(msgspec.json.encode(line) + b"\n")
            lines.flush()
            found[line.index] = line.page
            print(f"{len(found)} of {inputs.splits[SPLIT]} pages", flush=True)
    keep_truth(
        Kept(
            pipeline=bundle.pipeline.name,
            provenance=_provenance(bundle.pipeline.digest, bundle.code_sha256),
            variants=list(variants_of(bundle.pipeline)),
            pages=[found[index] for index in sorted(found)],
        ),
        file,
    )
    checkpoint.unlink()


def _read(checkpoint: Path) -> Iterator[tuple[int, Page]]:
    """Whole lines; a line that was cut off is measured again."""
    lines = checkpoint.read_bytes().splitlines() if checkpoint.exists() else []
    for encoded in lines:
        try:
            line = msgspec.json.decode(encoded, type=_Line)
        except msgspec.DecodeError:
            continue
        yield line.index, line.page


def _provenance(digest: str, code_sha256: str) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "split": SPLIT,
        "pipeline_digest": digest,
        "code_sha256": code_sha256,
        "machine": machine(),
    }
