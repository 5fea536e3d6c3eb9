"""From a task's generation_kwargs to SamplingOptions."""

from dataclasses import dataclass

from c3po.v1 import generation_pb2
from c3po_client import C3poError

DEFAULT_MAX_TOKENS = 256  # The harness' own.
STOP_STRINGS_MAX = 16  # The server's limit; further ones are cut off here.
MAX_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # Earlier ones win.
DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")  # How a token is drawn: without a meaning for greedy decoding.
# They change which token is likeliest, or where the text ends, and so greedy decoding, too.
ALWAYS = ("repetition_penalty", "logit_bias", "ignore_eos")
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1}  # Understood, because this value asks for nothing.


@dataclass(frozen=True)
class Sampling:
    options: object  # generation_pb2.SamplingOptions
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """`text` up to the first of `until`: the server has done so for as many as it takes."""
        ends = [at for at in (text.find(stop) for stop in self.until) if at >= 0]
        return text[: min(ends)] if ends else text


def sampling_from_kwargs(kwargs: dict, default_max_tokens: int = DEFAULT_MAX_TOKENS) -> Sampling:
    """Greedy unless do_sample is true, or do_sample is not given and the temperature is above 0 (the harness' rule). C3poError
    names a key that the service cannot honor."""
    left = dict(kwargs)
    until = left.pop("until", None) or []
    until = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
    lengths = [left.pop(name, None) for name in MAX_TOKENS_NAMES]
    max_tokens = int(next((length for length in lengths if length is not None), default_max_tokens))
    do_sample = left.pop("do_sample", None)
    if do_sample is None:
        do_sample = float(left.get("temperature") or 0) > 0
    for name, value in left.items():
        if name not in DRAWING + ALWAYS and NEUTRAL.get(name) != value:
            raise C3poError(f"generation_kwargs: {name}={value!r} is not supported; supported are until, do_sample, "
                            f"{', '.join(MAX_TOKENS_NAMES + DRAWING + ALWAYS)}")
    options = generation_pb2.SamplingOptions(max_tokens=max_tokens, stop=until[:STOP_STRINGS_MAX], temperature=0)
    if do_sample:
        options.temperature = 1  # As transformers has it where sampling is asked for without a temperature.
    for name in (DRAWING if do_sample else ()) + ALWAYS:
        if left.get(name) is not None:
            _set(options, name, left[name])
    return Sampling(options, until)


def _set(options, name: str, value) -> None:
    try:
        if name == "logit_bias":  # Token ids are texts where the task's file is JSON.
            options.logit_bias.update({int(token): float(bias) for token, bias in value.items()})
        else:
            setattr(options, name, value)
    except (AttributeError, TypeError, ValueError) as error:
        raise C3poError(f"generation_kwargs: {name}={value!r}: {error}") from error
