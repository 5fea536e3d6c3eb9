#!/usr/bin/env python3
"""Classifies a text: Score asks how likely the model finds each label after the prompt, under the collection's profile, and the
likeliest per token is the answer. Needs what ask.py needs.
  classify.py --collection mine $'Review: …\\nSentiment:' ' negative' ' positive'
"""

import argparse
import os
import sys
import tempfile

import grpc

import ask


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("labels", nargs="+", help="each with the space before it that the prompt's format wants: ' positive'")
    parser.add_argument("--server", default=os.environ.get("C3PO_SERVER", "127.0.0.1:50051"))
    parser.add_argument("--collection", default="default")
    arguments = parser.parse_args()
    ask.warn_of_misspelled_variables("classify.py")
    try:
        ask.check_address(arguments.server)
    except ValueError as error:
        print(f"classify.py: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        _, generation_pb2, generation_pb2_grpc = ask.import_stubs(folder)
    request = generation_pb2.ScoreRequest(prompt=arguments.prompt, continuations=arguments.labels)
    request.optimization.collection = arguments.collection
    with grpc.insecure_channel(arguments.server) as channel:
        try:
            response = generation_pb2_grpc.GenerationServiceStub(channel).Score(request, timeout=300)
        except grpc.RpcError as error:
            print(f"classify.py: {error.code().name}: {error.details()}", file=sys.stderr)
            return ask.EXIT_CODES.get(error.code(), 1)
    # The mean over a label's tokens, so that a long label is not the less likely one for its length.
    per_token = [score.log_likelihood / score.token_count for score in response.scores]
    best = per_token.index(max(per_token))
    print(f"{arguments.labels[best]}\t{per_token[best]:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
