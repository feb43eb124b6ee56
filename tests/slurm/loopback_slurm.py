"""A real SLURM cluster of one node on this machine: munged, slurmctld and slurmd, heard on loopback only.

    python tests/slurm/loopback_slurm.py install         Debian's packages, where they are missing (needs root)
    python tests/slurm/loopback_slurm.py start FOLDER    start a cluster whose configuration and state lie in FOLDER
    python tests/slurm/loopback_slurm.py stop FOLDER     cancel its jobs, stop its daemons

Everything it writes lies in FOLDER: sbatch and the others find it by SLURM_CONF, and its munged has a key and a socket
of its own. Nothing in /etc is read or written, and where /etc/slurm holds a configuration nothing is started: that machine
belongs to a cluster. Needs neither systemd nor cgroups nor a database.

The node declares processors, memory and cards that it need not have, so that what a profile asks for can be scheduled on
a small machine. A pretended card is a device file: that is what SLURM numbers CUDA_VISIBLE_DEVICES by.
https://slurm.schedmd.com/slurm.conf.html, https://slurm.schedmd.com/gres.conf.html
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo", "munged", "munge")
SYSTEM_CONFIGURATIONS = (Path("/etc/slurm/slurm.conf"), Path("/etc/slurm-llnl/slurm.conf"))
CARDS = 2

SLURM_CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
AccountingStorageType=accounting_storage/none

# What the node declares is believed, and a job that it could never run is refused at once.
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu

SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
KillWait=2
OverTimeLimit=0
# Status by squeue: a finished job has to be remembered for longer than the executor waits between two looks.
MinJobAge=7200

# Without cgroups memory is polled, every second, and a job above its request is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill

NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=128000 Gres=gpu:{cards} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=7-00:00:00 DefaultTime=00:10:00 State=UP
PartitionName=gpu Nodes={host} MaxTime=1-00:00:00 DefaultTime=00:10:00 State=UP
"""


class CannotStart(Exception):
    """Why there can be no cluster on this machine."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `environment` is what its commands, and Snakemake, have to be started with."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def ask(self, *command: str) -> str:
        """The output of squeue, scancel, scontrol, ..."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        return "\n".join(f"{log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))


def why_not() -> str | None:
    """The reason why no cluster can be started here, or None."""
    for configuration in SYSTEM_CONFIGURATIONS:
        if configuration.exists():
            return f"this machine belongs to a cluster: {configuration} exists"
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"needs SLURM ({', '.join(missing)} missing); as root on Debian: make test-slurm installs it"
    if os.geteuid() != 0:
        return "needs root: slurmd starts jobs for other users"
    try:
        socket.gethostbyname(_host())
    except OSError:
        return f"the name of this machine, {_host()}, has no address; add it to /etc/hosts"
    return None


def install() -> None:
    """Debian's packages, with no service of theirs started."""
    if any(configuration.exists() for configuration in SYSTEM_CONFIGURATIONS):
        raise CannotStart(why_not())
    if all(shutil.which(program, path=_path()) for program in PROGRAMS):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise CannotStart(
            f"SLURM's packages are missing ({' '.join(PACKAGES)}); only root can install them, by apt-get"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wanted = [
        "apt-get",
        "install",
        "--yes",
        "-qq",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        *PACKAGES,
    ]
    for command in (wanted, ["apt-get", "update", "-qq"], wanted):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if command is wanted and done.returncode == 0:
            return
    raise CannotStart(f"apt-get could not install {' '.join(PACKAGES)}: {done.stdout.strip()[-500:]}")


def start(folder: Path) -> Cluster:
    """Start a cluster in an empty folder and wait until its node answers. Raises CannotStart."""
    reason = why_not()
    if reason is not None:
        raise CannotStart(reason)
    folder = folder.resolve()
    for name in ("", "bin", "controller", "node", "cards"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # munged wants everybody to reach its socket, and nobody else to read its key.
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))

    cards = [folder / "cards" / str(number) for number in range(CARDS)]
    for card in cards:
        os.mknod(card, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={card}\n" for card in cards))
    controller_port, node_port = _free_ports(2)
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(
            host=_host(), folder=folder, controller_port=controller_port, node_port=node_port, cards=len(cards)
        )
    )
    # The executor starts a job's step without any variable called SLURM_*, but for a few.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=_path())} "$@"\n')
    srun.chmod(0o755)

    cluster = Cluster(folder)
    munged = ["munged", f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"]
    munged += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    try:
        for daemon in (munged, ["slurmctld"], ["slurmd"]):
            # Not a pipe: a daemon would hold it open for as long as it lives.
            with (folder / f"{daemon[0]}.start.log").open("w") as log:
                subprocess.run(
                    [shutil.which(daemon[0], path=_path()), *daemon[1:]],
                    env=cluster.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=True,
                    timeout=60,
                )
        _wait(lambda: cluster.ask("sinfo", "--noheader", "--format=%T").split()[:1] == ["idle"])
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        logs = cluster.logs()
        stop(cluster)
        raise CannotStart(f"{error}\n{logs}") from error
    return cluster


def stop(cluster: Cluster) -> None:
    """Cancel every job, end what is left of them, and stop the daemons that `start` started, and no other process."""
    try:
        cluster.ask("scancel", "--user=root")
        _wait(lambda: not cluster.ask("squeue", "--noheader", "--states=RUNNING,COMPLETING"), seconds=15)
    except (RuntimeError, OSError, subprocess.SubprocessError):
        pass  # the controller may be what failed
    for daemon in ("slurmd", "slurmctld", "munged"):
        pid_file = cluster.folder / f"{daemon}.pid"
        pid = int(pid_file.read_text() or 0) if pid_file.exists() else 0
        if pid and _is(pid, daemon):
            os.kill(pid, signal.SIGTERM)
            _wait(lambda pid=pid, daemon=daemon: not _is(pid, daemon))
    for pid in _of_jobs(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _of_jobs(cluster: Cluster) -> list[int]:
    """Processes of the cluster's jobs: without cgroups, one whose parent died before it outlives its job."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            names = environment.read_bytes().split(b"\0")
        except OSError:
            continue
        ours = os.fsencode(f"SLURM_CONF={cluster.folder}/slurm.conf") in names
        if ours and any(name.startswith(b"SLURM_JOB_ID=") for name in names):
            found.append(int(environment.parent.name))
    return found


def _is(pid: int, program: str) -> bool:
    """Whether a process runs this program; a zombie runs none."""
    try:
        return Path(f"/proc/{pid}/exe").resolve(strict=True).name.startswith(program)
    except OSError:
        return False


def _wait(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
            problem = "not ready"
        except RuntimeError as error:
            problem = str(error)
        if time.monotonic() > end:
            raise RuntimeError(f"after {seconds:g} s: {problem}")
        time.sleep(0.2)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _path() -> str:
    # Daemons live where only root's PATH looks.
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def main() -> None:
    commands = {
        ("install", 0): install,
        ("start", 1): lambda folder: print(f"export SLURM_CONF={start(Path(folder)).folder}/slurm.conf"),
        ("stop", 1): lambda folder: stop(Cluster(Path(folder).resolve())),
    }
    name, *arguments = sys.argv[1:] or ["help"]
    if (name, len(arguments)) not in commands:
        sys.exit(__doc__)
    try:
        commands[name, len(arguments)](*arguments)
    except CannotStart as reason:
        sys.exit(f"{Path(__file__).name}: {reason}")


if __name__ == "__main__":
    main()
