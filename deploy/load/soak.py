"""The soak that deploy/soak.sh describes. Needs the standard library only: all load comes from the `c3po` command."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from verdict import NEEDED, Verdict

SOURCE = pathlib.Path(__file__).resolve().parents[2]
SEARCHED = 60  # References that stay; more than EXACT_MAX, so that a graph finds them.
EXACT_MAX = 50
CHURNED = 25  # References added, searched and deleted in each round.
EMPTY_SECONDS = 60  # Until the server has to hold nothing any more.
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "c3po_kv_cache_leaked_blocks")
RIGHT_CODES = ("OK", "CANCELLED", "RESOURCE_EXHAUSTED")  # All that this load should get, killed clients included.


def setting(name, default):
    return type(default)(os.environ.get(f"C3PO_SOAK_{name}") or default)


def samples(first, count):
    for i in range(first, first + count):
        yield {"prompt": f"What is {i} modulo seven?", "answer": f" {i % 7}", "choices": [f" {c}" for c in range(7)]}


class Server:
    """c3pod on free ports, its log in a file."""

    def __init__(self, binary, model, folder):
        self.log = folder / "c3pod.log"
        with self.log.open("w") as log:   # Caches that are full after the warm-up: filling them is no leak.
            self.process = subprocess.Popen(
                [binary, "--model", model, "--embedder", "model", "--store", folder / "store.db", "--listen", "127.0.0.1:0", "--metrics-port",
                 "0", "--neighbor-cache-mb", "1", "--kv-cache-tokens", "4096", "--exact-references-max", str(EXACT_MAX)], stderr=log)
        while True:
            lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
            serving = [line for line in lines if line.get("event") == "serving"]
            if serving:
                self.address, self.metrics_port = serving[0]["address"], serving[0]["metrics_port"]
                return
            if self.process.poll() is not None:
                raise SystemExit(f"c3pod did not start:\n{self.log.read_text()}")
            time.sleep(0.1)

    def resident_mb(self):
        """Pages that are the process's own: those of the model's file come and go as the system likes."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no RssAnon in the process's status")

    def metrics(self):
        """{series: value}"""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and not line.startswith("#")}

    def gauges(self):
        series = self.metrics()
        return {name: sum(value for key, value in series.items() if key.split("{")[0] == name) for name in GAUGES}

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


