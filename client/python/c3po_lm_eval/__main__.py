"""The harness' command line with the model "c3po": `c3po-lm-eval --model c3po --model_args target=HOST:PORT --tasks ...`."""

import sys

from lm_eval.__main__ import cli_evaluate

from c3po_lm_eval import register
from c3po_lm_eval.errors import C3poError


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
