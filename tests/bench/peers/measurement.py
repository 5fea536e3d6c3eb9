"""The figures, how each is measured, and the rounds in which peers take turns."""

import collections
import concurrent.futures
import contextlib
import subprocess
import sys
import threading
import typing

import peer_clients
import peer_process

PROMPT, NEW = 64, 64  # Tokens of a request where a figure does not say otherwise.
LONG_PROMPT = 512
NEW_BESIDE_COMPETITOR = 16  # Fewer: threads that wait spinning can be tens of times slower then.
REFERENCES = 3  # Of a collection, all of them neighbors.


class Figure(typing.NamedTuple):
    name: str
    unit: str
    higher_is_better: bool


DECODE = Figure("decode after a 64-token prompt, one stream", "tokens/s", True)
FIRST_TOKEN = Figure("time to first token, 64-token prompt", "ms", False)
PREFILL_SHORT = Figure("prefill of 64 tokens", "tokens/s", True)
PREFILL_LONG = Figure("prefill of 512 tokens", "tokens/s", True)
STREAMS_8 = Figure("8 streams of 64 + 64 tokens, in all", "tokens/s", True)
STREAMS_32 = Figure("32 streams of 64 + 64 tokens, in all", "tokens/s", True)
DECODE_BESIDE = Figure("decode beside a competitor that takes a whole core, one stream", "tokens/s", True)
RESIDENT_LOADED = Figure("resident after load", "MB", False)
RESIDENT_END = Figure("resident at the end", "MB", False)
FIGURES = [DECODE, FIRST_TOKEN, PREFILL_SHORT, PREFILL_LONG, STREAMS_8, STREAMS_32, DECODE_BESIDE, RESIDENT_LOADED, RESIDENT_END]

Values = typing.Dict[str, typing.Dict[str, typing.List[float]]]  # peer, name of the figure, one value per round


def measure_stream(client, prompts, round: int) -> dict:
    answer = client.answer(prompts.tokens(PROMPT, round, "decode"), NEW)
    peer_clients.check_counts(DECODE.name, [answer], PROMPT, NEW)
    return {DECODE: answer.decode_rate(), FIRST_TOKEN: 1e3 * answer.first_token_seconds()}


def measure_prefill(figure: Figure, length: int):
    """The prompt's tokens over the time to its answer's only token."""
    def measure(client, prompts, round):
        answer = client.answer(prompts.tokens(length, round, "prefill"), 1)
        peer_clients.check_counts(figure.name, [answer], length, 1)
        return {figure: length / answer.seconds()}
    return measure


def measure_streams(figure: Figure, streams: int):
    """New tokens of all streams over the time from the first request to the last token: prefill is in it."""
    def measure(client, prompts, round):
        answers = client.answers([prompts.tokens(PROMPT, round, streams, stream) for stream in range(streams)], NEW)
        peer_clients.check_counts(figure.name, answers, streams * PROMPT, streams * NEW)
        return {figure: streams * NEW / (max(answer.arrivals[-1][0] for answer in answers) - min(answer.sent for answer in answers))}
    return measure


@contextlib.contextmanager
def busy_competitor():
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure_beside_competitor(client, prompts, round: int) -> dict:
    with busy_competitor():
        answer = client.answer(prompts.tokens(PROMPT, round, "beside"), NEW_BESIDE_COMPETITOR)
    peer_clients.check_counts(DECODE_BESIDE.name, [answer], PROMPT, NEW_BESIDE_COMPETITOR)
    return {DECODE_BESIDE: answer.decode_rate()}


MEASURES = [measure_stream, measure_prefill(PREFILL_SHORT, PROMPT), measure_prefill(PREFILL_LONG, LONG_PROMPT),
            measure_streams(STREAMS_8, 8), measure_streams(STREAMS_32, 32), measure_beside_competitor]


def warm_up(client, prompts) -> None:
    """Before the first round, everything once, so that nobody is charged for what is made on first use."""
    for length in (PROMPT, LONG_PROMPT):
        client.answer(prompts.tokens(length, "warm-up"), 4)
    client.answers([prompts.tokens(PROMPT, "warm-up", stream) for stream in range(8)], 4)


