"""The services of docker/compose.yaml as plain processes: its commands, variables and health
checks, with ports of their own and loopback in place of the network between containers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from tests.helpers.checkout import ROOT
from tests.helpers.servers import free_port

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
PASSWORD = "only4thisTest"


def instructions(name: str) -> list[str]:
    """The arguments of every such instruction of the Dockerfile, in order."""
    return re.findall(rf"^{name}\s+(.*)$", DOCKERFILE, re.M)


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's server programs: on Debian they are not on the path."""
    found = [Path(p).resolve().parent for p in [shutil.which("postgres")] if p]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((p for p in found if (p / "initdb").exists()), None)


@dataclass
class Stack:
    """The services of compose.yaml on this machine."""

    folder: Path
    database: Path  # outside pytest's folders, which only this user can enter
    postgres_bin: Path
    ports: dict[str, int] = field(
        default_factory=lambda: {p: free_port() for p in ("5432", "4200", "5000", "8080")}
    )
    started: list[tuple[str, subprocess.Popen]] = field(default_factory=list)

    def here(self, text: str) -> str:
        """A value of compose.yaml with variables filled in and this machine's names."""
        text = re.sub(r"\$\{POSTGRES_PASSWORD[^}]*\}", PASSWORD, text)
        text = re.sub(r"(//|@)(postgres|prefect|mlflow)(?=:)", r"\g<1>127.0.0.1", text)
        text = text.replace("0.0.0.0", "127.0.0.1")
        text = text.replace("/artifacts", f"{self.folder}/artifacts")
        return re.sub(r"\b(5432|4200|5000|8080)\b", lambda m: str(self.ports[m[0]]), text)

    def environment(self, name: str) -> dict[str, str]:
        image = dict(re.findall(r"(\w+)=(\S*)", " ".join(instructions("ENV"))))
        del image["PATH"]
        service = {k: self.here(v) for k, v in SERVICES[name].get("environment", {}).items()}
        path = f"{Path(sys.executable).parent}:{self.postgres_bin}:/usr/bin:/bin"
        return {**image, **service, "PATH": path, "HOME": str(self.folder / name)}

    def start(self, name: str, command: list[str]) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                env=self.environment(name),
                cwd=self.folder / name,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append((name, process))

    def wait(self, name: str) -> None:
        """Run the health check of compose.yaml until it passes."""
        check = [self.here(x) for x in SERVICES[name]["healthcheck"]["test"][1:]]
        process = dict(self.started)[name]
        deadline = time.monotonic() + 120
        while subprocess.run(check, env=self.environment(name), capture_output=True).returncode:
            log = (self.folder / f"{name}.log").read_text()[-3000:]
            assert process.poll() is None, f"{name} ended:\n{log}"
            assert time.monotonic() < deadline, f"{name} is not healthy:\n{log}"
            time.sleep(0.3)

    def up(self) -> None:
        self.up_postgres()
        for name in ("prefect", "mlflow"):
            self.start(name, [self.here(x) for x in SERVICES[name]["command"]])
        for name in ("prefect", "mlflow"):
            self.wait(name)
        self.start("worker", [self.here(x) for x in SERVICES["worker"]["command"]])
        self.wait("worker")

    def up_postgres(self) -> None:
        """What the entrypoint of PostgreSQL's image does: initialize, start, run databases.sh."""
        other: list[str] = []
        if os.geteuid() == 0:  # which PostgreSQL refuses
            other = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            shutil.chown(self.database, "nobody", "nogroup")
        data, password = self.database / "data", self.database / "password"
        password.write_text(PASSWORD)
        user = SERVICES["postgres"]["environment"]["POSTGRES_USER"]
        initdb = [*other, self.postgres_bin / "initdb", "--pgdata", data, "--username", user]
        initdb += ["--pwfile", password, "--auth", "scram-sha-256", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/")
        server = [*other, self.postgres_bin / "postgres", "-D", data, "-k", self.database]
        server += ["-h", "127.0.0.1", "-p", str(self.ports["5432"]), "-F"]
        self.start("postgres", [str(x) for x in server])
        self.wait("postgres")
        there = {"PGHOST": "127.0.0.1", "PGPORT": str(self.ports["5432"]), "PGPASSWORD": PASSWORD}
        script = ["sh", str(DOCKER / "databases.sh")]
        subprocess.run(script, check=True, env=self.environment("postgres") | there)

    def down(self) -> None:
        """Stop what was started, the worker first and PostgreSQL last."""
        for name, process in reversed(self.started):
            # SIGINT is PostgreSQL's fast shutdown: it does not wait for its clients.
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def query(self, database: str, sql: str) -> list[tuple]:
        connection = psycopg2.connect(
            host="127.0.0.1",
            port=self.ports["5432"],
            user="boss",
            password=PASSWORD,
            dbname=database,
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()

    def ask(self, port: str, path: str, body: dict | None = None, **headers: str) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[port]}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", **headers},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)
