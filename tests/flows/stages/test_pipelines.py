"""A diffusers pipeline as the teacher: what `check` refuses, and what each stage makes of it."""

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, WanPipeline
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file, save_file

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.interop.diffusers_schedulers import fixed_scheduler
from boss_core.interop.fixed_flow_scheduler import FixedFlowScheduler
from boss_core.interop.pipeline_lora import WEIGHTS
from boss_core.interop.pipeline_students import load_states
from boss_core.networks.classifier import Classifier, ClassifierConfig, save_classifier
from boss_core.ode.noise import EVALUATION, TRAJECTORIES, seed_for
from boss_core.ode.timesteps import uniform
from flows import paths
from flows.config import load_params
from flows.records.json_files import read_json, write_json
from flows.records.record import read_record
from flows.records.variants import read_schedules
from flows.search import diffusers_schedule
from flows.search.export import read_schedule
from flows.search.pipeline_loading import load_pipeline
from flows.stages import (
    check,
    cost,
    evaluate,
    features,
    finetune,
    floor,
    prepare,
    report,
    schedule,
    teacher,
    trajectories,
)
from flows.stages.pipelines.evaluation import PipelineEvaluation
from flows.stages.pipelines.opened import as_parameters, open_teacher
from flows.stages.pipelines.pictures import frames, pictures, thumbnails
from flows.stages.pipelines.variants import as_student
from flows.straighten import rollouts
from tests.helpers.hub_server import hub_server
from tests.helpers.in_process import boss
from tests.helpers.pipeline_project import (
    PIPELINE,
    PROMPTS,
    write_adapter,
    write_film_pipeline,
    write_pipeline,
)
from tests.helpers.project import Project
from tests.helpers.tiny_pipelines import quiet

