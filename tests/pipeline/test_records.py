"""Rows of arrays in ArrayRecord files."""

import pickle

import numpy as np
import pytest

from rvseg_jax.input_pipeline.records import Records, description_of, write_records


def rows(count):
    for index in range(count):
        rng = np.random.default_rng(index)
        yield {"latents": rng.standard_normal((2, index % 3 + 1)).astype(np.float16), "ids": np.arange(index)}


def test_rows_come_back_in_any_order_and_after_pickling(tmp_path):
    path = tmp_path / "deep" / "rows.array_record"
    assert write_records(path, rows(7), description={"seed": 3}) == 7
    assert description_of(path) == {"seed": 3}
    records = pickle.loads(pickle.dumps(Records(path)))
    assert len(records) == 7
    for index, expected in reversed(list(enumerate(rows(7)))):
        found = records[index]
        assert set(found) == {"latents", "ids"}
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])
            assert found[name].dtype == expected[name].dtype
    with pytest.raises(IndexError, match="has 7 rows, no row 7"):
        records[7]


def test_a_failing_writer_leaves_nothing(tmp_path):
    def broken():
        yield {"a": np.zeros(2)}
        raise RuntimeError("sample 1 cannot be read")

    path = tmp_path / "rows.array_record"
    with pytest.raises(RuntimeError, match="sample 1"):
        write_records(path, broken(), description={})
    assert list(tmp_path.iterdir()) == []
    assert description_of(path) is None
    with pytest.raises(FileNotFoundError, match="no complete records"):
        Records(path)


def test_objects_are_not_pickled(tmp_path):
    path = tmp_path / "rows.array_record"
    with pytest.raises(ValueError, match="allow_pickle"):
        write_records(path, [{"a": np.array([{"not": "plain"}], dtype=object)}], description={})
    assert list(tmp_path.iterdir()) == []
