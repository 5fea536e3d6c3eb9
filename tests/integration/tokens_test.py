"""Token ids and texts of a model whose tokenizer writes spaces as marks, whose vocabulary is padded beyond the tokenizer, and whose
end token stands in generation_config.json alone.
usage: tokens_test.py C3POD"""

import json
import shutil
import sys
import unittest

import server_process
from server_case import ServerCase
from service_calls import gen, opt, tokens_of

BINARY = sys.argv.pop(1)
NONE = opt.OptimizationOptions(method=opt.METHOD_NONE)
WORDS = ["\u2581the", "\u2581of", "\u2581sea", "\u2581is", "\u2581wide", "of", "the"]
PADDED, END = 259, 258  # mixtral_tiny has 260 ids.


def write_model(folder):
    model = folder / "model"
    shutil.copytree(server_process.TINY_MODEL, model)
    pieces = ["<unk>", "<s>", "</s>", "\u2581", *"abcdefghijklmnopqrstuvwxyz.", "\u2581t", "th", "he", "\u2581o", "\u2581s", "se", "\u2581i",
              "\u2581w", "wi", "\u2581se", "\u2581wi", "\u2581wid", *WORDS]
    merges = ["\u2581 t", "t h", "h e", "\u2581 o", "o f", "\u2581 s", "s e", "\u2581 i", "\u2581 w", "w i", "\u2581t he", "\u2581o f", "\u2581s e", "\u2581se a",
              "\u2581i s", "\u2581w i", "\u2581wi d", "\u2581wid e", "t he"]
    tokenizer = {
        "version": "1.0", "normalizer": None,
        "added_tokens": [{"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                          "special": True} for i in range(3)],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "merges": merges,
                  "vocab": {piece: i for i, piece in enumerate(pieces)}}}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [END], "temperature": 0.6}), encoding="utf-8")
    return model, {piece: i for i, piece in enumerate(pieces)}


class TokensTest(ServerCase):
    binary = BINARY

    @classmethod
    def started(cls):
        model, cls.ids = write_model(cls.folder)
        return server_process.ServerProcess(BINARY, cls.folder, model=model)

    def of(self, *pieces):
        return gen.TokenIds(ids=[self.ids[piece] for piece in pieces])

    def generate(self, forced, stop=(), max_tokens=3, **input):
        """An answer of one forced token again and again."""
        sampling = gen.SamplingOptions(max_tokens=max_tokens, logit_bias={forced: 100}, stop=stop, logprobs=0)
        events = list(self.generation.Generate(gen.GenerateRequest(sampling=sampling, optimization=NONE, **input), timeout=60))
        return "".join(event.delta.text for event in events), tokens_of(events), events[-1].summary, events

    def score(self, continuation, **input):
        request = gen.ScoreRequest(continuations=[continuation], optimization=NONE, **input)
        return self.generation.Score(request, timeout=60).scores[0]

    def test_an_answer_keeps_the_space_of_its_first_token(self):
        of = self.ids["\u2581of"]
        for input in ({"prompt": "the sea"}, {"token_ids": self.of("\u2581the", "\u2581sea")}, {"token_ids": self.of("he", "\u2581sea")}):
            self.assertEqual(self.generate(of, **input)[0], " of of of")
            text, tokens, summary, _ = self.generate(of, stop=[" of"], **input)
            self.assertEqual((text, tokens, summary.finish_reason), ("", [of], gen.FINISH_REASON_STOP))
        events = self.generate(of, prompt="the sea")[3]
        self.assertEqual(events[1].delta.logprobs[0].chosen.text, " of")
        sampling = gen.SamplingOptions(max_tokens=2, logit_bias={of: 100}, n=3, temperature=1)
        answers = ["", "", ""]
        for event in self.generation.Generate(gen.GenerateRequest(prompt="the sea", sampling=sampling, optimization=NONE)):
            answers[event.delta.answer] += event.delta.text
        self.assertEqual(answers, [" of of"] * 3)

    def test_a_continuation_of_token_ids_is_that_of_the_text(self):
        as_text = self.score(" of the sea", prompt="the sea is wide")
        as_ids = self.score(" of the sea", token_ids=self.of("\u2581the", "\u2581sea", "\u2581is", "\u2581wide"))
        self.assertEqual((as_text.token_count, as_text.log_likelihood), (3, as_ids.log_likelihood))
        self.assertEqual(as_ids.token_count, 3)
        after_bos = self.score(" of the sea", token_ids=self.of("<s>", "\u2581the", "\u2581sea", "\u2581is", "\u2581wide"))
        self.assertEqual(after_bos.token_count, 3)
        # Contexts that lost their beginning, and words across the seam: no mark stands between.
        self.assertEqual(self.score(" of the", token_ids=self.of("he", "\u2581sea")).token_count, 2)
        for input in ({"token_ids": self.of("he", "\u2581sea")}, {"prompt": "the sea"}):
            within, apart = self.score("of", **input), self.score(" of", **input)
            self.assertEqual((within.token_count, apart.token_count), (1, 1))
            self.assertNotEqual(within.log_likelihood, apart.log_likelihood)

    def test_an_id_beyond_the_tokenizer_comes_back_as_it_was_sent(self):
        text, tokens, _, events = self.generate(PADDED, prompt="the sea")
        self.assertEqual((text, tokens), ("", [PADDED] * 3))
        self.assertEqual(events[1].delta.logprobs[0].chosen.text, "")
        self.assertEqual(self.generation.Detokenize(gen.DetokenizeRequest(ids=[self.ids["\u2581the"], PADDED])).text, "the")
        back = gen.TokenIds(ids=[self.ids["\u2581sea"], *tokens])
        self.assertEqual(self.generate(self.ids["\u2581of"], token_ids=back)[0], " of of of")
        self.assertEqual(self.score(" of", token_ids=back).token_count, 1)

    def test_an_end_token_of_generation_config_alone_ends_the_answer(self):
        text, tokens, summary, _ = self.generate(END, prompt="the sea", max_tokens=9)
        self.assertEqual(summary.finish_reason, gen.FINISH_REASON_STOP)
        self.assertLessEqual(len(tokens), 1)
        loaded = next(json.loads(line) for line in self.server.log if '"model_loaded"' in line)
        self.assertEqual((loaded["end_tokens"], loaded["generation_config_left"]), ("256,258", "temperature"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
