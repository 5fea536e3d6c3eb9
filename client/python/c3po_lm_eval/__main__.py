"""The harness' command line with the model "c3po": `c3po-lm-eval --model c3po --model_args target=HOST:PORT --tasks ...`."""

import sys

try:
    from lm_eval.__main__ import cli_evaluate
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    sys.exit("c3po-lm-eval: the lm-evaluation-harness is not installed: pip install './client/python[lm-eval]'")

from c3po_client import C3poError
from c3po_lm_eval import register


def main() -> int:
    register()
    try:
        cli_evaluate()
    except C3poError as error:
        print(f"c3po-lm-eval: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
