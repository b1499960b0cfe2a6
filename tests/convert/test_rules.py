"""Rules: every operation is undone exactly, and a table that is no bijection is refused without weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvseg_jax import convert
from rvseg_jax.convert import engine
from rvseg_jax.convert.plan import ConversionError, Mismatch, compile_table
from rvseg_jax.convert.rules import (
    Alias,
    Drop,
    OperationError,
    Rule,
    Table,
    TableError,
    concat,
    conv,
    deconv,
    linear,
    match,
    reshape,
    split,
    stack,
    transpose,
)

SIZES = st.integers(1, 4)


@st.composite
def chains(draw):
    """A chain of operations with input arrays that it can act on."""
    kind = draw(st.sampled_from(["single", "split", "concat", "stack"]))
    shape = tuple(draw(st.lists(SIZES, min_size=2, max_size=5)))
    axis = draw(st.integers(0, len(shape) - 1))
    if kind == "split":
        parts = tuple(draw(st.lists(SIZES, min_size=1, max_size=3)))
        shapes = [(*shape[:axis], sum(parts), *shape[axis + 1 :])]
        chain = [split(axis, parts)]
    elif kind == "concat":
        parts = tuple(draw(st.lists(SIZES, min_size=1, max_size=3)))
        shapes = [(*shape[:axis], size, *shape[axis + 1 :]) for size in parts]
        chain = [concat(axis, parts)]
    elif kind == "stack":
        shapes = [shape] * 3
        chain = [stack(3)]
    else:
        shapes, chain = [shape], []
    rank = len(shape) + (kind == "stack")
    if rank >= 3 and draw(st.booleans()):
        chain.append(draw(st.sampled_from([conv(), deconv()])))
    chain.append(transpose(*draw(st.permutations(range(rank)))))
    count = 0
    arrays = []
    for each in shapes:
        arrays.append(np.arange(count, count + np.prod(each)).reshape(each))
        count += arrays[-1].size
    return chain, arrays


@settings(max_examples=150, deadline=None)
@given(chains())
def test_operations_are_bijections(case):
    chain, arrays = case
    results = list(arrays)
    shapes = [array.shape for array in arrays]
    for operation in chain:
        results, shapes = operation.arrays(results), operation.shapes(shapes)
    assert [array.shape for array in results] == shapes
    entries = np.concatenate([array.ravel() for array in results])
    assert sorted(entries) == list(range(sum(array.size for array in arrays)))
    for operation in reversed(chain):
        results, shapes = operation.inverse().arrays(results), operation.inverse().shapes(shapes)
    assert shapes == [array.shape for array in arrays]
    assert all(np.array_equal(back, array) for back, array in zip(results, arrays, strict=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=4))
def test_reshape_is_undone(shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    operation = reshape((-1, *shape[1:]), (*shape[1:], -1))
    (moved,) = operation.arrays([array])
    assert moved.shape == (*shape[1:], shape[0]) == operation.shapes([array.shape])[0]
    np.testing.assert_array_equal(operation.inverse().arrays([moved])[0], array)


def test_layouts():
    assert linear().shapes([(5, 3)]) == [(3, 5)]
    assert conv().shapes([(8, 4, 1, 2, 3)]) == [(1, 2, 3, 4, 8)]
    assert deconv().shapes([(4, 8, 2, 3)]) == [(2, 3, 8, 4)]
    assert split(0, 3).shapes([(6, 2)]) == [(2, 2)] * 3
    assert split(1, (1, 4)).shapes([(6, 5)]) == [(6, 1), (6, 4)]
    assert concat(0, (1, 4)).shapes([(1, 2), (4, 2)]) == [(5, 2)]
    assert stack(2).shapes([(3,), (3,)]) == [(2, 3)]


def test_deconv_is_what_conv_transpose_takes(torch):
    import jax

    rng = np.random.default_rng(0)
    weight, image = rng.standard_normal((3, 5, 2, 4)), rng.standard_normal((1, 3, 6, 7))
    wanted = torch.nn.functional.conv_transpose2d(torch.tensor(image), torch.tensor(weight), stride=2)
    (kernel,) = deconv().arrays([weight])
    got = jax.lax.conv_transpose(
        image.transpose(0, 2, 3, 1),
        kernel,
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        transpose_kernel=True,
    )
    # float32 sums of 24 products against float64
    np.testing.assert_allclose(np.asarray(got).transpose(0, 3, 1, 2), wanted.numpy(), atol=2e-5)


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (linear(), [(2, 3, 4)]),
        (conv(), [(2, 3)]),
        (split(0, 3), [(4, 2)]),
        (split(2, 3), [(4, 2)]),
        (split(0, (1, 2)), [(4, 2)]),
        (concat(0, 2), [(4, 2)]),
        (concat(0, 2), [(4, 2), (3, 2)]),
        (concat(1, (2, 2)), [(4, 2), (3, 2)]),
        (stack(2), [(4, 2), (3, 2)]),
        (stack(2).inverse(), [(3, 2)]),
        (reshape((-1, 1), (-1,)), [(4, 2)]),
        (reshape((-1,), (2, -1)), [(5,)]),
        (reshape((4,), (2, 3)), [(4,)]),
    ],
)
def test_operations_refuse_shapes_they_do_not_fit(operation, shapes):
    with pytest.raises(OperationError):
        operation.shapes(shapes)


def test_malformed_rules_are_refused():
    with pytest.raises(TableError, match="no permutation"):
        transpose(0, 0)
    with pytest.raises(TableError, match="at most one -1"):
        reshape((-1, -1), (-1,))
    with pytest.raises(TableError, match="no placeholder i"):
        Rule("a.{layer}", "a/{i}")
    with pytest.raises(TableError, match="same placeholders"):
        Rule(("a.{layer}", "b"), "a", concat(0, 2))
    with pytest.raises(TableError, match="say why"):
        Drop("a", "")


def test_placeholders_match_plain_integers_only():
    assert match("a.{i}.b{j}", "a.10.b0") == {"i": 10, "j": 0}
    for name in ("a.01.b0", "a.x.b0", "a.1.b", "a.1.b0.c", "axl.b0"):
        assert match("a.{i}.b{j}", name) is None


def test_under_and_sum_compose_tables():
    part = Table([Rule("w", "k"), Drop("step", "unused"), Alias("w2", "w")])
    whole = part.under("vae.", "vae/") + part.under("dit.", "dit/")
    plan = compile_table(whole, {"vae/k": (2,), "dit/k": (3,)})
    assert plan.key_shapes == {"vae.w": (2,), "dit.w": (3,)}
    found = plan.match({"vae.w": (2,), "dit.w": (3,), "dit.w2": (3,), "vae.step": ()})
    assert found.repeats == {"dit.w2": "dit.w"} and list(found.dropped) == ["vae.step"]


def test_stacks_over_two_placeholders():
    plan = compile_table(Table([Rule("m.{a}.l.{b}.w", "m/w", linear())]), {"m/w": (2, 3, 4, 5)})
    assert len(plan.moves) == 6 and plan.key_shapes["m.1.l.2.w"] == (5, 4)
    tensors = {key: np.full(shape, index) for index, (key, shape) in enumerate(plan.key_shapes.items())}
    whole = engine.leaf_slice(plan, plan.match(plan.key_shapes), tensors, "m/w", np.int64, (slice(None),) * 4)
    np.testing.assert_array_equal(whole[:, :, 0, 0], [[0, 1, 2], [3, 4, 5]])


LEAVES = {"a/kernel": (3, 5), "b/scale": (4,), "s/w": (2, 3)}
GOOD = [Rule("a.weight", "a/kernel", linear()), Rule("b.weight", "b/scale"), Rule("s.{layer}.w", "s/w")]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (GOOD[:2], "no rule fills s/w"),
        ([*GOOD, Rule("c.weight", "c/kernel")], "the model has no leaf c/kernel"),
        ([*GOOD, Rule("a.w", "a/kernels")], "the model has no leaf a/kernels, but a/kernel"),
        ([*GOOD, Rule("c.weight", "b/scale")], "leaf b/scale is filled twice"),
        ([*GOOD[:2], Rule("b.weight", "s/w")], "key b.weight is used twice"),
        ([*GOOD[:2], Rule("s.w", "s/w", split(0, 2))], "s/w"),
        ([GOOD[0], GOOD[2], Rule("b.weight", "b/scale", linear())], "wants 2 axes"),
        ([GOOD[0], GOOD[2], Rule("b.{x}.{y}.weight", "b/scale")], "leading axes"),
        ([*GOOD, Drop("s.{i}.w", "unused")], "both read by a rule and named by"),
        ([*GOOD, Alias("c", of="d")], "no rule reads d"),
    ],
)
def test_tables_that_are_no_bijection_are_refused(entries, says):
    compile_table(Table(GOOD), LEAVES)
    with pytest.raises(TableError) as caught:
        compile_table(Table(entries), LEAVES)
    assert says in str(caught.value)


def test_mismatch_lists_keys_by_kind_with_near_names():
    plan = compile_table(Table(GOOD), LEAVES)
    shapes = dict(plan.key_shapes)
    del shapes["a.weight"]
    shapes |= {"a.weights": (5, 3), "b.weight": (7,), "zzz": ()}
    with pytest.raises(Mismatch) as caught:
        plan.match(shapes)
    assert str(caught.value) == (
        "the checkpoint does not fit the model: 1 missing (a.weight, perhaps a.weights); "
        "2 unknown (a.weights, perhaps a.weight, zzz); "
        "1 of wrong shape (b.weight is (7,), the model wants (4,))"
    )
    assert caught.value.count == 4
    with pytest.raises(Mismatch, match="none of the 4 keys"):
        plan.match({"x": (1,)})


def test_long_lists_are_cut():
    plan = compile_table(Table([Rule("b.{layer}", "b")]), {"b": (50, 2)})
    with pytest.raises(Mismatch, match=r"49 missing \(b.1, b.2, b.3, b.4 and 45 more\)"):
        plan.match({"b.0": (2,)})


def test_toy_model_round_trip_in_memory(toy):
    tensors = toy.tensors()
    module = convert.from_torch("toy", tensors, toy.ToyConfig())
    np.testing.assert_array_equal(module.blocks.k[1], tensors["blocks.1.qkv.weight"][4:8].T)
    np.testing.assert_array_equal(module.blocks.up[2, :, 4:], tensors["blocks.2.value.weight"].T)
    np.testing.assert_array_equal(module.convs[1].kernel[1, 2], tensors["convs.1.weight"][:, :, 1, 2].T)
    np.testing.assert_array_equal(module.pair.kernel[1], tensors["heads.4.weight"].T)
    back = convert.to_torch("toy", module, aliases=True)
    kept = {key for key in tensors if key != "step" and not key.endswith("freqs")}
    assert back.keys() == kept
    for key in kept:
        assert back[key].dtype == tensors[key].dtype, key
        np.testing.assert_array_equal(back[key], tensors[key], err_msg=key)
    assert "encoder.embed.weight" not in convert.to_torch("toy", module)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("up.weight"), "1 missing (up.weight)"),
        (lambda t: t.update(extra=t["up.weight"]), "1 unknown (extra)"),
        (lambda t: t.update({"up.weight": t["up.weight"][0]}), "up.weight is (4, 2, 2)"),
        (lambda t: t["encoder.embed.weight"].__setitem__((0, 0), 9), "encoder.embed.weight differs from shared.weight"),
        (lambda t: t.update({"encoder.embed.weight": t["up.weight"]}), "encoder.embed.weight is (8, 4, 2, 2)"),
        (lambda t: t.update({"up.weight": t["up.weight"].astype(np.int32)}), "up.weight is int32"),
        (dict.clear, "none of the"),
    ],
)
def test_loading_is_strict(toy, change, says):
    tensors = toy.tensors()
    change(tensors)
    with pytest.raises(ConversionError) as caught:
        convert.from_torch("toy", tensors, toy.ToyConfig())
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_part_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown part 'wan': choose one of wan_dit, wan_vae, umt5"):
        convert.from_torch("wan", {})
