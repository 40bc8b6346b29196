"""What kind of network the teacher is, as its stage says in the card that it leaves."""

from flows import paths
from flows.records.json_files import read_json

CARD = paths.TEACHER / "card.json"
STUDENT_CARD = "card.json"  # in the folder of a pipeline's student


def is_pipeline() -> bool:
    """Whether the teacher is a diffusers pipeline, of which there is a card and no weights."""
    return "pipeline" in read_json(CARD)