def take_turns(peers: dict, prompts, rounds: int, tell=lambda line: None, measures=MEASURES) -> Values:
    """Every measure of every round by all peers in turn, A B A B ..., the others paused. `peers`: name to an object with `process` and
    `client`. A peer that fails is left out from then on, and what it had is dropped."""
    values: Values = {name: collections.defaultdict(list) for name in peers}
    running = dict(peers)

    def attempt(name, work):
        turns.let_run(name)
        try:
            # Not measured: a process that was paused for minutes finds its pages and connections cold.
            running[name].client.answer(prompts.tokens(PROMPT, "wake up"), 2)
            return work(running[name].client)
        except Exception as error:  # Whatever it is: the others' figures are not lost for it.
            tell(f"{name}: left out: {error!r}")
            del running[name], values[name]
            return {}

    with peer_process.OneAtATime({name: peer.process for name, peer in peers.items()}) as turns:
        for name in list(running):
            attempt(name, lambda client: warm_up(client, prompts) or {})
        for round in range(rounds):
            for measure in measures:
                for name in list(running):
                    for figure, value in attempt(name, lambda client: measure(client, prompts, round)).items():
                        values[name][figure.name].append(value)
                        tell(f"round {round + 1}: {name}: {figure.name}: {value:.1f} {figure.unit}")
    return values


def paper_settings(options, collection: str) -> dict:
    """Neighborhood gradient descent as the paper has it, by its preset: 3 neighbors, 10 steps, the last 5 layers, 20 core experts,
    no gate. All references count, as random weights answer nothing right."""
    return {"preset": options.PRESET_PAPER, "k": REFERENCES, "collection": collection,
            "reference_selection": options.REFERENCE_SELECTION_ALL}


def decode_rate_of_streams(client, prompts, *key) -> float:
    """Of 8 streams, each one's own from its first token on, added up."""
    answers = client.answers([prompts.tokens(PROMPT, *key, stream) for stream in range(8)], NEW)
    peer_clients.check_counts("8 streams", answers, 8 * PROMPT, 8 * NEW)
    return sum(answer.decode_rate() for answer in answers)


def rate_while_optimizing(client, prompts, settings: dict, round: int) -> float:
    """decode_rate_of_streams while one more caller sends optimized requests, one after the other, of one new token each."""
    ended = threading.Event()

    def keep_optimizing():
        number = 0
        while not ended.is_set():
            client.answer(prompts.tokens(PROMPT, round, "beside streams", number), 1, **settings)
            number += 1

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        caller = pool.submit(keep_optimizing)
        try:
            rate = decode_rate_of_streams(client, prompts, round, "streams beside")
        finally:
            ended.set()
        caller.result()
    return rate


def c3po_cost(peer, others, prompts, rounds: int) -> dict:
    """What C3PO adds to a request of this project's server. Name to one value per round: milliseconds of the request without,
    with neighbors seen for the first time, and with the same neighbors again; the stages of the latter; tokens per second of
    8 streams by themselves and while others optimize."""
    client = peer.client
    values = collections.defaultdict(list)
    with peer_process.OneAtATime({"c3po": peer.process, **others}) as turns:
        turns.let_run("c3po")
        for round in range(rounds):
            collection = f"bench-{round}"
            client.add_references(collection, [(prompts.text(prompts.tokens(PROMPT, round, "reference", i)),
                                                prompts.text(prompts.tokens(1, round, "answer", i))) for i in range(REFERENCES)])
            settings = paper_settings(client.options, collection)
            for use, optimization in (("none", {}), ("first", settings), ("again", settings)):
                answer = client.answer(prompts.tokens(PROMPT, round, use), NEW, **optimization)
                peer_clients.check_counts(use, [answer], PROMPT, NEW)
                if optimization and answer.gate != "GATE_DECISION_APPLIED":
                    raise peer_clients.WrongAnswer(f"the gate says {answer.gate}")
                values[use].append(1e3 * answer.seconds())
            for stage in ("embed", "retrieval", "optimization"):
                values[stage].append(1e3 * getattr(answer.timings, f"{stage}_seconds"))
            values["streams"].append(decode_rate_of_streams(client, prompts, round, "streams alone"))
            values["streams_beside"].append(rate_while_optimizing(client, prompts, settings, round))
    return values
