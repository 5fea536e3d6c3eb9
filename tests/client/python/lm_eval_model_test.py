"""The parts of client/python/c3po_lm_eval that need no server: arguments, grouping, windows. The harness' own functions are the
oracle of what it defines."""

import json
import random
import unittest
import unittest.mock

import grpc
from lm_eval._cli.utils import key_val_to_dict
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

import client_case  # Finds c3po_client.

from c3po.v1 import generation_pb2, reference_pb2
from c3po.v1 import options_pb2 as opt
from c3po_client import C3poError
from c3po_lm_eval.connection import Connection
from c3po_lm_eval.model import C3poLM
from c3po_lm_eval.optimization_args import argument_names, optimization_from_args
from c3po_lm_eval.questions import group_into_questions
from c3po_lm_eval.rolling_windows import rolling_windows
from c3po_lm_eval.sampling_args import ALWAYS, DRAWING, sampling_from_kwargs
from fake_server import FakeServer, answer, fail


def parsed(text):
    return optimization_from_args(key_val_to_dict(text))


class OptimizationArgsTest(unittest.TestCase):
    def test_only_what_is_given_is_set(self):
        self.assertEqual(parsed(""), opt.OptimizationOptions())

    def test_every_field_is_an_argument(self):
        text = ("method=ngd,epsilon=0.5,kernel=matern,bandwidth=1,steps=10,learning_rate=0.05,critical_layers=3+25-27,core_experts=0,"
                "rule=shift,collection=7,gate=true,gate_max_neighbor_distance=1.1,gate_max_base_confidence=0.9,"
                "gate_min_loss_reduction=0,gate_min_validation_loss_reduction=0.1,gate_min_optimized_confidence=0.6,"
                "selection=all,objective=choices,step_rule=adam,"
                "alpha=0.5,return_pathways=false,use_profile=false,use_prior=true,validation_neighbors=4,step_scale=0.5,backtrack=true,"
                "prompt_positions=8,patience=3,preset=paper,exclude_reference_ids=['a','b'],use_offset=true,balance=true,trust=0.1,"
                "neighbor_source=last,neighborhoods=4,min_index_generation=7")
        expected = opt.OptimizationOptions(
            method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, epsilon=0.5, kernel=opt.KERNEL_MATERN, bandwidth=1, steps=10,
            learning_rate=0.05, critical_layers=[3, 25, 26, 27], core_experts=0, application_rule=opt.APPLICATION_RULE_ROUTER_SHIFT,
            collection="7", gate=opt.GateOptions(enabled=True, max_neighbor_distance=1.1, max_base_confidence=0.9, min_loss_reduction=0,
                                                 min_validation_loss_reduction=0.1, min_optimized_confidence=0.6),
            reference_selection=opt.REFERENCE_SELECTION_ALL, objective=opt.OBJECTIVE_CHOICES, step_rule=opt.STEP_RULE_ADAM, alpha=0.5,
            return_pathways=False, use_profile=False, use_prior=True, validation_neighbors=4, step_scale=0.5, backtrack=True,
            prompt_positions=8, patience=3, preset=opt.PRESET_PAPER, exclude_reference_ids=["a", "b"], use_offset=True,
            balance=True, trust=0.1, neighbor_source=opt.NEIGHBOR_SOURCE_LAST_LAYER, neighborhoods=4,
            min_index_generation=7)
        options = parsed(text)
        self.assertEqual(options, expected)
        wanted = {"must": [{"key": "language", "in": ["en", "de"]}]}
        for given in (wanted, json.dumps(wanted)):  # Its commas end an argument: --model_args is a mapping then.
            self.assertEqual(list(getattr(optimization_from_args({"filter": given}).filter.must[0], "in")), ["en", "de"])
        for wrong in ("{", [], {"must": [{"wings": 1}]}):
            with self.subTest(wrong=wrong), self.assertRaisesRegex(C3poError, "model_args: filter"):
                optimization_from_args({"filter": wrong})
        options.MergeFrom(optimization_from_args({"filter": wanted}))
        unset = {field.name for field in options.DESCRIPTOR.fields} - {field.name for field, _ in options.ListFields()}
        self.assertEqual(unset - {"core_experts", "return_pathways", "use_profile"}, {"k"})  # k excludes epsilon.
        self.assertIn("k", argument_names())
        self.assertEqual(parsed("k=12").k, 12)

    def test_none_is_a_method_however_the_harness_parses_it(self):
        for arguments in (key_val_to_dict("method=none"), simple_parse_args_string("method=none"), {"method": None}):
            self.assertEqual(optimization_from_args(arguments).method, opt.METHOD_NONE)

    def test_layers_may_be_a_number_a_range_or_a_list(self):
        for text, layers in (("25", [25]), ("25-27", [25, 26, 27]), ("3+5", [3, 5]), ("[3,5]", [3, 5])):
            self.assertEqual(list(parsed(f"critical_layers={text}").critical_layers), layers)

    def test_wrong_arguments_are_named(self):
        for text, said in (("metod=ngd", "metod is not known; known are method, k"), ("gate_width=1", "gate_width is not known"),
                           ("method=best", "method: 'best' is none of mode, kernel, ngd"), ("k=-1", "k: -1"), ("k=2.5", "k: 2.5"),
                           ("k=true", "k: True"), ("steps=many", "steps: 'many'"), ("learning_rate=fast", "learning_rate: 'fast'"),
                           ("use_profile=1", "use_profile: 1 is neither"), ("critical_layers=27-25", "critical_layers: '27-25'"),
                           ("critical_layers=0-9999999999", "critical_layers: '0-"), ("critical_layers=-1", "critical_layers: "),
                           ("k=3,epsilon=0.1", "k and epsilon"), ("rule=last,application_rule=every", "rule and application_rule"),
                           ("method=oracle", "method=oracle needs")):
            with self.subTest(text=text), self.assertRaises(C3poError) as caught:
                parsed(text)
            self.assertIn(said, str(caught.exception))


