#!/usr/bin/env python3
"""Sends a file of questions with choices through Score and writes a CSV: the question's number, its answer, the choice taken,
whether it is right, what the gate decided, and the score of each choice. Needs c3po-client: pip install ./client/python
  score_file.py heldout.jsonl --collection mine --out scores.csv
A line is {"prompt", "answer", "choices"}, as for `c3po score --file`. Rows are in the file's order.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import sys

from c3po.v1 import options_pb2
from c3po_client import C3poError, CallError, Client, likeliest, read_samples, score_per_token
from c3po_client.options import word_of

COLUMNS = ["question", "answer", "chosen", "correct", "gate", "scores"]


def row(number, sample, response):
    chosen = sample.choices[likeliest(response)]
    return {"question": number, "answer": sample.answer, "chosen": chosen, "correct": int(chosen == sample.answer),
            "gate": word_of(options_pb2.GateDecision.DESCRIPTOR, response.optimization.gate),
            "scores": " ".join(f"{score_per_token(score):.6g}" for score in response.scores)}


def rows_of(client, samples, optimization, concurrency):
    """In the samples' order, `concurrency` calls at a time; a client may be used by several threads."""
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        responses = pool.map(lambda sample: client.score(sample.prompt, sample.choices, optimization=optimization), samples)
        try:
            for number, (sample, response) in enumerate(zip(samples, responses), 1):
                yield row(number, sample, response)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", help="JSON lines")
    parser.add_argument("--server", help="HOST:PORT; default: $C3PO_SERVER, 127.0.0.1:50051")
    parser.add_argument("--collection", default="default")
    parser.add_argument("--method", help="none, ngd, ...; default: the collection's profile, or the server's")
    parser.add_argument("--out", default="-", help="CSV file; default: stdout")
    parser.add_argument("--concurrency", type=int, default=8, help="calls at a time")
    arguments = parser.parse_args()
    optimization = {"collection": arguments.collection, "method": arguments.method}
    correct = count = 0
    try:
        samples = [sample for sample in read_samples(arguments.questions) if sample.choices]
        with Client.from_environment(arguments.server) as client, (
                open(arguments.out, "w", newline="", encoding="utf-8") if arguments.out != "-" else
                contextlib.nullcontext(sys.stdout)) as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for scored in rows_of(client, samples, optimization, arguments.concurrency):
                writer.writerow(scored)
                count, correct = count + 1, correct + scored["correct"]
    except (C3poError, OSError) as error:
        print(f"score_file.py: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, CallError) else 2
    print(f"score_file.py: {correct} of {count} are right", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
