"""The lm-evaluation-harness over client/python's model and a c3pod process: its figures are those of direct Score and Generate
calls and of `c3po score`. The package is installed as a user would. The harness' command line runs once, because it reads all
its thousands of task files first; the other tests enter below it.
usage: lm_eval_harness_test.py C3POD C3PO"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest
from unittest import mock

import server_process

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # Read when the harness is imported.

BINARY, CLI = sys.argv[1:3]
del sys.argv[1:3]
pb = server_process.make_stubs()
gen, opt, ref, srv = pb["generation_pb2"], pb["options_pb2"], pb["reference_pb2"], pb["server_pb2"]

TASKS = pathlib.Path(__file__).resolve().parent / "lm_eval_tasks"
NGD_ARGS = ("method=ngd,k=4,steps=5,learning_rate=0.5,critical_layers=2-3,collection=set,selection=all,gate=false,rule=every,"
            "concurrency=8")
NGD_OPTIONS = dict(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, k=4, steps=5, learning_rate=0.5, critical_layers=[2, 3],
                   collection="set", reference_selection=opt.REFERENCE_SELECTION_ALL, gate=opt.GateOptions(enabled=False),
                   application_rule=opt.APPLICATION_RULE_EVERY_NEW_TOKEN)
NGD_FLAGS = ["--method", "ngd", "--k", "4", "--steps", "5", "--learning-rate", "0.5", "--critical-layers", "2-3", "--collection", "set",
             "--references", "all", "--no-gate", "--application", "every"]


def documents(name):
    return [json.loads(line) for line in (TASKS / name).read_text(encoding="utf-8").splitlines()]


def prompt_of(document):
    return f"What is {document['number']} modulo seven?"


def install_package(folder):
    """As `pip install client/python` in a copy of the clone, so that no build folder is left in it. Nothing is downloaded."""
    for part in ("client/python", "proto"):
        shutil.copytree(server_process.SOURCE / part, folder / "clone" / part, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
                    "--no-build-isolation", "--target", str(folder / "site"), str(folder / "clone" / "client" / "python")], check=True)
    shutil.rmtree(folder / "clone")
    return folder / "site"


class LmEvalHarnessTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        cls.site = SITE
        cls.server = server_process.ServerProcess(BINARY, cls.folder)
        cls.channel = cls.server.channel()
        cls.generation = pb["generation_pb2_grpc"].GenerationServiceStub(cls.channel)
        samples = [ref.ReferenceSample(prompt=f"What is {i} modulo seven?", answer=f" {i % 7}") for i in range(30)]
        requests = (ref.AddReferencesRequest(collection="set", sample=sample) for sample in samples)
        list(pb["reference_pb2_grpc"].ReferenceServiceStub(cls.channel).Add(requests, timeout=120))

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        cls.server.stop()
        server_process.remove_folder(cls.folder)

    def command_line(self, tasks, model_args):
        """(results, {task: its samples in the order of the documents}) of the installed command."""
        output = self.folder / "output"
        done = subprocess.run([str(self.site / "bin" / "c3po-lm-eval"), "--model", "c3po", "--model_args", self.with_target(model_args),
                               "--include_path", ".", "--tasks", tasks, "--log_samples", "--output_path", str(output)],
                              env={**os.environ, "PYTHONPATH": str(self.site)}, cwd=TASKS, capture_output=True, text=True, timeout=300,
                              check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        (results,) = output.rglob("results_*.json")
        samples = {}
        for task in tasks.split(","):
            (path,) = output.rglob(f"samples_{task}_*.jsonl")
            samples[task] = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda s: s["doc_id"])
        return json.loads(results.read_text()), samples

    def evaluate(self, tasks, model_args, **options):
        """As command_line, in this process."""
        with contextlib.chdir(TASKS):
            results = lm_eval.simple_evaluate(model="c3po", model_args=self.with_target(model_args), tasks=tasks.split(","),
                                              task_manager=TaskManager(include_path=".", include_defaults=False), **options)
        return results, {task: sorted(s, key=lambda sample: sample["doc_id"]) for task, s in results["samples"].items()}

    def with_target(self, model_args):
        return f"target=127.0.0.1:{self.server.port},{model_args}"

    def calls_served(self):
        lines = self.server.http("/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("c3po_gate_total{"))

    def score(self, prompt, continuations, **options):
        return self.generation.Score(gen.ScoreRequest(prompt=prompt, continuations=continuations,
                                                      optimization=opt.OptimizationOptions(**options)), timeout=60).scores

    def check_choices(self, results, samples, **options):
        """Every log-likelihood and both accuracies against direct calls. Returns the log-likelihoods."""
        items = documents("modulo.jsonl")
        acc = acc_norm = 0
        logged = []
        for document, sample in zip(items, samples["modulo_choices"], strict=True):
            choices = document["choices"]
            scores = self.score(prompt_of(document), [f" {choice}" for choice in choices], **options)
            for score, (total, greedy) in zip(scores, sample["filtered_resps"], strict=True):
                logged.append(float(total))
                self.assertAlmostEqual(logged[-1], score.log_likelihood, places=3)
                self.assertEqual(str(greedy), str(score.is_greedy))
            sums = [score.log_likelihood for score in scores]
            per_length = [total / len(choice) for total, choice in zip(sums, choices)]
            acc += sums.index(max(sums)) == document["label"]
            acc_norm += per_length.index(max(per_length)) == document["label"]
        figures = results["results"]["modulo_choices"]
        self.assertAlmostEqual(figures["acc,none"], acc / len(items))
        self.assertAlmostEqual(figures["acc_norm,none"], acc_norm / len(items))
        self.assertNotEqual(acc, acc_norm)  # Else either could stand for the other.
        return logged

    def check_eval(self, results, flags):
        """The accuracies of `c3po eval` over the file that check_command wrote."""
        run = self.folder / "run"
        subprocess.run([CLI, "eval", "--task", str(self.folder / "samples.jsonl"), "--metric", "raw", "--methods", "ngd", "--out", str(run),
                        "--server", f"127.0.0.1:{self.server.port}", *flags], capture_output=True, timeout=120, check=True)
        items = [json.loads(line) for line in (run / "items.jsonl").read_text().splitlines()]
        self.assertEqual(len(items), 24)
        figures = results["results"]["modulo_choices"]
        self.assertAlmostEqual(figures["acc,none"], sum(item["correct_raw"] for item in items) / 24)
        self.assertAlmostEqual(figures["acc_norm,none"], sum(item["correct_per_byte"] for item in items) / 24)

    def check_command(self, logged, flags):
        """The log-likelihoods of `c3po score --file`."""
        path = self.folder / "samples.jsonl"
        with path.open("w") as file:
            for document in documents("modulo.jsonl"):
                choices = [f" {choice}" for choice in document["choices"]]
                file.write(json.dumps({"prompt": prompt_of(document), "answer": choices[document["label"]], "choices": choices}) + "\n")
        lines = subprocess.run([CLI, "score", "--file", str(path), "--json", "--server", f"127.0.0.1:{self.server.port}", *flags],
                               capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()[:-1]
        scores = [score["log_likelihood"] for line in lines for score in json.loads(line)["response"]["scores"]]
        for ours, theirs in zip(logged, scores, strict=True):
            self.assertAlmostEqual(ours, theirs, places=3)

    def test_the_command_line_gives_the_figures_of_direct_calls_under_gradient_descent(self):
        results, samples = self.command_line("modulo_choices,modulo_answers", NGD_ARGS)
        self.assertEqual(results["config"]["c3po_gate_decisions"], {"applied": 48})  # 24 Score and 24 Generate calls.
        self.check_command(self.check_choices(results, samples, **NGD_OPTIONS), NGD_FLAGS)
        self.check_eval(results, NGD_FLAGS[2:])
        texts = []
        for document, sample in zip(documents("modulo.jsonl"), samples["modulo_answers"], strict=True):
            request = gen.GenerateRequest(prompt=prompt_of(document), optimization=opt.OptimizationOptions(**NGD_OPTIONS),
                                          sampling=gen.SamplingOptions(max_tokens=12, stop=["\n", "?"]))
            texts.append("".join(event.delta.text for event in self.generation.Generate(request, timeout=60)))
            self.assertEqual(sample["resps"], [[texts[-1]]])
        self.assertGreater(len(set(texts)), 1)
        self.assertIn("exact_match,none", results["results"]["modulo_answers"])

    def test_a_question_is_one_call_and_concurrent_ones_keep_their_order(self):
        before = self.calls_served()
        results, samples = self.evaluate("modulo_choices", "method=none,concurrency=8")
        self.assertEqual(self.calls_served() - before, len(documents("modulo.jsonl")))
        self.assertEqual(results["config"]["c3po_gate_decisions"], {"not_requested": 24})
        self.check_command(self.check_choices(results, samples, method=opt.METHOD_NONE), ["--method", "none"])

    def test_rolling_log_likelihood_is_that_of_the_harness_windows(self):
        _, samples = self.evaluate("long_texts", "method=none")
        for document, sample in zip(documents("texts.jsonl"), samples["long_texts"], strict=True):
            data = document["text"].encode()
            self.assertAlmostEqual(float(sample["filtered_resps"][0]) / len(data), self.rolling_of_bytes(data) / len(data), places=4)

    def rolling_of_bytes(self, data):
        """The harness' windows, written down once more for a model whose tokens are bytes; none ends within a character."""
        end_of_text, window = 256, 256  # of the tiny model
        length, total, done = window - 1, 0.0, 0
        while done < len(data):
            until = min(len(data), done + length)
            while until < len(data) and data[until] & 0xC0 == 0x80:
                until -= 1
            context = [end_of_text] if done == 0 else list(data[until - length - 1 : done])
            request = gen.ScoreRequest(token_ids=gen.TokenIds(ids=context), continuations=[data[done:until].decode()],
                                       optimization=opt.OptimizationOptions(method=opt.METHOD_NONE))
            total += self.generation.Score(request, timeout=60).scores[0].log_likelihood
            done = until
        return total

    def test_a_context_that_does_not_fit_loses_its_beginning(self):
        model = get_model("c3po").create_from_arg_string(self.with_target("method=none"))
        context, continuation = "x" * 40 + "The end of a long context, " * 12, "abc"
        request = Instance("loglikelihood", {}, (context, " " + continuation), 0, ("task", 0, 1))
        ids = list((context.rstrip()).encode())[-(256 - len("  abc") - 1) :]  # 1: of the seam.
        expected = self.generation.Score(gen.ScoreRequest(token_ids=gen.TokenIds(ids=ids), continuations=["  abc"],
                                                          optimization=opt.OptimizationOptions(method=opt.METHOD_NONE))).scores[0]
        ((total, _),) = model.loglikelihood([request], disable_tqdm=True)
        self.assertAlmostEqual(total, expected.log_likelihood, places=4)
        generate = Instance("generate_until", {}, (context, {"max_gen_toks": 20, "until": []}), 0, ("task", 0, 1))
        (text,) = model.generate_until([generate], disable_tqdm=True)
        self.assertTrue(text)

    def test_failures_name_the_argument_or_the_document_and_the_command_prints_one_line(self):
        for model_args, said in (("metod=ngd", "model_args: metod is not known"),
                                 ("method=ngd,k=0,collection=set", "task modulo_choices, document 0: 127.0.0.1:.* INVALID_ARGUMENT: .*k"),
                                 ("prefix_token=two words", "model_args: prefix_token: 'two words' is not one token")):
            with self.subTest(model_args=model_args), self.assertRaisesRegex(C3poError, said):
                self.evaluate("modulo_choices", model_args, limit=1)
        error = io.StringIO()
        with mock.patch("c3po_lm_eval.__main__.cli_evaluate", side_effect=C3poError("what")), contextlib.redirect_stderr(error):
            self.assertEqual(c3po_lm_eval.__main__.main(), 1)
        self.assertEqual(error.getvalue(), "c3po-lm-eval: what\n")


if __name__ == "__main__":
    SCRATCH = server_process.fresh_folder()
    os.environ["HF_HOME"] = str(SCRATCH / "hf")
    SITE = install_package(SCRATCH)
    sys.path.insert(0, str(SITE))
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    import c3po_lm_eval.__main__
    from c3po_client import C3poError

    c3po_lm_eval.register()
    try:
        unittest.main(verbosity=2)
    finally:
        server_process.remove_folder(SCRATCH)
