"""The loader: order, randomness, position, processes, and errors that name the sample."""

import numpy as np
import pytest

from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig
from rvseg_jax.input_pipeline.loader import SampleError, StateError, make_loader, stack
from rvseg_jax.input_pipeline.mixture import Mixture
from rvseg_jax.input_pipeline.transforms import ToExample


def numbered(sample, rng):
    return {"number": np.int64(sample), "noise": rng.integers(0, 1 << 30, 2)}


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def equal(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a) for a, b in zip(one, other, strict=True)
    )


def loader(**changes):
    settings = {"transform": numbered, "batch_size": 4, "seed": 7, **changes}
    return make_loader(settings.pop("source", range(20)), **settings)


def test_an_epoch_holds_every_sample_once_in_an_order_of_its_own():
    epochs = [np.concatenate([batch["number"] for batch in take(iterator, 5)]) for iterator in [iter(loader())] * 2]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0].tolist() != epochs[1].tolist() and epochs[0].tolist() != list(range(20))


def test_seeds_fix_order_and_noise():
    first = take(iter(loader()), 6)
    assert equal(first, take(iter(loader()), 6))
    assert not equal(first, take(iter(loader(seed=8)), 6))
    noise = np.concatenate([batch["noise"] for batch in first])
    assert len(np.unique(noise, axis=0)) == 24  # the same sample of the next epoch gets noise of its own


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_epochs_follow_each_other_without_end(batch_size):
    stream = iter(loader(source=range(10), batch_size=batch_size))
    seen = np.concatenate([batch["number"] for batch in take(stream, 20 // batch_size)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10].tolist() != seen[10:].tolist()


def test_without_shuffling_the_order_is_that_of_the_source():
    batches = list(loader(shuffle=False, num_epochs=1, batch_size=8))
    assert [batch["number"].tolist() for batch in batches] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]


@pytest.mark.parametrize("taken", [0, 3, 7])
def test_resuming_gives_the_same_batches(taken):
    iterator = iter(loader())
    take(iterator, taken)
    state = iterator.get_state()
    assert state["samples"] == 4 * taken
    rest = take(iterator, 4)
    fresh = iter(loader())
    fresh.set_state(state)
    assert equal(rest, take(fresh, 4))
    iterator.set_state(state)
    assert equal(rest, take(iterator, 4))


def test_processes_share_one_global_order():
    whole = take(iter(loader()), 4)
    parts = [take(iter(loader(batch_size=2, process_index=k, process_count=2)), 4) for k in (0, 1)]
    for batch, one, two in zip(whole, *parts, strict=True):
        for name in batch:
            assert (batch[name] == np.concatenate([one[name], two[name]])).all()


def test_a_run_goes_on_with_other_processes():
    iterator = iter(loader())
    take(iterator, 2)
    state, rest = iterator.get_state(), take(iterator, 1)[0]
    second = iter(loader(batch_size=2, process_index=1, process_count=2))
    second.set_state(state)
    assert (next(second)["number"] == rest["number"][2:]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 8}, "seed 7, this run 8"),
        ({"source": range(21)}, "source"),
        ({"shuffle": False}, "shuffle"),
        ({"batch_size": 8}, "no whole number of batches of 8"),
    ],
)
def test_a_position_of_other_settings_is_refused(changes, message):
    iterator = iter(loader())
    take(iterator, 3)
    with pytest.raises(StateError, match=message):
        iter(loader(**changes)).set_state(iterator.get_state())


class Faulty:
    def __len__(self):
        return 6

    def __repr__(self):
        return "faulty"

    def __getitem__(self, index):
        if index == 4:
            raise OSError("disk on fire")
        return index


def test_a_failing_sample_is_an_error_that_names_it():
    with pytest.raises(SampleError, match="sample 4 of faulty: OSError: disk on fire"):
        list(loader(source=Faulty(), batch_size=2, num_epochs=1))

    def picky(sample, rng):
        return {"x": np.zeros(1) / (sample != 3) if sample != 3 else np.zeros(1)[2]}

    with pytest.raises(SampleError, match=r"sample 3 of range\(0, 20\): IndexError"):
        list(loader(transform=picky, num_epochs=1))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="process_index 2"):
        loader(process_index=2, process_count=2)
    with pytest.raises(ValueError, match="has no samples"):
        loader(source=[])
    with pytest.raises(ValueError, match="20 samples do not divide into batches of 3 on 2"):
        loader(batch_size=3, process_count=2, num_epochs=1)
    with pytest.raises(ValueError, match="batch_size 0"):
        loader(batch_size=0)


def test_rows_of_different_shapes_do_not_stack():
    with pytest.raises(ValueError, match="'x' differs within a batch"):
        stack([{"x": np.zeros(2)}, {"x": np.zeros(3)}])
    with pytest.raises(ValueError, match="rows of a batch differ"):
        stack([{"x": np.zeros(2)}, {"y": np.zeros(2)}])


def word_count(text):
    return {"words": np.int32(len(text.split()))}


def test_worker_processes_change_nothing():
    """Two workers, started at a position that one process reached, go on with its batches."""
    source = MovingShapes(MovingShapesConfig(size=(48, 48), frames=5))
    settings = {"transform": ToExample(word_count), "batch_size": 2, "seed": 1}
    single = iter(make_loader(source, **settings))
    take(single, 1)
    workers = iter(make_loader(source, num_workers=2, **settings))
    workers.set_state(single.get_state())
    batches = take(workers, 5)
    assert equal(batches, take(single, 5)) and workers.get_state() == single.get_state()
    assert type(batches[0]["frames"]) is np.ndarray and batches[0]["frames"].flags.owndata
    workers.close()


@pytest.mark.slow
def test_a_worker_names_the_failing_sample():
    iterator = iter(loader(source=Faulty(), batch_size=2, num_workers=1, num_epochs=1))
    with pytest.raises(SampleError, match="sample 4 of faulty: OSError: disk on fire"):
        take(iterator, 3)
    iterator.close()


def test_a_mixture_keeps_its_shares():
    mixed = Mixture([["a0", "a1", "a2", "a3"], ["b0"], ["c0", "c1", "c2"]], [2, 1, 3])
    assert [mixed[i] for i in range(6)] == ["a0", "a1", "b0", "c0", "c1", "c2"]
    assert len(mixed) == 12  # two rounds show all of a; b and c start again
    assert [mixed[i] for i in range(6, 12)] == ["a2", "a3", "b0", "c0", "c1", "c2"]
    assert mixed.locate(7) == (0, 3)
    with pytest.raises(IndexError, match="no sample 12"):
        mixed[12]


def test_a_shuffled_mixture_keeps_its_shares_each_epoch():
    mixed = Mixture([range(0, 10), range(100, 130)], [1, 3])
    numbers = np.concatenate([batch["number"] for batch in loader(source=mixed, num_epochs=1)])
    assert sorted(numbers) == [*range(10), *range(100, 130)]


@pytest.mark.parametrize(("weights", "message"), [([1], "one weight a source"), ([1, 0], "positive whole number")])
def test_a_mixture_refuses_wrong_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture([[1], [2]], weights)
