#!/usr/bin/env python3
"""Tests of the comparison with other servers, against a fake one and, with its binary as argument, this project's: no peer has to be
installed.

    peers_test.py [C3POD]
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import sys
import tempfile
import unittest

import numpy

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parents[2]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import measurement
import model_folder
import peer_catalog
import peer_clients
import peer_process
import peers as command
import report

TINY = {**model_folder.SHAPE, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 8, "num_experts": 4, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 300}


def word(number):
    return "\u0120" + "".join("abcdefghij"[int(digit)] for digit in f"{number:03}")


def state(process):
    return list(peer_process.group_states(process.group).values())


class WithFolder(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix="c3po_peers_test_")
        self.addCleanup(holder.cleanup)
        self.folder = pathlib.Path(holder.name)
        self.tokenizer = self.folder / "tokenizer.json"
        vocabulary = {"Hello": 0, "\u0120a1": 1, "\u0120": 2, **{word(i): i + 3 for i in range(200)}}
        self.tokenizer.write_text(json.dumps({"model": {"vocab": vocabulary}}))
        self.model = model_folder.olmoe_shaped(self.folder, self.tokenizer, TINY)
        self.prompts = model_folder.Prompts(self.model)

    def fake(self, name, prefill=5, token=1, *more):
        port = peer_catalog.free_port()
        command = [sys.executable, HERE / "fake_peer.py", port, prefill, token, *more]
        peer = peer_catalog.Peer(name, "1", command, {}, peer_clients.LlamaServerClient(port))
        peer.start(self.folder)
        self.addCleanup(peer.process.stop)
        return peer


class ModelFolder(WithFolder):
    def test_weights_are_a_readable_checkpoint_with_every_tensor_where_the_header_says(self):
        content = (self.model / "model.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8:8 + length])
        del header["__metadata__"]
        self.assertEqual({name: tuple(entry["shape"]) for name, entry in header.items()}, model_folder.tensor_shapes(TINY))
        data, at = content[8 + length:], 0
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            self.assertEqual((begin, end), (at, at + 2 * int(numpy.prod(entry["shape"]))), name)
            at = end
        self.assertEqual(at, len(data))
        begin, end = header["model.norm.weight"]["data_offsets"]
        self.assertEqual(set(numpy.frombuffer(data[begin:end], "<u2")), {0x3F80})
        begin, end = header["model.embed_tokens.weight"]["data_offsets"]
        values = (numpy.frombuffer(data[begin:end], "<u2").astype("<u4") << 16).view("<f4")
        self.assertAlmostEqual(float(values.std()), model_folder.INIT_STD, delta=0.1 * model_folder.INIT_STD)

    def test_the_full_shape_has_as_many_parameters_as_it_is_known_for(self):
        count = sum(int(numpy.prod(shape)) for shape in model_folder.tensor_shapes(model_folder.SHAPE).values())
        self.assertAlmostEqual(count / 1e6, 215, delta=1)

    def test_rounding_is_to_the_nearest_bfloat16_and_ties_go_to_even(self):
        values = numpy.array([1.0, 1.00390625, 1.01171875, -2.5, 0.0], numpy.float32)
        self.assertEqual([hex(bits) for bits in model_folder.bfloat16_bits(values)], ["0x3f80", "0x3f80", "0x3f82", "0xc020", "0x0"])

    def test_it_is_made_once_and_a_tokenizer_that_is_not_there_is_named(self):
        self.tokenizer.unlink()
        self.assertEqual(model_folder.olmoe_shaped(self.folder, self.tokenizer, TINY), self.model)
        with self.assertRaisesRegex(SystemExit, "tokenizer.json"):
            model_folder.olmoe_shaped(self.folder / "elsewhere", self.tokenizer, TINY)


class PromptsTest(WithFolder):
    def test_a_key_gives_one_prompt_of_whole_words_and_another_key_another(self):
        first = self.prompts.tokens(64, 0, "decode")
        self.assertEqual(first, model_folder.Prompts(self.model).tokens(64, 0, "decode"))
        self.assertNotEqual(first, self.prompts.tokens(64, 1, "decode"))
        self.assertEqual(len(first), 64)
        self.assertTrue(all(3 <= token < 203 for token in first))
        self.assertEqual(self.prompts.text([3, 4]), " aaa aab")


class Clients(WithFolder):
    def test_an_answer_knows_when_its_tokens_came(self):
        answer = peer_clients.Answer(10.0, [(10.5, 1), (11.0, 2), (12.5, 9)])
        self.assertEqual((answer.first_token_seconds(), answer.seconds(), answer.decode_rate()), (0.5, 2.5, 4.0))

    def test_a_stream_is_read_with_its_counts(self):
        answer = self.fake("a", 20, 2).client.answer([3] * 64, 10)
        self.assertEqual((answer.prompt_tokens, answer.completion_tokens, [tokens for _, tokens in answer.arrivals]),
                         (64, 10, list(range(1, 11))))
        self.assertGreaterEqual(answer.first_token_seconds(), 0.02)
        self.assertGreaterEqual(answer.seconds(), 0.02 + 9 * 0.002)

    def test_a_short_answer_and_an_error_of_the_server_are_refused(self):
        client = self.fake("a", 0, 0, "short").client
        with self.assertRaisesRegex(peer_clients.WrongAnswer, "64 prompt tokens and 9 new ones, asked were 64 and 10"):
            peer_clients.check_counts("decode", [client.answer([3] * 64, 10)], 64, 10)
        vllm = self.read_lines([{"usage": {"prompt_tokens": 5, "completion_tokens": 1}}, {"usage": None},
                                {"usage": {"prompt_tokens": 5, "completion_tokens": 4}}])
        answer = vllm.answer([1] * 5, 4)
        self.assertEqual((answer.prompt_tokens, answer.completion_tokens, [tokens for _, tokens in answer.arrivals]), (5, 4, [1, 4]))
        with self.assertRaisesRegex(peer_clients.WrongAnswer, "HTTP 501"):
            list(peer_clients.HttpClient(self.only_gets()).lines("/completion", {}))

    def read_lines(self, events):
        client = peer_clients.VllmClient(0, "m")
        client.lines = lambda path, body: ["", *(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]
        return client

    def only_gets(self):
        port = peer_catalog.free_port()
        process = peer_process.PeerProcess([sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", self.folder],
                                           self.folder / "log")
        self.addCleanup(process.stop)
        client = peer_clients.HttpClient(port)
        client.health = "/"
        process.wait_until(client.ready, 30)
        return port


class OnAClock(peer_clients.HttpClient):
    """A peer on a clock of its own that serves one call after the other."""

    def __init__(self, prefill, token):
        super().__init__(0)
        self.prefill, self.token, self.now = prefill, token, 0.0

    def answer(self, prompt, max_tokens):
        first = self.now + self.prefill
        answer = peer_clients.Answer(self.now, [(first + i * self.token, i + 1) for i in range(max_tokens)], len(prompt), max_tokens)
        self.now = answer.arrivals[-1][0]
        return answer

    def answers(self, prompts, max_tokens):
        start = self.now
        return [dataclasses.replace(self.answer(prompt, max_tokens), sent=start) for prompt in prompts]


class Processes(WithFolder):
    def test_one_runs_while_all_others_are_stopped_and_in_the_end_all_run(self):
        started = {name: self.fake(name).process for name in "abc"}
        with peer_process.OneAtATime(started) as turns:
            for name in "abca":
                turns.let_run(name)
                stopped = {other for other, process in started.items() if state(process) == ["T"]}
                self.assertEqual(stopped, set("abc") - {name})
        self.assertFalse([process for process in started.values() if "T" in state(process)])

    def test_memory_and_pauses_are_those_of_the_whole_group_and_stopping_ends_it(self):
        script = "import subprocess, sys, time; b = b'x' * 50_000_000; subprocess.Popen([sys.executable, '-c', 'b = b\"x\" * 50_000_000\\n" \
                 "import time; time.sleep(600)']); time.sleep(600)"
        process = peer_process.PeerProcess([sys.executable, "-c", script], self.folder / "log")
        process.wait_until(lambda: process.resident_bytes() > 100_000_000, 30)
        process.pause()
        self.assertEqual(state(process), ["T", "T"])
        process.stop()
        self.assertEqual(state(process), [])

    def test_one_that_does_not_come_up_is_told_with_the_end_of_its_log(self):
        script = "print('no such model'); raise SystemExit(3)"
        process = peer_process.PeerProcess([sys.executable, "-c", script], self.folder / "log")
        with self.assertRaisesRegex(peer_process.PeerFailed, "ended with 3: no such model"):
            process.wait_until(lambda: False, 30)


class Turns(WithFolder):
    def test_peers_alternate_within_each_measure_of_each_round(self):
        peers = {name: self.fake(name) for name in "ab"}
        order = []

        def measure(kind, figure):
            def run(client, prompts, round):
                name = next(name for name in peers if peers[name].client is client)
                order.append((round, kind, name))
                return {figure: len(order)}
            return run

        measures = [measure(0, measurement.DECODE), measure(1, measurement.STREAMS_8)]
        values = measurement.take_turns(peers, self.prompts, 2, measures=measures)
        self.assertEqual(order, list(itertools.product([0, 1], [0, 1], "ab")))
        self.assertEqual(values["a"], {measurement.DECODE.name: [1, 5], measurement.STREAMS_8.name: [3, 7]})

    def test_figures_follow_from_when_the_tokens_came(self):
        peers = {"a": self.fake("a")}
        peers["a"].client = OnAClock(prefill=0.0625, token=0.0078125)
        values = measurement.take_turns(peers, self.prompts, 2)["a"]
        whole_8 = 8 * (0.0625 + 63 * 0.0078125)  # One after the other.
        self.assertEqual({name: values[name] for name in (figure.name for figure in measurement.FIGURES) if name in values}, {
            measurement.DECODE.name: [128.0] * 2, measurement.FIRST_TOKEN.name: [62.5] * 2, measurement.PREFILL_SHORT.name: [64 / 0.0625] * 2,
            measurement.PREFILL_LONG.name: [512 / 0.0625] * 2, measurement.STREAMS_8.name: [8 * 64 / whole_8] * 2,
            measurement.STREAMS_32.name: [8 * 64 / whole_8] * 2, measurement.DECODE_BESIDE.name: [128.0] * 2})

    def test_a_peer_that_fails_is_left_out_and_the_others_go_on(self):
        told = []
        peers = {"a": self.fake("a"), "short": self.fake("short", 0, 0, "short")}
        values = measurement.take_turns(peers, self.prompts, 1, told.append)
        self.assertEqual(set(values), {"a"})
        self.assertEqual(len(values["a"]), 7)
        self.assertTrue([line for line in told if line.startswith("short: left out")], told)


NO_BYTES = {"weights": 0, "encoder": 0, "kv": 0}


def one_value(**of):
    return {peer.replace("_", "."): {measurement.DECODE.name: [value] * 2 + [1e9], measurement.FIRST_TOKEN.name: [1e3 / value] * 3}
            for peer, value in of.items()}


class Report(unittest.TestCase):
    def test_the_table_has_medians_and_ratios_and_blanks_where_nothing_was_measured(self):
        lines = report.table(one_value(c3po=60.0, llama_cpp=50.0), 430e6).splitlines()
        self.assertEqual(lines[0], "| median of each | C3PO | llama.cpp | C3PO / llama.cpp |")
        self.assertEqual(lines[2], f"| {measurement.DECODE.name}, tokens/s | 60.0 | 50.0 | 1.20x |")
        self.assertEqual(lines[4], f"| {measurement.PREFILL_SHORT.name}, tokens/s |  |  |  |")
        self.assertEqual(lines[-1], "| weights, MB | 430 |  |  |")
        self.assertEqual({line.count("|") for line in lines}, {5})

    def test_a_mark_is_against_its_peer_or_the_best_one_and_a_miss_says_by_how_much(self):
        text = report.marks_table(one_value(c3po=52.0, llama_cpp=50.0, vllm=80.0), NO_BYTES, {})
        self.assertIn(f"| {measurement.DECODE.name}: ≥ 1.3x llama.cpp | 1.04x | missed by 20% |", text)
        self.assertIn(f"| {measurement.FIRST_TOKEN.name}: ≤ 1.0x the best peer (vLLM) | 1.54x | missed by 54% |", text)
        self.assertIn("reached", report.marks_table(one_value(c3po=66.0, llama_cpp=50.0), NO_BYTES, {}))
        self.assertNotIn("first token", report.marks_table(one_value(c3po=66.0, llama_cpp=50.0), None, {}, 4))
        self.assertNotIn("llama.cpp", report.marks_table(one_value(c3po=66.0, vllm=50.0), NO_BYTES, {}))

    def test_the_slowdown_beside_a_competitor_is_of_one_stream(self):
        values = {"c3po": {measurement.DECODE.name: [60.0], measurement.DECODE_BESIDE.name: [20.0]}}
        self.assertIn("| 3.00x | missed by 36% |", report.marks_table(values, NO_BYTES, {}))

    def test_memory_counts_beyond_weights_and_cache(self):
        values = {"c3po": {measurement.RESIDENT_LOADED.name: [600.0], measurement.RESIDENT_END.name: [900.0]}}
        bytes_of = {"weights": 340_000_000, "encoder": 90_000_000, "kv": 400_000_000}
        self.assertIn("| 170 MB after load, 70 MB at the end | missed by 20 MB |", report.marks_table(values, bytes_of, {}))

    def test_the_cost_is_the_median_of_differences_within_a_round(self):
        cost = {"none": [1000.0, 2000.0, 1000.0], "first": [1500.0, 2600.0, 1900.0], "again": [1100.0, 2100.0, 1200.0],
                "embed": [5.0] * 3, "retrieval": [1.0] * 3, "optimization": [80.0] * 3, "streams": [100.0, 200.0, 100.0],
                "streams_beside": [75.0, 150.0, 90.0]}
        self.assertEqual((report.added(cost, "first"), report.added(cost, "again")), (600.0, 100.0))
        self.assertIn("| added, neighbors known | 100 | 10% |", report.cost_table(cost))
        self.assertIn("| 10% | reached |", report.marks_table({}, NO_BYTES, cost))
        self.assertIn("| 75% | missed by 5% of it |", report.marks_table({}, NO_BYTES, cost))


class Command(WithFolder):
    def test_peers_that_are_not_there_are_left_out_with_a_line_each(self):
        arguments = argparse.Namespace(model=self.model, cache=self.folder, threads=1, bits=16, peers=",".join(peer_catalog.NAMES), c3pod="no/c3pod",
                                       llama_server=None, llama_convert=None, llama_quantize=None, llama_python=None, llama_version=None, vllm_python=None,
                                       vllm_dtype="bfloat16", transformers_python=None, transformers_dtype="bfloat16")
        path, os.environ["PATH"] = os.environ["PATH"], str(self.folder)
        try:
            peers, left_out = command.start_peers(arguments, self.folder, {})
        finally:
            os.environ["PATH"] = path
        self.assertEqual(peers, {})
        self.assertEqual([line.split(" is left out: ")[0] for line in left_out], list(peer_catalog.NAMES.values()))
        self.assertIn("no/c3pod is not built", left_out[0])

    def test_a_file_of_fewer_bits_is_made_from_the_whole_one_once(self):
        quantize = self.folder / "quantize"
        quantize.write_text('#!/bin/sh\n[ -f "$1" ] && echo "$3 $4" >> "$2"\n')
        quantize.chmod(0o755)
        arguments = argparse.Namespace(model=self.model, cache=self.folder, threads=2, bits=4, llama_convert=None, llama_quantize=None,
                                       llama_python=None, transformers_python=None)
        with self.assertRaisesRegex(peer_process.PeerFailed, "olmoe-shaped.gguf is not there.*--llama-convert"):
            peer_catalog.gguf_of(arguments)
        (self.folder / "olmoe-shaped.gguf").write_text("whole")
        with self.assertRaisesRegex(peer_process.PeerFailed, "olmoe-shaped.Q4_K_M.gguf is not there.*--llama-quantize"):
            peer_catalog.gguf_of(arguments)
        arguments.llama_quantize = quantize
        for _ in range(2):
            self.assertEqual(peer_catalog.gguf_of(arguments).read_text(), "Q4_K_M 2\n")
        arguments.bits = 16
        self.assertEqual(peer_catalog.gguf_of(arguments).read_text(), "whole")

    def test_what_is_written_names_model_machine_and_commands_without_paths_of_this_machine(self):
        peer = self.fake("llama.cpp")
        arguments = argparse.Namespace(model=self.model, bits=16, rounds=2, threads=1)
        text = command.markdown(arguments, {"llama.cpp": peer}, ["vLLM is left out: no vllm."], one_value(llama_cpp=50.0), {}, "2 cores")
        for part in ("`olmoe-shaped`, weights of 16 bits, 2 rounds, 1 threads each. 2 cores.", "vLLM is left out: no vllm.", "- llama.cpp, 1: `", "PORT 5 1`"):
            self.assertIn(part, text)
        self.assertNotIn(str(HERE), text)

    def test_the_machine_is_described(self):
        self.assertRegex(report.machine(), r"^\d+ cores of .*avx2.*\d+ GiB, Linux .*; load average before \d")


class BytePrompts(model_folder.Prompts):
    """For the tiny models of the goldens, whose tokens are bytes."""

    def __init__(self):
        self.words, self.seed = {ord(letter): letter for letter in "abcdefghijklmnop"}, 1
        self.ids = sorted(self.words)


class WithServer(WithFolder):
    binary = None

    def test_this_server_answers_like_a_peer_and_its_cost_is_told_by_use_and_stage(self):
        import server_process
        tiny = SOURCE / "tests" / "golden" / "model" / "olmoe_tiny"
        arguments = argparse.Namespace(c3pod=self.binary, model=tiny, threads=1, bits=4, cache=self.folder / "bench")
        peer = peer_catalog.c3po(arguments, self.folder, server_process.make_stubs())
        peer.start(self.folder)
        self.addCleanup(peer.process.stop)
        self.assertGreater(peer.resident_loaded, 10e6)
        figures = measurement.measure_stream(peer.client, BytePrompts(), 0)
        self.assertGreater(figures[measurement.DECODE], 0)
        cost = measurement.c3po_cost(peer, {}, BytePrompts(), 2)
        self.assertEqual({use: len(values) for use, values in cost.items()},
                         dict.fromkeys(["none", "first", "again", "embed", "retrieval", "optimization", "streams", "streams_beside"], 2))
        self.assertGreater(min(cost["optimization"]), 0)


if __name__ == "__main__":
    if sys.argv[1:]:
        WithServer.binary = sys.argv.pop(1)
        sys.path.append(str(SOURCE / "tests" / "integration"))
    else:
        del WithServer
    unittest.main()
