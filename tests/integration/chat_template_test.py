"""Conversations of a model whose chat template is of no known format: Jinja renders them in a process of its own.
usage: chat_template_test.py C3POD"""

import concurrent.futures
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import unittest

import grpc

import server_process
from service_calls import details, gen, opt, pb, tokens_of

BINARY = sys.argv.pop()

# The tiny model's tokenizer reads characters, and its context window holds 256 of them.
TEMPLATE = """{%- if messages[-1].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}
{%- if messages[0].role == 'assistant' %}{{ raise_exception('an assistant begins') }}{% endif %}
{%- for m in messages %}{{ m.role[0] | upper }}: {{ m.content | trim }}
{% endfor %}
{%- for t in tools or [] %}t {{ t.function | tojson }}
{% endfor %}
{%- for d in documents or [] %}d {{ d.text }}
{% endfor %}
{%- if mood is defined %}{{ mood }}{% endif %}
{%- if add_generation_prompt %}A:{% endif %}"""


def children_of(pid):
    """Processes of Python that live."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if int(parent) == pid and "python" in name and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


class ChatTemplateTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        cls.model = cls.folder / "model"
        shutil.copytree(server_process.TINY_MODEL, cls.model)
        (cls.model / "chat_template.jinja").write_text(TEMPLATE)
        cls.server = cls.start("store")
        channel = cls.server.channel()
        cls.generation = pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        cls.info = pb["server_pb2_grpc"].ServerServiceStub(channel)

    @classmethod
    def tearDownClass(cls):
        child = children_of(cls.server.process.pid)
        code = cls.server.stop()
        server_process.remove_folder(cls.folder)
        assert code == 0, code
        assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in child), "a process was left"

    @classmethod
    def start(cls, store, *flags):
        (cls.folder / store).mkdir(exist_ok=True)
        return server_process.ServerProcess(BINARY, cls.folder / store, *flags, model=cls.model)

    def generate(self, stub=None, **request):
        request.setdefault("sampling", gen.SamplingOptions(max_tokens=4, ignore_eos=True))
        options = opt.OptimizationOptions(method=opt.METHOD_NONE)
        return list((stub or self.generation).Generate(gen.GenerateRequest(optimization=options, **request), timeout=60))

    def chat(self, *turns, stub=None, **fields):
        messages = [turn if isinstance(turn, gen.ChatMessage) else gen.ChatMessage(role=turn[0], content=turn[1]) for turn in turns]
        return self.generate(stub, chat=gen.Chat(messages=messages, **fields))

    def reads(self, events, prompt):
        """That these events are the answer to `prompt`, as the model reads it."""
        ids = self.generation.Tokenize(gen.TokenizeRequest(text=prompt, add_special_tokens=False)).ids
        self.assertEqual(events[-1].summary.usage.prompt_tokens, len(ids))
        self.assertEqual(tokens_of(events), tokens_of(self.generate(token_ids=gen.TokenIds(ids=ids))))

    def fails(self, code, field, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        if field:
            self.assertEqual(details(caught.exception)[1], [field])
        return caught.exception.details()

    # --- What the model reads ---

    def test_the_model_reads_what_the_template_writes(self):
        self.reads(self.chat(("user", " Hi ")), "U: Hi\nA:")
        self.reads(self.chat(("system", "Be brief."), ("user", "2+2"), ("assistant", "4"), ("user", "3+3")), "S: Be brief.\nU: 2+2\nA: 4\nU: 3+3\nA:")
        self.reads(self.chat(("user", "Hi"), add_generation_prompt=False), "U: Hi\n")
        self.reads(self.chat(("developer", "Obey."), ("user", "Hi")), "S: Obey.\nU: Hi\nA:")
        self.reads(self.chat(("user", "Hi"), template_kwargs_json='{"mood": "!"}'), "U: Hi\n!A:")

    def test_tools_documents_and_the_results_of_tools_reach_the_template(self):
        tool = '{"type": "function", "function": {"name": "f", "n": 1.50}}'
        result = gen.ChatMessage(role="tool", content="3", fields_json='{"tool_call_id": "x"}')
        self.reads(self.chat(("user", "Hi"), result, tools_json=[tool]), 'U: Hi\nT: 3\nt {"name": "f", "n": 1.5}\nA:')
        self.reads(self.chat(("user", "Hi"), documents_json=['{"text": "rock"}']), "U: Hi\nd rock\nA:")

    def test_choices_of_a_conversation(self):
        request = gen.GenerateRequest(chat=gen.Chat(messages=[gen.ChatMessage(role="user", content="Hi")]), choices=[" a", " b"])
        events = list(self.generation.Generate(request, timeout=60))
        ids = self.generation.Tokenize(gen.TokenizeRequest(text="U: Hi\nA:", add_special_tokens=False)).ids
        self.assertEqual(events[-1].summary.usage.prompt_tokens, len(ids))
        self.assertEqual(len(events[-1].summary.choice_scores), 2)

    def test_a_server_says_that_it_takes_conversations(self):
        model = self.info.GetServerInfo(pb["server_pb2"].GetServerInfoRequest()).model
        self.assertTrue(model.chat)
        [line] = self.server.logged(event="chat_template")
        self.assertEqual(line["rendered_by"], "jinja")

    # --- What goes wrong ---

    def test_errors_name_the_field(self):
        wrong = grpc.StatusCode.INVALID_ARGUMENT
        self.assertIn("an assistant begins", self.fails(wrong, "chat", lambda: self.chat(("assistant", "Hi"))))
        self.fails(wrong, "chat.messages", lambda: self.chat())
        self.fails(wrong, "chat.messages[1].role", lambda: self.chat(("user", "Hi"), ("function", "Hi")))
        self.fails(wrong, "chat.tools_json[0]", lambda: self.chat(("user", "Hi"), tools_json=["[]"]))
        self.fails(wrong, "chat.template_kwargs_json", lambda: self.chat(("user", "Hi"), template_kwargs_json="1"))
        self.fails(wrong, "chat", lambda: self.chat(("user", "x" * 300)))  # Beyond the context window.

    def test_a_loop_without_end_costs_its_caller_a_second_and_other_prompts_nothing(self):
        with concurrent.futures.ThreadPoolExecutor() as threads:
            start = time.monotonic()
            loop = threads.submit(self.fails, grpc.StatusCode.INVALID_ARGUMENT, "chat", lambda: self.chat(("user", "loop")))
            time.sleep(0.2)
            plain = time.monotonic()
            self.generate(prompt="abc")
            self.assertFalse(loop.done(), f"a prompt waited {time.monotonic() - plain} s")
            self.reads(self.chat(("user", "next")), "U: next\nA:")
            self.assertIn("more than 1s", loop.result())
            self.assertLess(time.monotonic() - start, 10)

    def test_the_process_may_be_killed(self):
        for _ in range(3):
            self.chat(("user", "Hi"))
            child, = children_of(self.server.process.pid)
            os.kill(child, signal.SIGKILL)
            self.reads(self.chat(("user", "Hi")), "U: Hi\nA:")

    def test_a_hundred_conversations_at_once_and_no_descriptor_is_left(self):
        def run(number):
            return len(tokens_of(self.chat(("user", f"Hi {number}"))))

        descriptors = pathlib.Path(f"/proc/{self.server.process.pid}/fd")
        with concurrent.futures.ThreadPoolExecutor(100) as threads:
            self.assertEqual(list(threads.map(run, range(100))), [4] * 100)
            before = len(list(descriptors.iterdir()))
            self.assertEqual(list(threads.map(run, range(100))), [4] * 100)
        self.assertEqual(len(children_of(self.server.process.pid)), 1)
        self.assertLessEqual(len(list(descriptors.iterdir())), before)

    # --- Servers of their own ---

    def test_a_template_of_the_operators_takes_the_place_of_the_models(self):
        mine = self.folder / "mine.jinja"
        mine.write_text("{{ messages[-1].content }}!")
        server = self.start("other-store", "--chat-template", str(mine))
        stub = pb["generation_pb2_grpc"].GenerationServiceStub(server.channel())
        try:
            self.reads(self.chat(("user", "Hi"), stub=stub), "Hi!")
        finally:
            self.assertEqual(server.stop(), 0)
        run = subprocess.run([BINARY, "--model", self.model, "--store", self.folder / "none.db", "--embedder", "model", "--listen", "127.0.0.1:0",
                              "--metrics-port", "0", "--chat-template", self.folder / "missing.jinja"], capture_output=True, text=True, timeout=60)
        self.assertEqual(run.returncode, 1)
        self.assertIn("missing.jinja", run.stderr.splitlines()[-1])

    def test_without_python_prompts_are_served_and_the_message_says_what_to_install(self):
        server = self.start("bare-store", "--chat-python", "/nonexistent/python3")
        stub = pb["generation_pb2_grpc"].GenerationServiceStub(server.channel())
        info = pb["server_pb2_grpc"].ServerServiceStub(server.channel())
        try:
            told = self.fails(grpc.StatusCode.FAILED_PRECONDITION, None, lambda: self.chat(("user", "Hi"), stub=stub))
            self.assertIn("python3-jinja2", told)
            self.assertIn("/nonexistent/python3", told)
            self.assertEqual(len(tokens_of(self.generate(stub, prompt="Hi"))), 4)
            self.assertFalse(info.GetServerInfo(pb["server_pb2"].GetServerInfoRequest()).model.chat)
            self.assertTrue(any('"chat_unavailable"' in line for line in server.log))
        finally:
            self.assertEqual(server.stop(), 0)

    def test_the_process_dies_with_its_server(self):
        server = self.start("killed-store")
        child, = children_of(server.process.pid)
        server.stop(signal.SIGKILL)
        wait_until(lambda: not pathlib.Path(f"/proc/{child}").exists() or
                   pathlib.Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z")


if __name__ == "__main__":
    pathlib.Path(BINARY).resolve(strict=True)
    unittest.main(verbosity=2)
