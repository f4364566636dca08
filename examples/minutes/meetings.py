"""Twelve small meetings with the facts that their minutes should keep: written for this example."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from compass_shared.values import Example, Value

MEETINGS: Sequence[tuple[str, Sequence[str]]] = (
    ("The camera ships on Friday.|Anna tests the battery.|The budget is approved.", "friday anna budget"),
    ("We move the launch to October.|Ben writes the manual.|The logo stays blue.", "october ben blue"),
    ("The server was down for two hours.|Carla adds an alarm.|Backups run at night.", "server carla backups"),
    (
        "Sales grew in Spain.|Dora visits a customer in Madrid.|Prices stay as they are.",
        "spain dora prices",
    ),
    ("The new hire starts in May.|Emil prepares the desk.|Training takes one week.", "may emil training"),
    ("The bridge sensor is broken.|Fay orders a spare part.|The road stays closed.", "sensor fay road"),
    ("We keep the small model on the phone.|Gus measures its speed.|The large one goes.", "phone gus model"),
    ("The report is due on Monday.|Hana checks the figures.|Legal reads it first.", "monday hana legal"),
    ("Lunch moves to noon.|Ivo books the large room.|Guests come from Oslo.", "noon ivo oslo"),
    ("The pump leaks again.|Jana calls the supplier.|We pay only after the repair.", "pump jana repair"),
    ("Tests fail on the new board.|Kim looks at the driver.|The release waits.", "board kim release"),
    ("The park opens in June.|Lars plants forty trees.|Dogs are allowed.", "june lars dogs"),
)
"""Sentences, and the words that stand for their facts."""


def load(split: str, assets: Mapping[str, Path]) -> list[Example]:  # noqa: ARG001
    """The first eight are for profiling, the last four are held out."""
    chosen = MEETINGS[:8] if split == "profiling" else MEETINGS[8:]
    return [
        Example(f"{split}-{index}", str(text).split("|"), str(facts), "short")
        for index, (text, facts) in enumerate(chosen)
    ]


def score(output: Value, truth: Value) -> float:
    """Share of the facts whose word the summary has. It rewards copying, and says nothing of style."""
    summary = str(output["summary"]) if isinstance(output, Mapping) else ""
    words = set(re.findall(r"\w+", summary.lower()))
    facts = str(truth).split()
    return sum(fact in words for fact in facts) / len(facts)
