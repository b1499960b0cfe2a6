"""Golden cases of language models: states, scores and loss of rows below and beyond the trained length."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.convert import from_torch
from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.models.lm.decoder import LanguageModel
from rvseg_jax.parity.compare import Excuse, Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind

_BUILD = frozenset(
    {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "bias"),
        "tie_word_embeddings",
    }
)
FIELDS = Fields(build=_BUILD, nested={"rope_scaling": Fields(build=frozenset({"type", "factor"}))})
_PADDING = "states of padding are numbers without meaning, and the original's attend to other keys"


def model_config(config: Mapping[str, Any]) -> LanguageModelConfig:
    """The model of a golden case of InternLM2."""
    return LanguageModelConfig.from_upstream({**config, "model_type": "internlm2"})


def next_token_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of the token after each one, over labels other than -100.

    Shapes: logits [B, T, V], labels int [B, T] -> [].
    """
    wanted = labels[:, 1:]
    counted = wanted != -100
    taken = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.maximum(wanted, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(taken * counted) / jnp.sum(counted)


def _internlm2(case: Case) -> Produced:
    graph, state = nnx.split(from_torch("internlm2", case.weights, model_config(case.config)))

    def run(weights: nnx.State, ids: jax.Array) -> dict[str, jax.Array]:
        model: LanguageModel = nnx.merge(graph, weights)
        embedded, last = model.embed(ids), model.cfg.num_hidden_layers
        states, _, between = model(embedded, taps=range(last - 1))
        hidden = [embedded, *between[: last - 1], states]
        return {f"hidden{layer}": value for layer, value in enumerate(hidden)} | {"logits": model.logits(states)}

    jitted = jax.jit(run)
    outputs = {f"short/{name}": value for name, value in jitted(state, case.input("short_ids")).items()}
    long = jitted(state, case.input("long_ids"))
    loss = next_token_loss(long["logits"], jnp.asarray(case.input("long_labels")))
    outputs |= {f"long/{name}": value for name, value in long.items()} | {"long/loss": loss}
    padding = case.input("long_mask") == 0
    excuses = {
        f"long/{name}": Excuse(np.broadcast_to(padding[..., None], value.shape), _PADDING)
        for name, value in long.items()
        if name != "hidden0"
    }
    return Produced(jax.device_get(outputs), excuses=excuses)


INTERNLM2 = Kind(_internlm2, FIELDS)
