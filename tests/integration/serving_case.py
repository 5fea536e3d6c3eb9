"""What the tests of the service's limits, cancellation and drain share: a server whose answers can take seconds."""

import json
import os
import time

import grpc

import server_process
from server_case import ServerCase
from service_calls import details, gen, opt

WINDOW = 100_000  # Positions: answers and prompts that take seconds.
SLOWDOWN = int(os.environ.get("C3PO_TEST_SLOWDOWN", "1"))  # By which bounds of time are longer: deploy/sanitize.sh.
NONE = opt.OptimizationOptions(method=opt.METHOD_NONE)


def long_model(folder):
    """The tiny model with a context window of WINDOW tokens: its positions are rotations, which have no end."""
    copy = folder / "long_tiny"
    copy.mkdir()
    for path in server_process.TINY_MODEL.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["max_position_embeddings"] = WINDOW
    (copy / "config.json").write_text(json.dumps(config))
    return copy


class ServingCase(ServerCase):
    """Tests of one class share a server of the long tiny model, started with FLAGS. `binary` and `cli` are set by who runs them."""
    cli = None
    # For answers that do not end, and that a test need not read: a fast machine makes ten thousand messages in a second.
    ROOM = ("--kv-cache-tokens", "250000", "--pending-tokens-max", "1000000", "--unread-messages-max", "1000000")

    @classmethod
    def started(cls):
        cls.model = long_model(cls.folder)
        return cls.start(*cls.FLAGS)

    @classmethod
    def start(cls, *flags, store="a"):
        folder = cls.folder / f"store-{store}"
        folder.mkdir(exist_ok=True)
        return server_process.ServerProcess(cls.binary, folder, *cls.ROOM, *map(str, flags), model=cls.model)

    def own_channel(self, server=None, *options):
        """A connection that no other test shares."""
        channel = grpc.insecure_channel(f"127.0.0.1:{(server or self.server).port}",
                                        [("grpc.use_local_subchannel_pool", 1), *options])
        self.addCleanup(channel.close)
        return channel

    def stream(self, max_tokens, generation=None, metadata=None, timeout=None, priority=None, **request):
        request.setdefault("optimization", NONE)
        if "token_ids" not in request:
            request.setdefault("prompt", "a")
        sampling = gen.SamplingOptions(max_tokens=max_tokens, ignore_eos=True, **request.pop("sampling", {}))
        return (generation or self.generation).Generate(
            gen.GenerateRequest(sampling=sampling, priority=priority, **request), metadata=metadata, timeout=timeout)

    def fails(self, code, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return details(caught.exception)

    def metric(self, name, server=None):
        for line in (server or self.server).http("/metrics").splitlines():
            if line.startswith(name) and not line.startswith("#"):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def wait_until(self, holds, what, seconds=60):
        for _ in range(seconds * 50):
            if holds():
                return
            time.sleep(0.02)
        self.fail(f"not within {seconds} s: {what}")

    def is_empty(self, server=None):
        label = "{model_name=\"long_tiny\"}"
        names = [f"vllm:{name}{label}" for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")]
        return all(self.metric(name, server) == 0 for name in (*names, "c3po_kv_cache_leaked_blocks"))
