"""What is known of the model and its inputs. `compass new` wrote this; change it as you need."""

from __future__ import annotations

WIDTH = 224
HEIGHT = 224
CHANNELS = 3
CHANNELS_FIRST = True
"""Whether the model takes (batch, channels, height, width), else (batch, height, width, channels)."""
WHOLE_NUMBERS = False
"""Whether it takes uint8 pixels as they are."""
MEAN = (0.0, 0.0, 0.0)
STD = (1.0, 1.0, 1.0)
"""Pixels are divided by 255, less MEAN, divided by STD; a value a channel."""
BLUE_FIRST = False
"""Whether it takes BGR rather than RGB."""
BATCHED = True
"""Whether its input has a batch dimension."""
RANK = 4
"""Dimensions of its input, that of the batch included."""
DTYPE = "float32"
OUTPUT = "scores"
"""Which of its outputs is taken."""
LABELS: tuple[str, ...] = ()
"""Name of each class, in the order of the model's output; empty: classes are numbers."""
LABELLED = False
"""Whether the folders in inputs/ are the true labels."""