class SamplingArgsTest(unittest.TestCase):
    def test_greedy_unless_sampling_is_asked_for(self):
        self.assertEqual(sampling_from_kwargs({"do_sample": False, "temperature": 0.7, "top_p": 0.9}).options.temperature, 0)
        self.assertEqual(sampling_from_kwargs({}).options.temperature, 0)
        options = sampling_from_kwargs({"temperature": 0.7, "top_p": 0.9, "max_gen_toks": 7, "num_beams": 1}).options
        self.assertEqual((options.temperature, options.top_p, options.max_tokens), (0.7, 0.9, 7))
        self.assertEqual(sampling_from_kwargs({"do_sample": True}).options.temperature, 1)

    def test_greedy_decoding_keeps_what_changes_the_likeliest_token(self):
        always = {"repetition_penalty": 1.3, "logit_bias": {"7": -100, 9: 2.5}, "ignore_eos": True}
        for chosen in ({}, {"do_sample": False}, {"temperature": 0.0}, {"do_sample": False, "temperature": 0.7, "top_p": 0.9}):
            options = sampling_from_kwargs({**chosen, **always}).options
            self.assertEqual((options.temperature, options.repetition_penalty, options.ignore_eos), (0, 1.3, True))
            self.assertEqual(dict(options.logit_bias), {7: -100, 9: 2.5})
            self.assertFalse(options.HasField("top_p"))  # Greedy decoding draws nothing.
        sampled = sampling_from_kwargs({"temperature": 0.7, **always}).options
        self.assertEqual((sampled.repetition_penalty, dict(sampled.logit_bias)), (1.3, {7: -100, 9: 2.5}))

    def test_a_value_of_another_kind_is_named(self):
        for name, value in (("repetition_penalty", "much"), ("logit_bias", [7]), ("logit_bias", {"the": 1})):
            with self.subTest(name=name, value=value), self.assertRaisesRegex(C3poError, f"generation_kwargs: {name}="):
                sampling_from_kwargs({name: value})

    def test_every_field_of_sampling_is_an_argument_or_set_here(self):
        known = {*DRAWING, *ALWAYS, "max_tokens", "stop", "logprobs", "n"}  # The harness reads one text, without figures.
        self.assertEqual({field.name for field in generation_pb2.SamplingOptions.DESCRIPTOR.fields} - known, set())

    def test_stop_strings_beyond_what_the_server_takes_are_cut_here(self):
        sampling = sampling_from_kwargs({"until": [f"<{i}>" for i in range(20)] + [""]})
        self.assertEqual(len(sampling.options.stop), 16)
        self.assertEqual(sampling.cut("a <19> b <18> c"), "a ")
        self.assertEqual(sampling_from_kwargs({"until": "\n"}).cut("one line"), "one line")

    def test_what_the_service_cannot_do_is_named(self):
        with self.assertRaisesRegex(C3poError, "num_beams=4 is not supported"):
            sampling_from_kwargs({"num_beams": 4})


