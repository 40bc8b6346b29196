"""A student as MLflow's models are: the code that a logged model brings and runs when it is loaded.

It needs this project's library and what that needs; the weights lie beside it."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

BATCH = 64  # images at a time, as of `boss sample`


class StudentModel(mlflow.pyfunc.PythonModel):
    """Images of a student on its own steps, the same as `boss sample` draws with the same seed."""

    def load_context(self, context: Any) -> None:
        from boss_core.checkpoints.load import load_teacher

        self.student: Any = load_teacher(Path(context.artifacts["student"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """``count`` images for each row, from the noise of ``seed`` (0) and of the class ``label``
        (every class as often as in the data): uint8 (all counts, C, H, W)."""
        rows = model_input.to_dict("records")
        return np.concatenate([self._sample(row) for row in rows])

    def _sample(self, row: dict[Any, Any]) -> np.ndarray:
        import torch

        from boss_core.errors import InputError
        from boss_core.evaluation.sampling import sample_images
        from boss_core.ode.noise import sample_labels

        student, (count, seed, label) = self.student, map(_whole, map(row.get, _COLUMNS))
        if count is None:
            raise InputError("count: missing; the number of images needed")
        steps, labels = student.schedule, None
        if student.classes is not None:
            labels = sample_labels(
                range(count), student.classes, seed or 0, frequencies=student.frequencies
            )
            if label is not None:
                if not 0 <= label < student.classes:
                    raise InputError(f"label: {label}; 0..{student.classes - 1} needed")
                labels = torch.full_like(labels, label)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return sample_images(
            student.velocity.to(device),
            steps.timesteps,
            samples=count,
            shape=student.shape,
            seed=seed or 0,
            batch_size=BATCH,
            device=device,
            solver=steps.solver,
            weights=steps.weights,
            labels=labels,
        )


_COLUMNS = ("count", "seed", "label")


def _whole(value: Any) -> int | None:
    """None for what a row does not say."""
    return None if value is None or pd.isna(value) else int(value)


mlflow.models.set_model(StudentModel())