HELD_OUT, GUIDANCE = PROMPTS[-3:], 4.0
SMALL: dict[str, Any] = {
    "budgets": [2],
    "schedule.solver": "euler",
    "trajectories.samples": 10,
    "finetune.training.iterations": 10,
    "evaluate.samples": 8,
    "evaluate.reference_samples": 8,
    "evaluate.batch_size": 4,
    "evaluate.kid_subset_size": 4,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_pipeline(folder)
    return folder


@pytest.fixture
def project(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The parameters and inputs of a project whose teacher is a pipeline, to work in."""
    project = Project.bare(tmp_path)
    shutil.copytree(inputs, tmp_path / "inputs", dirs_exist_ok=True)
    project.set(PIPELINE)
    monkeypatch.chdir(tmp_path)
    return project


def refusal(project: Project, change: dict[str, Any]) -> str:
    """What `boss check` says to a change of the parameters: one line."""
    project.set(change)
    with pytest.raises(InputError) as caught:
        check.check(load_params())
    said = str(caught.value)
    assert "\n" not in said
    assert "--" not in said
    return said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features.extractor": "classifier"}, "features.extractor: classifier with teacher.source"
         ": diffusers (the judge of a pipeline needs no labels); imagenet or inception needed"),
        ({"evaluate.judges": ["second_classifier"]}, "evaluate.judges: second_classifier with"
         " teacher.source: diffusers (the judge of a pipeline needs no labels); imagenet or"),
        ({"cost.reference": "heun"}, "cost.reference: heun with teacher.source: diffusers"),
        ({"schedule.solver": "multistep"}, "schedule.solver: multistep with teacher.source:"
         " diffusers (`boss schedule` fits its weights); euler or ab2 needed"),
        ({"schedule.objective": "oss"}, "schedule.objective: oss with teacher.source: diffusers"),
        ({"schedule.objective": "auto"}, "schedule.distance: features with teacher.source:"),
        ({"compute.processes": 4, "finetune.training.batch_size": 8},
         "finetune.training.batch_size: 8 with trajectories.batch_size: 4, which makes 2 calls a"
         " step, and compute.processes: 4; as many calls for each needed"),
        ({"compute.compile": True}, "compute.compile: true with teacher.source: diffusers"),
        ({"finetune.methods": ["boss_lora", "reflow_uniform"]},
         "finetune.methods: reflow_uniform with teacher.source: diffusers"),
        ({"finetune.training.batch_size": 6}, "finetune.training.batch_size: 6 with"
         " trajectories.batch_size: 4"),
        ({"teacher.source": "train", "features.extractor": "classifier"},
         "data.source: none with teacher.source: train; images, or diffusers, which needs none,"),
        ({"teacher.pipeline.size": "16"}, "teacher.pipeline.size: '16' found; string should match"),
        ({"teacher.pipeline.guidence": 4.0}, "teacher.pipeline.guidence: no such parameter; known"
         " here: hub, prompts, lora, guidance, size, call, dtype, gradient_checkpointing"),
        ({"teacher.path": "inputs/lora"}, "teacher.path: inputs/lora: no model_index.json that"
         " names a pipeline; a folder as a pipeline's save_pretrained writes it needed"),
        ({"teacher.pipeline.hub": "someone/none"}, "params.yaml: teacher.pipeline.hub:"
         " someone/none: not in the cache, "),
        ({"teacher.pipeline.hub": "some where"}, "teacher.pipeline.hub: some where: no name on the"
         " hub; a folder that save_pretrained wrote, or owner/name, needed"),
        ({"teacher.pipeline.call": {"true_cfg_scale": 4.0}}, "teacher.pipeline.call:"
         " StableDiffusion3Pipeline takes no true_cfg_scale"),
        ({"teacher.pipeline.call": {"num_inference_steps": 4}}, "teacher.pipeline.call:"
         " num_inference_steps is set by the command; leave it out"),
        ({"teacher.pipeline.prompts": "inputs/lora"}, "teacher.pipeline.prompts: inputs/lora: 0"
         " files of .txt or .jsonl in it; exactly one, with a prompt a line, needed"),
        ({"teacher.pipeline.prompts": "inputs/none"}, "inputs/none"),
        ({"teacher.pipeline.lora": "inputs/prompts/prompts.txt"}, "teacher.pipeline.lora:"
         " inputs/prompts/prompts.txt: no folder; one of .safetensors files, or of none, needed"),
        ({"teacher.pipeline.prompts": "models/teacher/prompts"}, "teacher.pipeline.prompts:"
         " models/teacher/prompts: what the pipeline makes itself, in models/"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_a_pipeline_cannot_have_is_refused_before_any_work(
    change: dict[str, Any], says: str, project: Project
) -> None:
    if "compute.processes" not in change:
        assert says in refusal(project, change)
        return
    project.set(change)
    with pytest.raises(InputError, match=says.replace(".", r"\.")):
        load_params()


def test_images_have_to_lie_where_dvc_sees_them_change(project: Project) -> None:
    Image.new("RGB", (8, 8)).save("inputs/one.png")
    rows = Path("inputs/prompts/prompts.txt")
    rows.write_text(json.dumps({"prompt": "a fox", "image": "../one.png"}) + "\n")
    assert "not in the folder of teacher.pipeline.prompts, inputs/prompts" in refusal(project, {})
    shutil.move("inputs/one.png", "inputs/prompts/one.png")
    rows.write_text(json.dumps({"prompt": "a fox", "image": "one.png"}) + "\n")
    # Found, and then no argument of this pipeline.
    assert "line 1: StableDiffusion3Pipeline takes no image" in refusal(project, {})


def test_parameters_hold_what_the_options_hold(project: Project) -> None:
    check.main(load_params())
    assert paths.CHECKED.read_text() == "params.yaml is valid\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Path:
    """A project as far as its students, whose teacher has an adapter of the user's."""
    project = Project.bare(tmp_path_factory.mktemp("run"))
    shutil.copytree(inputs, project.folder / "inputs", dirs_exist_ok=True)
    write_adapter(inputs / "teacher", project.folder / "inputs" / "lora" / "own.safetensors")
    project.set(PIPELINE | SMALL)
    with contextlib.chdir(project.folder):
        params = load_params()
        for stage in (check, prepare, features, teacher, cost, schedule, trajectories):
            stage.main(params)
        finetune.main(params, 2)
    return project.folder


@pytest.fixture(scope="module")
def evaluated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after all stages: the judge takes half a minute."""
    folder = tmp_path_factory.mktemp("evaluated") / "project"
    shutil.copytree(run, folder)
    with contextlib.chdir(folder), mock.patch.object(evaluate, "track_budget"):
        params = load_params()
        floor.main(params)
        evaluate.main(params, 2)
        report.main(params)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Path:
    """Another, with students of whom all weights were trained, for two solvers, and an adapter."""
    project = Project.bare(tmp_path_factory.mktemp("whole"))
    shutil.copytree(inputs, project.folder / "inputs", dirs_exist_ok=True)
    methods = ["boss", "boss_lora", "straightened_uniform", "chosen_straightened"]
    project.set(PIPELINE | SMALL | {"finetune.methods": methods, "schedule.solver": "ab2"})
    with contextlib.chdir(project.folder):
        params = load_params()
        for stage in (check, prepare, teacher, cost, schedule, trajectories):
            stage.main(params)
        finetune.main(params, 2)
    return project.folder


@pytest.fixture
def done(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(run)
    return run


def user_pipeline() -> Any:
    """The teacher as its user calls it, with the adapter, and not as the stages do."""
    pipeline = quiet(StableDiffusion3Pipeline.from_pretrained("inputs/teacher"))
    pipeline.load_lora_weights("inputs/lora", weight_name="own.safetensors", adapter_name="own")
    return pipeline


def called(pipeline: Any, steps: int, seed: int, guidance: float, **more: Any) -> torch.Tensor:
    """The latents of a plain call for the held-out prompts, sample i with prompt i of them."""
    found = pipeline(
        [HELD_OUT[i % len(HELD_OUT)] for i in range(SMALL["evaluate.samples"])],
        generator=sample_generators(range(SMALL["evaluate.samples"]), seed),
        num_inference_steps=steps, guidance_scale=guidance, height=16, width=16,
        output_type="latent", **more,
    )  # fmt: skip
    return found.images


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_the_same_student(run: Path, tmp_path: Path) -> None:
    """Each of them one of the two calls of a step; what is written, once."""
    folder = tmp_path / "two"
    shutil.copytree(run, folder)
    project = Project(folder)
    shutil.rmtree(folder / "models/student")
    project.set({"compute.processes": 2})
    done = project.run("python", "-m", "flows.stages.finetune", "2")
    assert done.stdout.count(" parameters trained, ") == 1
    place = f"models/student/2/boss_lora/{WEIGHTS}"
    one, two = load_file(run / place), load_file(folder / place)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert (weight - two[name]).norm() <= 1e-4 * weight.norm().clamp_min(1e-3), name
    curves = [pd.read_csv(f / "results/curves/2.csv") for f in (run, folder)]
    np.testing.assert_allclose(*(c["boss_lora_loss"] for c in curves), rtol=1e-3)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().sum(dim=(1, 2, 3)).mean())


@pytest.mark.slow
def test_a_student_in_diffusers_alone_is_as_far_from_the_teacher_as_recorded(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights and its scheduler from their files, called without guidance."""
    monkeypatch.chdir(evaluated)
    seed = seed_for(EVALUATION, 0)
    pipeline = user_pipeline()
    pipeline.scheduler = fixed_scheduler(pipeline.scheduler, uniform(8))
    teacher = called(pipeline, 8, seed, GUIDANCE)
    folder = Path("models/student/2/boss_lora")
    pipeline.load_lora_weights(folder, adapter_name="student")
    pipeline.set_adapters(["own", "student"])
    pipeline.scheduler = FixedFlowScheduler.from_pretrained(folder / "scheduler")
    record = read_json(Path("metrics/2.json"))["boss_lora"]
    found = distance(called(pipeline, 2, seed, 1.0), teacher)
    assert found == pytest.approx(record["latent_distance"], rel=1e-4)
    assert record["evaluations"] == 2.0


def test_students_of_all_weights_are_put_in_the_place_of_the_teachers(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside, and not afterwards. Bellman's steps are the uniform ones here, so that both are the
    same student, trained once."""
    monkeypatch.chdir(whole)
    opened, _ = open_teacher(load_params(), batch_size=1)
    own = opened.pipeline.transformer
    weights = [own.state_dict()]
    for name in ("boss", "straightened_uniform", "chosen_straightened"):
        folder = paths.student(2) / name
        expected = SD3Transformer2DModel.from_pretrained(folder / "transformer").state_dict()
        with as_student(opened, folder, adapter=False):
            found = opened.pipeline.transformer.state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert not any(p.requires_grad for p in opened.pipeline.transformer.parameters())
        weights.append(found)
    assert opened.pipeline.transformer is own
    for one, other in ((0, 1), (0, 3), (1, 3)):
        assert not torch.equal(weights[one]["proj_out.weight"], weights[other]["proj_out.weight"])
    assert all(torch.equal(weights[1][key], weights[2][key]) for key in weights[1])


def test_all_weights_of_a_teacher_with_adapters_are_refused(inputs: Path, project: Project) -> None:
    write_adapter(inputs / "teacher", Path("inputs/lora/own.safetensors"))
    said = refusal(project, {"finetune.methods": ["boss_lora", "boss"]})
    assert said.startswith(
        "params.yaml: finetune.methods: boss, which trains all weights, with teacher.pipeline.lora:"
        " inputs/lora/own.safetensors; boss_lora, or no adapters beside the weights, needed"
    )


@pytest.mark.slow
def test_the_teachers_variants_are_plain_calls_of_the_pipeline(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guided on Bellman's steps, without guidance, and guided in the single step that two
    evaluations buy."""
    monkeypatch.chdir(evaluated)
    seed, schedules = seed_for(EVALUATION, 0), read_schedules()[2]
    record, pipeline = read_record(2), user_pipeline()
    own = pipeline.scheduler
    pipeline.scheduler = fixed_scheduler(own, uniform(8))
    teacher = called(pipeline, 8, seed, GUIDANCE)
    for name, times, guidance, evaluations in (
        ("pretrained_bellman", schedules["bellman"].timesteps, GUIDANCE, 4.0),
        ("pretrained_unguided", schedules["bellman"].timesteps, 1.0, 2.0),
        ("pretrained_fewer", (0.0, 1.0), GUIDANCE, 2.0),
    ):
        pipeline.scheduler = fixed_scheduler(own, times)
        found = distance(called(pipeline, len(times) - 1, seed, guidance), teacher)
        assert found == pytest.approx(record[name]["latent_distance"], rel=1e-4), name
        assert record[name]["evaluations"] == evaluations
    floor = read_record("teacher")
    assert floor["fine"]["latent_distance"] == 0.0
    assert floor["fine"]["evaluations"] == 16.0
    # Two sets of the teacher's own images: of other noise, and so never the same.
    assert floor["fine"]["frechet_efficientnet_lite0"] > 0.0
    assert floor["reference_hash"] == record["reference_hash"]


def test_trajectories_are_those_of_the_guided_pipeline(done: Path) -> None:
    """The last states of the first calls, of the prompts that are not held out."""
    card = read_json(Path("trajectories/card.json"))
    assert card["knots"] == sorted({*read_schedules()[2]["bellman"].indices})
    assert len(list(Path("trajectories").glob("*.safetensors"))) == 3  # 8 of 10, 4 a call, and 2
    pipeline = user_pipeline()
    pipeline.scheduler = fixed_scheduler(pipeline.scheduler, uniform(8))
    for number, samples in enumerate((range(4), range(4, 8), range(8, 10))):
        states = load_states(Path(f"trajectories/{number:06d}.safetensors"))
        expected = pipeline(
            [PROMPTS[:-3][i % 9] for i in samples],
            generator=sample_generators(samples, seed_for(TRAJECTORIES, 0)),
            num_inference_steps=8, guidance_scale=GUIDANCE, height=16, width=16,
            output_type="latent",
        ).images  # fmt: skip
        assert torch.allclose(states.states[0][-1], expected, atol=1e-4)


def test_schedules_are_the_best_by_the_costs_and_know_their_evaluations(done: Path) -> None:
    found = read_schedules()[2]
    with np.load("results/cost.npz") as file:
        cost, nfe, samples = file["cost"], file["nfe"], int(file["samples"])
    assert samples == 8
    assert nfe.tolist() == [2.0] * 8
    best = min(range(1, 8), key=lambda middle: cost[0, middle] + cost[middle, 8])
    assert found["bellman"].indices == (0, best, 8)
    assert found["bellman"].evaluations == 4.0
    assert (found["fewer"].indices, found["fewer"].evaluations) == ((0, 8), 2.0)
    student = read_schedule(paths.student(2) / "boss_lora")  # as `boss export` takes it
    assert (student.indices, student.evaluations) == ((0, best, 8), 2.0)


def test_what_the_teachers_stage_leaves(done: Path) -> None:
    """A card, prompts and adapters, and none of the weights."""
    there = {str(p.relative_to("models/teacher")) for p in Path("models/teacher").rglob("*.*")}
    assert there == {"card.json", "lora/own.safetensors", "prompts/README.md",
                     "prompts/prompts.txt"}  # fmt: skip
    card = read_json(Path("models/teacher/card.json"))
    assert card["without_guidance"] == {"guidance_scale": 1.0}
    assert (card["training_prompts"], card["held_out_prompts"]) == (9, 3)
    assert card["image_shape"] == [3, 16, 16]
    plain = load_pipeline("inputs/teacher", "float32", torch.device("cpu"))[1]
    assert card["weights_sha256"] != plain  # with the adapter


def test_other_weights_than_the_teachers_stage_saw_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "altered")
    monkeypatch.chdir(tmp_path / "altered")
    path = next(Path("inputs/teacher/transformer").glob("*.safetensors"))
    save_file({name: 1.01 * tensor for name, tensor in load_file(path).items()}, path)
    before = Path("results/cost.npz").read_bytes()
    with pytest.raises(InputError, match="inputs/teacher: other weights than those that the"):
        cost.main(load_params())
    assert Path("results/cost.npz").read_bytes() == before


@pytest.mark.long
@pytest.mark.slow
def test_dvc_sees_a_new_revision_on_the_hub(inputs: Path, tmp_path: Path) -> None:
    """The name in params.yaml stays. What is there goes on with the revision that it was begun
    with; a run of all takes the new one, or the old one where it is asked for."""
    one, two = "1" * 40, "2" * 40
    changed = shutil.copytree(inputs / "teacher", tmp_path / "changed")
    path = next((changed / "transformer").glob("*.safetensors"))
    save_file({name: 1.01 * tensor for name, tensor in load_file(path).items()}, path)
    hub_name = {"teacher.pipeline.hub": "someone/tiny"}
    project = Project.create(tmp_path / "project", PIPELINE | SMALL | hub_name)
    shutil.copytree(inputs / "prompts", project.folder / "inputs/prompts", dirs_exist_ok=True)

    def ran(*command: str, offline: str = "") -> str:
        env = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": offline}
        return project.run(*command, env=env).stdout

    def card() -> Any:
        return read_json(project.folder / "models/teacher/card.json")

    dvc = ("dvc", "repro", "teacher")
    with hub_server() as hub:
        hub.publish("someone/tiny", inputs / "teacher", one)
        ran(*dvc)
        first = card()
        assert first["asked"]["revision"] == one
        hub.publish("someone/tiny", changed, two)
        assert ran("dvc", "repro", "cost").count("Running stage") == 1  # with the first revision
        said = ran("boss", "run", "--target", "teacher")
        assert f"hub: someone/tiny is at {two} now, the results here are of {one}: all that" in said
        assert card()["asked"]["revision"] == two
        assert card()["weights_sha256"] != first["weights_sha256"]
        assert "Running stage" not in ran(*dvc)
        project.set({"teacher.pipeline.hub": f"someone/tiny@{one}"})
        ran(*dvc, offline="1")
    assert card()["weights_sha256"] == first["weights_sha256"]


def test_the_teachers_card_knows_all_files_of_its_pipeline(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or DVC would make nothing again after another autoencoder or scheduler, whose weights are
    none of the networks that are evaluated."""
    shutil.copytree(run, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    before = read_json(Path("models/teacher/card.json"))
    Path("inputs/teacher/NOTES.md").write_text("nothing of the network\n")
    teacher.main(load_params())
    assert read_json(Path("models/teacher/card.json")) == before
    path = Path("inputs/teacher/vae/diffusion_pytorch_model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in load_file(path).items()}, path)
    teacher.main(load_params())
    after = read_json(Path("models/teacher/card.json"))
    assert {name for name in after if after[name] != before[name]} == {"files_sha256"}


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_stages_give_the_same_bytes_again_and_where_they_were_stopped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    project = Project(tmp_path / "again")
    expected = project.outputs()
    params = load_params()
    teacher.main(params)
    for folder in (paths.TRAJECTORIES, paths.student(2)):
        shutil.rmtree(folder)
    stopped = mock.patch.object(rollouts, "save_states", side_effect=[None, KeyboardInterrupt])
    with stopped, pytest.raises(KeyboardInterrupt):
        trajectories.main(params)
    assert not paths.TRAJECTORIES.exists()
    paths.COST.unlink()
    once = iter([diffusers_schedule.estimate_pipeline_cost])
    stopped = mock.patch.object(
        diffusers_schedule, "estimate_pipeline_cost",
        lambda *values, **named: next(once, interrupt)(*values, **named),
    )  # fmt: skip
    with stopped, pytest.raises(KeyboardInterrupt):
        cost.main(params)
    assert not paths.COST.exists()
    for stage in (cost, schedule, trajectories):
        stage.main(params)
    finetune.main(params, 2)
    assert project.outputs() == expected


@pytest.mark.slow
def test_the_report_shows_the_teachers_own_images_as_what_is_compared_with(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(evaluated)
    page = Path("results/report.html").read_text()
    assert "<h1>Few-step sampling on inputs/teacher</h1>" in page
    assert "8 of the teacher's own, on the whole fine grid and\nfrom other noise" in page
    assert "real images" not in page
    for title in ("without guidance, Bellman steps", "as many evaluations", "BOSS with LoRA"):
        assert title in page
    assert not Path("results/plots/real.png").exists()


@pytest.mark.slow
def test_every_judge_measures_a_pipeline(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the parts of the stage, as Inception's weights are not here: a classifier in its place."""
    shutil.copytree(evaluated, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    torch.manual_seed(0)
    network = Classifier(ClassifierConfig(channels=3, classes=3, width=8, features=6))
    folder = paths.JUDGES / "second_classifier"
    save_classifier(folder / "classifier.safetensors", network)
    card = {"extractor": "second_classifier", "weights": "classifier.safetensors"}
    write_json(folder / "card.json", card)
    params = load_params()
    judges = params.evaluate.model_copy(update={"judges": ["second_classifier"]})
    params = params.model_copy(update={"evaluate": judges})
    opened, _ = open_teacher(params, batch_size=4)
    evaluation = PipelineEvaluation(params, opened, paths.samples("teacher"))
    assert list(evaluation.provenance["judges"]) == ["second_classifier"]
    found = evaluation.of(uniform(8), "again", Path("grid.png"))
    before = read_json(paths.metrics("teacher"))["fine"]
    by_judge = {"frechet_second_classifier", "frechet_second_classifier_se",
                "kid_second_classifier", "kid_second_classifier_se",
                "kid_second_classifier_std"}  # fmt: skip
    assert found.metrics.keys() - before.keys() == by_judge
    for name, value in before.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    kept = read_json(paths.replicates("teacher"))["fine"]
    assert set(kept) == {"frechet_efficientnet_lite0", "kid_efficientnet_lite0"}
    for name, replicates in kept.items():
        assert found.estimates[name].replicates == pytest.approx(np.array(replicates), rel=1e-4)
        assert len(replicates) == 4  # of two samples each


def test_a_refusal_names_the_parameter() -> None:
    with pytest.raises(InputError) as caught, as_parameters(batch_size="cost.batch_size"):
        raise InputError("--batch-size: out of memory; a smaller one, or --dtype bfloat16, needed")
    assert str(caught.value) == (
        "params.yaml: cost.batch_size: out of memory; a smaller one, or teacher.pipeline.dtype"
        " bfloat16, needed"
    )


def test_pictures_of_every_kind_of_output() -> None:
    red = np.zeros((2, 4, 6, 3), np.float32)
    red[..., 0] = 1.0
    image = Image.new("RGB", (6, 4), (255, 0, 0))
    expected = np.zeros((2, 3, 4, 6), np.uint8)
    expected[:, 0] = 255
    film = np.stack([0 * red[0], red[0], 0 * red[0]])  # its middle frame is red
    assert np.array_equal(frames(SimpleNamespace(images=red)), expected[:, None])
    shown = frames(SimpleNamespace(frames=np.stack([film, film])))
    assert np.array_equal(shown, np.stack([0 * expected, expected, 0 * expected], 1))
    ramp = np.broadcast_to(np.arange(15).reshape(15, 1, 1, 1) / 255, (1, 15, 4, 6, 3))
    assert frames(SimpleNamespace(frames=ramp))[0, :, 0, 0, 0].tolist() == [*range(0, 15, 2)]
    for output in (
        SimpleNamespace(images=[image, image]), SimpleNamespace(images=red),
        SimpleNamespace(frames=np.stack([film, film])),
        SimpleNamespace(frames=[[Image.new("RGB", (6, 4)), image, image]] * 2),
    ):  # fmt: skip
        assert np.array_equal(pictures(output), expected)
    with pytest.raises(InputError, match="in which there are no images to compare"):
        pictures(SimpleNamespace(audios=np.zeros((2, 2, 100))))
    assert thumbnails(np.zeros((50, 3, 384, 96), np.uint8)).shape == (40, 3, 192, 48)


@pytest.mark.slow
def test_films_are_shown_by_their_frames_and_compared_by_the_middle_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grid's first row is what a plain call of the pipeline gives, and what is measured says
    which frames it is of."""
    project = Project.bare(tmp_path)
    write_film_pipeline(tmp_path / "inputs")
    call = {"num_frames": 13, "max_sequence_length": 16}
    film = {"teacher.pipeline.size": "32x32", "teacher.pipeline.call": call}
    project.set(PIPELINE | SMALL | film)
    monkeypatch.chdir(tmp_path)
    params = load_params()
    for stage in (check, prepare, features, teacher, cost, schedule, trajectories):
        stage.main(params)
    finetune.main(params, 2)
    floor.main(params)
    with mock.patch.object(evaluate, "track_budget"):
        evaluate.main(params, 2)
    report.main(params)
    pipeline = quiet(WanPipeline.from_pretrained("inputs/teacher"))
    pipeline.scheduler = fixed_scheduler(pipeline.scheduler, uniform(8))
    first = pipeline(
        HELD_OUT[:1], generator=sample_generators(range(1), seed_for(EVALUATION, 0)),
        num_inference_steps=8, guidance_scale=GUIDANCE, height=32, width=32, **call,
    ).frames[0]  # fmt: skip
    assert len(first) == 13
    with Image.open("samples/teacher/fine.png") as grid:
        assert grid.size == (8 * 33 - 1, 5 * 33 - 1)  # five films
        row = np.asarray(grid, np.int64)[:32].reshape(32, -1, 3)
    for place, frame in enumerate((0, 2, 3, 5, 7, 9, 10, 12)):
        found = row[:, 33 * place : 33 * place + 32]
        assert np.abs(found - (255 * first[frame]).round()).max() <= 1, frame
    said = "frame 7 of 13, the middle one of each film"
    assert read_record("teacher")["compared"] == read_record(2)["compared"] == said
    page = Path("results/report.html").read_text()
    assert f"by one image each: {said}" in page
    assert "Each row is a film" in page


@pytest.mark.long
@pytest.mark.slow
def test_the_whole_under_dvc(tmp_path: Path) -> None:
    """With real images beside the teacher's own, a run of MLflow with the adapter, and nothing left
    to do; what changes is made again, and no more."""
    path = "inputs/images"
    change = {"data.source": "npy", "data.path": path, "data.test_fraction": 0.3}
    project = Project.create(tmp_path / "project", PIPELINE | SMALL | change)
    write_pipeline(project.folder / "inputs")
    ramps = np.linspace(0, 255, 16 * 16 * 16 * 3).reshape(16, 16, 16, 3)
    np.save(project.folder / path / "images.npy", ramps.astype(np.uint8))
    project.run("boss", "repro")
    record = read_json(project.folder / "metrics/2.json")
    for name in ("pretrained_bellman", "pretrained_fewer", "pretrained_unguided", "boss_lora"):
        own, real = (record[name][f"{of}frechet_efficientnet_lite0"] for of in ("", "real_"))
        assert 0 < own < real  # noise, all of it, and no ramps
    client = MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == path]
    (logged,) = client.search_runs(
        [experiment.experiment_id], "attributes.run_name = 'K=2'"
    )  # fmt: skip
    (method,) = client.search_runs(
        [experiment.experiment_id], "attributes.run_name = 'boss_lora K=2'"
    )
    shown = method.data.metrics["frechet"]
    assert shown == record["boss_lora"]["frechet_efficientnet_lite0"]
    # Evaluations, of which guidance takes two a step, beside the budget, which is of steps.
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    for name in ("pretrained_bellman", "pretrained_unguided", "boss_lora"):
        found = runs[f"{name} K=2"]
        assert found.data.metrics["nfe"] == record[name]["evaluations"]
        expected = record[name]["real_frechet_efficientnet_lite0"]
        assert found.data.metrics["real_frechet"] == expected
        own, real = (each.dataset for each in found.inputs.dataset_inputs)
        assert (own.name, real.name) == ("inputs/teacher: its own images", path)
        assert found.outputs.model_outputs == []  # its adapter is with the budget's run
    assert runs["pretrained_bellman K=2"].data.metrics["nfe"] == 4
    assert runs["boss_lora K=2"].data.metrics["nfe"] == 2
    there = {f.path for f in client.list_artifacts(logged.info.run_id, "students/boss_lora")}
    assert f"students/boss_lora/{WEIGHTS}" in there
    says = "8 samples against 8 of the teacher; efficientnet_lite0: trained by others on ImageNet\n"
    assert says in boss(project, "table").stdout
    assert "real images" in (project.folder / "results/report.html").read_text()
    assert "up to date" in project.run("dvc", "status").stdout
    project.commit("after the run")
    (project.folder / "inputs/prompts/prompts.txt").write_text("a fox\na house\n")
    assert "teacher:" in project.run("dvc", "status", "teacher").stdout
    project.set({"finetune.training.iterations": 21})
    said = project.run("dvc", "status", "cost", "schedule", "trajectories").stdout
    assert "finetune" not in said