class QuestionsTest(unittest.TestCase):
    @staticmethod
    def requests(*rows):
        return [Instance("loglikelihood", {}, (context, text), 0, ("task", document, 1)) for document, context, text in rows]

    def test_choices_of_a_document_are_one_question_and_equal_documents_two(self):
        questions = group_into_questions(self.requests((0, "Q:", " a"), (0, "Q:", " b"), (1, "Q:", " a"), (0, "", " a"), (0, "Q:", " a")))
        self.assertEqual([(q.context, q.continuations) for q in questions], [("Q:", [" a", " b"]), ("Q:", [" a"]), ("", [" a"])])
        self.assertEqual(questions[0].members, [(0, " a"), (1, " b"), (4, " a")])

    def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation(self):
        (question,) = group_into_questions(self.requests((0, "Q: \n", "a"), (0, "Q:", " \nb")))
        self.assertEqual((question.context, question.continuations), ("Q:", [" \na", " \nb"]))
        (blank,) = group_into_questions(self.requests((0, "\n", "a")))
        self.assertEqual((blank.context, blank.continuations), ("\n", ["a"]))


class RollingWindowsTest(unittest.TestCase):
    def test_equal_the_harness_windows_where_every_end_is_a_seam(self):
        for count in range(0, 40):
            for max_seq_len in (1, 2, 5, 16):
                tokens = list(range(100, 100 + count))
                expected = [make_disjoint_window(w) for w in get_rolling_token_windows(tokens, 7, max_seq_len, 1)]
                self.assertEqual(list(rolling_windows(tokens, 7, max_seq_len, lambda start, end: True)), expected)

    def test_each_token_is_predicted_once_in_windows_that_fit_wherever_the_seams_are(self):
        seed = 20261122
        source = random.Random(seed)
        for _ in range(300):
            tokens = list(range(source.randrange(1, 60)))
            seams = {end for end in range(60) if source.random() < 0.3}
            max_seq_len = source.randrange(2, 12)
            windows = list(rolling_windows(tokens, 99, max_seq_len, lambda start, end: end in seams))
            self.assertEqual([t for _, predicted in windows for t in predicted], tokens, f"seed {seed}")
            for context, predicted in windows:
                self.assertTrue(context and predicted)
                self.assertLessEqual(len(context) + len(predicted), max_seq_len + 1)
                if context != [99]:
                    self.assertEqual(context[-1], predicted[0] - 1)  # Nothing lies between a context and what follows.


class MarkedSpaces:
    """A server whose tokenizer writes spaces as marks, and puts one before a text: a word is its mark and letters, or an ending alone.
    Token 0 is <s>. Scores by the definition: the ids for which the text of context and ids is that of context and continuation."""

    WORDS = ["<s>", *(f"_{word}" for word in "the capital of france is paris and so on".split())]

    def __init__(self):
        self.scored = []

    def cut(self, text):
        ids = []
        for word in text.replace(" ", " _").split(" "):
            while word:
                piece = max((each for each in self.WORDS[1:] if word.startswith(each)), key=len)
                ids.append(self.WORDS.index(piece))
                word = word[len(piece):]
        return ids

    def tokenize(self, text, add_special_tokens):
        return [0] * add_special_tokens + self.cut(text if text.startswith(" ") else "_" + text)

    def detokenize(self, ids, skip_special_tokens):
        words = "".join("" if i == 0 and skip_special_tokens else self.WORDS[i].replace("_", " ") for i in ids)
        return words.removeprefix(" ")

    def score(self, request):
        context, (continuation,) = list(request.token_ids.ids), request.continuations
        marked = continuation if self.detokenize(context, True) or continuation.startswith(" ") else " " + continuation
        ids = self.cut(marked)
        self.scored.append((context, ids))
        return generation_pb2.ScoreResponse(scores=[generation_pb2.ContinuationScore(log_likelihood=-sum(ids), token_count=len(ids))])


class RollingTextsTest(unittest.TestCase):
    def test_a_continuation_keeps_the_space_before_its_first_word(self):
        lm = C3poLM.__new__(C3poLM)
        lm._connection, lm._window, lm._prefix_token = MarkedSpaces(), 4, 0
        lm._optimization = opt.OptimizationOptions()
        lm._count = lambda report: None
        text = "the capital of france is paris and so on"
        tokens = lm._connection.tokenize(text, False)
        self.assertEqual(len(tokens), 9)
        self.assertEqual(lm._rolling_log_likelihood(text), -sum(tokens))
        expected = [make_disjoint_window(w) for w in get_rolling_token_windows(tokens, 0, 3, 1)]
        self.assertEqual(lm._connection.scored, [(list(context), list(predicted)) for context, predicted in expected])


