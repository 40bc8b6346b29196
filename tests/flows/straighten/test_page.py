"""report.html of a real student: read as a browser reads it, compared with what it is made from."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from boss_core.interop.diffusers_schedulers import fixed_scheduler
from boss_core.interop.fixed_flow_scheduler import FixedFlowScheduler
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import uniform
from flows.search.pipeline_call import PromptRow
from flows.straighten.held_out import Sampled, sample_held_out
from flows.straighten.page import write_report
from flows.straighten.pipeline import straighten_pipeline
from flows.straighten.request import PipelineRequest, Teacher, Training
from flows.straighten.steps import uniform_schedule
from flows.straighten.teacher import PipelineTeacher, load_teacher
from tests.helpers.tiny_pipelines import sd3_with_text

GRID, BUDGET = 4, 2
PROMPTS = ["a fox", "a hen", "snow", "sea", "ash", "oak", '<script>alert("1")</script> & co', "end"]


class Page(HTMLParser):
    """The texts of a page, by what they are in, and its images."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            self.images.append(dict(attrs))
        elif tag == "a":
            self.links.append(dict(attrs)["href"])
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        self.text += " ".join(data.split()) + " " if data.strip() else ""

    def row(self, name: str) -> list[str]:
        (found,) = [row for row in self.rows if row and row[0] == name]
        return found

    def pictures(self, name: str) -> list[np.ndarray]:
        """The images whose text begins so, as arrays."""
        return [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))
            for image in self.images
            if image["alt"].startswith(name)
        ]


