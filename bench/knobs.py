"""The read-text knob table of the README: what each knob trades, from the committed accuracy profile.

Times are CPU milliseconds on the machine that measured the profile, as its provenance has them; the profile
itself is made by `compass-agent accuracy`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compass_coordinator.commands.files import ACCURACY_IN_BUNDLE
from compass_shared.pipeline import Config, Pipeline, variant_key
from compass_shared.pipeline_file import load_pipeline
from compass_shared.profile import AccuracyTable
from compass_shared.profile_file import load_accuracy

BUNDLE = Path(__file__).resolve().parent.parent / "examples" / "read_text"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    args = parser.parse_args()
    pipeline = load_pipeline(args.bundle)
    table = load_accuracy(args.bundle / ACCURACY_IN_BUNDLE, pipeline)
    cpu_ms: Any = table.provenance["cpu_ms_per_run"]
    configs = sorted(pipeline.configs(), key=lambda config: _ms(pipeline, config, cpu_ms))
    best = max(configs, key=lambda config: table.configs[pipeline.config_key(config)].mean)
    inputs = table.provenance["inputs"]
    print(f"{len(configs)} configs on {inputs} inputs; accuracy is 1 - character error rate\n")
    print("Undominated configs (no other is both faster and more accurate):\n")
    _head()
    most = -1.0
    for config in configs:
        if table.configs[pipeline.config_key(config)].mean > most:
            most = table.configs[pipeline.config_key(config)].mean
            _line(pipeline, table, config, cpu_ms)
    print("\nOne knob at a time, from the most accurate config:\n")
    _head()
    _line(pipeline, table, best, cpu_ms)
    for operator in pipeline.operators:
        for knob, values in operator.knobs.items():
            for value in values:
                if value != best[operator.name][knob]:
                    changed = {**best, operator.name: {**best[operator.name], knob: value}}
                    _line(pipeline, table, changed, cpu_ms, f"{operator.name} {knob} = {value}")
    heldout = load_accuracy(args.bundle / ACCURACY_IN_BUNDLE.with_name("accuracy-heldout.json"), pipeline)
    _compare(table, heldout)
    return 0


def _compare(table: AccuracyTable, heldout: AccuracyTable) -> None:
    """How the profile holds on inputs that it was not measured on."""
    pairs = [(table.configs[key], found) for key, found in heldout.configs.items()]
    gaps = [there.mean - here.mean for here, there in pairs]
    errors = [math.hypot(here.standard_error, there.standard_error) for here, there in pairs]
    worst = max(abs(gap) / error for gap, error in zip(gaps, errors, strict=True))
    print(
        f"\nOn {heldout.provenance['inputs']} held-out inputs {len(pairs)} configs score "
        f"{sum(gaps) / len(gaps):+.3f} on average; none is further off than {worst:.1f} standard errors"
    )


def _ms(pipeline: Pipeline, config: Config, cpu_ms: Mapping[str, float]) -> float:
    return sum(cpu_ms[variant_key(op.name, config[op.name])] for op in pipeline.operators)


def _head() -> None:
    print("| config | accuracy | ± standard error | CPU ms |\n|---|---:|---:|---:|")


def _line(
    pipeline: Pipeline, table: AccuracyTable, config: Config, cpu_ms: Mapping[str, float], name: str = ""
) -> None:
    found = table.configs[pipeline.config_key(config)]
    print(
        f"| {name or _short(pipeline, config)} | {found.mean:.3f} | {found.standard_error:.3f} "
        f"| {_ms(pipeline, config, cpu_ms):.0f} |"
    )


def _short(pipeline: Pipeline, config: Config) -> str:
    steps = []
    for operator in pipeline.operators:
        values = ", ".join(str(value) for value in config[operator.name].values())
        if values:
            steps.append(f"{operator.name}({values})")
    return " ".join(steps)


if __name__ == "__main__":
    sys.exit(main())
