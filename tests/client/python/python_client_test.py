"""c3po_client against a fake server, Client and AsyncClient by the same tests: requests and answers, retries, deadlines, errors,
cancelling."""

import json
import math
import threading
import time
import unittest

import grpc
from client_case import for_both

import c3po_client
from c3po.v1 import generation_pb2 as gen
from c3po.v1 import options_pb2 as opt
from c3po.v1 import server_pb2 as srv
from c3po_client import health, methods
from fake_server import answer, fail

SLOW_SECONDS = 10  # Until a handler gives up that waits for its call's end.


def scores(request, context):
    return gen.ScoreResponse(request_id="r-1", scores=[
        gen.ContinuationScore(log_likelihood=-len(text), token_count=2) for text in request.continuations])


def refusing(times, code, then, **details):
    """A handler that fails the first `times` calls, and the moments of all calls."""
    moments = []

    def handle(request, context):
        moments.append(time.monotonic())
        if len(moments) <= times:
            fail(context, code, "no", **details)
        return then(request, context)

    return handle, moments


def until_ended(context):
    """Waits in a handler until its call has ended; whether it did."""
    ended = threading.Event()
    context.add_callback(ended.set)
    return ended.wait(SLOW_SECONDS)


@for_both
class AnswersTest:
    def test_a_score_request_holds_what_was_given_and_nothing_else(self):
        self.server.on["Score"] = scores
        response = self.run_(lambda: self.client.score(
            "Q:", [" yes", " no"], optimization={"method": "ngd", "k": 3, "gate": {"enabled": False}, "critical_layers": [1, 2]},
            request_id="mine", priority="low"))
        self.assertEqual(self.server.requests["Score"], [gen.ScoreRequest(
            prompt="Q:", continuations=[" yes", " no"], request_id="mine", priority=gen.PRIORITY_LOW,
            optimization=opt.OptimizationOptions(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, k=3, critical_layers=[1, 2],
                                                 gate=opt.GateOptions(enabled=False)))])
        self.assertEqual(c3po_client.likeliest(response), 1)
        self.run_(lambda: self.client.score([5, 7], [" a"]))
        self.assertEqual(self.server.requests["Score"][1], gen.ScoreRequest(token_ids=gen.TokenIds(ids=[5, 7]), continuations=[" a"]))
        self.assertIn("c3po-client/" + c3po_client.__version__, self.server.metadata["Score"]["user-agent"])

    def test_an_answer_is_typed_events_that_add_up_to_its_text(self):
        self.server.on["Generate"] = lambda request, context: answer("Hello", " world")
        events = self.all_of(lambda: self.client.generate("hi", sampling={"max_tokens": 4, "stop": ["\n"], "logit_bias": {7: -1.5}}))
        self.assertEqual([type(event) for event in events],
                         [gen.OptimizationReport, gen.TextDelta, gen.TextDelta, gen.GenerationSummary])
        self.assertEqual(self.server.requests["Generate"][0],
                         gen.GenerateRequest(prompt="hi", sampling=gen.SamplingOptions(max_tokens=4, stop=["\n"], logit_bias={7: -1.5})))

        def whole():
            generation = self.client.generate("hi")
            text = generation.text()
            return self.both(text, lambda text: (text, generation))

        text, generation = self.run_(whole)
        self.assertEqual((text, generation.token_ids_so_far()), ("Hello world", [0, 1]))
        self.assertEqual((generation.report.collection, generation.summary.request_id), ("default", "r-1"))

    def both(self, result, then):
        if not self.is_async:
            return then(result)

        async def awaited():
            return then(await result)

        return awaited()

    def test_several_answers_are_told_apart_and_events_of_a_later_server_passed_over(self):
        def interleaved(request, context):
            yield gen.GenerateResponse()  # As a message reads whose event this client does not know.
            for index, text in ((0, "a"), (1, "x"), (0, "b"), (1, "y")):
                yield gen.GenerateResponse(delta=gen.TextDelta(text=text, answer=index))
            yield gen.GenerateResponse(summary=gen.GenerationSummary(answers=[gen.AnswerSummary(), gen.AnswerSummary()]))

        self.server.on["Generate"] = interleaved
        self.assertEqual(self.run_(lambda: self.client.generate("hi", sampling={"n": 2, "temperature": 1}).texts()), ["ab", "xy"])

    def test_routed_experts_are_gathered_by_answer(self):
        def routes(position, ids, experts=2):
            return gen.RoutedExperts(first_position=position, tokens=len(ids) // experts, layers=1, experts=experts, ids=ids,
                                     weights=[1 / (1 + i) for i in range(len(ids))])

        self.server.on["Generate"] = lambda request, context: iter([
            gen.GenerateResponse(routed_experts=routes(0, [5, 1, 4, 2])), gen.GenerateResponse(routed_experts=routes(2, [3, 0])),
            gen.GenerateResponse(delta=gen.TextDelta(text="a", token_ids=[1])),
            gen.GenerateResponse(delta=gen.TextDelta(text="b", token_ids=[2], routed_experts=routes(3, [7, 6]))),
            gen.GenerateResponse(delta=gen.TextDelta(text="c", answer=1, routed_experts=routes(3, [8, 9]))),
            gen.GenerateResponse(summary=gen.GenerationSummary())])

        begun = []  # In the event loop, where there is one.
        begin = lambda: begun.append(self.client.generate("Q", return_routed_experts=True, experts_per_token=2)) or begun[0].text()
        self.assertEqual(self.run_(begin), "ab")
        (generation,) = begun
        (request,) = self.server.requests["Generate"]
        self.assertEqual((request.return_routed_experts, request.experts_per_token), (True, 2))
        rows = list(c3po_client.routed_rows(generation.routed_experts_so_far()))
        self.assertEqual([(row.position, row.rank, row.expert) for row in rows],
                         [(0, 0, 5), (0, 1, 1), (1, 0, 4), (1, 1, 2), (2, 0, 3), (2, 1, 0), (3, 0, 7), (3, 1, 6)])
        self.assertEqual([row.weight for row in rows[:2]], [1, 0.5])
        self.assertEqual([row.expert for row in c3po_client.routed_rows(generation.routed_experts_so_far(1))][-2:], [8, 9])
        for wrong in (-1, "many"):
            self.raises(c3po_client.ArgumentError, lambda: self.client.generate("Q", experts_per_token=wrong).text())

    def test_chats_and_choices(self):
        self.server.on["Generate"] = lambda request, context: answer("ok")
        messages = [("system", "Be brief."), {"role": "user", "content": "Hi"}, gen.ChatMessage(role="assistant", content="Ho")]
        self.assertEqual(self.run_(lambda: self.client.chat(messages).text()), "ok")
        self.assertEqual([(message.role, message.content) for message in self.server.requests["Generate"][0].chat.messages],
                         [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho")])
        chat = gen.Chat(messages=[gen.ChatMessage(role="user", content="Hi")])
        self.assertEqual(self.run_(lambda: self.client.chat(chat).text()), "ok")
        self.assertEqual(self.server.requests["Generate"].pop().chat, chat)
        tool, document = {"type": "function", "function": {"name": "f"}}, '{"text": "é"}'
        self.run_(lambda: self.client.chat(messages, tools=[tool], documents=[document, {"text": "é"}]).text())
        sent = self.server.requests["Generate"].pop().chat
        self.assertEqual([json.loads(each) for each in sent.tools_json], [tool])
        self.assertEqual(list(sent.documents_json), [document, document])
        for wrong in ({"tools": [3]}, {"documents": [{"a": object()}]}, {"tools": [{"a": {1}}]}):
            self.assertIn(next(iter(wrong)), str(self.raises(c3po_client.ArgumentError, lambda: self.client.chat(messages, **wrong).text())))
        self.server.on["Score"] = lambda request, context: gen.ScoreResponse()
        self.run_(lambda: self.client.score(messages=messages, continuations=[" a"], tools=[tool], experts_per_token=4,
                                            return_routed_experts=True))
        scored = self.server.requests["Score"].pop()
        self.assertEqual(([message.content for message in scored.chat.messages], len(scored.chat.tools_json)), (["Be brief.", "Hi", "Ho"], 1))
        self.assertEqual((scored.experts_per_token, scored.return_routed_experts), (4, True))
        for wrong in ({}, {"prompt": "a", "messages": messages}, {"prompt": "a", "tools": [tool]}):
            self.raises(c3po_client.ArgumentError, lambda: self.client.score(continuations=[" a"], **wrong))
        summary = gen.GenerationSummary(chosen=1, choice_scores=[gen.ContinuationScore(), gen.ContinuationScore(token_count=1)])
        self.server.on["Generate"] = lambda request, context: iter([gen.GenerateResponse(summary=summary)])
        choice = self.run_(lambda: self.client.choose("Q:", [" no", " yes"]))
        self.assertEqual((choice.index, choice.text, len(choice.scores)), (1, " yes", 2))
        self.assertEqual(list(self.server.requests["Generate"][1].choices), [" no", " yes"])
        self.server.on["Generate"] = lambda request, context: answer("none")
        self.assertIn("without a choice", str(self.raises(c3po_client.C3poError, lambda: self.client.choose("Q:", [" no", " yes"]))))

    def test_wrong_arguments_are_named_before_anything_is_sent(self):
        for call, said in ((lambda: self.client.score("Q:", " yes"), "continuations: ' yes' is not a list"),
                           (lambda: self.client.score("Q:", [" a"], optimization={"metod": "ngd"}), "optimization.metod: there is no"),
                           (lambda: self.client.score("Q:", [" a"], optimization={"method": "best"}), "optimization.method: 'best' is none"),
                           (lambda: self.client.score("Q:", [" a"], optimization={"gate": {"enable": True}}), "optimization.gate.enable: "),
                           (lambda: self.client.score("Q:", [" a"], optimization={"k": 2, "epsilon": 0.5}), "k and epsilon"),
                           (lambda: self.client.score("Q:", [" a"], optimization={"k": True}), "optimization.k: True"),
                           (lambda: self.client.score("Q:", [" a"], priority="soon"), "priority: 'soon'"),
                           (lambda: self.client.score("Q:", [" a"], timeout=0), "timeout: 0"),
                           (lambda: self.client.score(["a"], [" a"]), "prompt: neither"),
                           (lambda: self.client.chat(["hello"]), "messages[0]: "),
                           (lambda: self.client.generate("a", sampling={"stop": "\n"}), "sampling.stop: '\\n' is not a list"),
                           (lambda: self.client.references.delete([]), "ids: is empty")):
            with self.subTest(said=said):
                self.assertIn(said, str(self.raises(c3po_client.ArgumentError, call)))
        self.assertEqual(self.server.requests, {})

    def test_the_other_calls_of_the_service(self):
        self.server.on["Tokenize"] = lambda request, context: gen.TokenizeResponse(ids=[1] * (len(request.text) + request.add_special_tokens))
        self.server.on["Detokenize"] = lambda request, context: gen.DetokenizeResponse(text=f"{list(request.ids)}")
        self.server.on["GetServerInfo"] = lambda request, context: srv.GetServerInfoResponse(version="7")
        self.assertEqual(list(self.run_(lambda: self.client.tokenize("ab")).ids), [1, 1, 1])
        self.assertEqual(list(self.run_(lambda: self.client.tokenize("ab", add_special_tokens=False)).ids), [1, 1])
        self.assertEqual(self.run_(lambda: self.client.detokenize([3, 4])), "[3, 4]")
        self.assertEqual(self.run_(lambda: self.client.server_info()).version, "7")
        self.assertEqual(self.run_(lambda: self.client.call(methods.GET_SERVER_INFO, srv.GetServerInfoRequest())).version, "7")

    def test_health(self):
        self.assertIs(self.run_(lambda: self.client.health()), c3po_client.HealthStatus.SERVING)
        answers = iter([2, 3, 99, 1])
        self.server.on["Check"] = lambda request, context: health.CHECK.response(status=next(answers))
        self.assertIs(self.run_(lambda: self.client.health("c3po.v1.GenerationService")), c3po_client.HealthStatus.NOT_SERVING)
        self.assertEqual(self.server.requests["Check"][1].service, "c3po.v1.GenerationService")
        self.run_(lambda: self.client.wait_until_serving(10))
        self.assertEqual(self.server.calls("Check"), 5)
        self.server.on["Check"] = lambda request, context: health.CHECK.response(status=2)
        self.assertIn("not serving within 1.5 s: it is NOT_SERVING",
                      str(self.raises(c3po_client.DeadlineExceeded, lambda: self.client.wait_until_serving(1.5))))
        del self.server.on["Check"]
        self.raises(c3po_client.Unimplemented, lambda: self.client.wait_until_serving(10))

    def test_a_closed_client_says_so(self):
        client = self.connect()
        self.run_(lambda: client.aclose() if self.is_async else client.close())
        self.assertEqual(str(self.raises(c3po_client.C3poError, lambda: client.server_info())), "the client is closed")


@for_both
class RetriesTest:
    def test_unavailable_is_tried_again_by_grpc(self):
        self.server.on["Score"], moments = refusing(2, grpc.StatusCode.UNAVAILABLE, scores)
        self.run_(lambda: self.client.score("Q:", [" a"]))
        self.assertEqual(len(moments), 3)
        self.server.on["Generate"], moments = refusing(3, grpc.StatusCode.UNAVAILABLE, lambda request, context: answer("late"))
        self.assertEqual(self.run_(lambda: self.client.generate("hi").text()), "late")
        self.assertEqual(len(moments), 4)
        self.server.on["Score"], moments = refusing(9, grpc.StatusCode.UNAVAILABLE, scores)
        self.raises(c3po_client.Unavailable, lambda: self.client.score("Q:", [" a"]))
        self.assertEqual(len(moments), 4)

    def test_one_attempt_is_one_call(self):
        client = self.connect(retry=c3po_client.RetryPolicy(attempts=1))
        for code, kind in ((grpc.StatusCode.UNAVAILABLE, c3po_client.Unavailable),
                           (grpc.StatusCode.RESOURCE_EXHAUSTED, c3po_client.ResourceExhausted)):
            self.server.on["Score"], moments = refusing(1, code, scores)
            self.raises(kind, lambda: client.score("Q:", [" a"]))
            self.assertEqual(len(moments), 1)

    def test_a_full_server_is_asked_again_when_it_says(self):
        for name, then, call in (("Score", scores, lambda: self.client.score("Q:", [" a"])),
                                 ("Generate", lambda request, context: answer("late"), lambda: self.client.generate("hi").text())):
            with self.subTest(name):
                self.server.on[name], moments = refusing(2, grpc.StatusCode.RESOURCE_EXHAUSTED, then, reason="CAPACITY", retry_delay=0.25)
                self.run_(call)
                self.assertEqual(len(moments), 3)
                self.assertGreaterEqual(min(moments[1] - moments[0], moments[2] - moments[1]), 0.24)
                self.server.on[name], moments = refusing(1, grpc.StatusCode.RESOURCE_EXHAUSTED, then, retry_delay=5, pushback=1)
                self.run_(call)  # The pushback is taken as it is.
                self.assertLess(moments[1] - moments[0], 4)

    def test_a_pause_that_is_too_long_or_unwanted_is_not_made(self):
        for details, timeout in (({"retry_delay": 61}, 300), ({"retry_delay": 3}, 2), ({"pushback": -1}, 300), ({"pushback": "soon"}, 300)):
            for name, call in (("Score", lambda: self.client.score("Q:", [" a"], timeout=timeout)),
                               ("Generate", lambda: self.client.generate("hi", timeout=timeout).text())):
                with self.subTest(name, **details):
                    self.server.on[name], moments = refusing(1, grpc.StatusCode.RESOURCE_EXHAUSTED, scores, **details)
                    error = self.raises(c3po_client.ResourceExhausted, call)
                    self.assertEqual((len(moments), error.retry_delay), (1, details.get("retry_delay")))

    def test_the_last_error_tells_how_often_it_was_tried(self):
        self.server.on["Score"], moments = refusing(9, grpc.StatusCode.RESOURCE_EXHAUSTED, scores, reason="CAPACITY", retry_delay=0.01)
        error = self.raises(c3po_client.ResourceExhausted, lambda: self.client.score("Q:", [" a"], request_id="mine"))
        self.assertEqual((len(moments), error.attempts, error.reason, error.request_id), (4, 4, "CAPACITY", "mine"))
        self.assertEqual(str(error), f"{self.server.target}: RESOURCE_EXHAUSTED: no [reason CAPACITY] [request mine] (after 4 attempts)")

    def test_an_answer_that_has_begun_is_not_tried_again(self):
        def breaks(request, context):
            yield from list(answer("Hel"))[:2]
            fail(context, code, "gone", retry_delay=0.01)

        self.server.on["Generate"] = breaks
        for code, kind in ((grpc.StatusCode.UNAVAILABLE, c3po_client.Unavailable),
                           (grpc.StatusCode.RESOURCE_EXHAUSTED, c3po_client.ResourceExhausted)):
            before = self.server.calls("Generate")
            self.raises(kind, lambda: self.client.generate("hi").text())
            self.assertEqual(self.server.calls("Generate"), before + 1)

    def test_what_learns_is_not_tried_again(self):
        for code, kind in ((grpc.StatusCode.UNAVAILABLE, c3po_client.Unavailable),
                           (grpc.StatusCode.RESOURCE_EXHAUSTED, c3po_client.ResourceExhausted)):
            for name, begin in (("TunePrior", self.client.collections.tune_prior), ("TuneOffset", self.client.collections.tune_offset),
                                ("AmortizeShifts", self.client.collections.amortize_shifts)):
                with self.subTest(name):
                    self.server.on[name], moments = refusing(1, code, lambda request, context: iter(()), retry_delay=0.01)
                    self.raises(kind, lambda: begin("science").last())
                    self.assertEqual(len(moments), 1)

    def test_other_errors_are_not_tried_again(self):
        self.server.on["Score"], moments = refusing(1, grpc.StatusCode.INTERNAL, scores, retry_delay=0.01)
        self.raises(c3po_client.Internal, lambda: self.client.score("Q:", [" a"]))
        self.assertEqual(len(moments), 1)


@for_both
class ErrorsTest:
    def test_an_error_holds_the_reason_and_the_fields(self):
        def refuse(request, context):
            fail(context, grpc.StatusCode.INVALID_ARGUMENT, "optimization.k: must be at least 1", reason="INVALID_FIELD",
                 fields=[("optimization.k", "must be at least 1"), ("sampling.n", "is \x1b[31mtoo large")])

        self.server.on["Score"] = refuse
        self.server.on["Generate"] = refuse
        for call in (lambda: self.client.score("Q:", [" a"]), lambda: self.client.generate("Q:").text()):
            error = self.raises(c3po_client.InvalidArgument, call)
            self.assertEqual((error.code, error.reason, error.retry_delay), (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", None))
            self.assertEqual(error.message, "optimization.k: must be at least 1")
            self.assertEqual(error.field_violations[0], c3po_client.FieldViolation("optimization.k", "must be at least 1"))
            self.assertEqual(str(error), f"{self.server.target}: INVALID_ARGUMENT: optimization.k: must be at least 1: "
                                         "sampling.n: is  [31mtoo large [reason INVALID_FIELD]")
            self.assertIsInstance(error.__cause__, grpc.RpcError)

    def test_each_code_has_its_class(self):
        for code in grpc.StatusCode:
            if code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                continue
            self.server.on["Score"] = lambda request, context: fail(context, code, "so it is")
            error = self.raises(c3po_client.CallError, lambda: self.client.score("Q:", [" a"]))
            self.assertEqual((error.code, error.message), (code, "so it is"))
            named = code.name.title().replace("_", "")
            self.assertEqual(type(error).__name__, named if hasattr(c3po_client, named) else "CallError")

    def test_details_that_do_not_parse_are_left_out(self):
        def broken(request, context):
            context.set_trailing_metadata([("grpc-status-details-bin", b"\xff\xff\xff")])
            context.abort(grpc.StatusCode.NOT_FOUND, "nowhere")

        self.server.on["Score"] = broken
        error = self.raises(c3po_client.NotFound, lambda: self.client.score("Q:", [" a"]))
        self.assertEqual((error.message, error.reason, error.field_violations), ("nowhere", "", ()))

    def test_a_deadline_reaches_the_server_and_ends_the_call(self):
        left = []

        def slow(request, context):
            left.append(context.time_remaining())
            until_ended(context)

        self.server.on["Score"] = slow
        begun = time.monotonic()
        self.raises(c3po_client.DeadlineExceeded, lambda: self.client.score("Q:", [" a"], timeout=1.5))
        self.assertLess(time.monotonic() - begun, SLOW_SECONDS / 2)
        self.assertTrue(0 < left[0] < 5, left)  # The call's 1.5, that the wire rounds up; not the client's own, 20 or so.
        self.server.on["Score"] = lambda request, context: left.append(context.time_remaining()) or scores(request, context)
        self.run_(lambda: self.client.score("Q:", [" a"]))
        self.run_(lambda: self.client.score("Q:", [" a"], timeout=math.inf))
        self.assertTrue(10 < left[1] < 25, left)  # The client's own.
        self.assertGreater(left[2], 1e6)

    def test_retries_and_their_pauses_share_the_deadline(self):
        self.server.on["Score"], moments = refusing(99, grpc.StatusCode.RESOURCE_EXHAUSTED, scores, retry_delay=1)
        begun = time.monotonic()
        self.raises(c3po_client.ResourceExhausted, lambda: self.client.score("Q:", [" a"], timeout=1.8))
        self.assertEqual(len(moments), 2)
        self.assertLess(time.monotonic() - begun, 1.8)


if __name__ == "__main__":
    unittest.main()
