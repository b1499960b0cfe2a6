"""A language model of Qwen2.5-0.5B's shape beside transformers, in one process: reading a prompt, and writing tokens.

    python benchmarks/bench_lm.py [--layers 24] [--prompt 256] [--new 32] [--batch 1] [--dtype float32|bfloat16]

Weights are random; figures are medians. transformers keeps its growing cache, as its `generate` does by default.
Without it only our side runs. `--tiny` is a small model, to see that the benchmark runs.
"""

import argparse
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from side_by_side import compare, machine, random_model

from rvseg_jax.core.precision import by_name
from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.models.lm.decoder import LanguageModel
from rvseg_jax.models.lm.flops import flops
from rvseg_jax.models.lm.generate import GenerationOptions, generate

Calls = dict[str, Callable[[], object]]


def config(args: argparse.Namespace) -> LanguageModelConfig:
    """The shape that is measured."""
    precision = by_name(args.dtype)
    if args.tiny:
        return LanguageModelConfig.tiny(precision)
    return dataclasses.replace(LanguageModelConfig.qwen2_5_0_5b(precision), num_hidden_layers=args.layers)


def ours(args: argparse.Namespace, cfg: LanguageModelConfig, ids: np.ndarray) -> Calls:
    """Calls that wait for their result: one that reads the prompt, one that also writes."""
    graph, state = random_model(lambda rngs: LanguageModel(cfg, rngs=rngs))
    valid = np.ones(ids.shape, bool)
    options = GenerationOptions(max_new_tokens=args.new)

    @jax.jit
    def prefill(state, ids):
        model = nnx.merge(graph, state)
        states, cache = model.prefill(model.embed(ids), ids.shape[1] + args.new)
        return model.logits(states[:, -1:]), cache

    embed = jax.jit(lambda state, ids: nnx.merge(graph, state).embed(ids))
    model = nnx.merge(graph, state)

    def write() -> object:
        return jax.block_until_ready(generate(model, embed(state, ids), valid, options=options, mode=args.mode))

    return {"read": lambda: jax.block_until_ready(prefill(state, ids)), "write": write}


def theirs(args: argparse.Namespace, cfg: LanguageModelConfig, ids: np.ndarray) -> Calls | None:
    """The same of transformers, or None where it is not installed."""
    try:
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM
    except ImportError:
        return None
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(cfg, name) for name in (*names, "num_key_value_heads", "tie_word_embeddings")}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)).eval().to(device, getattr(torch, args.dtype))
    prompt = torch.from_numpy(ids).long().to(device)
    options = {"max_new_tokens": args.new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def read() -> None:
        with torch.inference_mode():
            model(input_ids=prompt, use_cache=True, logits_to_keep=1).logits.float().sum().item()

    def write() -> None:
        with torch.inference_mode():
            model.generate(prompt, attention_mask=torch.ones_like(prompt), **options).sum().item()

    return {"read": read, "write": write}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens that are written")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--mode", default="scan", choices=["scan", "unroll"], help="how our layers run")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    cfg = config(args)
    ids = np.random.default_rng(1).integers(0, cfg.vocab_size, (args.batch, args.prompt), np.int32)
    peer = theirs(args, cfg, ids)
    sides = {"ours": ours(args, cfg, ids)} | ({"transformers": peer} if peer else {})
    shape = f"{cfg.num_hidden_layers} layers of width {cfg.hidden_size}, {args.batch} x {args.prompt} tokens"
    print(f"{machine()}, {args.dtype}")
    read = compare(f"read {shape}", {name: calls["read"] for name, calls in sides.items()}, repeats=args.repeats)
    whole = compare(
        f"read and write {args.new}", {name: calls["write"] for name, calls in sides.items()}, repeats=args.repeats
    )
    work = flops(cfg, args.prompt, scored=1) * args.batch
    for name in sides:
        # The first new token comes with the prompt.
        steps = max(whole[name] - read[name], 1e-9) / max(args.new - 1, 1)
        reading, speed = args.batch * args.prompt / read[name], work / read[name] / 1e9
        print(f"{name}: reads {reading:.0f} tokens/s ({speed:.0f} GFLOP/s), writes {args.batch / steps:.1f} tokens/s")


if __name__ == "__main__":
    main()
