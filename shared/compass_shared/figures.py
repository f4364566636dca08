"""Numbers in files that people write, with the bounds that a JSON Schema can state too."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Positive = Annotated[float, Meta(gt=0, le=1e18)]
"""Above zero; the upper bound keeps infinity out."""
NotNegative = Annotated[float, Meta(ge=0, le=1e18)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Number = Annotated[int, Meta(ge=0, le=1_000_000)]
"""How many of something; there may be none."""
