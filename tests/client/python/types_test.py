"""mypy --strict over the package as it is installed, over a program that uses it, and over programs that use it wrongly.
usage: types_test.py, with the Python of deploy/install_deps.sh's client tools"""

import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import installed_client

RIGHT = """
import asyncio
from c3po.v1 import generation_pb2 as gen
from c3po_client import AsyncClient, Client, RetryPolicy, Tls, likeliest

def ask(client: Client) -> str:
    with client.generate("hi", sampling={"max_tokens": 3}, optimization={"method": "ngd", "gate": {"enabled": False}}) as generation:
        for event in generation:
            match event:
                case gen.TextDelta():
                    print(event.text)
                case gen.OptimizationReport():
                    print(list(event.losses))
                case gen.GenerationSummary():
                    print(event.usage.prompt_tokens)
        return generation.text()

def label(client: Client) -> int:
    return likeliest(client.score("Q:", [" a", " b"], optimization=gen.GenerateRequest().optimization, timeout=3))

def grow(client: Client) -> int:
    outcome = client.references.add([{"prompt": "p", "answer": " a", "choices": [" a", " b"]}], on_progress=lambda done: print(done.received))
    last = client.collections.tune_prior("default", {"epochs": 3}).last()
    return outcome.progress.received + (last.epoch if last is not None else 0)

async def ask_async(client: AsyncClient) -> str:
    async for event in client.chat([("user", "hi")]):
        print(event)
    references = [reference.id async for reference in client.references.list("default")]
    return await client.generate("hi").text() + references[0]

with Client("h:1", tls=Tls("ca.pem"), token="t", retry=RetryPolicy(attempts=2)) as c:
    print(ask(c), label(c), grow(c))
asyncio.run(ask_async(AsyncClient()))
"""
# (a line that is wrong, what mypy says of it).
WRONG = (
    ('client.generate("hi", optimization={"metod": "ngd"})', 'expected "OptimizationOptions | OptimizationFields | None"'),
    ('client.generate("hi", sampling={"max_tokens": "many"})', 'expected "SamplingOptions | SamplingFields | None"'),
    ("client.generate(7)", "incompatible type"),
    ('client.score("Q:", [" a"]).score', 'has no attribute "score"'),
    ('text: int = client.generate("hi").text()', "Incompatible types in assignment"),
    ('client.references.add([{"prompt": "p"}])', 'expected "ReferenceSample | SampleFields"'),
    ('client.references.add([{"prompt": "p", "answer": 3}])', 'expected "ReferenceSample | SampleFields"'),
    ('client.health() + 1', "Unsupported operand"),
    ('client.collections.tune_prior("a", {"epoch": 3})', 'expected "TunePriorFields | None"'),
    ('client.call(methods.SCORE, gen.TokenizeRequest())', 'Cannot infer value of type parameter "RequestT"'),
)


class TypesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="c3po_types_")
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.python = installed_client.fresh_environment(cls.folder)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def mypy(self, *arguments):
        configuration = installed_client.SOURCE / "client" / "python" / "pyproject.toml"
        command = [sys.executable, "-m", "mypy", "--config-file", configuration, "--python-executable", self.python,
                   "--cache-dir", self.folder / "cache", *arguments]
        return subprocess.run(list(map(str, command)), cwd=self.folder, capture_output=True, text=True)

    def test_the_package_is_typed_throughout(self):
        done = self.mypy("-p", "c3po_client")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        modules = len(list((installed_client.SOURCE / "client" / "python" / "c3po_client").glob("*.py")))
        self.assertIn(f"no issues found in {modules} source files", done.stdout)

    def test_a_program_that_uses_it_is(self):
        (self.folder / "right.py").write_text(RIGHT)
        done = self.mypy("right.py")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_wrong_uses_are_found(self):
        head = "from c3po.v1 import generation_pb2 as gen\nfrom c3po_client import Client, methods\nclient = Client()\n"
        (self.folder / "wrong.py").write_text(head + "\n".join(line for line, _ in WRONG) + "\n")
        found = self.mypy("wrong.py").stdout
        first = head.count("\n") + 1
        for number, (line, said) in enumerate(WRONG, first):
            with self.subTest(line):
                self.assertRegex(found, re.compile(rf"^wrong\.py:{number}: error: .*{re.escape(said)}", re.MULTILINE))


if __name__ == "__main__":
    unittest.main()
