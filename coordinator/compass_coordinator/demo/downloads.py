"""Models are fetched before anything starts: a site that measures itself must not wait for a registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from compass_coordinator.demo.agent_command import run_agent_command
from compass_shared.errors import ModelLoadError
from compass_shared.model_cache import ModelCache
from compass_shared.pipeline import Pipeline


async def fetch_models(
    bundles: Mapping[str, Path],
    pipelines: Mapping[str, Pipeline],
    *,
    cache: ModelCache,
    on_line: Callable[[str], object],
) -> None:
    """Fetch what the cache lacks.

    Args:
        bundles: Pipeline -> its folder.
        pipelines: The same pipelines, read.
        cache: Where models are kept.
        on_line: Told how far it is.

    Raises:
        ModelLoadError: If a model cannot be had.
    """
    missing = missing_models(pipelines, cache)
    if not missing:
        return
    names = ", ".join(missing)
    on_line(f"Fetching models of {names}")
    folders = [str(bundles[name]) for name in missing]
    done = await run_agent_command(
        ["models", "fetch", *folders, "--cache", str(cache.root)],
        lambda line: on_line(f"Fetching models of {names}: {line}"),
    )
    if done.code != 0:
        raise ModelLoadError(
            f"the models of {names} cannot be fetched: {done.tail}\n"
            "They are needed once; after that the demo runs offline. To a machine without a network they "
            f"come by `compass-agent models export {' '.join(folders)} --to DIR` elsewhere and "
            "`compass-agent models import DIR` there."
        )


def missing_models(pipelines: Mapping[str, Pipeline], cache: ModelCache) -> dict[str, Sequence[str]]:
    """Pipeline -> names of its models that are not in the cache; only those that lack some."""
    found = {
        name: [model for model, ref in pipeline.models.items() if not cache.has(ref.sha256)]
        for name, pipeline in pipelines.items()
    }
    return {name: missing for name, missing in found.items() if missing}
