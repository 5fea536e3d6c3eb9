"""vLLM's gRPC service, by stubs of its own .proto: what it answers is what c3po.v1 answers. usage: vllm_test.py C3POD"""

import hashlib
import io
import json
import math
import sys
import unittest
import zipfile

import grpc

import server_process
from server_case import ServerCase
from service_calls import details, gen, opt, pb, ref, samples, srv, tokens_of
from vllm_calls import PROMPT, SERVICE, common, ends_of, engine, ids_of, request, vllm

BINARY = sys.argv.pop(1)


class VllmTest(ServerCase):
    binary, FLAGS = BINARY, server_process.FEW_STEPS

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = engine(cls.channel)
        cls.info = pb["server_pb2_grpc"].ServerServiceStub(cls.channel).GetServerInfo(srv.GetServerInfoRequest())
        cls.add("set", samples(40))

    def ours(self, optimization=None, ids=PROMPT, **sampling):
        """What c3po.v1 answers."""
        return list(self.generation.Generate(gen.GenerateRequest(token_ids=gen.TokenIds(ids=ids), sampling=gen.SamplingOptions(**sampling),
                                                                 optimization=optimization), timeout=60))

    def theirs(self, metadata=None, **fields):
        return list(self.engine.Generate(request(**fields), metadata=metadata, timeout=60))

    def fails(self, code, field, made):
        with self.assertRaises(grpc.RpcError) as caught:
            made()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        if field is not None:
            self.assertEqual(details(caught.exception)[1], [field], caught.exception.details())
        return caught.exception

    # --- Generate ---

    def test_a_message_for_each_token_and_one_for_the_end(self):
        tokens = tokens_of(self.ours(max_tokens=12, ignore_eos=True))
        messages = self.theirs(max_tokens=12, ignore_eos=True)
        self.assertEqual([m.WhichOneof("response") for m in messages], ["chunk"] * 12 + ["complete"])
        self.assertEqual(ids_of(messages), tokens)
        self.assertEqual({(m.chunk.prompt_tokens, m.chunk.completion_tokens) for m in messages[:-1]}, {(len(PROMPT), 1)})
        end = messages[-1].complete
        self.assertEqual((end.finish_reason, end.prompt_tokens, end.completion_tokens, list(end.output_ids)),
                         ("length", len(PROMPT), 12, []))

    def test_without_stream_there_is_one_message_with_all_ids(self):
        tokens = tokens_of(self.ours(max_tokens=12, ignore_eos=True))
        [message] = self.theirs(max_tokens=12, ignore_eos=True, stream=False)
        self.assertEqual(list(message.complete.output_ids), tokens)
        self.assertEqual((message.complete.completion_tokens, message.complete.finish_reason), (12, "length"))

    def test_a_text_is_tokenized_as_ours(self):
        ours = list(self.generation.Generate(gen.GenerateRequest(prompt="Which gas?", sampling=gen.SamplingOptions(max_tokens=5)), timeout=60))
        messages = self.theirs(text="Which gas?", max_tokens=5)
        self.assertEqual(ids_of(messages), tokens_of(ours))
        self.assertEqual(messages[-1].complete.prompt_tokens, ours[-1].summary.usage.prompt_tokens)
        self.assertEqual({m.chunk.prompt_tokens for m in messages[:-1]}, {ours[-1].summary.usage.prompt_tokens})

    def test_sampling_and_answers_are_those_of_c3po(self):
        options = dict(max_tokens=6, ignore_eos=True, temperature=0.5, top_k=50, top_p=0.75, min_p=0.0625, repetition_penalty=1.25, seed=7, n=3,
                       logit_bias={20: 3.0, 21: -5.0})
        ours = self.ours(**options)
        messages = self.theirs(**options)
        for index in range(3):
            tokens = [token for e in ours if e.HasField("delta") and e.delta.answer == index for token in e.delta.token_ids]
            self.assertEqual(len(tokens), 6)
            self.assertEqual(ids_of(messages, index), tokens)
        self.assertEqual(sorted(ends_of(messages)), [0, 1, 2])
        self.assertEqual({tuple(end.output_ids) for end in ends_of(self.theirs(stream=False, **options)).values()},
                         {tuple(ids_of(messages, index)) for index in range(3)})

    def test_what_is_left_out_has_the_meaning_of_vllm(self):
        tokens = tokens_of(self.ours(max_tokens=8, ignore_eos=True, temperature=1, seed=3))
        plain = vllm.GenerateRequest(tokenized=vllm.TokenizedInput(input_ids=PROMPT), stream=True,
                                     sampling_params=vllm.SamplingParams(seed=3, max_tokens=8, ignore_eos=True))
        self.assertEqual(ids_of(self.engine.Generate(plain, timeout=60)), tokens)
        # As many tokens as the window leaves.
        messages = self.theirs(ids=[5] * 250, ignore_eos=True)
        self.assertEqual(len(ids_of(messages)), self.info.model.context_window - 250)
        self.assertEqual(messages[-1].complete.finish_reason, "length")

    def test_logprobs(self):
        ours = self.ours(max_tokens=4, ignore_eos=True, logprobs=2)
        positions = [p for e in ours if e.HasField("delta") for p in e.delta.logprobs]
        for messages in (self.theirs(max_tokens=4, ignore_eos=True, logprobs=2), self.theirs(max_tokens=4, ignore_eos=True, logprobs=2, stream=False)):
            parts = [getattr(m, m.WhichOneof("response")).output_logprobs for m in messages]
            self.assertEqual([x for part in parts for x in part.token_logprobs], [p.chosen.logprob for p in positions])
            self.assertEqual([x for part in parts for x in part.token_ids], [p.chosen.token_id for p in positions])
            tops = [list(zip(top.token_ids, top.values, strict=True)) for part in parts for top in part.top_logprobs]
            self.assertEqual(tops, [[(t.token_id, t.logprob) for t in p.top] for p in positions])
        chosen = self.theirs(max_tokens=4, ignore_eos=True, logprobs=0)
        self.assertEqual(len(chosen[0].chunk.output_logprobs.token_logprobs), 1)
        self.assertFalse(chosen[0].chunk.output_logprobs.top_logprobs)
        self.assertFalse(self.theirs(max_tokens=4, ignore_eos=True)[0].chunk.HasField("output_logprobs"))

    def test_a_stop_string_is_named(self):
        ours = self.ours(max_tokens=12, ignore_eos=True)
        text = "".join(e.delta.text for e in ours)
        stop = text[len(text) // 2:][:2]
        [message] = self.theirs(max_tokens=12, ignore_eos=True, stream=False, stop=["never so", stop], skip_special_tokens=True)
        self.assertEqual((message.complete.finish_reason, message.complete.matched_stop_str), ("stop", stop))
        self.assertEqual(list(message.complete.output_ids), tokens_of(ours)[:len(message.complete.output_ids)])
        self.assertLess(len(message.complete.output_ids), 12)

    def test_what_of_the_prompt_was_in_the_cache(self):
        ids = [40 + i for i in range(100)]
        none = (("c3po-method", "none"),)  # The mean that a search begins with needs the whole prompt.
        first, second = (self.theirs(metadata=none, ids=ids, max_tokens=2)[-1].complete.cached_tokens for _ in range(2))
        self.assertEqual(first, 0)
        self.assertGreater(second, 60)
        self.assertLess(second, 100)

    def test_what_cannot_be_done_is_refused_by_its_name(self):
        for name, value in (("frequency_penalty", 0.5), ("presence_penalty", 0.5), ("min_tokens", 3), ("prompt_logprobs", 1),
                            ("truncate_prompt_tokens", 5), ("structural_tag", "a"), ("json_schema", "{"), ("regex", "(a"), ("grammar", "a"),
                            ("json_object", False), ("logprobs", -1), ("n", 1000),
                            ("temperature", -1), ("top_p", 2), ("max_tokens", 0)):
            with self.subTest(name):
                self.fails(grpc.StatusCode.INVALID_ARGUMENT, f"sampling_params.{name}", lambda: self.theirs(**{name: value}))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "sampling_params.stop_token_ids[0]", lambda: self.theirs(stop_token_ids=[5]))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "tokenized.input_ids[1]", lambda: self.theirs(ids=[5, 100000]))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "tokenized.input_ids", lambda: self.theirs(ids=[]))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "text", lambda: self.theirs(text=""))
        for field in (dict(kv_transfer_params_json="{}"), dict(mm_inputs=vllm.MultimodalInputs()), dict(data_parallel_rank=1)):
            self.fails(grpc.StatusCode.INVALID_ARGUMENT, next(iter(field)), lambda: list(self.engine.Generate(vllm.GenerateRequest(
                tokenized=vllm.TokenizedInput(input_ids=PROMPT), **field))))

    def test_constraints_hold(self):
        def text(**constraint):
            [message] = self.theirs(max_tokens=240, temperature=1, seed=3, stream=False, **constraint)
            self.assertEqual(message.complete.finish_reason, "stop")
            ids = list(message.complete.output_ids)
            return self.generation.Detokenize(gen.DetokenizeRequest(ids=ids)).text
        self.assertRegex(text(regex="[a-f]{3}-[0-9]{2}"), "^[a-f]{3}-[0-9]{2}$")
        self.assertIn(text(choice=vllm.ChoiceConstraint(choices=["red", "green"])), ("red", "green"))
        self.assertIn(text(grammar='root ::= "a" "b"+ "c" | "z"')[0], "az")
        schema = {"type": "object", "properties": {"on": {"type": "boolean"}, "n": {"enum": [1, 2]}}, "required": ["on", "n"]}
        found = json.loads(text(json_schema=json.dumps(schema), grammar_from_first_token=True))
        self.assertEqual((sorted(found), type(found["on"])), (["n", "on"], bool))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "sampling_params.choice.choices[1]",
                   lambda: self.theirs(choice=vllm.ChoiceConstraint(choices=["a", ""])))

    def test_garbage_is_told_as_ours(self):
        raw = self.channel.unary_stream(f"/{SERVICE}/Generate", request_serializer=lambda r: r, response_deserializer=lambda r: r)
        self.assertEqual(self.fails(grpc.StatusCode.INVALID_ARGUMENT, "request", lambda: list(raw(b"\xff\xff"))).details(),
                         "request: is not a vllm.grpc.engine.GenerateRequest")
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "text", lambda: list(raw(b"\x1a\x01\xff")))

    # --- Optimization ---

    def gate(self, *metadata, ids=PROMPT):
        call = self.engine.Generate(request(ids=ids, max_tokens=8, ignore_eos=True), metadata=metadata, timeout=60)
        tokens = ids_of(call)
        trailing = dict(call.trailing_metadata())
        return tokens, trailing["c3po-method"], trailing["c3po-gate"]

    def test_nothing_chosen_is_what_a_plain_request_gets(self):
        ours = self.ours(max_tokens=8, ignore_eos=True)
        method = opt.Method.Name(ours[0].optimization.method).removeprefix("METHOD_").lower()
        gate = opt.GateDecision.Name(ours[0].optimization.gate).removeprefix("GATE_DECISION_").lower()
        self.assertEqual(self.gate(), (tokens_of(ours), method, gate))

    def test_metadata_choose_collection_and_method(self):
        collections = pb["reference_pb2_grpc"].ReferenceServiceStub(self.channel)
        for word, method in (("none", opt.METHOD_NONE), ("ngd", opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT), ("kernel", opt.METHOD_KERNEL_REGRESSION)):
            ours = self.ours(opt.OptimizationOptions(collection="set", method=method), max_tokens=8, ignore_eos=True)
            tokens, name, gate = self.gate(("c3po-collection", "set"), ("c3po-method", word))
            self.assertEqual(tokens, tokens_of(ours))
            self.assertEqual(name, opt.Method.Name(method).removeprefix("METHOD_").lower())
            self.assertEqual(gate, opt.GateDecision.Name(ours[0].optimization.gate).removeprefix("GATE_DECISION_").lower())
        collections.SetProfile(ref.SetProfileRequest(collection="set", profile=opt.OptimizationOptions(
            method=opt.METHOD_KERNEL_REGRESSION, gate=opt.GateOptions(enabled=False))))
        try:
            self.assertEqual(self.gate(("c3po-collection", "set"))[1:], ("kernel_regression", "applied"))
        finally:
            collections.SetProfile(ref.SetProfileRequest(collection="set"))

    def test_metadata_that_choose_nothing_are_refused(self):
        for key, value in (("c3po-method", "magic"), ("c3po-method", "oracle"), ("c3po-collecton", "set")):
            self.fails(grpc.StatusCode.INVALID_ARGUMENT, key, lambda: self.gate((key, value)))
        ours = self.fails(grpc.StatusCode.NOT_FOUND, None, lambda: self.ours(opt.OptimizationOptions(collection="nowhere")))
        theirs = self.fails(grpc.StatusCode.NOT_FOUND, None, lambda: self.gate(("c3po-collection", "nowhere")))
        self.assertEqual(ours.details().replace("optimization.collection", "c3po-collection"), theirs.details())

    # --- The other methods ---

    def embed(self, ids):
        return self.engine.Embed(vllm.EmbedRequest(request_id="e", tokenized=vllm.TokenizedInput(input_ids=ids)), timeout=60)

    def test_embeddings_are_of_unit_length_and_the_servers_own(self):
        answer, again, other = self.embed(PROMPT), self.embed(PROMPT), self.embed([60, 61, 62])
        self.assertEqual(answer.embedding_dim, self.info.embedder.dimension)
        self.assertEqual(len(answer.embedding), answer.embedding_dim)
        self.assertEqual(answer.prompt_tokens, len(PROMPT))
        self.assertAlmostEqual(math.fsum(x * x for x in answer.embedding), 1, places=4)
        self.assertEqual(list(answer.embedding), list(again.embedding))
        self.assertNotEqual(list(answer.embedding), list(other.embedding))
        # The distance that Search tells of a reference is that of the two embeddings.
        [hit] = self.references.Search(ref.SearchReferencesRequest(collection="set", text="What is 50 modulo seven?", k=1)).hits
        tokenize = lambda text: self.generation.Tokenize(gen.TokenizeRequest(text=text, add_special_tokens=False)).ids
        a, b = (self.embed(tokenize(text)).embedding for text in ("What is 50 modulo seven?", hit.reference.sample.prompt))
        self.assertAlmostEqual(math.dist(a, b), hit.distance, places=4)

    def test_what_cannot_be_embedded_is_refused(self):
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "tokenized.input_ids", lambda: self.embed([]))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "tokenized.input_ids[0]", lambda: self.embed([100000]))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "tokenized.input_ids", lambda: self.embed([5] * 1000))

    def test_health(self):
        self.assertTrue(self.engine.HealthCheck(vllm.HealthCheckRequest()).healthy)
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=lambda r: r, response_deserializer=lambda r: r)
        self.assertEqual(check(b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode()), b"\x08\x01")

    def test_the_model_is_told_as_gateways_need_it(self):
        info = self.engine.GetModelInfo(vllm.GetModelInfoRequest())
        config = json.loads((server_process.TINY_MODEL / "config.json").read_text())
        self.assertEqual((info.model_path, info.tokenizer_path), (str(server_process.TINY_MODEL),) * 2)
        self.assertEqual(info.served_model_name, self.info.model.name)
        self.assertEqual((info.model_type, list(info.architectures)), (config["model_type"], config["architectures"]))
        self.assertEqual((info.vocab_size, info.max_context_length), (config["vocab_size"], config["max_position_embeddings"]))
        self.assertEqual(info.max_req_input_len, config["max_position_embeddings"] - 1)
        self.assertIn(config["eos_token_id"], info.eos_token_ids)
        self.assertEqual(info.pad_token_id, config["pad_token_id"])
        self.assertTrue(info.is_generation)
        self.assertFalse(info.supports_vision)
        self.assertEqual(json.loads(info.default_sampling_params_json)["temperature"], 0)

    def test_the_tokenizer_comes_as_an_archive(self):
        chunks = list(self.engine.GetTokenizer(common.GetTokenizerRequest(), timeout=60))
        data = b"".join(chunk.data for chunk in chunks)
        self.assertEqual([chunk.sha256 for chunk in chunks], [""] * (len(chunks) - 1) + [hashlib.sha256(data).hexdigest()])
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.assertIsNone(archive.testzip())
            self.assertEqual(sorted(archive.namelist()), ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
            for name in archive.namelist():
                self.assertEqual(archive.read(name), (server_process.TINY_MODEL / name).read_bytes())

    def test_an_idle_server_says_so(self):
        info = self.engine.GetServerInfo(vllm.GetServerInfoRequest())
        self.assertEqual((info.active_requests, info.is_paused, info.data_parallel_size, info.max_num_seqs), (0, False, 1, 32))
        self.assertGreater(info.uptime_seconds, 0)
        loads = self.engine.GetLoads(vllm.GetLoadsRequest(include=["core"]))
        [load] = loads.loads
        self.assertEqual((load.num_running_reqs, load.num_waiting_reqs, load.num_used_tokens, load.token_usage), (0, 0, 0, 0))
        self.assertEqual(load.max_total_num_tokens, self.info.limits["kv_cache_tokens"])
        self.assertEqual(loads.version, self.info.version)
        self.assertFalse(self.engine.GetLoads(vllm.GetLoadsRequest(dp_rank=1)).loads)

    def test_what_the_server_has_not_is_unimplemented(self):
        for made in (lambda: self.engine.FlushCache(common.FlushCacheRequest()), lambda: self.engine.StartProfile(common.StartProfileRequest()),
                     lambda: self.engine.StopProfile(common.StopProfileRequest()),
                     lambda: list(self.engine.SubscribeKvEvents(common.SubscribeKvEventsRequest()))):
            with self.assertRaises(grpc.RpcError) as caught:
                made()
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_calls_are_counted_and_logged(self):
        name = 'c3po_rpc_total{code="OK",method="Generate",service="VllmEngine"} '
        count = lambda: next(float(line.removeprefix(name)) for line in self.server.http("/metrics").splitlines() if line.startswith(name))
        before = count()
        self.theirs(max_tokens=3, ignore_eos=True, request_id="count me")
        self.assertEqual(count(), before + 1)
        lines = [json.loads(line) for line in self.server.log if "count me" in line]
        self.assertEqual([(line["event"], line["method"], line["prompt_tokens"], line["completion_tokens"]) for line in lines],
                         [("call", "VllmEngine/Generate", len(PROMPT), 3)])


if __name__ == "__main__":
    unittest.main()
