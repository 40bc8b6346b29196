"""A `boss` command in this process: one of its own takes seconds to start, most of them for imports
that the tests have already."""

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from unittest import mock

from flows.cli import app
from tests.helpers.project import Project, environment


def boss(
    project: Project, *arguments: str, code: int = 0, columns: int = 0
) -> "subprocess.CompletedProcess[str]":
    """Run it in the project's folder, as `Project.run` does; fails the test unless it exits with
    ``code``. columns: of the lines; 0 for as many as are needed."""
    out, err = io.StringIO(), io.StringIO()
    command = ["boss", *arguments]
    with (
        chdir(project.folder),
        mock.patch.dict(os.environ, environment({"COLUMNS": str(columns)}), clear=True),
        mock.patch.object(sys, "argv", command),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        found: object = 0
        try:
            app.main()
        except SystemExit as end:
            found = end.code or 0
    done = subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
    assert found == code, f"{command}: {found}\n{done.stdout}{done.stderr}"
    return done
