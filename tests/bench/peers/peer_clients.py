"""What the measurements ask of a peer, over each one's own protocol. Prompts are token ids; decoding is greedy and ignores the
end-of-text token, so that an answer has as many tokens as were asked for."""

import asyncio
import concurrent.futures
import dataclasses
import http.client
import json
import time
import typing

REQUEST_SECONDS_MAX = 600


@dataclasses.dataclass
class Answer:
    """When the tokens of one call came, on time.monotonic()."""
    sent: float
    arrivals: typing.List[typing.Tuple[float, int]] = dataclasses.field(default_factory=list)  # (when, tokens so far), growing
    prompt_tokens: int = 0  # As the peer counts them.
    completion_tokens: int = 0
    timings: typing.Any = None  # Of this project's server: what its stages took, StageTimings.
    gate: str = ""              # Of this project's server: name of the gate's decision.

    def arrived(self, tokens: int) -> None:
        if tokens > (self.arrivals[-1][1] if self.arrivals else 0):
            self.arrivals.append((time.monotonic(), tokens))

    def first_token_seconds(self) -> float:
        return self.arrivals[0][0] - self.sent

    def seconds(self) -> float:
        return self.arrivals[-1][0] - self.sent

    def decode_rate(self) -> float:
        """Tokens per second from the first arrival to the last."""
        (start, before), (end, total) = self.arrivals[0], self.arrivals[-1]
        return (total - before) / (end - start)


class WrongAnswer(Exception):
    """A peer that counts other tokens than were asked for measures something else."""


