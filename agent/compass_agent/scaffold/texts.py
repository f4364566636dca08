"""The texts of a new bundle."""

from __future__ import annotations

SETTINGS = '''\
"""What is known of the model and its inputs. `compass new` wrote this; change it as you need."""

from __future__ import annotations

WIDTH = {width}
HEIGHT = {height}
CHANNELS = {channels}
CHANNELS_FIRST = {channels_first}
"""Whether the model takes (batch, channels, height, width), else (batch, height, width, channels)."""
WHOLE_NUMBERS = {whole_numbers}
"""Whether it takes uint8 pixels as they are."""
MEAN = {mean}
STD = {std}
"""Pixels are divided by 255, less MEAN, divided by STD; a value a channel."""
BLUE_FIRST = {blue_first}
"""Whether it takes BGR rather than RGB."""
BATCHED = {batched}
"""Whether its input has a batch dimension."""
RANK = {rank}
"""Dimensions of its input, that of the batch included."""
DTYPE = "{dtype}"
OUTPUT = {output}
"""Which of its outputs is taken."""
LABELS: tuple[str, ...] = {labels}
"""Name of each class, in the order of the model's output; empty: classes are numbers."""
LABELLED = {labelled}
"""Whether the folders in inputs/ are the true labels."""
'''

PIPELINE = """\
# Started by `compass new`. docs/bundles.md explains every field.

schema = 1
name = "{name}"
version = "0.1.0"
description = "Prepare an input for the link, run a model on it, decide."
output = "decide"

[inputs]
function = ".data:load"
splits = {{ profiling = {profiling}, heldout = {heldout} }}
assets = {{ model = "model" }}

[metric]
name = "{metric}"
function = ".data:score"

# Knobs are what the planner may choose: cheaper to the right, as a rule. Add values, or knobs that your code
# reads; `compass profile` finds out what each combination costs in accuracy.
[[operators]]
name = "prepare"
inputs = ["request"]
runtime = "python"
function = ".operators:prepare"
codec_knob = "codec"

[operators.knobs]
{knobs}

[[operators]]
name = "predict"
inputs = ["prepare"]
runtime = "onnx"
function = ".operators:predict"
model = "model"
speed_class = "onnx-fp32"

[[operators]]
name = "decide"
inputs = ["predict"]
runtime = "python"
function = ".operators:decide"

# Another variant is another entry here and a knob `model` of "predict" (model_knob = "model").
[models.model]
uri = "file:model.onnx"
sha256 = "{sha256}"
size_bytes = {size_bytes}
"""

FLEET = """\
# A fleet to plan for on paper: change sites, links and queries to yours. docs/formats.md explains every
# field. Speeds, cores and prices come from the device profiles; "here" is this machine, as
# `compass profile --speeds` measured it. The links are made up.

schema = 1
name = "{name}-fleet"

[[sites]]
name = "phone"
tier = "device"
profile = "phone-midrange"
kind = "here"

[[sites]]
name = "laptop"
tier = "device"
profile = "laptop"
kind = "here"

[[sites]]
name = "edge"
tier = "edge"
profile = "edge-nuc"
kind = "here"

[[sites]]
name = "cloud"
tier = "cloud"
profile = "cloud-vcpu"
kind = "here"

[[links]]
from = "device"
to = "edge"
rtt_s = 0.005
up_bps = 3e6
down_bps = 6e6
rel_sd = 0.2

[[links]]
from = "device"
to = "cloud"
rtt_s = 0.04
up_bps = 1e6
down_bps = 4e6
rel_sd = 0.3

# One query a device that is content with half the accuracy, and one that is in no hurry.
[[queries]]
name = "quick"
origin = "device"
pipeline = "{name}"
rate_hz = 5
slo = {{ latency_p95_s = 0.1, accuracy = 0.5, cost_usd_per_1000 = 0.01 }}

[[queries]]
name = "exact"
origin = "device"
pipeline = "{name}"
rate_hz = 1
slo = {{ latency_p95_s = 0.5, accuracy = 0.8, cost_usd_per_1000 = 0.01 }}
"""

README = """\
# {name}

A bundle that `compass new` started: `prepare` -> `predict` -> `decide`. `model.onnx` and `inputs/` are copies
of what it was given; a quarter of the inputs is held out. The metric is *{metric}*.

```sh
compass profile {name} --speeds {name}/profile/speeds.json
compass plan --pipeline {name} --fleet {name}/fleet.toml --profiles {name}/profile/speeds.json
compass-agent run --name laptop --bundle {name}
```

Next: look at `settings.py` (does the model take its input like this?), give `prepare` the knob values that
you would try, and put your devices, links and queries into `fleet.toml`.
"""
