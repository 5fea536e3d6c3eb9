"""A real gateway, PyPI's smg, in front of two c3pods, with PyPI's openai through it: chat, streams, completions, embeddings; and one
c3pod killed. Needs the gateway of deploy/install_deps.sh and C3POD, the server's path.
Run: C3POD=build/release/bin/c3pod pytest tests/deploy/test_gateway.py"""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(SOURCE / "tests" / "integration")]
import server_process

GATEWAY = max(server_process.cache_folder().glob("gateway-*/bin"), key=lambda path: int(path.parent.name.rsplit("-", 1)[1]))
MODEL = server_process.cache_folder() / "models" / "smollm2-135m-moe"
SECONDS_MAX = 120  # Ends a test that would hang; nothing is decided by it, however busy the machine is.

# What a user writes, in the interpreter that has openai: questions from stdin, one JSON object a line; answers likewise.
CLIENT = '''
import json, sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
for line in sys.stdin:
    ask = json.loads(line)
    kind = ask.pop("kind")
    try:
        if kind == "models":
            answer = [model.id for model in client.models.list().data]
        elif kind == "embeddings":
            answer = client.embeddings.create(**ask).data[0].embedding
        elif ask.get("stream"):
            chunks = [chunk.model_dump() for chunk in (client.chat if kind == "chat" else client).completions.create(**ask)]
            answer = chunks
        else:
            answer = (client.chat if kind == "chat" else client).completions.create(**ask).model_dump()
    except openai.APIStatusError as error:
        answer = {"status": error.status_code, "message": str(error)}
    print(json.dumps(answer), flush=True)
'''


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclasses.dataclass
class Gateway:
    port: int
    servers: list[server_process.ServerProcess]
    client: subprocess.Popen

    def ask(self, kind: str, **question):
        self.client.stdin.write(json.dumps({"kind": kind, **question}) + "\n")
        self.client.stdin.flush()
        return json.loads(self.client.stdout.readline())

    def chat(self, text: str, **question):
        question = {"model": MODEL.name, "max_tokens": 8, "messages": [{"role": "user", "content": text}], **question}
        return self.ask("chat", **question)

    def workers(self) -> list[dict]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/workers", timeout=SECONDS_MAX) as response:
            return json.load(response)["workers"]

    def calls(self, method: str) -> list[int]:
        """How many calls of VllmEngine each server has answered well."""
        name = f'c3po_rpc_total{{code="OK",method="{method}",service="VllmEngine"}} '
        lines = [server.http("/metrics").splitlines() for server in self.servers if server.process.poll() is None]
        return [int(next(line for line in of_one if line.startswith(name)).removeprefix(name)) for of_one in lines]


