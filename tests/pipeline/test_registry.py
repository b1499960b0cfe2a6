"""Datasets by their names."""

import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.datasets.mevis import Mevis
from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig, to_mevis
from rvseg_jax.input_pipeline.datasets.registry import NAMES, open_dataset, reader_of

CONFIG = MovingShapesConfig(size=(48, 56), frames=5)


def test_mevis_is_opened_by_root_and_split_or_by_the_splits_folder(tmp_path):
    to_mevis(tmp_path / "train", MovingShapes(CONFIG), range(2))
    source = open_dataset("mevis", tmp_path, "train", clip_frames=3)
    assert isinstance(source, Mevis) and len(source) == 8 and source[1].anchor == 3
    assert [item.text for item in open_dataset("mevis", tmp_path / "train", "")] == [
        item.text for item in open_dataset("mevis", tmp_path, "train")
    ]
    with pytest.raises(InputError, match="valid_u/meta_expressions.json is missing"):
        open_dataset("mevis", tmp_path, "valid_u")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_reader(name):
    assert callable(reader_of(name))


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(InputError, match="no dataset is called 'MeVIS2'; choose from mevis"):
        open_dataset("MeVIS2", "nowhere", "train")
