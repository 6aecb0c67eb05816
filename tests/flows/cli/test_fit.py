"""Shipped clusters hold shipped recipes; what does not fit is told with the setting to change."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import plan as cli_plan
from flows.cli.main import app
from flows.engine.capacity import change_to_fit, fitting
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


@pytest.mark.parametrize(
    "lines",
    [
        ["-N 8", "-c 64", "--gres=gpu:8"],
        ["-N8 -c64 --gpus-per-node 8"],
        ["--nodes=2-8 --cpus-per-task=64 # so many at most", '--gres="gpu:h100:8"'],
        ["--job-name 'a b' -N 8 --exclusive -G h100:64", "--cpus-per-task=64"],
        ["-N8 -c64", "--gpus-per-node=a100:4,h100:4"],
    ],
)
def test_slurms_options_are_read_as_sbatch_does(lines: list[str], tmp_path: Path) -> None:
    """Short ones, several in a line, quoted ones; not what is commented out, or comes after the first command."""
    script = "".join(f"#SBATCH {line}\n" for line in lines)
    (tmp_path / "script").write_text(f"#!/bin/bash\n##SBATCH --nodes=3\n{script}\nsrun true\n#SBATCH --nodes=2\n")
    assert node_groups(str(tmp_path / "script")) == [NodeGroup("node", 8, 64.0, 8.0)]


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


def test_kuberays_own_ways_of_saying_sizes(tmp_path: Path) -> None:
    """Any maker's GPUs, resources of a group, requests alone, no bound, a list as `kubectl get` prints, comments."""
    text = (INFRA / "kubernetes/ray-cluster.yaml").read_text().replace("nvidia.com/gpu: ", "amd.com/gpu: ")
    text = text.replace("    - groupName: cpu\n", "    - groupName: cpu\n      resources: {CPU: '3'}\n")
    text = text.replace("      maxReplicas: 16\n", "").replace('limits: {cpu: "4", memory: 16Gi}', "limits:")
    cluster = [line for line in text.splitlines() if not line.startswith("#")]
    items = "\n".join(["#SBATCH is no part of it", "kind: List", "items:", "-", *(f"  {line}" for line in cluster)])
    (tmp_path / "cluster.yaml").write_text(items)
    assert node_groups(str(tmp_path / "cluster.yaml")) == [
        NodeGroup("head", 1, 0.0, 0.0), NodeGroup("cpu", 2**31 - 1, 3.0, 0.0), NodeGroup("gpu", 8, 64.0, 8.0)
    ]  # fmt: skip
    result = CliRunner().invoke(app, ["plan", "paper", "--cluster", str(tmp_path / "cluster.yaml")])
    assert result.exit_code == 0, "without a list of two thousand million nodes"


def test_rays_launcher_bounds_a_type_as_ray_does(tmp_path: Path) -> None:
    """A type without `max_workers` may have as many as the cluster, and workers may be of the head's type."""
    types = "{box: {resources: {CPU: 8, GPU: 1}, max_workers: 7}, more: {resources: {CPU: 4}}}"
    file = tmp_path / "cluster.yaml"
    file.write_text(f"max_workers: 9\nhead_node_type: box\navailable_node_types: {types}\n")
    assert node_groups(str(file)) == [NodeGroup("box", 8, 8.0, 1.0), NodeGroup("more", 9, 4.0, 0.0)]


@pytest.mark.parametrize("key", ["any_of", "ordered"])
def test_skypilots_choices_count_as_their_least(key: str, tmp_path: Path) -> None:
    choices = "[{accelerators: {H100: 8}}, {accelerators: [A100:4, L4], cpus: 16}]"
    (tmp_path / "task.yaml").write_text(f"run: x\nnum_nodes: 2\nresources: {{cpus: 32+, {key}: {choices}}}\n")
    assert node_groups(str(tmp_path / "task.yaml")) == [NodeGroup("node", 2, 16.0, 1.0)]


