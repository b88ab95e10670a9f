"""What starts the nightly run elsewhere: the Kubernetes files fit together, and the examples of docs/schedules.md are whole."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
KUBERAY = ROOT / "conf" / "kuberay"
RAYJOB_KEYS = {  # of RayJobSpec, KubeRay 1.7
    "entrypoint",
    "submissionMode",
    "backoffLimit",
    "activeDeadlineSeconds",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
}


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The file's objects by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all((KUBERAY / name).read_text())}


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
    assert job["apiVersion"] == "ray.io/v1" and set(job["spec"]) <= RAYJOB_KEYS
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
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= {variable["name"] for variable in container["env"]}


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
