"""``compass-agent probe --suggest``: measure the machine for some seconds, and say what it is like."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import psutil

from compass_agent.commands.shared import show_status
from compass_agent.hello import hardware
from compass_agent.kernels import KERNEL_REL_SD, REFERENCE_S, kernels, time_kernels
from compass_agent.suggest import Match, Measured, nearest, suggested
from compass_shared.device_profile import known_device_profiles
from compass_shared.errors import ConfigError
from compass_shared.names import checked_name

BUDGET_S = 8.0


def show_suggestion(args: argparse.Namespace) -> int:
    """What ``probe --suggest`` does.

    Raises:
        ConfigError: If options do not go together.
    """
    name = _name(args)
    measured = _measured()
    matches = nearest(measured, known_device_profiles())
    document = suggested(
        measured,
        matches[0].profile,
        name=name,
        today=datetime.now(timezone.utc).date().isoformat(),
    )
    if args.out is not None:
        _write(args.out, document)
    if args.json:
        print(
            msgspec.json.format(msgspec.json.encode(_summary(measured, matches, document)), indent=2).decode()
        )
    else:
        _show(measured, matches, None if args.out else document, args.out)
    return 0


def _name(args: argparse.Namespace) -> str:
    if args.bundle or args.emulate:
        raise ConfigError("--suggest measures the machine itself: leave --bundle and --emulate away")
    if args.out is None:
        return checked_name(args.name, "--name")
    if args.out.suffix != ".toml":
        raise ConfigError("--suggest writes a device profile: --out must end in .toml")
    return checked_name(args.out.stem, "--out")


def _write(out: Path, document: str) -> None:
    try:
        out.write_text(document + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write it: {error.strerror}", file=out, field="--out") from error


def _measured() -> Measured:
    works = kernels()
    show_status(f"measuring {', '.join(works)} for {BUDGET_S:g} s")
    found = time_kernels(works, budget_s=BUDGET_S)
    show_status("")
    here = hardware()
    return Measured(
        slowdowns={name: timed.seconds / REFERENCE_S[name] for name, timed in found.items()},
        rel_sd=KERNEL_REL_SD,
        cores=psutil.cpu_count(logical=False) or here.cores,
        memory_bytes=here.memory_bytes,
    )


def _show(measured: Measured, matches: tuple[Match, ...], document: str | None, out: Path | None) -> None:
    speeds = ", ".join(f"{name} {slowdown:.2f}" for name, slowdown in measured.slowdowns.items())
    print(f"cores {measured.cores}, memory {measured.memory_bytes / 2**30:.1f} GiB")
    print(f"time relative to the reference core: {speeds} (each within about {measured.rel_sd:.0%})")
    print(
        "\nnearest device profiles (distance below 1: it may be such a device), and this machine over theirs:"
    )
    for match in matches:
        ratios = ", ".join(f"{name} x{ratio:.2g}" for name, ratio in match.ratios.items())
        print(f"  {match.profile.name:20} {match.distance:5.2f}   {ratios}")
    if document is not None:
        print(f"\na device profile of this machine; keep it with --out NAME.toml:\n\n{document}")
    else:
        print(f"\nwrote {out}: give it to an agent with --profile {out}")


def _summary(measured: Measured, matches: tuple[Match, ...], document: str) -> dict[str, object]:
    return {
        "measured": measured,
        "profile": document,
        "nearest": [
            {"profile": match.profile.name, "distance": match.distance, "ratios": match.ratios}
            for match in matches
        ],
    }
