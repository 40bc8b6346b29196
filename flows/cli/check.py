"""``boss check``."""

from flows.config import load_params


def check() -> None:
    """Check params.yaml and the inputs that it names."""
    from flows.stages.check import check as check_inputs

    check_inputs(load_params())
