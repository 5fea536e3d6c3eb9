"""A model by its name on the hub: a c3pod that serves it and says so, and c3pod, deploy/evaluation and huggingface_hub finding the same
folder in caches of every kind. usage: hub_names_test.py C3POD C3PO, with the interpreter that has huggingface_hub."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

BINARY, CLIENT = sys.argv.pop(1), sys.argv.pop(1)
SOURCE = pathlib.Path(__file__).resolve().parents[2]
MODEL = SOURCE / "tests" / "golden" / "model" / "olmoe_tiny"
NAME = "allenai/OLMoE-1B-7B-0924"
MAIN, TAGGED, PARTIAL = "0123456789" * 4, "89abcdef01" * 4, "fedcba9876" * 4
REFS = {"main": MAIN, "v1.0": TAGGED, "refs/pr/7": TAGGED, "half": PARTIAL, "gone": "1" * 40}

# Prints the folder that huggingface_hub gives for a name and a revision, or nothing; and that of a file alone.
ASK_HUB = """import json, sys
from huggingface_hub import snapshot_download, try_to_load_from_cache
answers = {}
for revision in json.loads(sys.argv[2]):
    try: folder = snapshot_download(sys.argv[1], revision=revision, local_files_only=True)
    except Exception: folder = None
    file = try_to_load_from_cache(sys.argv[1], "config.json", revision=revision)
    answers[revision] = [folder, file if isinstance(file, str) else None]
