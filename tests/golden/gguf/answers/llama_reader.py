"""llama.cpp as a reader of GGUF files: ids, final states, logits and greedy tokens, by the bindings of PyPI's llama-cpp-python."""

import llama_cpp
import numpy

THREADS = 1
CONTEXT = 256
FLOAT32 = 0  # ggml_type.
QUIET = llama_cpp.llama_log_callback(lambda *_: None)  # llama.cpp keeps a pointer to it.


class LlamaReader:
    """llama.cpp with one GGUF file. `exact`: keys and values in float32, and no flash attention, which computes in halves."""

    def __init__(self, path, exact=False):
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model, path
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = CONTEXT
        parameters.n_threads = parameters.n_threads_batch = THREADS
        parameters.embeddings, parameters.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_NONE
        if exact:
            parameters.type_k = parameters.type_v = FLOAT32
            parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        assert self.context, path
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.width = llama_cpp.llama_model_n_embd(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def ids(self, text, add_special):
        encoded = text.encode()
        buffer = (llama_cpp.llama_token * CONTEXT)()
        count = llama_cpp.llama_tokenize(self.vocabulary, encoded, len(encoded), buffer, CONTEXT, add_special, True)
        assert count >= 0
        return list(buffer[:count])

    def end(self):
        return llama_cpp.llama_vocab_eos(self.vocabulary)

    def outputs(self, ids, begin):
        """Final states and logits of `ids`, which begin at position `begin`."""
        if begin == 0:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, begin + i, 1, 1
            batch.seq_id[i][0] = 0
        assert llama_cpp.llama_decode(self.context, batch) == 0
        states = [numpy.ctypeslib.as_array(llama_cpp.llama_get_embeddings_ith(self.context, i), (self.width,)).copy() for i in range(len(ids))]
        logits = [numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, i), (self.size,)).copy() for i in range(len(ids))]
        llama_cpp.llama_batch_free(batch)
        return numpy.array(states), numpy.array(logits)

    def greedy(self, prompt, most):
        """Tokens, the end token included, and the logits that each was the best of."""
        tokens, rows = [], []
        logits = self.outputs(prompt, 0)[1][-1]
        while True:
            rows.append(logits)
            tokens.append(int(logits.argmax()))
            if tokens[-1] == self.end() or len(tokens) == most:
                return tokens, numpy.array(rows)
            logits = self.outputs(tokens[-1:], len(prompt) + len(tokens) - 1)[1][-1]