def wait_until(holds, what: str) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("gateway")
    servers, processes = [], []
    try:
        for name in ("one", "two"):
            (folder / name).mkdir()
            servers.append(server_process.ServerProcess(os.environ["C3POD"], folder / name, "--threads", "1", model=MODEL))
            assert servers[-1].port, servers[-1].log
        port = free_port()
        log = (folder / "smg.log").open("w")
        processes.append(subprocess.Popen(
            [GATEWAY / "python", "-m", "smg", "launch", "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--policy", "round_robin",
             "--health-check-interval-secs", "1", "--health-failure-threshold", "1", "--worker-startup-check-interval", "1",
             "--worker-urls", *(f"grpc://127.0.0.1:{server.port}" for server in servers)], stdout=log, stderr=log, cwd=folder))
        client = subprocess.Popen([GATEWAY / "python", "-c", CLIENT, f"http://127.0.0.1:{port}/v1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  text=True)
        processes.append(client)
        made = Gateway(port, servers, client)

        def ready() -> bool:
            assert processes[0].poll() is None, (folder / "smg.log").read_text()
            try:
                healthy = [worker for worker in made.workers() if worker["is_healthy"]]
                return len(healthy) == len(servers) and "choices" in made.chat("Hello")
            except (urllib.error.URLError, ConnectionError):
                return False

        wait_until(ready, f"the gateway knows both servers: {(folder / 'smg.log')}")
        yield made
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for server in servers:
            server.stop()


def test_the_gateway_knows_the_model_from_the_servers(gateway: Gateway) -> None:
    assert gateway.ask("models") == [MODEL.name]
    config = json.loads((MODEL / "config.json").read_text())
    for worker in gateway.workers():
        [model] = worker["models"]
        assert (worker["connection_mode"], worker["runtime_type"]) == ("grpc", "vllm")
        assert (model["context_length"], model["hf_model_type"]) == (config["max_position_embeddings"], config["model_type"])
        assert worker["labels"]["max_num_seqs"] == "32"


def test_chat_is_answered_by_both_alike(gateway: Gateway) -> None:
    before = gateway.calls("Generate")
    answers = [gateway.chat("What is the capital of France?") for _ in range(4)]
    contents = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert len(contents) == 1 and contents != {""}, answers
    assert {answer["choices"][0]["finish_reason"] for answer in answers} <= {"stop", "length"}
    assert all(answer["usage"]["completion_tokens"] <= 8 < answer["usage"]["prompt_tokens"] for answer in answers)
    assert [after - one for after, one in zip(gateway.calls("Generate"), before, strict=True)] == [2, 2]


def test_a_stream_is_the_same_answer(gateway: Gateway) -> None:
    whole = gateway.chat("Name a color.")
    chunks = gateway.chat("Name a color.", stream=True, stream_options={"include_usage": True})
    text = "".join(choice["delta"]["content"] or "" for chunk in chunks for choice in chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert len([chunk for chunk in chunks if chunk["choices"]]) > 2
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_sampling_passes_through(gateway: Gateway) -> None:
    drawn = [gateway.chat("Tell me a story.", temperature=1, seed=seed, top_p=0.9, n=2) for seed in (1, 1, 2)]
    texts = [[choice["message"]["content"] for choice in answer["choices"]] for answer in drawn]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]
    logprobs = gateway.chat("Hello", logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert all(len(position["top_logprobs"]) == 2 and position["logprob"] <= 0 for position in logprobs)
    plain = gateway.ask("completions", model=MODEL.name, prompt="One, two, three,", max_tokens=8)["choices"][0]["text"]
    stop = plain.strip().split(",")[0]
    stopped = gateway.ask("completions", model=MODEL.name, prompt="One, two, three,", max_tokens=8, stop=[stop])["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (plain[:plain.index(stop)], "stop")


def test_embeddings_come_from_the_servers_embedder(gateway: Gateway) -> None:
    a, again, b = (gateway.ask("embeddings", model=MODEL.name, input=text, encoding_format="float") for text in ("cat", "cat", "democracy"))
    assert a == again != b
    assert abs(sum(x * x for x in a) - 1) < 1e-3


def test_what_the_server_refuses_reaches_the_client(gateway: Gateway) -> None:
    refused = gateway.chat("Hello", frequency_penalty=0.5)
    assert refused["status"] == 400 and "sampling_params.frequency_penalty" in refused["message"], refused
    assert gateway.ask("chat", model="another", messages=[{"role": "user", "content": "a"}])["status"] == 404


def test_loads_reach_the_gateway(gateway: Gateway) -> None:
    def polled() -> bool:
        return all(worker.get("engine_load", {}).get("loads", [{}])[0].get("max_running_requests") == 32 for worker in gateway.workers())

    wait_until(polled, "the gateway has asked for loads")


def test_one_server_is_killed_and_the_rest_is_answered(gateway: Gateway) -> None:
    """Last: the server stays dead."""
    gateway.servers[0].process.send_signal(signal.SIGKILL)
    gateway.servers[0].process.wait()
    answers = [gateway.chat("What is the capital of France?") for _ in range(6)]
    assert all("choices" in answer for answer in answers), answers
    chunks = gateway.chat("Name a color.", stream=True)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] in ("stop", "length")
    wait_until(lambda: [worker["is_healthy"] for worker in gateway.workers()].count(True) == 1, "the gateway knows that one is gone")