print(json.dumps(answers))"""
ASK_PAPER = """import json, sys
sys.path.insert(0, sys.argv[3])
import paper_files
print(json.dumps({revision: str(paper_files.snapshot("models", sys.argv[1], revision) or "") for revision in json.loads(sys.argv[2])}))"""


class HubNamesTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="c3po_hub_"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(("HF_", "HUGGINGFACE_", "XDG_CACHE"))}
        self.environment.update(HOME=str(self.folder / "home"), HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1",
                                C3PO_TEST_CACHE=str(self.folder / "own"))

    def make_cache(self, cache: pathlib.Path) -> pathlib.Path:
        """The tiny model under NAME; the revision `half` lacks its weights."""
        model = cache / "models--allenai--OLMoE-1B-7B-0924"
        for revision, commit in REFS.items():
            ref = model / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)
        (model / "blobs").mkdir()
        files = [path for path in MODEL.iterdir() if path.name != "golden.safetensors"]
        for path in files:
            shutil.copy(path, model / "blobs" / f"blob-of-{path.name}")
        for commit in (MAIN, TAGGED, PARTIAL):
            snapshot = model / "snapshots" / commit
            snapshot.mkdir(parents=True)
            for path in files:
                if commit != PARTIAL or path.name != "model.safetensors":
                    (snapshot / path.name).symlink_to(f"../../blobs/blob-of-{path.name}")
        (model / "trees").mkdir()
        tree = {"format_version": 1, "files": {path.name: {"size": path.stat().st_size, "blob_id": "0"} for path in files}}
        (model / "trees" / f"{PARTIAL}.json").write_text(json.dumps(tree))
        return model

    def output(self, *command, code=0, **variables):
        done = subprocess.run([str(word) for word in command], env={**self.environment, **variables}, capture_output=True, text=True,
                              timeout=120, check=False)
        self.assertEqual(done.returncode, code, done.stderr + done.stdout)
        return done.stdout or done.stderr

    def inspected(self, revision, **variables):
        """The folder that c3pod would load, or why it would load none."""
        done = subprocess.run([BINARY, "inspect", NAME, "--revision", revision, "--json"], capture_output=True, text=True, timeout=60,
                              env={**self.environment, **variables}, check=False)
        card = json.loads(done.stdout)
        self.assertEqual((done.returncode == 0, card["name"]), (card["loads"], NAME))
        return (card["folder"], None) if card["loads"] else (None, card["problems"][0])

    def test_c3pod_finds_what_huggingface_hub_finds(self):
        caches = {"hub-cache": {"HF_HUB_CACHE": "${C3PO_TEST_CACHE}/a", "HF_HOME": "/nowhere"},
                  "old": {"HUGGINGFACE_HUB_CACHE": "$C3PO_TEST_CACHE/b"}, "home": {"HF_HOME": "~/hf"},
                  "xdg": {"XDG_CACHE_HOME": str(self.folder / "xdg")}, "default": {}}
        places = {"hub-cache": "own/a", "old": "own/b", "home": "home/hf/hub", "xdg": "xdg/huggingface/hub",
                  "default": "home/.cache/huggingface/hub"}
        everything = [*REFS, MAIN, PARTIAL, "none", MAIN[:7], "refs/pr"]
        for kind, variables in caches.items():
            revisions = everything if kind == "hub-cache" else ["main"]
            model = self.make_cache(self.folder / places[kind])
            hub = json.loads(self.output(sys.executable, "-c", ASK_HUB, NAME, json.dumps(revisions), **variables))
            paper = json.loads(self.output(sys.executable, "-c", ASK_PAPER, NAME, json.dumps(list(REFS)),
                                           SOURCE / "deploy" / "evaluation", **variables))
            for revision in revisions:
                with self.subTest(cache=kind, revision=revision):
                    folder, problem = self.inspected(revision, **variables)
                    self.assertEqual(folder, hub[revision][0])
                    if folder is None:
                        self.assertIn(f"hf download {NAME} --revision {revision}", problem)
                    else:
                        self.assertEqual(f"{folder}/config.json", hub[revision][1])
            self.assertEqual(hub["main"][0], str(model / "snapshots" / MAIN))
            for revision in {"main", "v1.0", "refs/pr/7"}.intersection(revisions):
                self.assertEqual(paper[revision], hub[revision][0])
            self.assertEqual(paper["gone"], "")

    def test_a_server_is_called_by_the_hubs_name_and_c3po_inspects_by_it(self):
        self.make_cache(self.folder / "hub")
        self.environment["HF_HUB_CACHE"] = str(self.folder / "hub")
        card = json.loads(self.output(CLIENT, "model", "inspect", NAME, "--revision", "v1.0", "--json", "--c3pod", BINARY))
        self.assertEqual(card["folder"], str(self.folder / "hub" / "models--allenai--OLMoE-1B-7B-0924" / "snapshots" / TAGGED))
        log = self.folder / "log"
        with log.open("w") as file:  # The revision comes from the environment.
            server = subprocess.Popen([BINARY, "--model", NAME, "--embedder", "model", "--store", self.folder / "store.db",
                                       "--listen", f"unix:{self.folder}/socket", "--metrics-port", "-1"], stderr=file,
                                      env={**self.environment, "C3PO_REVISION": "v1.0"})
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)
        info = json.loads(self.output(CLIENT, "info", "--wait", 60, "--json", "--server", f"unix:{self.folder}/socket"))
        self.assertEqual(info["model"]["name"], NAME)
        loaded = next(json.loads(line) for line in log.read_text().splitlines() if '"model_loaded"' in line)
        self.assertEqual((loaded["name"], loaded["folder"]), (NAME, card["folder"]))

    def test_a_start_that_finds_no_model_or_embedder_says_which_and_what_brings_it(self):
        self.make_cache(self.folder / "hub")
        self.environment["HF_HUB_CACHE"] = str(self.folder / "hub")
        start = (BINARY, "--store", self.folder / "store.db", "--listen", "127.0.0.1:0", "--metrics-port", "-1", "--log-level", "error")
        whole = ("--model", NAME)
        for flags, said in [
                (("--model", "org/none"), "c3pod: --model: org/none: is no folder"),
                ((*whole, "--revision", "half"), "without model.safetensors. "),
                ((*whole, "--embedder", "org/none"), "c3pod: --embedder: org/none: is no folder"),
                ((*whole, "--embedder", NAME, "--embedder-revision", "half"), f"c3pod: --embedder: {NAME}: "),
                ((*whole, "--revision", "../../x"), "c3pod: --revision: "),
                (("--model", "../../x"), "c3pod: --model: "),
                (("--model", MODEL, "--revision", "main"), "which has no revisions")]:
            with self.subTest(flags=flags):
                self.assertIn(said, self.output(*start, *flags, code=1))
        said = self.output(*start, *whole, "--embedder", "model", "--embedder-revision", "main", code=2)
        self.assertIn("--embedder-revision: ", said)


if __name__ == "__main__":
    unittest.main()
