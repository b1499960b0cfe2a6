"""`rvseg plan`: does a training step fit a TPU slice, on which mesh, and what does it move and compute there."""

import argparse
import json
import re
import sys
from typing import Any

from rvseg_jax.core.errors import InputError

AXES = ("data", "fsdp", "seq", "tensor")
SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg plan`."""
    parser.description = (
        "Compile the training step of a recipe for a TPU slice on this machine (needs libtpu, no TPU) and say what "
        "it takes there; with --fast only estimate. A step that does not fit is a result, with exit code 1."
    )
    parser.add_argument("system", metavar="SYSTEM", help="flowrvs, mllmseg or geomotion")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, as for rvseg train")
    parser.add_argument(
        "--topology", required=True, help="v4, v5e, v5p, v6e or tpu7x and a shape: v5e:16x16, v5p:4x4x4"
    )
    parser.add_argument("--config", metavar="RECIPE", help="recipe (default: the published one)")
    parser.add_argument(
        "--mesh", metavar="D,F,S,T", help="devices along data,fsdp,seq,tensor, -1 for the rest (default: the recipe's)"
    )
    parser.add_argument(
        "--size", help="published network: 1.3b, 14b (flowrvs), 1b, 2b, 4b, 8b (mllmseg) (default: the recipe's)"
    )
    parser.add_argument("--frames", type=int, help="frames of a clip, 4n + 1 for flowrvs (default: the recipe's)")
    parser.add_argument("--batch-size", type=int, help="samples of a step (default: data times fsdp)")
    parser.add_argument("--fast", action="store_true", help="estimate and compile nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")


def expand(arguments: list[str]) -> list[str]:
    """The arguments with changes to the recipe directly behind the system, wherever they were written."""
    changes = [argument for argument in arguments if re.match(r"[a-z_][\w.]*=", argument)]
    rest = [argument for argument in arguments if argument not in changes]
    return [*rest[:2], *changes, *rest[2:]]


def run(args: argparse.Namespace) -> int:
    """Run `rvseg plan` and return its exit code: 1 if the step does not fit."""
    from rvseg_jax.planning import plan

    if not args.fast:
        print("compiling; this takes minutes for the published sizes", file=sys.stderr)
    found = plan(
        args.system,
        args.topology,
        recipe=args.config,
        mesh=_mesh(args.mesh),
        size=args.size,
        frames=args.frames,
        batch_size=args.batch_size,
        overrides=args.overrides,
        fast=args.fast,
    ).to_json()
    print(json.dumps(found, indent=2) if args.json else "\n".join(report(found)))
    return 0 if found["fits"] else 1


def _mesh(text: str | None) -> dict[str, int] | None:
    """{"data": 1, ...} from "1,16,1,4"."""
    if text is None:
        return None
    try:
        sizes = [int(part) for part in text.split(",")]
        return dict(zip(AXES, sizes, strict=True))
    except ValueError:
        raise InputError(f"--mesh {text!r}: give four sizes for {','.join(AXES)}, such as 1,16,1,1") from None


def report(found: dict[str, Any]) -> list[str]:
    """The lines for a reader."""
    place, chosen = found["topology"], found["chosen"]
    sample = found["sample"]
    lines = [
        f"{found['system']} by {found['recipe']} on {place['name']}: {place['devices']} devices, mesh {_axes(chosen)}",
        f"batch of {found['batch_size']} {sample['words']}; "
        f"{found['parameters']['trained']:,} parameters trained, {found['parameters']['frozen']:,} frozen",
        *(f"{part}: {where}" for part, where in found["parts"].items()),
        "",
        *_memory(found),
        "",
        *_work(found),
        "",
        f"meshes that fit, by the estimate ({len(found['fitting'])} of {found['looked_at']}, a sample for each part):",
    ]
    for mesh in found["fitting"][:SHOWN]:
        used = (mesh["arguments"] + mesh["temporaries"]) / 2**30
        slow = max(mesh["seconds"], key=mesh["seconds"].get)
        notes = f"; {', '.join(mesh['notes'])}" if mesh["notes"] else ""
        rate = f"at most {mesh['samples_per_second']:.1f} {sample['unit']}/s"
        lines.append(f"  {_axes(mesh)}: {used:.1f} GiB, {rate}, by {slow}{notes}")
    return lines


def _memory(found: dict[str, Any]) -> list[str]:
    compiled, chosen = found["compiled"], found["chosen"]
    limit = chosen["memory"]
    guess = f"{_gib(chosen['arguments'])} of arguments (exact) and about {_gib(chosen['temporaries'])} of temporaries"
    if compiled is None:
        verdict = "fits" if chosen["fits"] else "does not fit"
        return [f"HBM a device, estimated: {guess}; {verdict} {_gib(limit)}"]
    if not compiled["fits"]:
        needs = f"needs {_gib(compiled['memory'])} of {_gib(compiled['available'])}" if "memory" in compiled else ""
        return [
            f"HBM a device, by the compiler: DOES NOT FIT {needs or compiled['message']}",
            f"  estimated: {guess}",
            "  more fsdp shares out arguments; seq or tensor, fewer frames and chunks of the autoencoder temporaries",
        ]
    kinds = compiled["collectives"]
    return [
        f"HBM a device, by the compiler: {_gib(compiled['memory'])} of {_gib(limit)}",
        f"  arguments {_gib(compiled['arguments'])}, temporaries {_gib(compiled['temporaries'])}, "
        f"outputs {_gib(compiled['outputs'])} of which {_gib(compiled['aliased'])} in place of arguments",
        f"  compiled in {compiled['compile_seconds']:.0f} s with {_gib(compiled['host_memory'])} of host memory",
        "collectives a step, bytes that a device sends in a ring:",
        *(f"  {kind}: {item['count']:,} of together {_gib(item['bytes'])}" for kind, item in sorted(kinds.items())),
    ]


def _work(found: dict[str, Any]) -> list[str]:
    flops, chosen = found["flops"], found["chosen"]
    parts = ", ".join(f"{name.replace('_', ' ')} {flops[name] / 1e12:,.1f}" for name in flops if name != "total")
    seconds = ", ".join(f"{name} {value:.3f} s" for name, value in chosen["seconds"].items())
    return [
        f"operations of a step, counted: {flops['total'] / 1e12:,.1f} TFLOP ({parts})",
        f"  a device does {chosen['flops'] / 1e12:,.1f}" + "".join(f"; {note}" for note in chosen["notes"]),
        f"least time of a step, estimated from the chip's peaks: {chosen['bound_seconds']:.3f} s ({seconds})",
    ]


def _axes(found: dict[str, Any]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in found["mesh"].items())


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
