"""`c3po bench` on a real c3pod: a full queue with 64 clients asking, an open loop, and a soak in short. Figures are printed and
decide nothing: times are the machine's. usage: load_test.py C3POD C3PO"""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import unittest

import server_process

sys.path.insert(0, str(server_process.SOURCE / "deploy" / "load"))
from verdict import Verdict  # pylint: disable=wrong-import-position

BINARY, CLI = sys.argv[1:3]
del sys.argv[1:3]
pb = server_process.make_stubs()

RUNNING_MAX, PENDING_MAX = 4, 6
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "c3po_kv_cache_leaked_blocks")


class BenchTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        cls.server = server_process.ServerProcess(BINARY, cls.folder, "--running-sequences-max", str(RUNNING_MAX), "--pending-requests-max",
                                                  str(PENDING_MAX))

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        server_process.remove_folder(cls.folder)
        if code != 0:
            raise AssertionError(f"c3pod exited with {code}: {cls.server.log[-20:]}")

    def bench(self, *flags):
        done = subprocess.run([CLI, "bench", "--server", f"127.0.0.1:{self.server.port}", "--json", "--strict", "--prompt-tokens", "8-40",
                               "--output-tokens", "60-100", *map(str, flags)], capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def series(self, name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.server.http("/metrics").splitlines()
                   if line.split("{")[0].split(" ")[0] == name and not line.startswith("#"))

    def check_empty(self):
        for _ in range(1200):
            held = {name: self.series(name) for name in GAUGES}
            if not any(held.values()):
                return
            time.sleep(0.05)
        self.fail(f"still held after the load: {held}")

    def unsaturated(self):
        """As many callers as the batch holds."""
        figures = self.bench("--concurrency", RUNNING_MAX, "--requests", 60, "--warmup", 0.5, "--method", "none")
        self.assertEqual(set(figures["statuses"]), {"OK"})
        self.check_empty()
        return figures

    def saturated(self, *flags):
        """64 callers. Every refusal says when to come back, every admitted call ends well, and nothing is left."""
        figures = self.bench("--concurrency", 64, "--duration", 4, "--method", "none", *flags)
        self.check_empty()
        self.assertEqual(set(figures["statuses"]), {"OK", "RESOURCE_EXHAUSTED"})
        refused = figures["statuses"]["RESOURCE_EXHAUSTED"]
        self.assertEqual(refused["with_retry_advice"], refused["calls"], refused["first_message"])
        admitted = figures["statuses"]["OK"]["calls"]
        self.assertGreater(admitted, PENDING_MAX)
        self.assertEqual(figures["latency_seconds"]["end_to_end"]["count"], admitted)
        return figures

    def compare(self, what, base, full):
        p99 = [run["latency_seconds"]["end_to_end"]["p99"] for run in (base, full)]
        calls = {code: status["calls"] for code, status in full["statuses"].items()}
        print(f"{what}: p99 end to end {p99[0] * 1e3:.0f} ms with {RUNNING_MAX} callers, {p99[1] * 1e3:.0f} ms with 64 ({p99[1] / p99[0]:.2f}x); "
              f"{base['throughput']['requests_per_second']:.0f} and {full['throughput']['requests_per_second']:.0f} requests/s; {calls}",
              file=sys.stderr)

    def test_a_full_queue_refuses_with_advice_finishes_what_it_took_and_empties(self):
        base = self.unsaturated()
        # Callers that ask again at once, whatever they are told, so that the queue stays full.
        full = self.saturated("--warmup", 0.5, "--refused-pause", 0.05)
        self.assertGreater(full["statuses"]["RESOURCE_EXHAUSTED"]["calls"], 64)
        self.compare("not waiting", base, full)

    def test_refused_callers_that_wait_as_told_get_their_turn(self):
        self.compare("waiting as told", self.unsaturated(), self.saturated("--warmup", 0))

    def test_an_open_loop_with_cancels_and_slow_readers_leaves_nothing(self):
        for cancel_after in (0.1, 0.01, 0.001):  # Sooner where the machine answers before most of the moments for cancels.
            figures = self.bench("--rate", 25, "--duration", 3, "--warmup", 0.5, "--cancelled", 0.3, "--cancel-after", cancel_after,
                                 "--slow-readers", 0.2, "--slow-read-pause", 0.005, "--method", "none")
            if "CANCELLED" in figures["statuses"]:
                break
        self.assertGreater(figures["statuses"]["OK"]["calls"], 0)
        self.assertGreater(figures["statuses"]["CANCELLED"]["as_planned"], 0)
        self.assertGreater(figures["slow_calls"], 0)
        self.assertEqual(figures["latency_seconds"]["send_delay"]["count"], figures["calls"])
        self.check_empty()


class SoakTest(unittest.TestCase):
    def test_a_short_soak_passes_and_did_everything(self):
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        report = folder / "report.json"
        # Memory that a server takes in its first half minute is no leak yet, hence the bound; ten minutes are for that.
        done = subprocess.run([server_process.SOURCE / "deploy" / "soak.sh"], capture_output=True, text=True, timeout=400, check=False,
                              env={**os.environ, "C3PO_SOAK_SECONDS": "24", "C3PO_SOAK_WARMUP_SECONDS": "8", "C3PO_SOAK_GROWTH_MB": "64",
                                   "C3PO_SOAK_BIN": str(pathlib.Path(BINARY).parent), "C3PO_SOAK_REPORT": str(report)})
        print(done.stdout, file=sys.stderr)
        self.assertEqual(done.returncode, 0, done.stderr)
        figures = json.loads(report.read_text())
        self.assertEqual((figures["passes"], figures["wrong"], set(figures["gauges"].values())), (True, [], {0.0}))
        self.assertGreater(figures["counts"]["killed"], 1)

    def test_each_thing_that_is_not_nil_fails_the_verdict(self):
        done = {name: 5 for name in ("answers", "answers OK", "answers CANCELLED", "scores", "imports", "searches", "deletes", "killed")}

        def verdict(memory=None, gauges=None, wrong=(), counts=None):
            return Verdict(memory=memory or [(second, 100 + second % 2) for second in range(100)], warmup_seconds=20, growth_mb_max=5,
                           gauges=gauges or dict.fromkeys(GAUGES, 0), wrong=list(wrong), counts=done if counts is None else counts)

        self.assertTrue(verdict().passes(), verdict().text())
        self.assertTrue(verdict(memory=[(second, 50 + min(second, 20)) for second in range(100)]).passes())  # Grows in the warm-up.
        failing = {"grew by 16": verdict(memory=[(second, 100 + 0.25 * second) for second in range(100)]),
                   "too short": verdict(memory=[(second, 100) for second in range(22)]),
                   "leaked_blocks is 2": verdict(gauges={"c3po_kv_cache_leaked_blocks": 2}),
                   "exit code 1": verdict(wrong=["c3po bench: exit code 1"]),
                   "no killed": verdict(counts={**done, "killed": 0})}
        for said, one in failing.items():
            with self.subTest(said=said):
                self.assertFalse(one.passes())
                self.assertIn(said, one.text())
                self.assertIn("FAIL", one.text())


if __name__ == "__main__":
    unittest.main(verbosity=2)