class Encyclopedia(FakeServer):
    """A server whose collection `science` has two references; one more text has the first one's embedding."""

    def __init__(self):
        super().__init__()
        self.on["Search"] = self.search
        self.on["Score"] = lambda request, context: generation_pb2.ScoreResponse(
            scores=[generation_pb2.ContinuationScore(log_likelihood=-1, token_count=1) for _ in request.continuations])

    def search(self, request, context):
        if request.collection != "science":
            fail(context, grpc.StatusCode.NOT_FOUND, "no such collection")
        if request.text == "down":
            fail(context, grpc.StatusCode.PERMISSION_DENIED, "not yours")
        distance = {"What is rain?": 0.0, "what is rain ?": 5e-5}.get(request.text, 0.4)
        response = reference_pb2.SearchReferencesResponse()
        for prompt in ("What is rain?", "What is snow?\n"):
            response.hits.add(distance=distance).reference.sample.prompt = prompt
            distance += 0.3
        return response


class KnownQuestionsTest(unittest.TestCase):
    def model(self, **options):
        server = Encyclopedia()
        self.addCleanup(server.stop)
        connection = Connection(server.target, 60)
        lm = C3poLM.__new__(C3poLM)
        lm._connection, lm._window, lm._concurrency, lm._among_references = connection, 4096, 2, 0
        lm._optimization = opt.OptimizationOptions(**options)
        lm._count = lambda report: None
        lm.cache_hook = unittest.mock.Mock()
        return lm, server

    def test_questions_among_the_references_are_counted_and_told(self):
        lm, server = self.model(collection="science")
        rows = ((0, "What is rain?"), (1, "what is rain ?"), (2, "What is snow?"), (3, "What is hail?"), (4, "What is hail?"))
        requests = [Instance("loglikelihood", {}, (context, text), 0, ("task", document, 1)) for document, context in rows
                    for text in (" wet", " dry")]
        with self.assertLogs("c3po_lm_eval.model", "WARNING") as logs:
            self.assertEqual(lm.loglikelihood(requests, disable_tqdm=True), [(-1, False)] * 10)
        self.assertIn("3 of 4 questions are among the references of science", logs.output[0])
        self.assertEqual((lm._among_references, server.calls("Search")), (3, 4))

    def test_the_model_alone_has_no_references_and_a_collection_that_is_not_there_none(self):
        request = [Instance("loglikelihood", {}, ("What is rain?", " wet"), 0, ("task", 0, 1))]
        lm, server = self.model(collection="science", method=opt.METHOD_NONE)
        lm.loglikelihood(request, disable_tqdm=True)
        self.assertEqual((lm._among_references, server.calls("Search")), (0, 0))
        lm, server = self.model()
        lm.loglikelihood(request, disable_tqdm=True)
        self.assertEqual((lm._among_references, server.requests["Search"][0].collection), (0, "default"))
        with self.assertRaises(C3poError):
            self.model(collection="science")[0]._tell_known({"down"}, True)

    def test_a_chat_goes_to_the_server_as_it_is(self):
        lm, server = self.model(collection="science")
        lm._info, lm._max_gen_toks = unittest.mock.Mock(), 4
        history = [{"role": "system", "content": "Be é."}, {"role": "user", "content": "What is rain?"}]
        chat = generation_pb2.Chat(messages=[generation_pb2.ChatMessage(**message) for message in history])
        context = lm.apply_chat_template(history)
        requests = [Instance("loglikelihood", {}, (context, text), 0, ("task", 0, 1)) for text in ("wet", "dry")]
        with self.assertLogs("c3po_lm_eval.model", "WARNING"):
            self.assertEqual(lm.loglikelihood(requests, disable_tqdm=True), [(-1, False)] * 2)
        self.assertEqual([(request.chat, list(request.continuations)) for request in server.requests["Score"]], [(chat, ["wet", "dry"])])
        self.assertEqual(server.requests["Search"][0].text, "What is rain?")
        server.on["Generate"] = lambda request, context: answer("ok")
        self.assertEqual(lm._generate(context, {"max_gen_toks": 4}), "ok")
        self.assertEqual(server.requests["Generate"][0].chat, chat)
        with self.assertRaisesRegex(C3poError, "gen_prefix"):
            lm.apply_chat_template([*history, {"role": "assistant", "content": "It"}], add_generation_prompt=False)
        lm._info.model.chat = False
        with self.assertRaisesRegex(C3poError, "no chat template"):
            lm.apply_chat_template(history)


if __name__ == "__main__":
    unittest.main(verbosity=2)
