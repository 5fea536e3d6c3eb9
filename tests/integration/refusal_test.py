"""What c3pod says of a model folder that it does not load, and that `c3pod inspect` says the same first. usage: refusal_test.py C3POD"""

import json
import os
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

    def start(self, flags):
        """A start that must fail: the last line of its standard error. One that waits for ever fails by the time limit."""
        settings = {"--model": self.model, "--store": self.folder / "store.db", "--listen": "127.0.0.1:0", "--metrics-port": 0,
                    "--embedder": "model", **flags}
        ended = subprocess.run([BINARY, *(str(word) for setting in settings.items() for word in setting)], capture_output=True, text=True,
                               timeout=60)
        self.assertIn(ended.returncode, (1, 2), ended.stderr)
        return ended.stderr.strip().splitlines()[-1]

    def test_what_is_no_regular_file_is_refused_by_name_wherever_the_server_opens_one(self):
        flags_of = lambda path: {"--auth-tokens": {"--auth-tokens": path}, "--config": {"--config": path},
                                 "--tls-cert": {"--tls-cert": path, "--tls-key": path}, "--store": {"--store": path}}
        path = self.folder / "wrong"
        kinds = {"FIFO": lambda: os.mkfifo(path), "folder": path.mkdir, "device": lambda: path.symlink_to("/dev/zero"),
                 "bytes, at most": lambda: self.sparse(path)}
        for kind, make in kinds.items():
            make()
            for flag, flags in flags_of(path).items():
                with self.subTest(flag=flag, kind=kind):
                    said = self.start(flags)
                    self.assertIn(str(path), said)
                    if flag != "--store":
                        self.assertIn(kind, said)
            for name in ("config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json", "model.safetensors",
                         "model.safetensors.index.json"):
                with self.subTest(name=name, kind=kind):
                    self.assertIn(name, self.start_with_model_file(name, path))
            path.rmdir() if kind == "folder" else path.unlink()

    def sparse(self, path):
        with open(path, "wb") as file:
            file.truncate(40 << 30)

    def start_with_model_file(self, name, path):
        """A start with a model folder whose file `name` is `path`."""
        original = self.model / name
        kept = self.folder / "kept"
        hidden = self.model / "model.safetensors"
        if name.endswith(".index.json"):  # It counts where the single file is not there.
            hidden.rename(self.folder / "hidden")
        if original.exists():
            original.rename(kept)
        original.symlink_to(path)
        try:
            return self.start({})
        finally:
            original.unlink()
            if kept.exists():
                kept.rename(original)
            if name.endswith(".index.json"):
                (self.folder / "hidden").rename(hidden)


if __name__ == "__main__":
    unittest.main()