@dataclass(frozen=True)
class Run:
    asked: PipelineRequest
    folder: Path

    @property
    def card(self) -> dict[str, Any]:
        return json.loads((self.folder / "card.json").read_text())

    @property
    def page(self) -> Page:
        return Page(self.folder / "report.html")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of a small SD3 with text encoders, straightened as the command does it."""
    place = tmp_path_factory.mktemp("straightened")
    sd3_with_text(place / "sd3")
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    asked = PipelineRequest(
        teacher=Teacher(
            str(place / "sd3"), place / "prompts.txt", 4.0, "16x16", (), "float32", ()
        ),
        training=Training(
            rank=4, trajectories=16, held_out=4, batch_size=4, accumulate=1, iterations=4,
            learning_rate=1e-3, checkpointing=False,
        ),
        budgets=(BUDGET,), grid=GRID, steps="uniform", solver="euler", samples=None, seed=3,
        device="cpu", replace=False, out=place / "out",
    )  # fmt: skip
    straighten_pipeline(asked)
    return Run(asked, place / "out" / str(BUDGET))


@pytest.fixture(scope="module")
def teacher(run: Run) -> PipelineTeacher:
    return load_teacher(run.asked)


def test_numbers_are_those_of_the_card(run: Run) -> None:
    page, card = run.page, run.card
    assert set(card["results"]) == {
        "teacher, 4 steps", "guided, 2 steps", "guided, 1 step", "without guidance, 2 steps",
        "student, 2 steps",
    }  # fmt: skip
    for title, of in card["results"].items():
        expected = [title, f"{of['nfe']:g}", f"{of['seconds']:.3g}", f"{of['distance']:.4g}"]
        assert page.row(title)[:4] == expected
    own = card["results"]["student, 2 steps"]["distance"]
    guided = card["results"]["guided, 2 steps"]["distance"]
    assert f"({own:.4g} against {guided:.4g}; paired difference {own - guided:+.3g}" in page.text
    difference = page.row("guided, 2 steps")[4].split()[0]
    assert float(difference) == pytest.approx(own - guided, rel=0.01)
    assert page.row("samples trained on")[1] == "16"  # 4 steps of 4
    assert page.row("energy")[1] == "not measured: no counter here"
    assert float(page.row("peak memory of the process")[1].removesuffix(" GiB")) == pytest.approx(
        card["took"]["peak_memory_bytes"] / 2**30, abs=0.01
    )
    assert page.row("guidance_scale")[1] == "4.0"
    assert "Call the student with guidance_scale=1.0 , and else alike" in page.text
    for name, version in card["versions"].items():
        assert page.row(name)[1] == version
    assert page.row("rank")[1] == "4"
    assert page.row("batch_size")[1] == "4"
    assert page.row("prompts")[1] == str(run.asked.teacher.prompts)
    assert page.row("seed")[1] == "3"


def test_it_stands_alone_and_shows_prompts_as_they_are(run: Run) -> None:
    page = run.page
    assert "script" not in page.tags
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert not any(reference in page.source for reference in ("http:", "https:", "url("))
    assert sorted(page.links) == ["README.md", "card.json", "schedule.json"]
    assert all((run.folder / link).is_file() for link in page.links)
    for prompt in PROMPTS[-2:]:  # the quarter that is held out
        assert prompt in page.text
    assert "4 samples of 2 prompts that the student was not trained on" in page.text
    assert len(page.source) < 5e6


def seeds(page: Page) -> list[int]:
    found = [part.split(")")[0] for part in page.text.split("manual_seed(")[1:]]
    return [int(seed) for seed in found]


def test_pictures_are_what_the_pipeline_makes_of_prompt_and_seed(run: Run) -> None:
    page = run.page
    pipeline = StableDiffusion3Pipeline.from_pretrained(run.asked.teacher.source)
    pipeline.set_progress_bar_config(disable=True)
    own = pipeline.scheduler

    def made(sample: int, guidance: float, steps: int) -> Any:
        return pipeline(
            PROMPTS[6 + sample % 2], height=16, width=16, guidance_scale=guidance,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seeds(page)[sample]),
        ).images[0]  # fmt: skip

    def compare(title: str, guidance: float, steps: int) -> None:
        shown = page.pictures(title)
        assert len(shown) == 4
        for sample, picture in enumerate(shown):
            image = np.asarray(made(sample, guidance, steps)).astype(int)
            assert picture.shape == image.shape == (16, 16, 3)
            assert abs(picture - image).max() <= 1, (title, sample)  # batches of 4 and of 1

    pipeline.scheduler = fixed_scheduler(own, uniform(GRID))
    compare("teacher, 4 steps", 4.0, GRID)
    pipeline.scheduler = fixed_scheduler(own, uniform(1))
    compare("guided, 1 step", 4.0, 1)
    pipeline.load_lora_weights(run.folder)
    pipeline.scheduler = FixedFlowScheduler.from_pretrained(run.folder / "scheduler")
    compare("student, 2 steps", 1.0, BUDGET)
    teachers, students = page.pictures("teacher"), page.pictures("student")
    assert not any(np.array_equal(a, b) for a, b in zip(teachers, students, strict=True))


@pytest.fixture
def write(run: Run, teacher: PipelineTeacher, tmp_path: Path) -> Callable[..., Page]:
    """A page of two samples by a teacher, with a card that is changed, or told of another's
    prompts."""

    def sample(of: PipelineTeacher, title: str, steps: Schedule, *, guided: bool) -> Sampled:
        return sample_held_out(of, title, steps, 2, batch_size=2, seed=3, guided=guided)

    def written(
        of: PipelineTeacher = teacher, told: PipelineTeacher | None = None, **card: Any
    ) -> Page:
        fine = sample(of, "teacher", uniform_schedule(run.asked, GRID), guided=True)
        steps = uniform_schedule(run.asked, BUDGET)
        others = [sample(of, "guided", steps, guided=True)]
        own = sample(of, "student", steps, guided=False)
        path = tmp_path / "report.html"
        write_report(path, told or of, run.asked, run.card | card, fine, others, own)
        return Page(path)

    return written


def test_what_was_not_measured_is_said(write: Callable[..., Page]) -> None:
    page = write(took=None)
    assert "what all of it took was not measured" in page.text
    took = {"seconds": 9000.0, "peak_memory_bytes": 3 * 2**30, "energy_kwh": 1.25,
            "energy_source": "NVML counter of the GPU", "images": None}  # fmt: skip
    page = write(took=took)
    assert page.row("time")[1] == "2 h 30 min"
    assert page.row("peak memory of the process")[1] == "3.00 GiB"
    assert page.row("energy")[1] == "1.25 kWh (NVML counter of the GPU)"


def test_a_pipeline_without_an_autoencoder_shows_no_picture(
    write: Callable[..., Page], teacher: PipelineTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher.pipeline, "vae", None)
    page = write()
    assert "no autoencoder: nothing could be decoded" in page.text
    assert [image["alt"] for image in page.images] == ["loss against steps of the optimiser"]


def test_few_prompts_were_trained_on_too(
    write: Callable[..., Page], teacher: PipelineTeacher
) -> None:
    page = write(replace(teacher, training=teacher.held_out))
    assert "2 samples of 2 prompts that the student was trained on too" in page.text
    assert "that the student was not trained on" not in page.text


def test_images_that_a_sample_was_made_from_are_beside_it(
    write: Callable[..., Page], teacher: PipelineTeacher, tmp_path: Path
) -> None:
    given = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    given.save(tmp_path / "given.png")
    rows = [
        PromptRow("made of it", {"image": str(tmp_path / "given.png"), "strange": "<i>"}),
        PromptRow("made of none"),
    ]
    page = write(told=replace(teacher, held_out=replace(teacher.held_out, rows=rows)))
    (shown,) = page.pictures("image, given")
    assert np.array_equal(shown, np.asarray(given))
    assert "strange: <i>;" in page.text
    assert "i" not in page.tags
