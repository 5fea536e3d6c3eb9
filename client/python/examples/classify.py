#!/usr/bin/env python3
"""Classifies a text: Score asks how likely the model finds each label after the prompt, under the collection's profile, and the
likeliest per token is the answer. Needs c3po-client: pip install ./client/python
  classify.py --collection mine $'Review: …\\nSentiment:' ' negative' ' positive'
"""

import argparse
import sys

from c3po_client import ArgumentError, CallError, Client, likeliest, score_per_token


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("labels", nargs="+", help="each with the space before it that the prompt's format wants: ' positive'")
    parser.add_argument("--server", help="HOST:PORT; default: $C3PO_SERVER, 127.0.0.1:50051")
    parser.add_argument("--collection", default="default")
    arguments = parser.parse_args()
    try:
        with Client.from_environment(arguments.server) as client:
            response = client.score(arguments.prompt, arguments.labels, optimization={"collection": arguments.collection})
    except ArgumentError as error:
        print(f"classify.py: {error}", file=sys.stderr)
        return 2
    except CallError as error:
        print(f"classify.py: {error.description}", file=sys.stderr)
        return error.exit_code
    best = likeliest(response)
    print(f"{arguments.labels[best]}\t{score_per_token(response.scores[best]):g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
