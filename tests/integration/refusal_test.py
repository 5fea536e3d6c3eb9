"""What c3pod says of a model folder that it does not load, and that `c3pod inspect` says the same first. usage: refusal_test.py C3POD"""

import json
import shutil
import subprocess
import sys
import unittest

import server_process

BINARY = sys.argv.pop(1)


class RefusalTest(unittest.TestCase):
    def setUp(self):
        self.folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, self.folder)
        self.model = self.folder / "model"
        shutil.copytree(server_process.TINY_MODEL, self.model)

    def change(self, **fields):
        path = self.model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    def refusal(self):
        """Of the server, which exits with 1 and leaves one line; the first problem of the inspection is the same."""
        ended = subprocess.run([BINARY, "--model", self.model, "--store", self.folder / "store.db", "--listen", "127.0.0.1:0",
                                "--metrics-port", "0", "--embedder", "model"], capture_output=True, text=True, timeout=60)
        self.assertEqual(ended.returncode, 1, ended.stderr)
        inspected = subprocess.run([BINARY, "inspect", "--json", self.model], capture_output=True, text=True, timeout=60)
        self.assertEqual(inspected.returncode, 1)
        message = ended.stderr.strip().splitlines()[-1].removeprefix("c3pod: ")
        self.assertEqual(message, json.loads(inspected.stdout)["problems"][0])
        return message

    def test_an_unsupported_architecture_is_told_before_a_missing_tokenizer(self):
        self.change(architectures=["LlamaForCausalLM"])
        (self.model / "tokenizer.json").unlink()
        self.assertIn('architectures: "LlamaForCausalLM" is not supported', self.refusal())

    def test_a_missing_tensor_is_told_before_a_missing_tokenizer(self):
        self.change(num_hidden_layers=9)
        (self.model / "tokenizer.json").unlink()
        self.assertIn('tensor "model.layers.4.', self.refusal())

    def test_a_missing_tokenizer_is_told_before_the_weights_are_loaded(self):
        (self.model / "tokenizer.json").unlink()
        self.assertIn("tokenizer.json", self.refusal())


if __name__ == "__main__":
    unittest.main()
