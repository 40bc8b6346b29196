"""Where everything lies, relative to the project's folder; dvc.yaml names the same paths."""

from collections.abc import Callable
from pathlib import Path

# Folders that hold outputs of the stages and nothing else, and what runs leave beside them.
OUTPUTS = tuple(
    Path(name)
    for name in ("data", "models", "trajectories", "results", "metrics", "samples", "build")
)
CHECKED = Path("results/params.ok")
HUB = Path("results/hub.json")
DATA = Path("data")
FEATURES = Path("models/features")
JUDGES = Path("models/judges")
TEACHER = Path("models/teacher")
LABEL_COUNTS = TEACHER / "labels.json"  # `boss_core.checkpoints.folder.LABELS`
COST = Path("results/cost.npz")
SCHEDULES = Path("results/schedules.json")
PREDICTED_ERROR = Path("results/predicted_error.csv")
TRAJECTORIES = Path("trajectories")
FRECHET = Path("results/frechet.csv")
PLOTS = Path("results/plots")
REPORT = Path("results/report.html")


def student(budget: int | str) -> Path:
    return Path(f"models/student/{budget}")


def curves(name: int | str) -> Path:
    return Path(f"results/curves/{name}.csv")


def metrics(name: int | str) -> Path:
    """``metrics/K.json`` of a budget, or of ``teacher``, the floor: numbers only."""
    return Path(f"metrics/{name}.json")


def samples(name: int | str) -> Path:
    """A folder with one sample grid for each variant."""
    return Path(f"samples/{name}")


def replicates(name: int | str) -> Path:
    """What each distance is without each block of samples: see `flows.records.judges`."""
    return samples(name) / "replicates.json"


def made_of(name: int | str) -> Path:
    """What the metrics are of, in words and hashes: see `flows.records.record`."""
    return samples(name) / "made_of.json"


def usage(stage: str) -> Path:
    """What the parts of a stage took, see `flows.measure.usage`: no output of the stage."""
    return Path(f"results/usage/{stage}.json")


def costs_begun(digest: str) -> Path:
    """What the costs of a pipeline have so far, of one measurement: no output of a stage."""
    return Path("build/costs") / digest


def rollout_begun() -> Path:
    """The trajectories of a pipeline so far: no output of a stage."""
    return Path("build/rollout")


def training(label: str) -> Path:
    """The checkpoints of a training under way: no output of a stage, and gone when it is done."""
    return Path("build/training") / label


# The outputs of stages that there are of each budget.
OF_BUDGET: tuple[Callable[[str], Path], ...] = (student, curves, metrics, samples)
