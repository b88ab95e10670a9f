"""What starts the nightly run elsewhere: the Kubernetes files fit together, and the examples of docs/schedules.md are whole."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parent.parent
KUBERAY = ROOT / "conf" / "kuberay"
KUBERNETES = "1.34"
# Fields of KubeRay's own kinds (API reference of ray.io/v1), as far as they are anything to us: a name that is wrong is refused.
RAY_FIELDS = {
    "RayJobSpec": "entrypoint submissionMode backoffLimit activeDeadlineSeconds shutdownAfterJobFinishes ttlSecondsAfterFinished "
    "rayClusterSpec runtimeEnvYAML submitterPodTemplate suspend",
    "RayServiceSpec": "serveConfigV2 rayClusterConfig serveService upgradeStrategy excludeHeadPodFromServeSvc",
    "RayClusterSpec": "authOptions rayVersion headGroupSpec workerGroupSpecs enableInTreeAutoscaling autoscalerOptions suspend",
    "HeadGroupSpec": "rayStartParams template serviceType headService",
    "WorkerGroupSpec": "groupName replicas minReplicas maxReplicas rayStartParams template numOfHosts idleTimeoutSeconds",
}


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The file's objects by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all((KUBERAY / name).read_text())}


def of(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """`found`, which has only fields of that kind."""
    assert set(found) <= set(RAY_FIELDS[kind].split()), f"{kind}: {set(found) - set(RAY_FIELDS[kind].split())}"
    return found


@pytest.mark.parametrize("name", sorted(path.name for path in KUBERAY.iterdir()))
def test_the_files_meet_their_schemas(name: str) -> None:
    """Kubernetes' own kinds whole; of KubeRay's the fields, and each pod template as the pod it becomes."""
    for found in documents(name).values():
        if not found["apiVersion"].startswith("ray.io/"):
            kubernetes_validate.validate(found, KUBERNETES, strict=True)
            continue
        spec = of(f"{found['kind']}Spec", found["spec"])
        cluster = of("RayClusterSpec", spec["rayClusterSpec" if found["kind"] == "RayJob" else "rayClusterConfig"])
        assert cluster["authOptions"] == {"mode": "token"}, "who reaches the job API has the cluster"
        head, workers = of("HeadGroupSpec", cluster["headGroupSpec"]), cluster["workerGroupSpecs"]
        assert "dashboard-host" not in head["rayStartParams"], "the operator asks the head by its dashboard, from another pod"
        for group in (head, *(of("WorkerGroupSpec", worker) for worker in workers)):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "of-a-template"}, "spec": group["template"]["spec"]}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_wrong_field_is_found() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "imgae": "y"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_cron_job_creates_the_ray_job() -> None:
    found, job = documents("nightly-cronjob.yaml"), documents("nightly-rayjob.yaml")["RayJob"]
    cron, account = found["CronJob"], found["ServiceAccount"]["metadata"]["name"]
    assert cron["apiVersion"] == "batch/v1" and cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert len(cron["spec"]["schedule"].split()) == 5
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["serviceAccountName"] == account and pod["restartPolicy"] == "Never"
    assert "/job/rayjob.yaml" in container["args"][0] and "DATE" in job["metadata"]["name"]
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    role, binding = found["Role"], found["RoleBinding"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"] and binding["subjects"][0]["name"] == account


def test_the_ray_job_runs_the_nightly_job() -> None:
    job = documents("nightly-rayjob.yaml")["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    assert job["spec"]["entrypoint"] == "python -m jobs.nightly --conf /conf/cluster.yaml"
    service = documents("rayservice.yaml")["RayService"]["spec"]["rayClusterConfig"]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == service["rayVersion"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        [container] = pod["containers"]
        assert container["image"] == service["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        root = yaml.safe_load((ROOT / "conf" / "cluster.yaml").read_text())["store"]["root"]
        assert Path(root).is_relative_to(mounts["store"]), "the settings' store lies on the volume"


def test_examples_of_the_page_are_whole() -> None:
    page = (ROOT / "docs" / "schedules.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    for language, text in blocks:
        if language == "python":
            compile(text, "docs/schedules.md", "exec")
        if language == "cron":
            lines = [line for line in text.splitlines() if not line.startswith("CRON_TZ")]
            assert all(re.match(r"(\S+ +){5}cd ", line) for line in lines)
    assert {language for language, _ in blocks} == {"cron", "bash", "python"}
    for module in set(re.findall(r"-m (jobs\.\w+)", page)):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
