"""A c3po server as a model of the lm-evaluation-harness, under the name "c3po".

The harness (0.4.13) knows no plugins: its model registry is filled by imports only. So `c3po-lm-eval`, which is
`python -m c3po_lm_eval`, calls register() and then the harness' own command line; in Python, call register() before
lm_eval.simple_evaluate(model="c3po", model_args={...}).
"""

MODEL_NAME = "c3po"


def register() -> None:
    """Makes "c3po" known to the harness, beside its own models. May be called again."""
    import lm_eval.models  # Fills the registry, which get_model() would do only while it is empty.
    from lm_eval.api.registry import model_registry

    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target="c3po_lm_eval.model:C3poLM")
