"""Put SmolLM2-135M behind an OpenAI-compatible endpoint on loopback, with llama.cpp in this process.

    pip install 'compass-agent[generate]'
    python examples/minutes/serve_writer.py

The model comes through the model store, verified by its hash. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

from compass_agent.models import ModelStore
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.pipeline_file import load_pipeline

HERE = Path(__file__).parent


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(description="Serve the generator of the minutes example.")
    parser.add_argument("--port", type=int, default=8081, help="on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="cores that it uses (default: %(default)s)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="model cache")
    args = parser.parse_args()
    try:
        import xllamacpp  # noqa: PLC0415
    except ImportError:
        raise SystemExit("pip install 'compass-agent[generate]' brings llama.cpp") from None
    store = ModelStore(ModelCache(args.cache or default_cache_dir(os.environ)))
    model = store.fetch(load_pipeline(HERE).models["smollm2"], name="smollm2", base=HERE)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.hostnames = ["127.0.0.1"]
    settings.port = args.port
    settings.n_ctx = 2048
    settings.n_parallel = 1
    settings.cpuparams.n_threads = args.threads
    settings.cpuparams_batch.n_threads = args.threads
    settings.verbosity = 1
    server = xllamacpp.Server(settings)
    print(f"export COMPASS_ENDPOINT_WRITER={server.listening_address}/v1", flush=True)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    stopping.wait()


if __name__ == "__main__":
    main()
