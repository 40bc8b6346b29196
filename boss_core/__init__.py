"""Bellman Optimal Stepsize Straightening (arXiv 2312.16414) for any velocity network.

The convention everywhere: noise at t = 0, data at t = 1, velocity ``v(x, t) = dx/dt``.

The public names, listed with a line each in docs/api.md, are imported from here:
``from boss_core import euler, uniform``. Each is loaded from its module when it is first asked for
(PEP 562), so that ``import boss_core`` loads neither torch nor numpy.
"""

from typing import TYPE_CHECKING, Any

# The only place that has it: pyproject.toml reads it here.
__version__ = "0.1.0"

if TYPE_CHECKING:
    from boss_core.bellman.bootstrap import bootstrap
    from boss_core.bellman.objectives import optimal_steps
    from boss_core.bellman.recursion import optimal_paths
    from boss_core.checkpoints.folder import load_checkpoint, save_checkpoint
    from boss_core.checkpoints.rectified_flow import load_rectified_flow
    from boss_core.checkpoints.student import Student, load_student
    from boss_core.costs.fine_states import roll_out_states
    from boss_core.costs.fit import fit_weights
    from boss_core.costs.matrix import CostMatrix, estimate_cost_matrix
    from boss_core.errors import InputError
    from boss_core.evaluation.comparison import best_of, paired_difference
    from boss_core.evaluation.frechet import evaluate_images
    from boss_core.evaluation.sampling import sample_images
    from boss_core.evaluation.uncertainty import frechet_with_error
    from boss_core.interop.export import (
        to_comfyui,
        to_comfyui_node,
        to_diffusers,
        to_flow_matching,
    )
    from boss_core.ode.denoiser import velocity_from_denoiser
    from boss_core.ode.noise import NoiseSource, sample_labels, sample_noise
    from boss_core.ode.schedule import Schedule
    from boss_core.ode.solvers import ab2, euler, heun, rk45, solver_of
    from boss_core.ode.timesteps import karras, quadratic, shifted, uniform
    from boss_core.ode.velocity import (
        CountedVelocity,
        VelocityField,
        checked_velocity,
        scalar_time,
        time_first,
    )
    from boss_core.search.choose import choose
    from boss_core.search.find import find_steps
    from boss_core.search.refine import refine
    from boss_core.search.settings import SearchSettings
    from boss_core.search.steps import FoundSteps
    from boss_core.straightening.reflow import Pairs
    from boss_core.straightening.segments import Segments, knot_states
    from boss_core.straightening.straighten import StraightenSettings, straighten
    from boss_core.training.loop import train
    from boss_core.training.settings import TrainingSettings

__all__ = [
    "CostMatrix",
    "CountedVelocity",
    "FoundSteps",
    "InputError",
    "NoiseSource",
    "Pairs",
    "Schedule",
    "SearchSettings",
    "Segments",
    "StraightenSettings",
    "Student",
    "TrainingSettings",
    "VelocityField",
    "ab2",
    "best_of",
    "bootstrap",
    "checked_velocity",
    "choose",
    "estimate_cost_matrix",
    "euler",
    "evaluate_images",
    "find_steps",
    "fit_weights",
    "frechet_with_error",
    "heun",
    "karras",
    "knot_states",
    "load_checkpoint",
    "load_rectified_flow",
    "load_student",
    "optimal_paths",
    "optimal_steps",
    "paired_difference",
    "quadratic",
    "refine",
    "rk45",
    "roll_out_states",
    "sample_images",
    "sample_labels",
    "sample_noise",
    "save_checkpoint",
    "scalar_time",
    "shifted",
    "solver_of",
    "straighten",
    "time_first",
    "to_comfyui",
    "to_comfyui_node",
    "to_diffusers",
    "to_flow_matching",
    "train",
    "uniform",
    "velocity_from_denoiser",
]

# The public names by their module below this package.
_HOMES = {
    "ode.velocity": "VelocityField CountedVelocity checked_velocity time_first scalar_time",
    "ode.denoiser": "velocity_from_denoiser",
    "ode.noise": "NoiseSource sample_labels sample_noise",
    "ode.timesteps": "karras quadratic shifted uniform",
    "ode.solvers": "ab2 euler heun rk45 solver_of",
    "ode.schedule": "Schedule",
    "costs.fine_states": "roll_out_states",
    "costs.matrix": "CostMatrix estimate_cost_matrix",
    "bellman.recursion": "optimal_paths",
    "bellman.objectives": "optimal_steps",
    "bellman.bootstrap": "bootstrap",
    "search.find": "find_steps",
    "costs.fit": "fit_weights",
    "search.settings": "SearchSettings",
    "search.steps": "FoundSteps",
    "search.refine": "refine",
    "search.choose": "choose",
    "straightening.segments": "Segments knot_states",
    "straightening.reflow": "Pairs",
    "straightening.straighten": "StraightenSettings straighten",
    "checkpoints.student": "Student load_student",
    "training.loop": "train",
    "training.settings": "TrainingSettings",
    "checkpoints.folder": "load_checkpoint save_checkpoint",
    "checkpoints.rectified_flow": "load_rectified_flow",
    "evaluation.sampling": "sample_images",
    "evaluation.frechet": "evaluate_images",
    "evaluation.comparison": "best_of paired_difference",
    "evaluation.uncertainty": "frechet_with_error",
    "interop.export": "to_comfyui to_comfyui_node to_diffusers to_flow_matching",
    "errors": "InputError",
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

if not TYPE_CHECKING:  # to a type checker any name would be one of this package

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = found  # not asked for again
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