class HttpClient:
    """One connection per call, as its answer is read to the end of the stream."""
    health = "/health"

    def __init__(self, port: int):
        self.port = port

    def ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self.health)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def lines(self, path: str, body: dict):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS_MAX)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise WrongAnswer(f"{path}: HTTP {response.status}: {response.read(500).decode(errors='replace')}")
            for line in response:
                yield line.decode().strip()
        finally:
            connection.close()

    def events(self, path: str, body: dict):
        """The JSON of server-sent events."""
        for line in self.lines(path, body):
            if line.startswith("data: {"):
                yield json.loads(line[len("data: "):])

    def answer(self, prompt: list, max_tokens: int) -> Answer:
        raise NotImplementedError

    def answers(self, prompts: list, max_tokens: int) -> list:
        """All at once."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self.answer(prompt, max_tokens), prompts))


class LlamaServerClient(HttpClient):
    def answer(self, prompt, max_tokens):
        answer = Answer(time.monotonic())
        body = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "stream": True}
        for event in self.events("/completion", body):
            answer.arrived(event.get("tokens_predicted", 0))
            answer.completion_tokens = event.get("tokens_predicted", answer.completion_tokens)
            answer.prompt_tokens = event.get("tokens_evaluated", answer.prompt_tokens)
        return answer


class VllmClient(HttpClient):
    def __init__(self, port, model):
        super().__init__(port)
        self.model = model  # The name it serves.

    def answer(self, prompt, max_tokens):
        answer = Answer(time.monotonic())
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        for event in self.events("/v1/completions", body):
            usage = event.get("usage") or {}
            answer.arrived(usage.get("completion_tokens", 0))
            answer.completion_tokens = usage.get("completion_tokens", answer.completion_tokens)
            answer.prompt_tokens = usage.get("prompt_tokens", answer.prompt_tokens)
        return answer


class TransformersClient(HttpClient):
    """transformers_worker.py. Prompts that come together are one batch there, told as one answer."""

    def batch(self, prompts, max_tokens):
        answer = Answer(time.monotonic())
        for line in self.lines("/generate", {"prompts": prompts, "max_tokens": max_tokens}):
            event = json.loads(line)
            answer.arrived(event.get("tokens", 0))
            if event.get("done"):
                answer.prompt_tokens, answer.completion_tokens = event["prompt_tokens"], event["completion_tokens"]
        return answer

    def answer(self, prompt, max_tokens):
        return self.batch([prompt], max_tokens)

    def answers(self, prompts, max_tokens):
        return [self.batch(prompts, max_tokens)]


class C3poClient(HttpClient):
    """This project's server, over gRPC. `stubs`: its generated modules by name (tests/integration/server_process.py)."""

    def __init__(self, port, stubs):
        super().__init__(port)
        import grpc  # Here, so that the measurements can be tested without it.
        import grpc.aio
        self.grpc = grpc
        self.generation, self.reference, self.options = (stubs[f"{name}_pb2"] for name in ("generation", "reference", "options"))
        self.make_stub = stubs["generation_pb2_grpc"].GenerationServiceStub
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.generate = self.make_stub(channel).Generate
        self.references = stubs["reference_pb2_grpc"].ReferenceServiceStub(channel)

    def ready(self):
        try:
            self.references.GetStats(self.reference.GetStatsRequest(), timeout=5)
            return True
        except self.grpc.RpcError:
            return False

    def request(self, prompt, max_tokens, optimization):
        return self.generation.GenerateRequest(
            token_ids=self.generation.TokenIds(ids=prompt),
            optimization=self.options.OptimizationOptions(**(optimization or {"method": self.options.METHOD_NONE})),
            sampling=self.generation.SamplingOptions(temperature=0, max_tokens=max_tokens, ignore_eos=True))

    def take(self, event, answer: Answer) -> None:
        if event.HasField("delta"):
            answer.arrived((answer.arrivals[-1][1] if answer.arrivals else 0) + len(event.delta.token_ids))
        elif event.HasField("optimization"):
            answer.gate = self.options.GateDecision.Name(event.optimization.gate)
        elif event.HasField("summary"):
            usage = event.summary.usage
            answer.prompt_tokens, answer.completion_tokens = usage.prompt_tokens, usage.completion_tokens
            answer.timings = event.summary.timings

    def answer(self, prompt, max_tokens, **optimization):
        """Optimization fields as in OptimizationOptions; without any the model is taken as it is. What comes before the first
        token, retrieval and optimization, counts as waiting for it."""
        answer = Answer(time.monotonic())
        for event in self.generate(self.request(prompt, max_tokens, optimization), timeout=REQUEST_SECONDS_MAX):
            self.take(event, answer)
        return answer

    def answers(self, prompts, max_tokens):
        """One thread reads them all: gRPC's blocking readers need one each, which wake up for every message, on the cores of the
        server that is measured."""
        async def read(stub, prompt):
            answer = Answer(time.monotonic())
            async for event in stub.Generate(self.request(prompt, max_tokens, None), timeout=REQUEST_SECONDS_MAX):
                self.take(event, answer)
            return answer

        async def read_all():
            async with self.grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                await channel.channel_ready()
                stub = self.make_stub(channel)
                return await asyncio.gather(*(read(stub, prompt) for prompt in prompts))

        return asyncio.run(read_all())

    def add_references(self, collection, samples):
        """`samples`: (prompt, answer) pairs of text."""
        def requests():
            for number, (prompt, answer) in enumerate(samples):
                yield self.reference.AddReferencesRequest(collection=collection, sequence=number,
                                                          sample=self.reference.ReferenceSample(prompt=prompt, answer=answer))
        stored = 0
        for reply in self.references.Add(requests(), timeout=REQUEST_SECONDS_MAX):
            stored = reply.progress.successful + reply.progress.failed
        if stored != len(samples):
            raise WrongAnswer(f"{stored} of {len(samples)} references were stored")


def check_counts(what: str, answers: list, prompt_tokens: int, completion_tokens: int) -> None:
    """Sums over `answers`."""
    counted = sum(answer.prompt_tokens for answer in answers), sum(answer.completion_tokens for answer in answers)
    if counted != (prompt_tokens, completion_tokens):
        raise WrongAnswer(f"{what}: {counted[0]} prompt tokens and {counted[1]} new ones, "
                          f"asked were {prompt_tokens} and {completion_tokens}")
