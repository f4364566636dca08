"""Read the text on an image from your own asyncio program: ``python examples/sdk/ask.py [IMAGE]``."""

import asyncio
import runpy
import sys
from pathlib import Path

from compass_agent.sdk import Agent
from compass_shared.resources import data_folder

READ_TEXT = data_folder("examples") / "read_text"


def image() -> bytes:
    """The file named on the command line, or else a page of the pipeline's own input set."""
    if sys.argv[1:]:
        return Path(sys.argv[1]).read_bytes()
    page: bytes = runpy.run_path(str(READ_TEXT / "pages.py"))["page"]("heldout", 0, []).value
    return page


async def main() -> None:
    """Ask once."""
    async with Agent(name="laptop", bundles=[READ_TEXT]) as agent:
        await agent.open_models("read-text")  # fetches them, the first time
        print(await agent.request("read-text", image()))


if __name__ == "__main__":
    asyncio.run(main())
