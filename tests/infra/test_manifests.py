"""What infra/ offers to start elsewhere is what those who start it accept: Ray's launcher, Kubernetes' schemas, bash,
Prefect, Grafana."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.services import ray_metrics as metrics

INFRA = Path(__file__).parents[2] / "infra"
KUBERNETES = "1.33"


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((INFRA / "kubernetes" / name).read_text()) if document]


def check(resource: dict[str, Any]) -> None:
    """Raises when a resource breaks Kubernetes' own schema, unknown fields included."""
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(resource, KUBERNETES, strict=True)


def as_deployment(template: dict[str, Any]) -> dict[str, Any]:
    """A Deployment around a pod template, for its schema."""
    labels = {"app": "ray"}
    template = {"metadata": {"labels": labels}, **template}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "ray"}, "spec": spec}


@pytest.mark.parametrize("name", ["ray-cluster.yaml", "ray-job.yaml"])
def test_kuberay_manifests_have_valid_pods_and_one_version_of_ray(name: str) -> None:
    import ray

    (document,) = documents(name)
    assert document["apiVersion"] == "ray.io/v1"
    spec = document["spec"] if document["kind"] == "RayCluster" else document["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == ray.__version__, "the manifest's Ray is not the lock's"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert {"rayStartParams", "template"} <= set.intersection(*(set(group) for group in groups))
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups:
        check(as_deployment(group["template"]))


def test_prefects_server_and_worker_are_valid_resources() -> None:
    found = documents("prefect.yaml")
    assert [document["kind"] for document in found] == [
        "Deployment",
        "Service",
        "Deployment",
        "ServiceAccount",
        "Role",
        "RoleBinding",
    ]
    for document in found:
        check(document)


def test_a_manifest_with_a_misspelt_field_is_refused() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    broken = documents("prefect.yaml")[0]
    broken["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(validate.ValidationError):
        check(broken)


def test_the_kubernetes_work_pool_makes_a_valid_job() -> None:
    from prefect.utilities.templating import apply_values

    pool = json.loads((INFRA / "kubernetes" / "work-pool.json").read_text())
    defaults = {name: field.get("default") for name, field in pool["variables"]["properties"].items()}
    flow_run = {
        "name": "run",
        "labels": {"app": "flow"},
        "command": ["prefect", "flow-run", "execute"],
        "service_account_name": "default",
    }
    values = {name: value for name, value in defaults.items() if value is not None} | flow_run
    values["env"] = [{"name": name, "value": value} for name, value in defaults["env"].items()]  # as the worker does
    job = apply_values(pool["job_configuration"]["job_manifest"], values)
    check(job)
    assert defaults["env"]["RAY_ADDRESS"].startswith("http://"), "a pod outside the Ray cluster hands it whole stages"


def test_rays_launcher_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((INFRA / "ray" / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="min_wrkers"):
        validate_config(prepare_config(config | {"min_wrkers": 1}))


def test_the_slurm_script_is_bash() -> None:
    script = INFRA / "slurm" / "make-a-video.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-S", "warning", str(script)], check=True)
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: sbatch make-a-video.sbatch RECIPE RUNS" in done.stderr


def test_the_image_copies_what_there_is() -> None:
    root = INFRA.parent
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY") for part in line.split()[1:-1]]
    assert copied
    assert all((root / name).exists() for name in copied)
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) <= allowed


def test_every_series_of_the_dashboard_is_one_we_export() -> None:
    dashboard = json.loads((INFRA / "grafana" / "make-a-video.json").read_text())
    told = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    series = set(re.findall(r"ray_mav_\w+", told))
    assert series == metrics.exported()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.parametrize("name", sorted(path.name for path in (INFRA / "automations").glob("*.yaml")))
def test_automations_are_such_as_prefect_takes(name: str) -> None:
    from prefect.events.schemas.automations import AutomationCore

    automation = AutomationCore.model_validate(yaml.safe_load((INFRA / "automations" / name).read_text()))
    assert automation.enabled
    assert automation.actions


def test_no_secret_is_written_down() -> None:
    secret = re.compile(r"(?i)(password|token|secret|auth_string|api_key)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9+/]{8,}")
    for path in INFRA.rglob("*"):
        if path.suffix in {".yaml", ".json", ".sbatch"} or path.name == "Dockerfile":
            found = [
                match.group() for match in secret.finditer(path.read_text()) if "make-a-video" not in match.group()
            ]
            assert not found, f"{path.name}: {found}"
