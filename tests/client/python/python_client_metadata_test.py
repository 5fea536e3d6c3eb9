"""c3po_client against a fake server: metadata of single calls, and channels that an interceptor wraps, as OpenTelemetry's does."""

import threading
import unittest
import unittest.mock

import grpc
from client_case import ClientCase, for_both

import c3po_client
from c3po.v1 import generation_pb2 as gen
from c3po.v1 import reference_pb2 as ref
from c3po_client import methods
from fake_server import answer

SLOW_SECONDS = 10


@for_both
class Metadata:
    def setUp(self):
        super().setUp()
        self.server.on["Generate"] = lambda request, context: answer("a")
        self.server.on["Score"] = lambda request, context: gen.ScoreResponse()
        self.server.on["GetStats"] = lambda request, context: ref.GetStatsResponse()

    def seen(self, name):
        metadata = self.server.metadata[name]
        return {key: metadata[key] for key in ("traceparent", "x-tenant") if key in metadata}

    def test_goes_with_the_call_that_has_it_and_no_other(self):
        client = self.connect(metadata=[("x-tenant", "t")])
        calls = {"Generate": (lambda more: client.generate("p", metadata=more).text(), lambda more: client.chat([("user", "p")], metadata=more).text(),
                              lambda more: client.generate_request(gen.GenerateRequest(prompt="p"), metadata=more).text(),
                              lambda more: client.stream(methods.GENERATE, gen.GenerateRequest(prompt="p"), metadata=more).last()),
                 "Score": (lambda more: client.score("p", [" a"], metadata=more),
                           lambda more: client.call(methods.SCORE, gen.ScoreRequest(prompt="p"), metadata=more))}
        for name, makers in calls.items():
            for number, make in enumerate(makers):
                self.run_(lambda: make([("traceparent", f"{number}")]))
                self.assertEqual(self.seen(name), {"traceparent": f"{number}", "x-tenant": "t"})
                self.run_(lambda: make(()))
                self.assertEqual(self.seen(name), {"x-tenant": "t"})

    def test_goes_with_a_choice(self):
        summary = gen.GenerationSummary(chosen=1, choice_scores=[gen.ContinuationScore(), gen.ContinuationScore()])
        self.server.on["Generate"] = lambda request, context: iter([gen.GenerateResponse(summary=summary)])
        choice = self.run_(lambda: self.client.choose("p", [" a", " b"], metadata=[("traceparent", "c")]))
        self.assertEqual((choice.index, self.seen("Generate")), (1, {"traceparent": "c"}))

    def test_a_client_with_more_shares_the_connection_and_its_end(self):
        client = self.connect()
        traced = client.with_metadata([("traceparent", "1")]).with_metadata([("x-tenant", "t")])
        self.run_(lambda: traced.references.stats())
        self.assertEqual(self.seen("GetStats"), {"traceparent": "1", "x-tenant": "t"})
        self.run_(lambda: client.references.stats())
        self.assertEqual(self.seen("GetStats"), {})
        self.run_(lambda: traced.aclose() if self.is_async else traced.close())
        for each in (client, traced):
            self.assertIn("the client is closed", str(self.raises(c3po_client.C3poError, lambda: each.score("p", [" a"]))))


class Endless:
    """An answer that goes on until its call ends; `more` lets one more message through."""

    def __init__(self):
        self.ended, self.more = threading.Event(), threading.Event()

    def __call__(self, request, context):
        context.add_callback(lambda: (self.ended.set(), self.more.set()))
        yield gen.GenerateResponse(delta=gen.TextDelta(text="first"))
        self.more.wait(SLOW_SECONDS)
        yield gen.GenerateResponse(delta=gen.TextDelta(text="second"))
        self.ended.wait(SLOW_SECONDS)


class GeneratorInterceptor(grpc.UnaryStreamClientInterceptor):
    """Makes a generator of an answer, which begins the call when it is read."""

    def intercept_unary_stream(self, continuation, client_call_details, request):
        def responses():
            yield from continuation(client_call_details, request)

        return responses()


class WrappedChannelTest(ClientCase):
    client_class = c3po_client.Client

    def setUp(self):
        original = grpc.insecure_channel
        wrapped = lambda *arguments, **options: grpc.intercept_channel(original(*arguments, **options), GeneratorInterceptor())
        with unittest.mock.patch("grpc.insecure_channel", wrapped):
            super().setUp()

    def test_an_answer_is_whole(self):
        self.server.on["Generate"] = lambda request, context: answer("a", "b")
        with self.client.generate("p") as generation:
            self.assertEqual(generation.text(), "ab")
        self.assertEqual(generation.text(), "ab")  # Closed after its end.

    def test_leaving_a_with_cancels_the_call_and_the_answer_is_not_taken_for_a_whole_one(self):
        endless = self.server.on["Generate"] = Endless()
        with self.client.generate("p") as generation:
            next(generation)
        self.assertTrue(endless.ended.wait(SLOW_SECONDS / 2))
        with self.assertRaises(c3po_client.Cancelled):
            generation.text()

    def test_closing_before_the_first_message_sends_nothing(self):
        generation = self.client.generate("p")
        generation.close()
        with self.assertRaises(c3po_client.Cancelled):
            generation.text()
        self.assertEqual(self.server.calls("Generate"), 0)

    def test_closing_from_another_thread_ends_it_with_the_next_message(self):
        endless = self.server.on["Generate"] = Endless()
        generation = self.client.generate("p")
        next(generation)
        closing = threading.Timer(0.2, lambda: (generation.close(), endless.more.set()))
        closing.start()
        with self.assertRaises(c3po_client.Cancelled):
            generation.text()
        closing.join()
        self.assertTrue(endless.ended.wait(SLOW_SECONDS / 2))

    def test_errors_are_those_of_the_call(self):
        error = self.raises(c3po_client.Unimplemented, lambda: self.client.generate("p").text())
        self.assertIn("no test set it", str(error))


if __name__ == "__main__":
    unittest.main()
