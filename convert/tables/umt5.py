"""UMT5 encoder, keys as in transformers' `UMT5EncoderModel`."""

from rvseg_jax.convert.rules import Alias, Rule, Table, linear
from rvseg_jax.models.umt5.encoder import UMT5Config

_BLOCK = "encoder.block.{layer}.layer"
_LINEAR = {
    f"{_BLOCK}.0.SelfAttention.q": "blocks/attention/q",
    f"{_BLOCK}.0.SelfAttention.k": "blocks/attention/k",
    f"{_BLOCK}.0.SelfAttention.v": "blocks/attention/v",
    f"{_BLOCK}.0.SelfAttention.o": "blocks/attention/o",
    f"{_BLOCK}.1.DenseReluDense.wi_0": "blocks/ffn/gate",
    f"{_BLOCK}.1.DenseReluDense.wi_1": "blocks/ffn/up",
    f"{_BLOCK}.1.DenseReluDense.wo": "blocks/ffn/down",
}
_PLAIN = {
    "shared.weight": "shared/embedding",
    "encoder.final_layer_norm.weight": "final_layer_norm/scale",
    f"{_BLOCK}.0.layer_norm.weight": "blocks/attention_norm/scale",
    f"{_BLOCK}.1.layer_norm.weight": "blocks/ffn_norm/scale",
    f"{_BLOCK}.0.SelfAttention.relative_attention_bias.weight": ("blocks/attention/relative_attention_bias/embedding"),
}


def table(cfg: UMT5Config) -> Table:
    """Rules of the encoder; they do not depend on the sizes."""
    del cfg
    return Table(
        [
            *(Rule(f"{source}.weight", f"{target}/kernel", linear()) for source, target in _LINEAR.items()),
            *(Rule(source, target) for source, target in _PLAIN.items()),
            # Upstream ties the two; published files hold the first, state dicts hold both.
            Alias("encoder.embed_tokens.weight", "shared.weight"),
        ]
    )
