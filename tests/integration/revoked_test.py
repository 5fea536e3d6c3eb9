"""What becomes of the open streams of a token that is taken out of the file. usage: revoked_test.py C3POD"""

import sys
import threading
import unittest

import grpc

import server_process
from service_calls import details, pb, ref

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
            prompt=f"text number {i}", answer=" 1", choices=[" 1", " 2"]))

        def samples_then_silence(count):
            yield from (sample(i) for i in range(count))
            never.wait(120)

        with server.channel() as channel:
            references = pb["reference_pb2_grpc"].ReferenceServiceStub(channel)
            key = lambda name: {"metadata": [("authorization", f"Bearer token-{name}")], "timeout": 120}
            self.assertEqual(len(list(references.Add((sample(i) for i in range(96)), **key("stayer")))) > 0, True)
            # A stream that waits for its client's first sample, one that waits for the next, and one at work for long.
            silent = references.Add(samples_then_silence(0), **key("leaver"))
            waiting = references.Add(samples_then_silence(1), **key("leaver"))
            self.assertEqual(next(waiting).progress.received, 1)
            learning = references.TunePrior(ref.TunePriorRequest(collection="set", critical_layers=[0, 1], epochs=1000, patience=1000,
                                                                       batch_size=1),
                                            **key("leaver"))
            next(learning)
            stays = references.Add(samples_then_silence(1), **key("stayer"))
            self.assertEqual(next(stays).progress.received, 1)
            (folder / "tokens").write_text(lines["stayer"])
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


if __name__ == "__main__":
    unittest.main(verbosity=2)
