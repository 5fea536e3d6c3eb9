"""What becomes of the open streams of a token that is taken out of the file. usage: revoked_test.py C3POD"""

import sys
import threading
import time
import unittest

import grpc

import server_process
from service_calls import details, gen, pb, ref
from serving_case import NONE, SLOWDOWN, long_model

BINARY = sys.argv.pop(1)


class RevokedTest(unittest.TestCase):
    def test_a_revoked_token_ends_its_open_streams_and_no_others(self):
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        lines = {name: server_process.token_line(name, "references", f"token-{name}") for name in ("leaver", "stayer")}
        (folder / "tokens").write_text("".join(lines.values()))
        server = server_process.ServerProcess(BINARY, folder, "--auth-tokens", str(folder / "tokens"))
        self.addCleanup(server.process.kill)
        never = threading.Event()
        self.addCleanup(never.set)
        sample = lambda i: ref.AddReferencesRequest(collection="set", sequence=i, sample=ref.ReferenceSample(
            prompt=f"text number {i} " * 14, answer=" 1", choices=[" 1", " 2"]))

        def samples_then_silence(count):
            yield from (sample(i) for i in range(count))
            never.wait(600)

        with server.channel() as channel:
            references = pb["reference_pb2_grpc"].ReferenceServiceStub(channel)
            key = lambda name: {"metadata": [("authorization", f"Bearer token-{name}")], "timeout": 600}
            self.assertEqual(len(list(references.Add((sample(i) for i in range(96)), **key("stayer")))) > 0, True)
            # A stream that waits for its client's first sample, one that waits for the next, and one at work for long.
            silent = references.Add(samples_then_silence(0), **key("leaver"))
            waiting = references.Add(samples_then_silence(1), **key("leaver"))
            self.assertEqual(next(waiting).progress.received, 1)
            learning = references.TunePrior(ref.TunePriorRequest(collection="set", critical_layers=[0, 1], epochs=1000, patience=1000,
                                                                 batch_size=1, prompt_positions=100), **key("leaver"))
            next(learning)
            stays = references.Add(samples_then_silence(1), **key("stayer"))
            self.assertEqual(next(stays).progress.received, 1)
            self.replace(folder / "tokens", lines["stayer"])
            for name, stream in (("silent", silent), ("waiting", waiting), ("learning", learning)):
                with self.subTest(stream=name), self.assertRaises(grpc.RpcError) as caught:
                    for _ in stream:
                        pass
                self.assertEqual((caught.exception.code(), details(caught.exception)[0]), (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"))
                self.assertIn("was revoked", caught.exception.details())
            self.assertTrue(stays.is_active())
            stays.cancel()
        never.set()
        self.assertEqual(server.stop(), 0)

    def test_a_revoked_token_ends_calls_whose_clients_do_not_read(self):
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        lines = {name: server_process.token_line(name, "administer", f"token-{name}") for name in ("leaver", "stayer")}
        (folder / "tokens").write_text("".join(lines.values()))
        server = server_process.ServerProcess(BINARY, folder, "--auth-tokens", str(folder / "tokens"), "--kv-cache-tokens", "250000",
                                              "--unread-messages-max", "1000000", model=long_model(folder))
        self.addCleanup(server.process.kill)
        key = lambda name: {"metadata": [("authorization", f"Bearer token-{name}")]}
        # The client's transport takes in 64 KiB of each stream, and nobody reads on.
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.http2.bdp_probe", 0)])
        self.addCleanup(channel.close)
        references = pb["reference_pb2_grpc"].ReferenceServiceStub(channel)
        sample = lambda i: ref.AddReferencesRequest(collection="set", sequence=i, sample=ref.ReferenceSample(
            prompt=f"text {i}", answer=" 1", metadata={"page": "x" * 16_000}))
        self.assertGreater(len(list(references.Add((sample(i) for i in range(160)), **key("stayer")))), 0)
        backup = references.BackupStore(ref.BackupStoreRequest(), **key("leaver"))
        self.assertGreater(next(backup).total_bytes, 2 << 20)
        answer = pb["generation_pb2_grpc"].GenerationServiceStub(channel).Generate(gen.GenerateRequest(
            prompt="a", optimization=NONE, sampling=gen.SamplingOptions(max_tokens=90_000, ignore_eos=True, logprobs=20)), **key("leaver"))
        next(answer)
        self.wait_until(lambda: self.generated(server) > 1000, "the answer is more than 64 KiB")
        self.replace(folder / "tokens", lines["stayer"])
        ends = lambda: {call["method"].split("/")[-1]: call["status"] for call in server.logged(event="call", caller="leaver")}
        self.wait_until(lambda: len(ends()) == 2, "both calls end")
        self.assertEqual(ends(), {"BackupStore": "UNAUTHENTICATED", "Generate": "UNAUTHENTICATED"})
        for stream in (backup, answer):
            with self.assertRaises(grpc.RpcError):
                list(stream)
        self.assertEqual(server.stop(), 0)

    @staticmethod
    def replace(path, text):
        """At once: a file that is written in its place holds no token for a moment."""
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)

    def generated(self, server):
        found = [line for line in server.http("/metrics").splitlines() if line.startswith("vllm:generation_tokens_total")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def wait_until(self, holds, what, seconds=90):
        end = time.monotonic() + seconds * SLOWDOWN
        while not holds():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.05)


if __name__ == "__main__":
    unittest.main(verbosity=2)
