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
SAVES_WITHIN = 180  # seconds that save-trainings.sh waits


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


def kuberay_problems(document: dict[str, Any]) -> list[str]:
    """What breaks the schema of KubeRay 1.7.0's custom resources; pod templates are not part of it."""
    from jsonschema import Draft202012Validator

    schema = json.loads(Path(__file__).with_name("kuberay.schema.json").read_text())
    validator = Draft202012Validator({"$ref": f"#/{document['kind']}", **schema})
    return [error.message for error in validator.iter_errors(document["spec"])]


@pytest.mark.parametrize("name", ["ray-cluster.yaml", "ray-job.yaml"])
def test_kuberay_manifests_are_valid_with_a_token_and_one_version_of_ray(name: str) -> None:
    import ray

    (document,) = documents(name)
    assert document["apiVersion"] == "ray.io/v1"
    assert not kuberay_problems(document)
    assert kuberay_problems(document | {"spec": document["spec"] | {"authOption": {}}}), "a misspelt field"
    spec = document["spec"] if document["kind"] == "RayCluster" else document["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == ray.__version__, "the manifest's Ray is not the lock's"
    assert spec["authOptions"] == {"mode": "token"}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert {"rayStartParams", "template"} <= set.intersection(*(set(group) for group in groups))
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups:
        check(as_deployment(group["template"]))
        pod = group["template"]["spec"]
        assert {"name": "metrics", "containerPort": 8080} in pod["containers"][0]["ports"], "for pod-monitor.yaml"
        # Where trainings are, and where what they end with is.
        ends_late = group is spec["headGroupSpec"] or group["groupName"] == "gpu"
        assert ends_late == ("lifecycle" in pod["containers"][0])
        if ends_late:
            command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert (INFRA.parent / command[-1].removeprefix("/opt/make-a-video/")).exists(), "what the image has"
            assert pod["terminationGracePeriodSeconds"] > SAVES_WITHIN


def test_a_run_of_its_own_cluster_is_begun_again_when_it_fails() -> None:
    """A RayJob that is applied again does nothing, so a lost head would end it for good."""
    (document,) = documents("ray-job.yaml")
    assert document["spec"]["backoffLimit"] >= 1
    submitter = document["spec"]["submitterPodTemplate"]
    check(as_deployment({"spec": submitter["spec"] | {"restartPolicy": "Always"}}))
    assert submitter["spec"]["restartPolicy"] == "Never"
    head = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert submitter["spec"]["containers"][0]["image"] == head["image"], "one version of Ray"


def test_the_commands_for_kubernetes_replace_the_workers_own_pool() -> None:
    """A worker makes its pool when there is none, without our job template, before an operator can."""
    (create,) = re.findall(r"prefect work-pool create .* kubernetes (?:.*\\\n)?.*", (INFRA / "README.md").read_text())
    assert "--overwrite" in create
    worker = (INFRA / "kubernetes" / "prefect.yaml").read_text()
    assert "--no-create-pool-if-not-found" not in worker


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
    job = apply_values(pool["job_configuration"]["job_manifest"], values)
    container = job["spec"]["template"]["spec"]["containers"][0]
    # As the worker does: its own variables come before the manifest's.
    container["env"][:0] = [{"name": name, "value": value} for name, value in defaults["env"].items()]
    check(job)
    assert defaults["env"]["RAY_ADDRESS"].startswith("http://"), "a pod outside the Ray cluster hands it whole stages"
    (cluster,) = documents("ray-cluster.yaml")  # KubeRay names the secret of the token after the cluster
    token = {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "make-a-video", "key": "auth_token"}}}
    assert token in container["env"]
    assert cluster["metadata"]["name"] == "make-a-video"


