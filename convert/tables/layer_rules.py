"""Rules of layers that many networks are made of."""

from rvseg_jax.convert.rules import Drop, Entry, Operation, Rule

_COUNTER = "counts training steps for an average that evaluation does not use; torch starts it at 0 where it is absent"


def path_of(name: str) -> str:
    """The path of a module that is called as upstream calls it."""
    return name.replace(".", "/")


def weights(source: str, target: str, *operations: Operation) -> list[Rule]:
    """A kernel and a bias."""
    return [Rule(f"{source}.weight", f"{target}/kernel", *operations), Rule(f"{source}.bias", f"{target}/bias")]


def norm(source: str, target: str) -> list[Rule]:
    """A norm of layers or groups."""
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]


def batch_norm(source: str, target: str) -> list[Entry]:
    """A batch norm with the statistics that it stores."""
    return [
        Rule(f"{source}.weight", f"{target}/scale"),
        Rule(f"{source}.bias", f"{target}/bias"),
        Rule(f"{source}.running_mean", f"{target}/mean"),
        Rule(f"{source}.running_var", f"{target}/var"),
        Drop(f"{source}.num_batches_tracked", _COUNTER, keep=True),
    ]
