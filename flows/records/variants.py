"""What is compared: the schedules of a budget, and the variants that are sampled with them."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from boss_core.ode.schedule import Schedule
from flows import paths
from flows.config import Method
from flows.records.json_files import Json, read_json

# What a student is trained by: eq. 9, or reflow with t uniform or at the K steps' starts.
Loss = Literal["straightening", "reflow", "distillation"]


@dataclass(frozen=True)
class Variant:
    """A column of the table. schedule: the name of the steps, which bring their solver. loss: what
    the student that is sampled was trained by; None for the teacher. adapter: whether an adapter
    was trained, or all weights. guided: False for a pipeline that is called without guidance."""

    title: str
    schedule: str
    loss: Loss | None = None
    adapter: bool = False
    guided: bool = True

    @property
    def trained(self) -> bool:
        """Whether a student is sampled, or the teacher."""
        return self.loss is not None


def _every(solver: str) -> dict[str, Variant]:
    """All variants in the order of the table, those of the paper first; ``solver``: of the chosen
    steps. The paper's steps are Euler's, so names say the solver only where it is another one."""
    by = "" if solver == "euler" else f", {solver}"
    eq9: Loss = "straightening"
    return {
        "pretrained_uniform": Variant("pretrained, uniform steps", "uniform"),
        "pretrained_bellman": Variant("pretrained, Bellman steps", "bellman"),
        "pretrained_fewer": Variant("pretrained, as many evaluations", "fewer"),
        "pretrained_unguided": Variant(
            "pretrained without guidance, Bellman steps", "bellman", guided=False
        ),
        "straightened_uniform": Variant("straightened, uniform steps", "uniform", eq9),
        "boss": Variant("BOSS: straightened, Bellman steps", "bellman", eq9),
        "boss_lora": Variant("BOSS with LoRA, Bellman steps", "bellman", eq9, adapter=True),
        "reflow_uniform": Variant("uniform reflow, uniform steps", "uniform", "reflow"),
        "reflow_distill": Variant("distill-K reflow, uniform steps", "uniform", "distillation"),
        "multistep": Variant("pretrained, fitted weights", "multistep"),
        "chosen_uniform": Variant(f"pretrained, uniform steps{by}", "chosen_uniform"),
        "chosen": Variant(f"pretrained, chosen steps{by}", "chosen"),
        "chosen_straightened": Variant(f"straightened, chosen steps{by}", "chosen", eq9),
    }


def variants(
    schedules: Mapping[str, Schedule], methods: Collection[Method], *, unguided: bool = False
) -> dict[str, Variant]:
    """The variants of one budget: those whose steps `schedule` was asked for, and of those with a
    student the ones of ``finetune.methods``. unguided: the teacher has guidance that it can be
    called without."""
    return {
        name: variant
        for name, variant in _every(chosen_solver(schedules)).items()
        if variant.schedule in schedules and (not variant.trained or name in methods)
        if variant.guided or unguided
    }


def students(schedules: Mapping[str, Schedule], methods: Collection[Method]) -> dict[str, Variant]:
    """The variants of one budget that have a student, which goes by the name of its variant."""
    found = variants(schedules, methods)
    return {name: variant for name, variant in found.items() if variant.trained}


def needed_knots(variant: Variant, schedules: Mapping[str, Schedule]) -> tuple[int, ...]:
    """The grid indices of the states that a student is trained on: reflow takes both ends."""
    indices = schedules[variant.schedule].indices
    return indices if variant.loss == "straightening" else (indices[0], indices[-1])


def recorded(record: Json) -> dict[str, Variant]:
    """The variants in the record of one budget."""
    every = _every(record.get("chosen_solver", "euler"))
    return {name: variant for name, variant in every.items() if name in record}


def chosen_solver(schedules: Mapping[str, Schedule]) -> str:
    """The solver of the chosen steps: Euler where the paper's are all that there is."""
    return schedules["chosen"].solver if "chosen" in schedules else "euler"


def read_schedules() -> dict[int, dict[str, Schedule]]:
    """For every budget, its schedules by name: ``uniform``, ``bellman``, other grids,
    ``multistep``, of networks, ``chosen`` and ``chosen_uniform`` where params.yaml asks for more
    than the paper's, and ``fewer``, of a pipeline with guidance."""
    content = read_json(paths.SCHEDULES)
    return {
        int(budget): {
            name: Schedule.from_json(json.dumps(schedule), paths.SCHEDULES)
            for name, schedule in schedules.items()
        }
        for budget, schedules in content.items()
    }
