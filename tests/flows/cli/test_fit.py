"""Shipped clusters hold shipped recipes; what does not fit is told with the setting to change."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import plan as cli_plan
from flows.cli.main import app
from flows.engine.capacity import change_to_fit
from flows.services.cluster_file import NodeGroup, node_groups
from mav.errors import UserError

INFRA = Path(__file__).parents[3] / "infra"
FILES = ["kubernetes/ray-cluster.yaml", "kubernetes/ray-job.yaml", "ray/cluster.yaml", "sky/make-a-video.yaml",
         "slurm/make-a-video.sbatch"]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "gpus"),
    [("gres=gpu", 1), ("gres=gpu:4", 4), ("gres=gpu:a100:8,nvme:2", 8), ("gres=nvme:2", 0), ("gpus-per-node=h100", 1)],
)
def test_slurm_says_gpus_in_many_ways(line: str, gpus: int, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(f"#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --cpus-per-task=16\n#SBATCH --{line}\n")
    assert node_groups(str(tmp_path / "script")) == [NodeGroup("node", 2, 16.0, float(gpus))]


@pytest.mark.parametrize("recipe", ["paper", "single-gpu"])
@pytest.mark.parametrize("name", FILES)
def test_every_shipped_cluster_holds_every_recipe_for_clusters(name: str, recipe: str) -> None:
    result = CliRunner().invoke(cli_plan.app, [recipe, "--cluster", str(INFRA / name)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    training = next(line for line in result.output.splitlines() if "a training" in line)
    assert int(training.split()[-1]) >= 1


def test_what_a_file_says_is_read() -> None:
    assert node_groups(str(INFRA / "kubernetes/ray-cluster.yaml")) == [
        NodeGroup("head", 1, 0.0, 0.0), NodeGroup("cpu", 16, 16.0, 0.0), NodeGroup("gpu", 8, 64.0, 8.0)
    ]  # fmt: skip
    assert node_groups(str(INFRA / "slurm/make-a-video.sbatch")) == [NodeGroup("node", 8, 64.0, 8.0)]
    assert node_groups(str(INFRA / "sky/make-a-video.yaml")) == [NodeGroup("node", 8, 64.0, 8.0)]
    assert node_groups(str(INFRA / "ray/cluster.yaml"))[2] == NodeGroup("gpu", 8, 96.0, 8.0)


def test_without_an_autoscaler_the_replicas_count(tmp_path: Path) -> None:
    text = (INFRA / "kubernetes/ray-cluster.yaml").read_text().replace("enableInTreeAutoscaling: true", "")
    (tmp_path / "cluster.yaml").write_text(text.replace('cpu: "16"', "cpu: 1500m"))
    assert [(group.most, group.cpus) for group in node_groups(str(tmp_path / "cluster.yaml"))][1:] == [(2, 2), (0, 64)]


def test_what_does_not_fit_is_refused_with_the_remedy(tmp_path: Path) -> None:
    script = tmp_path / "small.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH --cpus-per-task 32\n#SBATCH --gres=gpu:a100:8\n")
    result = CliRunner().invoke(app, ["plan", "paper", "--cluster", str(script)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "a training of paper, which asks for 8 CPU and 1 GPU for each of 64 workers" in result.output
    assert "--set cluster.workers=16" in result.output


@pytest.mark.parametrize(
    ("nodes", "need", "workers", "change"),
    [
        ([{"CPU": 64.0, "GPU": 8.0}] * 8, {"CPU": 8.0, "GPU": 1.0}, 64, ""),
        ([{"CPU": 16.0, "GPU": 8.0}] * 8, {"CPU": 8.0, "GPU": 1.0}, 64, "cluster.cpus_per_worker=2"),
        ([{"CPU": 64.0, "GPU": 8.0}] * 4, {"CPU": 8.0, "GPU": 1.0}, 64, "cluster.workers=32"),
        ([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 1.0}], {"CPU": 8.0, "GPU": 1.0}, 1, "cluster.cpus_per_worker=4"),
        ([{"CPU": 64.0}], {"CPU": 8.0, "GPU": 1.0}, 1, "cluster.gpus_per_worker=0"),
        ([{"CPU": 4.0}], {"CPU": 8.0}, 2, "cluster.cpus_per_worker=4"),
        ([], {"CPU": 8.0}, 1, "cluster.cpus_per_worker=1"),
    ],
)
def test_the_setting_that_makes_it_fit(
    nodes: list[dict[str, float]], need: dict[str, float], workers: int, change: str
) -> None:
    """GPUs are kept at work before CPUs; the CPUs of nodes without GPUs do not count."""
    assert change_to_fit(nodes, need, workers, "cpus_per_worker") == change


@pytest.mark.parametrize(
    "text",
    [
        "kind: Deployment",
        "[1]",
        "a: b: c",
        "resources: {}\nrun: x",
        "{available_node_types: {a: {}}}",
        "#SBATCH --nodes=many",
    ],
)
def test_other_files_are_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match=r"^--cluster .*: give "):
        node_groups(str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be read"):
        node_groups(str(tmp_path / "none"))
