"""The manifests ask for the memory that the default server says it needs.
Run: C3POD=build/release/bin/c3pod pytest tests/deploy/test_memory.py"""

import os
import pathlib
import re
import urllib.request
import json
import subprocess

import pytest

from manifests import DEPLOY, objects, read

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}  # Docker's are binary, too.


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"([0-9]+)([A-Za-z]*)", quantity).groups()
    return int(number) * UNITS[unit]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of c3pod with its default model and no flag that has to do with memory: the log's line `memory`, what the metrics say together,
    and the limits of memory that --print-config lists."""
    folder = tmp_path_factory.mktemp("memory")
    printed = subprocess.run([os.environ["C3POD"], "--print-config"], capture_output=True, text=True, check=True).stdout
    settings = dict(re.findall(r"^(\S+) = (\d+)$", printed, re.M))
    process = subprocess.Popen([os.environ["C3POD"], "--store", folder / "store.db", "--listen", "127.0.0.1:0", "--metrics-port", "0"],
                               stderr=subprocess.PIPE, text=True)
    try:
        events = {}
        for line in process.stderr:
            event = json.loads(line)
            events[event["event"]] = event
            if event["event"] == "serving":
                break
        assert "serving" in events, events
        with urllib.request.urlopen(f"http://127.0.0.1:{events['serving']['metrics_port']}/metrics", timeout=60) as response:
            metrics = response.read().decode()
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(timeout=60)
    parts = re.findall(r'^c3po_memory_planned_bytes\{part="\w+"\} (\S+)$', metrics, re.M)
    assert len(parts) == 7
    memory = events.get("memory") or events["memory_short"]  # This machine may have less than the pods.
    return {"metrics": sum(map(float, parts)), "log": memory["bytes_at_most"], "settings": settings}


def requests_and_limits() -> list[tuple[str, int, int]]:
    pod = objects()["Deployment", "c3pod"]["spec"]["template"]["spec"]
    server = next(container for container in pod["containers"] if container["name"] == "c3pod")
    for flag in ("kv-cache", "neighbor-cache", "call-memory", "transport-memory", "model", "embedder"):
        assert not any(argument.startswith(f"--{flag}") for argument in server["args"]), f"--{flag}: the default server is not this one"
    kubernetes = server["resources"]
    compose = read(DEPLOY / "compose" / "compose.yaml")[0]["services"]["c3pod"]
    return [("kubernetes", bytes_of(kubernetes["requests"]["memory"]), bytes_of(kubernetes["limits"]["memory"])),
            ("compose", bytes_of(compose["mem_reservation"]), bytes_of(compose["mem_limit"]))]


def test_the_log_and_the_metrics_agree(planned: dict) -> None:
    assert abs(planned["metrics"] - planned["log"]) <= 0.01 * planned["log"]


@pytest.mark.parametrize("where", range(2))
def test_a_pod_is_given_what_the_default_server_plans(planned: dict, where: int) -> None:
    name, request, _ = requests_and_limits()[where]
    assert request >= max(planned["metrics"], planned["log"]), name


@pytest.mark.parametrize("where", range(2))
def test_its_limit_has_room_for_messages_too(planned: dict, where: int) -> None:
    name, request, limit = requests_and_limits()[where]
    messages = sum(int(planned["settings"].get(flag, 0)) << 20 for flag in ("transport-memory-mb", "call-memory-mb"))
    assert messages > 0
    assert limit >= max(planned["metrics"], planned["log"]) + messages, name
    assert limit > request, name


def test_the_manifests_tell_the_number_that_the_server_does(planned: dict) -> None:
    for path in (DEPLOY / "kubernetes" / "deployment.yaml", DEPLOY / "compose" / "compose.yaml"):
        told = re.search(r"(\d\.\d+)e9", pathlib.Path(path).read_text(encoding="utf-8")).group(1)
        assert abs(float(told) - planned["log"] / 1e9) <= 0.15, path
