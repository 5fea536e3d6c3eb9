"""vLLM's gRPC service under cancels, readers that stop, full queues and wrong tokens: serving_test.py, limits_test.py and access_test.py
through this door. usage: vllm_limits_test.py C3POD"""

import sys
import unittest

import grpc

import server_process
from server_case import ServerCase
from service_calls import details
from serving_case import ServingCase
from vllm_calls import PROMPT, common, engine, ids_of, request, vllm

BINARY = sys.argv.pop(1)


class AdversariesTest(ServingCase):
    binary = BINARY
    FLAGS = ("--running-sequences-max", 2)

    def begin(self, stub=None, metadata=None, **fields):
        fields = {"max_tokens": 90_000, "ignore_eos": True, **fields}
        call = (stub or engine(self.channel)).Generate(request(**fields), metadata=metadata)
        self.addCleanup(call.cancel)
        return call

    def test_an_aborted_call_ends_well_and_gives_everything_back(self):
        stub = engine(self.channel)
        call = self.begin(stub, request_id="mine")
        first = [next(call) for _ in range(3)]
        stub.Abort(vllm.AbortRequest(request_ids=["nobody's", "mine"]))
        messages = first + list(call)
        end = messages[-1].complete
        self.assertEqual(end.finish_reason, "abort")
        self.assertEqual(end.completion_tokens, len(ids_of(messages)))
        self.assertEqual(call.code(), grpc.StatusCode.OK)
        self.wait_until(self.is_empty, "everything is given back")

    def test_an_abort_of_a_call_that_is_read_at_its_end(self):
        stub = engine(self.channel)
        call = self.begin(stub, request_id="whole", stream=False)
        self.wait_until(lambda: self.metric("vllm:num_requests_running") == 1, "it runs")
        self.wait_until(lambda: stub.GetLoads(vllm.GetLoadsRequest()).loads[0].gen_throughput > 0, "tokens are made")
        stub.Abort(vllm.AbortRequest(request_ids=["whole"]))
        [message] = call
        self.assertEqual(message.complete.finish_reason, "abort")
        self.assertEqual(len(message.complete.output_ids), message.complete.completion_tokens)
        self.wait_until(self.is_empty, "everything is given back")

    def test_loads_are_those_of_the_moment(self):
        stub = engine(self.channel)
        calls = [self.begin(stub) for _ in range(3)]
        next(calls[0])

        def load():
            [rank] = stub.GetLoads(vllm.GetLoadsRequest()).loads
            return rank

        self.wait_until(lambda: (load().num_running_reqs, load().num_waiting_reqs) == (2, 1), "two run and one waits")
        self.assertEqual(load().num_waiting_uncached_tokens, len(PROMPT))
        self.assertGreater(load().num_used_tokens, 0)
        self.assertGreater(load().token_usage, 0)
        self.assertEqual(load().max_running_requests, 2)
        self.wait_until(lambda: load().gen_throughput > 0, "tokens are made")
        self.assertEqual(stub.GetServerInfo(vllm.GetServerInfoRequest()).active_requests, 3)
        for call in calls:
            call.cancel()
        self.wait_until(lambda: load().num_total_reqs == 0, "they are gone")
        self.wait_until(lambda: load().gen_throughput == 0, "nothing is computed")
        self.assertEqual(load().num_used_tokens, 0)

    def test_a_cancelled_call_gives_everything_back(self):
        for stream in (True, False):
            call = self.begin(stream=stream)
            self.wait_until(lambda: self.metric("vllm:num_requests_running") == 1, "it runs")
            call.cancel()
            self.wait_until(self.is_empty, "everything is given back")

    def test_a_reader_that_stops_is_cut_off(self):
        server = self.start("--unread-messages-max", 1024, store="unread")
        self.addCleanup(server.stop)
        stuck = self.begin(engine(self.own_channel(server, ("grpc.http2.bdp_probe", 0))), logprobs=20)
        next(stuck)
        other = list(self.begin(engine(self.own_channel(server)), max_tokens=300))
        self.assertEqual(len(ids_of(other)), 300)
        self.wait_until(lambda: self.is_empty(server), "the reader is cut off")
        self.assertEqual(self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: list(stuck))[0], "CAPACITY")

    def test_an_answer_of_more_bytes_than_calls_may_hold_is_ended(self):
        server = self.start("--call-memory-mb", 2, store="memory")
        self.addCleanup(server.stop)
        call = self.begin(engine(self.own_channel(server)), stream=False, logprobs=20)
        self.assertEqual(self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: list(call))[0], "CAPACITY")
        self.wait_until(lambda: self.is_empty(server), "everything is given back")

    def test_a_full_queue_says_when_to_come_back(self):
        server = self.start("--pending-requests-max", 2, store="full")
        self.addCleanup(server.stop)
        stub = engine(self.own_channel(server))
        for _ in range(2):
            next(self.begin(stub))
        reason, _, pause = self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: list(self.begin(stub)))
        self.assertEqual(reason, "CAPACITY")
        self.assertGreater(pause, 0)
        embed = vllm.EmbedRequest(tokenized=vllm.TokenizedInput(input_ids=PROMPT))
        self.assertEqual(self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: stub.Embed(embed))[0], "CAPACITY")

    def test_draining_is_told_and_turns_calls_away(self):
        server = self.start("--drain-seconds-max", 600, store="drain")
        self.addCleanup(server.process.kill)
        stub = engine(self.own_channel(server))
        call = self.begin(stub)
        next(call)
        server.process.terminate()
        self.wait_until(lambda: not stub.HealthCheck(vllm.HealthCheckRequest()).healthy, "it drains")
        self.assertEqual(self.fails(grpc.StatusCode.UNAVAILABLE, lambda: list(self.begin(stub)))[0], "SHUTTING_DOWN")
        call.cancel()
        self.assertEqual(server.wait(), 0)


