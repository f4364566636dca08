"""Read the text on an image without asyncio: ``python examples/sdk/ask_blocking.py [IMAGE]``."""

import runpy
import sys
from pathlib import Path

from compass_agent.sdk import BlockingAgent
from compass_shared.resources import data_folder

READ_TEXT = data_folder("examples") / "read_text"


def image() -> bytes:
    """The file named on the command line, or else a page of the pipeline's own input set."""
    if sys.argv[1:]:
        return Path(sys.argv[1]).read_bytes()
    page: bytes = runpy.run_path(str(READ_TEXT / "pages.py"))["page"]("heldout", 0, []).value
    return page


if __name__ == "__main__":
    with BlockingAgent(name="laptop", bundles=[READ_TEXT]) as agent:
        agent.open_models("read-text")  # fetches them, the first time
        print(agent.request("read-text", image()))
