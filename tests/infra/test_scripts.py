"""The scripts of infra/ do what their files say, with stand-ins for Slurm's and Ray's commands."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

INFRA = Path(__file__).parents[2] / "infra"
SCRIPT = INFRA / "slurm" / "make-a-video.sbatch"

# Stand-ins: a job of two nodes whose `srun` runs the command here, a `ray` that stays until it is told to end, and a
# `mav` that saves for a while when it is.
COMMANDS = {
    "scontrol": """
case "$1 $2" in
  "show hostnames") printf 'one\\ntwo\\n' ;;
  "show node") echo "NodeName=$3 NodeAddr=127.0.0.1 NodeHostName=$3" ;;
  requeue*) echo "$2" > requeued ;;
esac""",
    "srun": """
echo "srun $*" >> calls
[[ "$*" == *--nodes=1* && "$*" == *--ntasks=1* ]] || [[ "$*" == *--exclude=one* ]] || exit 1
until [[ "$1" == bash || "$1" == python ]]; do shift; done
exec "$@" """,
    "ray": """
echo "ray $*" >> calls
[[ "$*" != *--head* ]] || exec python -c "
import socket, sys
port = next(part for part in sys.argv if part.startswith('--port')).partition('=')[2]
server = socket.create_server(('127.0.0.1', int(port)))
while True: server.accept()" "$@"
exec sleep 60""",
    "mav": """
printf '%s\\n' "$@" > arguments
trap 'sleep 0.3; touch saved; exit 130' TERM
touch begun
while true; do sleep 0.1; done""",
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job whose repository is `tmp_path`."""
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    (commands / "python").symlink_to(sys.executable)
    (tmp_path / "infra" / "ray").mkdir(parents=True)
    (tmp_path / "infra" / "ray" / "wait-for-nodes.py").write_text("import sys; assert sys.argv[1:] == ['2']\n")
    job = {"SUBMIT_DIR": str(tmp_path), "JOB_ID": str(os.getpid()), "JOB_NODELIST": "nodes", "CPUS_PER_TASK": "6"}
    return os.environ | {f"SLURM_{name}": value for name, value in (job | {"GPUS_ON_NODE": "2"}).items()}


def test_the_slurm_job_ends_when_its_run_has_saved(job: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(SCRIPT), "paper", "s3://bucket/runs", "--set", "seed=1 2"]
    with subprocess.Popen(command, env=job, cwd=tmp_path) as running:
        while running.poll() is None and not (tmp_path / "begun").exists():
            time.sleep(0.05)
        (token,) = tmp_path.glob(".ray-token-*")
        assert token.stat().st_mode & 0o077 == 0, "only the user reads it"
        running.send_signal(signal.SIGUSR1)  # as Slurm does before the time limit
        assert running.wait() == 130
    assert (tmp_path / "saved").exists(), "a signal ends bash's `wait`, not the run"
    assert (tmp_path / "requeued").read_text().strip() == job["SLURM_JOB_ID"], "it goes on when nodes are free again"
    assert (tmp_path / "arguments").read_text().split("\n")[:6] == [
        "run", "paper", "--runs", "s3://bucket/runs", "--set", "seed=1 2"
    ]  # fmt: skip
    calls = (tmp_path / "calls").read_text().splitlines()
    nodes = [line for line in calls if line.startswith("ray")]
    assert len(nodes) == 2
    assert all("--num-cpus=6 --num-gpus=2" in line for line in nodes), "what was allocated, not what the machine has"
    assert all("--cpus-per-task=6" in line for line in calls if line.startswith("srun") and " bash " in line)
    assert not list(tmp_path.glob(".ray-token-*"))


def test_the_slurm_script_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: sbatch make-a-video.sbatch RECIPE RUNS" in done.stderr
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-S", "warning", str(SCRIPT)], check=True)


def test_a_node_that_ends_waits_for_its_trainings(tmp_path: Path) -> None:
    """Those of Ray Train too, and on the head for its runs and jobs; other processes of the node are left alone."""
    code = "import signal, time; signal.signal(15, lambda *_: (time.sleep(0.5), open('{0}', 'w'), exit())); print()"
    names = ["ray::RayTrainWorker.poll_status", "ray::train-decoder", "ray::video-shards 00001"]
    files = [tmp_path / str(number) for number in range(5)]
    codes = [code.format(file) + "\ntime.sleep(60)" for file in files]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mav").write_text(codes[3])  # by its path, as its first line starts it
    (tmp_path / "flows" / "engine").mkdir(parents=True)
    (tmp_path / "flows" / "__init__.py").touch()
    (tmp_path / "flows" / "engine" / "jobs.py").write_text(codes[4])
    commands = [[name, "-c", text] for name, text in zip(names, codes, strict=False)]
    commands += [["python", f"{tmp_path}/bin/mav", "run", "paper"], ["/bin/python3.11", "-m", "flows.engine.jobs"]]
    processes = [
        subprocess.Popen(command, executable=sys.executable, cwd=tmp_path, stdout=subprocess.PIPE)
        for command in commands
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    finder = tmp_path / "pgrep"  # of this test's own processes: other trainings may run on this machine
    finder.write_text(f'#!/bin/sh\nexec {shutil.which("pgrep")} -P {os.getpid()} "$@"\n')
    finder.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(INFRA / "ray" / "save-trainings.sh")], check=True, env=os.environ | path)
    assert [file.exists() for file in files] == [True, True, False, True, True]
    for process in processes:
        process.kill()
        process.communicate()