@pytest.mark.parametrize("cpu", ["8G", "-1", ".nan", ".inf", "true", "", "[1]", "1.2.3"])
def test_what_is_no_number_of_processors_is_named(cpu: str, tmp_path: Path) -> None:
    text = (INFRA / "kubernetes/ray-cluster.yaml").read_text().replace('limits: {cpu: "16"', f"limits: {{cpu: {cpu}")
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^--cluster .* \(.*(`cpu` is|1\.2\.3).*\): give their sizes"):
        node_groups(str(tmp_path / "cluster.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    text, sentences = (INFRA / name).read_text(), []
    for end in range(0, len(text), 101):
        (tmp_path / "file").write_text(text[:end])
        try:
            assert all(group.most >= 0 and group.cpus >= 0 for group in node_groups(str(tmp_path / "file")))
        except UserError as error:
            sentences.append(str(error))
    assert sentences
    assert all(": give " in sentence for sentence in sentences)


def test_an_elastic_training_needs_its_least_workers(tmp_path: Path) -> None:
    script = tmp_path / "small.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH --cpus-per-task=64\n#SBATCH --gpus-per-node=8\n")
    command = ["plan", "paper", "--cluster", str(script), "--set"]
    assert CliRunner().invoke(app, [*command, "cluster.min_workers=32"]).exit_code == 0
    result = CliRunner().invoke(app, [*command, "cluster.min_workers=48"])
    assert result.exit_code == 1
    assert "`--set cluster.min_workers=32`" in result.output, "fewer `workers` than `min_workers` would be refused"


def test_what_does_not_fit_is_refused_with_the_remedy(tmp_path: Path) -> None:
    script = tmp_path / "small.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH --cpus-per-task 32\n#SBATCH --gres=gpu:a100:8\n")
    result = CliRunner().invoke(app, ["plan", "paper", "--cluster", str(script)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "a training of paper, which asks for 8 CPU and 1 GPU for each of 64 workers" in result.output
    assert "`--set cluster.cpus_per_worker=4 --set cluster.workers=32`" in result.output, "all 32 GPUs at work"


@pytest.mark.parametrize(
    ("nodes", "need", "workers", "change"),
    [
        ([{"CPU": 64.0, "GPU": 8.0}] * 8, {"CPU": 8.0, "GPU": 1.0}, 64, ""),
        ([{"CPU": 16.0, "GPU": 8.0}] * 8, {"CPU": 8.0, "GPU": 1.0}, 64, "cluster.cpus_per_worker=2"),
        ([{"CPU": 64.0, "GPU": 8.0}] * 4, {"CPU": 8.0, "GPU": 1.0}, 64, "cluster.workers=32"),
        ([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 1.0}], {"CPU": 8.0, "GPU": 1.0}, 1, "cluster.cpus_per_worker=4"),
        ([{"CPU": 64.0}], {"CPU": 8.0, "GPU": 1.0}, 1, "cluster.gpus_per_worker=0"),
        ([{"CPU": 16.0, "GPU": 8.0}] * 4, {"CPU": 8.0, "GPU": 1.0}, 64,
         "cluster.cpus_per_worker=2 --set cluster.workers=32"),
        ([{"CPU": 16.0}], {"CPU": 8.0, "GPU": 1.0}, 4, "cluster.gpus_per_worker=0 --set cluster.workers=2"),
        ([{"CPU": 4.0}], {"CPU": 8.0}, 2, "cluster.cpus_per_worker=4 --set cluster.workers=1"),
        ([{"CPU": 0.0}], {"CPU": 8.0}, 1, ""),
        ([{"CPU": 0.0, "GPU": 8.0}, {"CPU": 8.0}], {"CPU": 8.0, "GPU": 1.0}, 1, ""),
        ([], {"CPU": 8.0}, 1, ""),
    ],
)  # fmt: skip
def test_the_setting_that_makes_it_fit(
    nodes: list[dict[str, float]], need: dict[str, float], workers: int, change: str
) -> None:
    """GPUs are kept at work before CPUs; the CPUs of nodes without GPUs do not count; with it, they fit."""
    assert change_to_fit(nodes, need, workers, "cpus_per_worker") == change
    if change:
        names = {"cpus_per_worker": "CPU", "gpus_per_worker": "GPU", "workers": "workers"}
        changes = dict(part.removeprefix("cluster.").split("=") for part in change.split(" --set "))
        asked = need | {"workers": workers} | {names[key]: float(value) for key, value in changes.items()}
        assert fitting(nodes, {name: asked[name] for name in need if asked[name]}) >= asked["workers"]


@pytest.mark.parametrize(
    "text",
    [
        "kind: Deployment",
        "[1]",
        "a: b: c",
        "resources: {}\nrun: x",
        "{available_node_types: {a: {}}}",
        "#!/bin/sh\n#SBATCH --nodes=many",
        "#!/bin/sh\n#SBATCH --nodes",
        "#!/bin/sh\n#SBATCH --job-name='a",
        "[" * 5000,
        "kind: RayCluster\nat: 2024-99-99",
        "kind: RayJob\nspec: {clusterSelector: {a: b}}",
        "kind: RayCluster\nspec: &a {headGroupSpec: *a}",
        "kind: RayCluster\nspec: {headGroupSpec: {template: {spec: {containers: []}}}}",
        "{run: x, resources: {cpus: 8}}\n---\n{run: y, resources: {cpus: 8}}",
    ],
)  # fmt: skip
def test_other_files_are_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match=r"^--cluster .*: give "):
        node_groups(str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be read"):
        node_groups(str(tmp_path / "none"))
