"""Package list: `convert`, `configs` and `input_pipeline` lie at the top and install inside `rvseg_jax`."""

from setuptools import find_packages, setup

MAPPED = ("convert", "configs", "input_pipeline")

setup(
    packages=find_packages(include=["rvseg_jax", "rvseg_jax.*"])
    + [f"rvseg_jax.{name}" for top in MAPPED for name in find_packages(include=[top, f"{top}.*"])],
    package_dir={f"rvseg_jax.{top}": top for top in MAPPED},
    package_data={"rvseg_jax": ["zoo/**/*", "py.typed"]},
)
