"""Both command lines: help for everything, one sentence for every mistake, exit codes as they say."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compass_agent import cli as agent_cli
from compass_coordinator import cli as coordinator_cli
from compass_coordinator.demo.broker import EmbeddedBroker
from compass_shared import codec
from compass_shared.messages import QueryMessage
from compass_shared.query import Query, Slo
from compass_shared.topics import Kind, Topics
from support.bundles import write_tiny_accuracy, write_tiny_bundle
from support.fleets import BrokerProcess, retained_at

AGENT = ["run", "worker", "probe", "accuracy", "models"]
COORDINATOR = ["demo", "coordinator", "plan", "query", "schema"]

CLIS = {"compass-agent": agent_cli.main, "compass": coordinator_cli.main}


def call(line: str) -> int:
    """Run a command line of either program in this process."""
    program, *arguments = line.split()
    return CLIS[program](arguments)


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "compass-agent",
        *(f"compass-agent {name}" for name in AGENT),
        "compass",
        *(f"compass {name}" for name in COORDINATOR),
        "compass query submit",
        "compass query withdraw",
    ],
)
def test_every_command_has_help(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        call(f"{line} --help")
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    assert shown.startswith(f"usage: {line}")
    assert "Tier." not in shown, "options are shown as they are typed"
    assert re.search(r"-h, --help", shown)


@pytest.mark.parametrize("program", ["compass-agent", "compass"])
def test_help_names_every_command_and_gives_examples(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(f"{program} --help")
    shown = capsys.readouterr().out
    names = AGENT if program == "compass-agent" else COORDINATOR
    assert all(re.search(rf"^    {name}\s", shown, re.MULTILINE) for name in names)
    assert "examples:" in shown
    assert "exit codes: 0 all well, 1 it failed, 2 wrong usage" in shown


@pytest.mark.parametrize("program", ["compass-agent", "compass"])
def test_version(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        call(f"{program} --version")
    assert exit_.value.code == 0
    assert re.fullmatch(rf"{program} \d+\.\d+\.\d+\n", capsys.readouterr().out)


# --- wrong usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("compass-agent", "COMMAND"),
        ("compass-agent dance", "invalid choice: 'dance'"),
        ("compass-agent run --name phone", "--bundle"),
        ("compass-agent run --name phone --bundle . --colour red", "--colour"),
        ("compass-agent worker --name edge --bundle . --listen nowhere", "argument --listen"),
        ("compass-agent worker --name edge --bundle . --listen 127.0.0.1:99999", "argument --listen"),
        ("compass-agent worker --name edge --bundle . --tier moon", "--tier"),
        ("compass-agent run --name phone --bundle . --cores many", "--cores"),
        ("compass", "COMMAND"),
        ("compass dance", "invalid choice: 'dance'"),
        ("compass coordinator --broker mqtt://127.0.0.1", "--bundle"),
        ("compass coordinator --broker mqtt://127.0.0.1 --bundle . --policy hope", "invalid choice: 'hope'"),
        ("compass query", "ACTION"),
        ("compass query submit q1 --broker mqtt://127.0.0.1", "--origin"),
        ("compass query submit q1 --rate fast", "--rate"),
        ("compass demo --seconds long", "--seconds"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_the_option(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        call(line)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("run --name Phone", "'Phone' must match [a-z0-9-]{1,64}"),
        ("run --name phone --emulate pocket-calculator", "pocket-calculator"),
        ("run --name phone --emulate laptop --profile laptop", "not both"),
        ("run --name phone --shape cloud=fast", "as in cloud=0.02,2e6,4e6"),
        ("run --name phone --shape moon=0.1,0,0", "is not TIER=DELAY_S,UP,DOWN"),
        ("run --name phone --cores 0", "must be at least 1"),
        ("run --name phone --cap 1.5", "must lie between 0 and 1"),
        ("run --name phone --broker http://127.0.0.1", "mqtt://"),
        ("run --name phone --fleet My_Fleet --broker mqtt://127.0.0.1", "'My_Fleet' must match"),
        ("run --name phone --bundle /nowhere", "/nowhere"),
    ],
)
def test_a_wrong_setting_is_exit_code_2_and_one_sentence(
    bundle: Path, options: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"compass-agent {options} --bundle {bundle}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compass-agent: ")
    assert said in line


def test_an_address_that_is_taken_is_exit_code_1(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EmbeddedBroker() as broker:
        port = broker.url.rpartition(":")[2]
        line = f"compass-agent worker --name edge --bundle {bundle} --listen 127.0.0.1:{port} --no-measure"
        assert call(line) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--policies compass,luck", "'luck' is not one of"),
        ("--seconds 0", "--seconds"),
        ("--seconds nan", "--seconds"),
        ("--rate-factor -1", "--rate-factor"),
        ("--check -1", "--check"),
        ("--profile-now -1", "--profile-now"),
        ("--measure-seconds inf", "--measure-seconds"),
        ("--fleet /nowhere/fleet.toml --check 0", "/nowhere/fleet.toml"),
    ],
)
def test_a_wrong_option_of_the_demo_is_exit_code_2(
    options: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"compass demo --plain {options}") == 2
    assert said in capsys.readouterr().err


def test_a_coordinator_needs_an_accuracy_table_and_distinct_pipelines(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"compass coordinator --broker mqtt://127.0.0.1:1 --bundle {bundle}"
    assert call(line) == 2
    assert "compass-agent accuracy" in capsys.readouterr().err
    table = write_tiny_accuracy(bundle)
    assert call(f"{line} --bundle {bundle}") == 2
    assert "two bundles bring pipeline 'tiny'" in capsys.readouterr().err
    other = write_tiny_bundle(tmp_path, name="other")
    line = f"compass coordinator --broker mqtt://127.0.0.1:1 --bundle {other} --accuracy {table}"
    assert call(line) == 2
    assert "of pipeline 'tiny', which no --bundle brings" in capsys.readouterr().err


# --- extras ---------------------------------------------------------------------------------------

_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({missing!r}))  # None there means: cannot be found
from compass_coordinator.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without(missing: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """``compass`` on a machine that lacks some libraries."""
    command = [sys.executable, "-c", _WITHOUT.format(missing=missing), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        ("demo", "rich", "demo"),
        ("plan", "scipy", "coordinator"),
        ("coordinator", "scipy", "coordinator"),
    ],
)
def test_a_missing_extra_is_named(command: str, missing: str, extra: str) -> None:
    done = without([missing], command, "--help")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"this needs {missing}" in line
    assert f"pip install 'compass-agent[{extra}]'" in line


def test_the_embedded_broker_is_an_extra_of_its_own(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    write_tiny_accuracy(bundle)
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('schema = 1\nname = "f"\nagents = []\n')
    done = without(
        ["iotcore"], "demo", "--check", "0", "--bundle", str(bundle), "--fleet", str(fleet), "--plain"
    )
    assert done.returncode == 2
    assert "pip install 'compass-agent[demo]', or name a broker with --broker" in done.stderr


def test_a_bare_agent_has_help_and_queries() -> None:
    extras = ["scipy", "rich", "iotcore", "PIL"]
    assert "demo" in without(extras, "--help").stdout
    done = without(extras, "query", "submit", "--help")
    assert (done.returncode, done.stderr) == (0, "")


# --- compass query --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


SLO = "--rate 0.5 --latency 0.8 --accuracy 0.9 --cost 0.05"


@pytest.mark.broker
def test_a_query_is_submitted_changed_and_withdrawn(
    broker: EmbeddedBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"--broker {broker.url} --fleet kitchens --origin phone"
    topic = Topics("kitchens").query(Kind.QUERY, "phone", "kitchen")

    def retained() -> dict[str, bytes]:
        return asyncio.run(retained_at(BrokerProcess(broker), "compass/1/kitchens"))

    assert call(f"compass query submit kitchen {where} --pipeline read-text {SLO}") == 0
    assert "query kitchen submitted for phone" in capsys.readouterr().out
    query = Query(
        name="kitchen",
        origin="phone",
        pipeline="read-text",
        rate_hz=0.5,
        slo=Slo(latency_p95_s=0.8, accuracy=0.9, cost_usd_per_1000=0.05),
    )
    found = retained()
    assert list(found) == [topic]
    assert codec.decode(Kind.QUERY, found[topic]) == QueryMessage(query=query)

    assert call(f"compass query submit kitchen {where} --pipeline read-text {SLO} --weight 3") == 0
    changed = codec.decode(Kind.QUERY, retained()[topic])
    assert isinstance(changed, QueryMessage)
    assert changed.query.weight == 3.0

    assert call(f"compass query withdraw kitchen {where}") == 0
    assert "query kitchen withdrawn from phone" in capsys.readouterr().out
    assert retained() == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("submit Kitchen --origin phone --pipeline p " + SLO, "'Kitchen' must match"),
        ("submit kitchen --origin My/Phone --pipeline p " + SLO, "'My/Phone' must match"),
        ("submit kitchen --origin phone --pipeline p+ " + SLO, "'p+' must match"),
        ("submit kitchen --origin phone --pipeline p --fleet # " + SLO, "'#' must match"),
        ("submit kitchen --origin phone --pipeline p " + SLO + " --rate 0", "query.rate_hz"),
        ("submit kitchen --origin phone --pipeline p " + SLO + " --latency nan", "query.slo.latency_p95_s"),
        ("submit kitchen --origin phone --pipeline p " + SLO + " --accuracy 90", "query.slo.accuracy"),
        ("submit kitchen --origin phone --pipeline p " + SLO + " --cost -1", "query.slo.cost_usd_per_1000"),
        ("withdraw Kitchen --origin phone", "'Kitchen' must match"),
        ("withdraw kitchen --origin +", "'+' must match"),
    ],
)
def test_a_wrong_query_is_exit_code_2_and_names_the_field(
    options: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"compass query {options} --broker mqtt://127.0.0.1:9") == 2
    assert said in capsys.readouterr().err


def test_without_a_broker_a_query_is_exit_code_1(free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"mqtt://127.0.0.1:{free_port}"
    assert call(f"compass query withdraw kitchen --origin phone --broker {url}") == 1
    assert f"broker {url}: " in capsys.readouterr().err
