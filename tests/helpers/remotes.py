"""Where DVC keeps data for several machines: a folder, an SSH server and an S3 server, real ones on
loopback, each with the secret that it lets nobody in without."""

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.project import environment
from tests.helpers.servers import free_port, server

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
BUCKET = "boss"


@dataclass(frozen=True)
class Remote:
    """url: of a place that is empty. options: what `dvc remote modify` sets of it for everybody.
    environment: what lets this user in. stranger: what does not. secrets: that nothing may keep.
    """

    url: str
    options: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    stranger: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()


@contextlib.contextmanager
def shared_folder(folder: Path) -> Iterator[Remote]:
    (folder / "shared").mkdir()
    yield Remote(str(folder / "shared"))


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[Remote]:
    """An OpenSSH server that knows one key, which an agent holds."""
    assert SSHD is not None
    port, home = free_port(), folder / "home"
    (home / ".ssh").mkdir(parents=True)
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    host_key = (folder / "host.pub").read_text()
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    config = folder / "sshd_config"
    config.write_text(
        f"""
        Port {port}
        ListenAddress 127.0.0.1
        HostKey {folder}/host
        AuthorizedKeysFile {folder}/authorized_keys
        PidFile {folder}/sshd.pid
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        UsePAM no
        StrictModes no
        PermitRootLogin prohibit-password
        Subsystem sftp internal-sftp
        """
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # where it wants to be, as root
    (folder / "kept").mkdir()
    socket = folder / "agent"
    own = {"HOME": str(home), "SSH_AUTH_SOCK": str(socket)}
    with (
        _process([SSHD, "-D", "-e", "-f", str(config)], folder / "sshd.log") as sshd,
        _process(["ssh-agent", "-D", "-a", str(socket)], folder / "agent.log") as agent,
    ):
        _wait(lambda: "listening" in (folder / "sshd.log").read_text(), sshd)
        _wait(socket.exists, agent)
        subprocess.run(
            ["ssh-add", "-q", folder / "user"], env=os.environ | own, check=True, timeout=20
        )
        key = (folder / "user").read_text()
        (folder / "user").unlink()  # the agent alone has it
        yield Remote(
            f"ssh://{getpass.getuser()}@127.0.0.1:{port}{folder}/kept",
            environment=own,
            stranger={"HOME": str(home), "SSH_AUTH_SOCK": ""},
            secrets=tuple(key.splitlines()[1:-1]),
        )


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[Remote]:
    """A server of S3 that checks who asks: moto's, with a bucket and a user who may use it."""
    import boto3

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # As many requests as come before there is a user are not checked.
    env = environment({"INITIAL_NO_AUTH_ACTION_COUNT": "4"})
    with server(command, f"{url}/moto-api/", folder, env):
        first = {
            "endpoint_url": url,
            "aws_access_key_id": "first",
            "aws_secret_access_key": "first",
            "region_name": "us-east-1",
        }
        boto3.client("s3", **first).create_bucket(Bucket=BUCKET)
        iam = boto3.client("iam", **first)
        iam.create_user(UserName="boss")
        iam.put_user_policy(UserName="boss", PolicyName="all", PolicyDocument=_MAY_USE_S3)
        key = iam.create_access_key(UserName="boss")["AccessKey"]
        own = {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield Remote(
            f"s3://{BUCKET}/project",
            options={"endpointurl": url},
            environment=own,
            stranger=own | {"AWS_SECRET_ACCESS_KEY": "a wrong one"},
            secrets=(key["SecretAccessKey"],),
        )


_MAY_USE_S3 = """{"Version": "2012-10-17",
 "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}"""


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(ready, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 20
    while not ready():
        assert process.poll() is None, process.args
        assert time.monotonic() < end, process.args
        time.sleep(0.05)
