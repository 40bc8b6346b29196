"""When the work behind a run was done, and which command of a person's it was part of: a run that
is logged later, as by `boss track`, shows the same."""

import time
from dataclasses import dataclass, fields

from flows.measure.command import Command, calling
from flows.measure.usage import read_usage
from flows.records.json_files import Json

_OF_COMMAND = [field.name for field in fields(Command)]


@dataclass(frozen=True)
class Work:
    """began, ended: UNIX seconds. called: the command of a person's."""

    began: float
    ended: float
    called: Command

    @property
    def tags(self) -> dict[str, str]:
        """The source of a run, as MLflow names it, and the commit."""
        command, commit = self.called.command, self.called.commit
        kind = "JOB" if command.startswith("deployment ") else "LOCAL"
        tags = {"mlflow.source.name": command, "mlflow.source.type": kind}
        if commit is not None:
            tags["git_commit"] = tags["mlflow.source.git.commit"] = commit
        return tags

    @property
    def start(self) -> int:
        """Milliseconds, as MLflow counts."""
        return int(1000 * self.began)

    @property
    def end(self) -> int:
        return int(1000 * self.ended)


def of_sampling(stage: str, part: str) -> Work:
    """The sampling of one method. Of what was not measured here, as what DVC restored, nothing is
    known: no time, and by what it is logged now."""
    record = _timed(stage).get(part)
    if record is None:
        return _unknown()
    return Work(record["began"], record["began"] + record["seconds"], _called(record))


def of_budget(budget: int) -> Work:
    """From the first training of a budget's students, where the same call of a command made these,
    else from the first sampling, to when the record was stored."""
    parts = [*_timed(f"evaluate-{budget}").values()]
    if not parts:
        return _unknown()
    called = _called(parts[0])
    trained = _timed(f"finetune-{budget}").values()
    parts += [each for each in trained if called.since is not None and _called(each) == called]
    began = min(each["began"] for each in parts)
    return Work(began, max(each["stored"] for each in parts), called)


def _timed(stage: str) -> dict[str, Json]:
    """The records of a stage that say when it ran: those of earlier versions do not."""
    needed = {"began", "stored", *_OF_COMMAND}
    return {name: found for name, found in read_usage(stage).items() if needed <= found.keys()}


def _called(record: Json) -> Command:
    return Command(**{name: record[name] for name in _OF_COMMAND})


def _unknown() -> Work:
    now = time.time()
    return Work(now, now, calling())
