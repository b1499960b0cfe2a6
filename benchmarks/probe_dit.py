"""How much of a clip, and how much of a sentence, a tiny DiT in training has understood, before masks can show it.

    python benchmarks/probe_dit.py RUN [RUN ...] --latents runs/tiny/latents.array_record

For cached clips it compares one-step predictions of mask latents with the truth, over the clip's sentences of three
words that name something:

  objects    share of variance explained of the mean over a clip's sentences, between clips
  sentences  slope of the predictions' differences between a clip's sentences against the true differences

Both are 1 for a perfect model. The clips are of the training set; RUN is a folder of `rvseg train tiny/flowrvs_dit`.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core import config as configs
from rvseg_jax.input_pipeline.records import Records
from rvseg_jax.parts import parameters
from rvseg_jax.processing.text import Tokenizer, clean_text
from rvseg_jax.systems.flowrvs import flow
from rvseg_jax.training.config import parse
from rvseg_jax.training.tasks import task_class
from rvseg_jax.training.weights import read_params
from rvseg_jax.zoo import resolve

SENTENCES, WORDS = 12, 3


def probe(run: Path, records: Records, clips: range) -> tuple[float, float, int]:
    """(objects, sentences, optimizer steps) of the newest averaged weights of a run."""
    params, meta = read_params(run)
    settings, own = parse(configs.from_json(meta["config"]))
    task = task_class(settings.task)(own, precision=settings.formats)
    tokenizer = Tokenizer.from_file(resolve(own.tokenizer))
    dit = parameters.assembled(task._models["dit"], params["dit"])
    graph, state = nnx.split(dit)

    @jax.jit
    def predict(state: nnx.State, params: dict, video: jax.Array, ids: jax.Array, mask: jax.Array) -> jax.Array:
        text = task.encode_text(params, ids, mask)
        return video - nnx.merge(graph, state)(video, jnp.full(len(ids), float(flow.TIME_STEPS)), text)

    found, true, along, total = [], [], 0.0, 0.0
    for index in clips:
        row = records[index]
        kept = [k for k, text in enumerate(row["texts"]) if len(str(text).split()) == WORDS and row["mask_of"][k] > 0]
        kept = kept[:SENTENCES]
        if len(kept) < 3:
            continue
        texts = [clean_text(str(row["texts"][k])) for k in (kept * SENTENCES)[:SENTENCES]]
        tokens = tokenizer.encode(texts, own.text_length)
        video = np.repeat(row["video_mean"][None].astype(np.float32), SENTENCES, axis=0)
        predicted = np.asarray(predict(state, params, video, tokens.ids, tokens.mask))[: len(kept)]
        truth = row["mask_latents"][row["mask_of"][kept]].astype(np.float32)
        found.append(predicted.mean(0))
        true.append(truth.mean(0))
        along += float(((predicted - found[-1]) * (truth - true[-1])).sum())
        total += float(np.square(truth - true[-1]).sum())
    missed = np.square(np.array(found) - np.array(true)).sum()
    spread = np.square(np.array(true) - np.mean(true, axis=0)).sum()
    steps = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    return float(1 - missed / spread), along / total, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--latents", required=True, help="the latent cache")
    parser.add_argument("--clips", type=int, default=100, help="the last so many of the cache")
    args = parser.parse_args()
    records = Records(args.latents)
    for run in args.runs:
        objects, sentences, steps = probe(run, records, range(len(records) - args.clips, len(records)))
        print(f"{run} after {steps} steps: objects {objects:.2f}, sentences {sentences:.2f}", flush=True)


if __name__ == "__main__":
    main()