class Soak:
    def __init__(self, server, cli, folder, seconds, seed):
        self.server, self.cli, self.folder, self.seed = server, cli, folder, seed
        self.end = time.monotonic() + seconds
        self.lock = threading.Lock()
        self.counts = {}
        self.wrong = []  # What should not have happened, in words.

    def count(self, name, by=1):
        with self.lock:
            self.counts[name] = self.counts.get(name, 0) + by

    def complain(self, text):
        with self.lock:
            self.wrong.append(text)

    def left(self):
        return self.end - time.monotonic()

    def command(self, *arguments):
        return [self.cli, *map(str, arguments), "--server", self.server.address]

    def run(self, name, *arguments):
        """One `c3po` that has to end well; its standard output."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)
        self.count(name)
        if done.returncode != 0:
            self.complain(f"c3po {' '.join(map(str, arguments))}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def file_of(self, name, first, count):
        path = self.folder / name
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples(first, count)))
        return path

    # --- What goes on at once, each until the time is over. ---

    LENGTHS = ("--prompt-tokens", "8-32@0.8,100-150@0.2", "--output-tokens", "4-60", "--warmup", "0")
    NGD = ("--method", "ngd", "--collection", "searched", "--references", "all", "--k", "4", "--steps", "4")

    def answers(self):
        seed = self.seed
        while self.left() > 1:
            seed += 1
            text = self.run("bench", "bench", "--concurrency", "4", "--duration", min(15, max(1, self.left())), *self.LENGTHS, *self.NGD,
                            "--unoptimized", "0.5", "--cancelled", "0.15", "--cancel-after", "0.5", "--slow-readers", "0.1",
                            "--slow-read-pause", "0.05", "--load-seed", seed, "--json", "--strict")
            if not text.startswith("{"):
                continue
            figures = json.loads(text)
            self.count("answers", figures["calls"])
            for code, status in figures["statuses"].items():
                self.count(f"answers {code}", status["calls"])
                if code == "RESOURCE_EXHAUSTED" and status["with_retry_advice"] == 0:
                    self.complain(f"{status['calls']} refusals did not say when to come back: {status['first_message']}")

    def scores(self):
        path = self.file_of("scored.jsonl", 1000, 8)
        while self.left() > 1:
            for flags in (("--method", "none"), self.NGD):
                text = self.run("scores", "score", "--file", path, "--json", *flags)
                if text and json.loads(text.splitlines()[-1])["summary"]["items"] != 8:
                    self.complain(f"score --file: {text.splitlines()[-1]}")

    def references(self):
        first = 10_000
        while self.left() > 1:
            first += CHURNED
            path = self.file_of("churned.jsonl", first, CHURNED)
            self.run("imports", "refs", "import", path, "--collection", "churned", "--strict")
            hits = json.loads(self.run("searches", "refs", "search", f"What is {first} modulo seven?", "--collection", "churned", "--json") or "{}")
            if not hits.get("hits"):
                self.complain("refs search: nothing was found of what had just been added")
            self.run("deletes", "refs", "delete", "--collection", "churned", "--yes")

    def killed(self):
        choose = random.Random(self.seed)
        first = 1_000_000
        while self.left() > 1:
            first += 2000
            commands = (("bench", "--concurrency", "6", "--duration", "3600", *self.LENGTHS, *self.NGD, "--slow-readers", "0.3"),
                        ("bench", "--rate", "40", "--duration", "3600", *self.LENGTHS, "--method", "none"),
                        ("refs", "import", self.file_of("killed.jsonl", first, 2000), "--collection", "killed"))
            arguments = commands[choose.randrange(3)]
            client = subprocess.Popen(self.command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(min(choose.uniform(1, 4), max(0.5, self.left() - 0.5)))
            if client.poll() is None:
                client.kill()
                self.count("killed")
            elif client.returncode != 0:
                self.complain(f"c3po {arguments[0]} ended by itself: exit code {client.returncode}")
            client.wait()
            if arguments[0] == "refs":
                self.run("deletes", "refs", "delete", "--collection", "killed", "--yes")

    def drive(self, work):
        """All of `work` at once, in threads, while this one watches memory: [(seconds, MB)]."""
        self.run("imports", "refs", "import", self.file_of("searched.jsonl", 0, SEARCHED), "--collection", "searched", "--strict")
        threads = [threading.Thread(target=target) for target in (getattr(self, name) for name in work)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        memory, told = [], start
        while any(thread.is_alive() for thread in threads):
            memory.append((time.monotonic() - start, self.server.resident_mb()))
            if self.server.process.poll() is not None:
                self.complain(f"c3pod ended with {self.server.process.returncode}")
                break
            if time.monotonic() - told > 15:
                told = time.monotonic()
                print(f"{told - start:5.0f} s  {memory[-1][1]:7.1f} MB  " +
                      ", ".join(f"{self.counts[key]} {key}" for key in sorted(self.counts) if " " not in key), flush=True)
            time.sleep(0.25)
        for thread in threads:
            thread.join()
        return memory


def wait_until_empty(server):
    """The gauges once all are zero, or as they are when the time is over."""
    deadline = time.monotonic() + EMPTY_SECONDS
    while True:
        gauges = server.gauges()
        if not any(gauges.values()) or time.monotonic() > deadline:
            return gauges
        time.sleep(0.1)


def main():
    seconds = setting("SECONDS", 600.0)
    bin_folder = pathlib.Path(setting("BIN", str(SOURCE / "build" / "release" / "bin")))
    model = setting("MODEL", str(SOURCE / "tests" / "golden" / "model" / "mixtral_tiny"))
    work = setting("WORK", ",".join(NEEDED)).split(",")
    if not set(work) <= set(NEEDED):
        raise SystemExit(f"C3PO_SOAK_WORK: {','.join(work)}: choose among {','.join(NEEDED)}")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="c3po_soak_"))
    server = Server(bin_folder / "c3pod", model, folder)
    try:
        soak = Soak(server, bin_folder / "c3po", folder, seconds, setting("SEED", 1))
        memory = soak.drive(work)
        gauges = wait_until_empty(server)
        for key, value in server.metrics().items():
            if key.startswith("c3po_rpc_total{") and value > 0 and not any(f'code="{code}"' in key for code in RIGHT_CODES):
                soak.complain(f"{key} {value:.0f}")
        exit_code = server.stop()
        if exit_code != 0:
            soak.complain(f"c3pod ended with {exit_code} after SIGTERM")
        verdict = Verdict(memory=memory, warmup_seconds=setting("WARMUP_SECONDS", seconds / 5), growth_mb_max=setting("GROWTH_MB", 16.0),
                          gauges=gauges, wrong=soak.wrong, counts=soak.counts, work=work)
        report = os.environ.get("C3PO_SOAK_REPORT")
        if report:
            pathlib.Path(report).write_text(json.dumps(verdict.figures(), indent=1) + "\n")
        print(verdict.text())
        if not verdict.passes():
            print("the server's last lines:\n" + "\n".join(server.log.read_text().splitlines()[-10:]))
        return 0 if verdict.passes() else 1
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