def test_every_pod_is_an_ordinary_user_without_rights() -> None:
    """Those of Ray, of Prefect, and of the flow runs."""
    pool = json.loads((INFRA / "kubernetes" / "work-pool.json").read_text())
    pods = [pool["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]]
    for name in ("ray-cluster.yaml", "ray-job.yaml", "prefect.yaml"):
        for document in documents(name):
            spec = document.get("spec", {})
            spec = spec.get("rayClusterSpec", spec)
            groups = [spec[key] for key in ("headGroupSpec",) if key in spec] + spec.get("workerGroupSpecs", [])
            pods += [group["template"]["spec"] for group in groups or [spec] if "template" in group]
            if "autoscalerOptions" in spec:  # for a container that KubeRay puts beside the head's
                pods[-len(groups)]["containers"].append(spec["autoscalerOptions"])
            if "submitterPodTemplate" in document.get("spec", {}):
                pods.append(document["spec"]["submitterPodTemplate"]["spec"])
    assert len(pods) == 10
    assert sum(len(pod["containers"]) for pod in pods) == 12
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_prefects_passwords_are_split_and_only_referred_to() -> None:
    by_name = {(document["kind"], document["metadata"]["name"]): document for document in documents("prefect.yaml")}
    worker = by_name["Deployment", "prefect-worker"]["spec"]["template"]["spec"]["containers"][0]
    assert "envFrom" not in worker, "the worker hands all settings it has to the jobs it makes"
    values = {variable["name"]: variable.get("value") for variable in worker["env"]}
    secret = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    assert (values[f"{secret}_NAME"], values[f"{secret}_KEY"]) == ("prefect-login", "PREFECT_API_AUTH_STRING")


def test_rays_launcher_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((INFRA / "ray" / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="min_wrkers"):
        validate_config(prepare_config(config | {"min_wrkers": 1}))


def test_the_image_copies_what_there_is() -> None:
    root = INFRA.parent
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY") for part in line.split()[1:-1]]
    copied = [name for name in copied if not name.startswith("--")]
    assert copied
    assert all((root / name).exists() for name in copied)
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) <= allowed


def test_the_sky_task_is_such_as_skypilot_takes() -> None:
    """The fields of SkyPilot 0.14's task that this one uses, with their types; its scripts are bash."""
    task = yaml.safe_load((INFRA / "sky" / "make-a-video.yaml").read_text())
    fields = {"name": str, "num_nodes": int, "resources": dict, "workdir": str, "envs": dict, "secrets": dict,
              "setup": str, "run": str}  # fmt: skip
    assert {name: type(value) for name, value in task.items()} == fields
    resources = {"accelerators": str, "cpus": str, "memory": str, "disk_size": int, "use_spot": bool,
                 "job_recovery": dict}  # fmt: skip
    assert {name: type(value) for name, value in task["resources"].items()} == resources
    assert set(task["secrets"]) == {"RAY_AUTH_TOKEN"}
    assert task["secrets"]["RAY_AUTH_TOKEN"] is None, "given on the command line"
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_every_series_of_the_dashboard_is_one_we_export() -> None:
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    dashboard = json.loads((INFRA / "grafana" / "make-a-video.json").read_text())
    told = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    series = set(re.findall(r"ray_mav_\w+", told))
    exported = {f"ray_{name}_total" for name in metrics.COUNTERS} | {f"ray_{name}" for name in metrics.GAUGES}
    assert series == exported
    assert {name.removeprefix("ray_") for name in re.findall(r"ray_node_\w+", told)} <= set(METRICS_GAUGES), "Ray's own"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        over_time = panel["type"] == "timeseries"
        assert all(over_time or target["instant"] for target in panel["targets"]), f"{panel['title']}: one value a row"


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


def test_images_are_pinned_by_digest_or_refused(tmp_path: Path) -> None:
    shutil.copy(INFRA.parent / "Makefile", tmp_path)
    shutil.copytree(INFRA, tmp_path / "infra", ignore=shutil.ignore_patterns("pictures"))
    ours, prefects = f"registry.here/team/mav@sha256:{'0a' * 32}", f"prefecthq/prefect@sha256:{'1b' * 32}"

    def pin(*images: str) -> subprocess.CompletedProcess[str]:
        given = [f"{name}={image}" for name, image in zip(("IMAGE", "PREFECT_IMAGE"), images, strict=False)]
        return subprocess.run(["make", "pin", *given], cwd=tmp_path, capture_output=True, text=True, check=False)

    def images() -> list[str]:
        texts = [path.read_text() for path in sorted((tmp_path / "infra").rglob("*.*")) if path.suffix != ".md"]
        named = r'(?:image: |"default": ")([^\s"]*(?:make-a-video|/mav|prefecthq)[^\s"]*)'
        return [image for text in texts for image in re.findall(named, text)]

    before = images()
    for bad in ((), (ours,), ("registry.here/team/mav:latest", prefects), (ours, "prefecthq/prefect@sha256:12")):
        refused = pin(*bad)
        assert refused.returncode == 2
        assert "is no NAME@sha256:DIGEST: say IMAGE=... and PREFECT_IMAGE=..." in refused.stdout
    assert images() == before
    done = pin(ours, prefects)
    assert done.returncode == 0, done.stderr
    assert sorted(images()) == [prefects] + [ours] * (len(before) - 1)