class CallersTest(ServerCase):
    """Tokens, roles, collections and whose call may be aborted."""

    @classmethod
    def started(cls):
        lines = [("ann", "generate", "read=open"), ("ben", "generate", "read=open"), ("cleo", "references", "")]
        (cls.folder / "tokens").write_text("".join(server_process.token_line(name, role, f"token-{name}", fields) for name, role, fields in lines))
        return server_process.ServerProcess(BINARY, cls.folder, "--auth-tokens", str(cls.folder / "tokens"))

    @staticmethod
    def as_caller(name, *metadata):
        return {"metadata": [("authorization", f"Bearer token-{name}"), *metadata], "timeout": 60}

    def refused(self, code, made):
        with self.assertRaises(grpc.RpcError) as caught:
            made()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return details(caught.exception)[0]

    def test_every_method_but_health_needs_a_token(self):
        stub = engine(self.channel)
        calls = {"Generate": lambda **m: list(stub.Generate(request(max_tokens=2), **m)),
                 "Embed": lambda **m: stub.Embed(vllm.EmbedRequest(tokenized=vllm.TokenizedInput(input_ids=PROMPT)), **m),
                 "Abort": lambda **m: stub.Abort(vllm.AbortRequest(request_ids=["x"]), **m),
                 "GetModelInfo": lambda **m: stub.GetModelInfo(vllm.GetModelInfoRequest(), **m),
                 "GetServerInfo": lambda **m: stub.GetServerInfo(vllm.GetServerInfoRequest(), **m),
                 "GetLoads": lambda **m: stub.GetLoads(vllm.GetLoadsRequest(), **m),
                 "GetTokenizer": lambda **m: list(stub.GetTokenizer(common.GetTokenizerRequest(), **m))}
        unimplemented = {"FlushCache", "StartProfile", "StopProfile", "SubscribeKvEvents"}
        everything = {method.name for method in vllm.DESCRIPTOR.services_by_name["VllmEngine"].methods}
        self.assertEqual(everything, set(calls) | unimplemented | {"HealthCheck"})
        for name, call in calls.items():
            with self.subTest(name):
                self.assertEqual(self.refused(grpc.StatusCode.UNAUTHENTICATED, call), "UNAUTHENTICATED")
                self.assertEqual(self.refused(grpc.StatusCode.UNAUTHENTICATED, lambda: call(**self.as_caller("nobody"))), "UNAUTHENTICATED")
                call(**self.as_caller("ann"))
        self.assertTrue(stub.HealthCheck(vllm.HealthCheckRequest()).healthy)

    def test_a_collection_that_is_not_the_callers_is_refused(self):
        stub = engine(self.channel)
        ask = lambda name, collection: list(stub.Generate(request(max_tokens=2), **self.as_caller(name, ("c3po-collection", collection))))
        self.assertEqual(self.refused(grpc.StatusCode.PERMISSION_DENIED, lambda: ask("ann", "secret")), "PERMISSION")
        self.assertEqual(self.refused(grpc.StatusCode.NOT_FOUND, lambda: ask("cleo", "secret")), "NOT_FOUND")

    def test_only_the_callers_own_calls_are_aborted(self):
        stub = engine(self.channel)
        answers = []
        for aborter in ("ben", "ann"):
            call = stub.Generate(request(max_tokens=240, ignore_eos=True, request_id="the id"), **self.as_caller("ann"))
            first = next(call)
            stub.Abort(vllm.AbortRequest(request_ids=["the id"]), **self.as_caller(aborter))
            answers.append([first, *call][-1].complete.finish_reason)
        self.assertEqual(answers[0], "length")
        self.assertIn(answers[1], ("abort", "length"))  # It may have been done before: AdversariesTest has one that is not.


if __name__ == "__main__":
    unittest.main()
