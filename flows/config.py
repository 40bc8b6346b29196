"""The schema of params.yaml: strict, every field with its unit and range. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from boss_core.bellman.names import OBJECTIVES
from boss_core.errors import InputError
from boss_core.ode.solver_table import LARGEST_ORDER, SEARCHED, SOLVERS
from boss_core.search.settings import FEWEST, SAMPLED, UNIFORM
from boss_core.training.settings import ComputeSettings, Settings, TrainingSettings, training_share
from flows.strict_yaml import read_mapping, shown

PARAMS = Path("params.yaml")

# Of a run of the flow that names no others. Here, as the command line reads nothing heavier.
WORKERS = 2  # stages side by side
TIMEOUT = 24 * 3600.0  # seconds for one stage

# Precision and recall measure the distance of an image to its third nearest neighbour.
NEAREST = 4  # images, itself included

# No network or picture is wider, and nothing counts further: a slip of the finger that would end
# in a full memory after the stages before it.
WIDEST = 2**14
MOST = 10**9

# What steps can be searched for, and by: as the library has them.
if TYPE_CHECKING:
    SearchedSolver: TypeAlias = str
    SearchedObjective: TypeAlias = str
else:
    SearchedSolver = Literal[SEARCHED]
    SearchedObjective = Literal[
        "auto", *OBJECTIVES, *(name for name in SAMPLED if name != "auto"), UNIFORM
    ]

Budget = Annotated[int, Field(ge=1)]
Multiplier = Annotated[int, Field(ge=1, le=64)]
# Columns of the table that have a student of their own: `flows.records.variants`.
Method = Literal[
    "straightened_uniform",
    "boss",
    "boss_lora",
    "reflow_uniform",
    "reflow_distill",
    "chosen_straightened",
]


# What measures every variant beside ``features.extractor``.
SECOND = "second_classifier"
Judge = Literal["second_classifier", "imagenet", "inception"]


Value = TypeVar("Value", int, Method, Judge)
Built = TypeVar("Built", bound=BaseModel)


def _distinct(values: list[Value], what: str) -> list[Value]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(map(str, repeated))} repeated; each {what} once")
    return values


class Data(Settings):
    source: Literal["digits", "folder", "npy", "npz", "parquet", "torchvision", "none"]
    path: str = Field(description="file or folder of the images, not used for digits and none")
    image_column: str = Field(description="parquet: column of the images")
    label_column: str | None = Field(description="parquet: column of the labels, null for none")
    dataset: str | None = Field(description="torchvision: the data set's class")
    image_size: int | None = Field(
        ge=1, le=WIDEST, description="side to crop and resize to, pixels"
    )
    test_fraction: float = Field(gt=0, lt=1, description="share of images kept for testing")

    @model_validator(mode="after")
    def _dataset_named(self) -> Self:
        if self.source == "torchvision" and self.dataset is None:
            raise ValueError(
                "dataset is null, but source torchvision needs a class of torchvision.datasets"
            )
        return self


class Features(Settings):
    extractor: Literal["classifier", "inception", "imagenet"]
    network: Literal["small", "resnet"] = Field(description="classifier: three layers, or sixteen")
    augment: bool = Field(
        description="classifier: train on images shifted by up to 4 pixels and flipped"
    )
    path: str = Field(description="folder of the weights file, used when extractor is inception")
    width: int = Field(
        ge=8, le=WIDEST, multiple_of=8, description="classifier: channels, first layer"
    )
    features: int = Field(ge=2, le=2048, description="classifier: width of the feature layer")
    training: TrainingSettings


class Pipeline(Settings):
    """Of a diffusers teacher: `flows.straighten.request.Teacher` has the same as options."""

    hub: str | None = Field(description="its name on the hub; null: a folder, teacher.path")
    prompts: str = Field(description="a file of prompts, or a folder of one and its images")
    lora: str = Field(description="folder whose .safetensors are part of the teacher, in order")
    guidance: float | None = Field(
        allow_inf_nan=False, description="guidance_scale; null: the pipeline's own"
    )
    size: Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")] | None = Field(
        description="height x width, pixels; null: the pipeline's own"
    )
    call: dict[str, Any] = Field(description="further arguments of the pipeline's call")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="of its networks")
    gradient_checkpointing: bool = Field(description="less memory in training, a third more time")


class Teacher(Settings):
    source: Literal["train", "checkpoint", "diffusers"]
    path: str = Field(description="folder or file, used when source is checkpoint or diffusers")
    pipeline: Pipeline
    config: str | None = Field(
        description="an NCSN++ or DDPM++, as a Rectified Flow checkpoint or to train: its published"
        " name, or a JSON file of its settings; null for a checkpoint of this project or the U-Net"
    )
    flip: bool = Field(description="train on mirrored images too; not where left and right differ")
    conditional: bool = Field(
        description="learn the classes of the data; a checkpoint's card says it of itself"
    )
    base_channels: int = Field(ge=8, le=WIDEST, multiple_of=8, description="channels, first level")
    channel_multipliers: list[Multiplier] = Field(
        min_length=1, max_length=12, description="width of each level"
    )
    blocks: int = Field(ge=1, le=64, description="residual blocks a level")
    attention_sizes: list[int] = Field(description="image sizes with self-attention, pixels")
    training: TrainingSettings


class Cost(Settings):
    grid: int = Field(ge=2, le=10_000, description="steps of the fine grid (K_max)")
    samples: int | Literal["auto"] = Field(
        description="trajectories; auto: until the paper's steps no longer move"
    )
    max_samples: int = Field(
        ge=2, le=MOST, description="trajectories at most, where samples is auto"
    )
    batch_size: int = Field(ge=1, le=MOST, description="trajectories rolled out together")
    reference: Literal["euler", "heun", "rk45"] = Field(
        description="solver of the trajectories; the paper's: euler"
    )

    @field_validator("samples", mode="before")
    @classmethod
    def _a_number_or_auto(cls, samples: Any) -> Any:
        if samples != "auto" and (type(samples) is not int or not 2 <= samples <= MOST):
            raise ValueError(f"{shown(samples)} found; auto, or an integer of 2 or more, needed")
        return samples


class ScheduleSearch(Settings):
    solver: SearchedSolver = Field(description="of the chosen steps; the paper's: euler")
    order: int = Field(
        default=LARGEST_ORDER, ge=2, le=LARGEST_ORDER, description="multistep: velocities of a step"
    )
    objective: SearchedObjective = Field(
        description="what the chosen steps minimise; auto: the best on held-out noise, lpips apart"
    )
    gamma: float = Field(gt=0, le=10, description="gits: weight of the errors carried forward")
    distance: Literal["sliced_wasserstein", "energy", "detail", "features"] = Field(
        description="refine, auto: of samples to the fine grid's; features: a Frechet distance"
    )
    lpips: str = Field(description="folder of the two weights files, used for lpips")
    samples: int = Field(
        ge=FEWEST,
        le=MOST,
        description="oss, refine, auto: noises; auto holds out twice as many, lpips takes 1/8",
    )
    batch_size: int = Field(
        ge=1, le=MOST, description="oss, refine, auto, lpips: states evaluated together"
    )


class Trajectories(Settings):
    samples: int = Field(ge=2, le=MOST, description="teacher trajectories")
    validation_fraction: float = Field(gt=0, lt=1, description="share kept for validation")
    batch_size: int = Field(ge=1, le=MOST, description="trajectories rolled out together")

    @model_validator(mode="after")
    def _some_to_train_on(self) -> Self:
        if training_share(self.samples, self.validation_fraction) < 1:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} of {self.samples} samples leaves"
                " none to train on; less, or more samples, needed"
            )
        return self


class Finetune(Settings):
    methods: list[Method] = Field(min_length=1, description="ways to train a student, each once")
    lora_rank: int = Field(
        ge=1, le=WIDEST, description="boss_lora: rank of what is added to every layer"
    )
    training: TrainingSettings

    @field_validator("methods")
    @classmethod
    def _once_each(cls, methods: list[Method]) -> list[Method]:
        return _distinct(methods, "method")


class Evaluate(Settings):
    samples: int = Field(ge=NEAREST, le=MOST, description="generated images behind every metric")
    reference_samples: int = Field(
        ge=NEAREST, le=MOST, description="real training images to compare with"
    )
    batch_size: int = Field(ge=1, le=MOST, description="images sampled together")
    kid_subset_size: int = Field(ge=2, le=MOST, description="images in each of KID's subsets")
    judges: list[Judge] = Field(description="extractors that measure too; [] for none")

    @field_validator("judges")
    @classmethod
    def _once_each(cls, judges: list[Judge]) -> list[Judge]:
        return _distinct(judges, "judge")

    @model_validator(mode="after")
    def _kid_fits(self) -> Self:
        if self.kid_subset_size > min(self.samples, self.reference_samples):
            raise ValueError(
                f"kid_subset_size {self.kid_subset_size} is above the number of samples"
                f" ({self.samples}) or of reference_samples ({self.reference_samples})"
            )
        return self


class Tracking(Settings):
    uri: str | None = Field(description="MLflow tracking URI; null for sqlite in the project")
    grid_intensity: float = Field(
        ge=0, allow_inf_nan=False, description="of the electricity used, g CO2 a kWh"
    )
    registered_model: Annotated[str, Field(pattern=r"^[^/:'\s]+$")] | None = Field(
        default=None, description="students become versions of MLflow's models of this name"
    )


class Params(Settings):
    """params.yaml as a whole."""

    seed: int = Field(ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"]
    compute: ComputeSettings
    budgets: list[Budget] = Field(min_length=1, description="NFE, each at most cost.grid")
    data: Data
    features: Features
    teacher: Teacher
    cost: Cost
    schedule: ScheduleSearch
    trajectories: Trajectories
    finetune: Finetune
    evaluate: Evaluate
    tracking: Tracking

    @field_validator("budgets")
    @classmethod
    def _once_each(cls, budgets: list[int]) -> list[int]:
        return _distinct(budgets, "budget")

    @model_validator(mode="after")
    def _within_grid(self) -> Self:
        for budget in self.budgets:
            if budget > self.cost.grid:
                raise ValueError(
                    f"budgets: {budget} is above cost.grid ({self.cost.grid}); 1..{self.cost.grid}"
                    " needed"
                )
        return self

    @model_validator(mode="after")
    def _shared_equally(self) -> Self:
        trained = {"finetune": self.finetune.training.batch_size}
        if self.teacher.source == "train":
            trained["teacher"] = self.teacher.training.batch_size
        if self.features.extractor == "classifier" or SECOND in self.evaluate.judges:
            trained["features"] = self.features.training.batch_size
        for stage, batch_size in trained.items():
            if batch_size % self.compute.processes:
                raise ValueError(
                    f"{stage}.training.batch_size: {batch_size} with compute.processes:"
                    f" {self.compute.processes}; a multiple of that needed"
                )
        return self

    @model_validator(mode="after")
    def _other_judges(self) -> Self:
        if self.features.extractor in self.evaluate.judges:
            raise ValueError(
                f"evaluate.judges: {self.features.extractor}, which features.extractor is already;"
                " others, or [] for none, needed"
            )
        return self

    @model_validator(mode="after")
    def _fits_teacher(self) -> Self:
        _check_pipeline(self)
        return self

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        wanted = (self.schedule.solver, self.schedule.objective)
        if wanted == ("euler", "l2_squared") and self.finetune.methods == ["chosen_straightened"]:
            raise ValueError(
                "finetune.methods: chosen_straightened alone, but schedule asks for no steps beside"
                " the paper's; another method, solver or objective needed"
            )
        return self

    @model_validator(mode="after")
    def _fits_solver(self) -> Self:
        largest = SOLVERS[self.schedule.solver].largest_grid
        if largest is not None and self.cost.grid > largest:
            raise ValueError(
                f"schedule.solver: {self.schedule.solver} with cost.grid {self.cost.grid}; a grid"
                f" of at most {largest} steps, or euler, needed"
            )
        if self.schedule.objective == UNIFORM and not SOLVERS[self.schedule.solver].fitted:
            raise ValueError(
                f"schedule.objective: uniform with schedule.solver {self.schedule.solver};"
                " multistep needed, as uniform steps of others are compared anyway"
            )
        if self.schedule.objective == "lpips" and self.schedule.solver != "euler":
            raise ValueError(
                f"schedule.solver: {self.schedule.solver} with schedule.objective lpips; euler"
                " needed"
            )
        return self


# Parameters of networks that are images' own, with the values that go with a pipeline.
_OF_PIPELINES: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("features.extractor", ("imagenet", "inception"), "the judge of a pipeline needs no labels"),
    ("cost.reference", ("euler",), "a pipeline samples from noise by Euler's steps"),
    ("schedule.solver", ("euler", "ab2"), "`boss schedule` fits its weights"),
    ("schedule.objective", ("auto", *OBJECTIVES), "a pipeline gives no states of one's choosing"),
    ("compute.precision", ("float32",), "teacher.pipeline.dtype says it of a pipeline"),
    ("compute.compile", (False,), "pipelines are trained as they are"),
)


def _check_pipeline(params: Params) -> None:
    """ValueError for what does not go with a pipeline, and for what goes with nothing else."""
    if params.teacher.source != "diffusers":
        if params.data.source == "none":
            raise ValueError(
                f"data.source: none with teacher.source: {params.teacher.source}; images, or"
                " diffusers, which needs none, needed"
            )
        return
    for name, fits, why in _OF_PIPELINES:
        block, field = name.split(".")
        found = getattr(getattr(params, block), field)
        if found not in fits:
            needed = " or ".join(str(fit).lower() for fit in fits)
            raise ValueError(
                f"{name}: {str(found).lower()} with teacher.source: diffusers ({why}); {needed}"
                " needed"
            )
    if SECOND in params.evaluate.judges:
        raise ValueError(
            f"evaluate.judges: {SECOND} with teacher.source: diffusers (the judge of a pipeline"
            " needs no labels); imagenet or inception, or [] for none, needed"
        )
    if params.schedule.objective == "auto" and params.schedule.distance != "sliced_wasserstein":
        raise ValueError(
            f"schedule.distance: {params.schedule.distance} with teacher.source: diffusers, whose"
            " samples auto compares as latents; sliced_wasserstein needed"
        )
    if others := [name for name in params.finetune.methods if name.startswith("reflow")]:
        raise ValueError(
            f"finetune.methods: {others[0]} with teacher.source: diffusers; straightening, as"
            " boss_lora, needed"
        )
    step, call = params.finetune.training.batch_size, params.trajectories.batch_size
    if step % call:
        raise ValueError(
            f"finetune.training.batch_size: {step} with trajectories.batch_size: {call}, the"
            " samples of one call of a pipeline, in training too; a multiple of that needed"
        )
    if step // call % params.compute.processes:
        raise ValueError(
            f"finetune.training.batch_size: {step} with trajectories.batch_size: {call}, which"
            f" makes {step // call} calls a step, and compute.processes:"
            f" {params.compute.processes}; as many calls for each needed"
        )


def load_params(path: Path = PARAMS) -> Params:
    """Read and check the parameters; InputError names the first field that is wrong, the value
    found and what would be right."""
    content = read_mapping(path)
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_describe(error)}") from error


def network_settings(kind: type[Built], block: str, **values: Any) -> Built:
    """The settings of a network by a block of the parameters and the data; InputError where there
    is none of that kind, for a stage that runs without `boss check` before it."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        found = f"{where}: {shown(first['input'])} found; " if where else ""
        raise InputError(
            f"{PARAMS}: {block}: no {kind.__name__.removesuffix('Config')} of these parameters for"
            f" this data: {found}{message[0].lower()}{message[1:]}"
        ) from error


def _describe(error: ValidationError) -> str:
    # An unknown name comes first: it is what usually makes another one missing.
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{where}: no such parameter; {_known(first['loc'][:-1])}"
    if first["type"] == "missing":
        return f"{where}: missing"
    if first["type"] == "value_error" and not isinstance(first["input"], list):
        return f"{where}: {message}" if where else message
    return f"{where}: {shown(first['input'])} found; {message[0].lower()}{message[1:]}"


def _known(location: tuple[int | str, ...]) -> str:
    """The names that a block of params.yaml may have."""
    model: Any = Params
    for part in location:
        model = model.model_fields[part].annotation
    return f"known here: {', '.join(model.model_fields)}"


def known_parameters(name: str) -> str | None:
    """What to say of a dotted name that is no parameter; None where it is one."""
    model: Any = Params
    parts = name.split(".")
    for depth, part in enumerate(parts):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return f"no such parameter; {_known(tuple(parts[:depth])) if fields else 'not a block'}"
        model = fields[part].annotation
    return None
