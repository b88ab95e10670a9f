"""The deployments of the application, and that conf/serve.yaml holds no unknown key: Serve skips unknown keys."""

import httpx
import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serve.api.app import BuildArgs, assemble, surge
from serve.api.ingress import Ingress
from serve.api.served import ServedRelease
from serve.api.towers import AskEncoder
from tests.api.live_app import live, until_there
from tests.api.tiny_release import RELEASE_ID, TinyRelease
from tests.parts import ROOT


def test_the_deploy_file_is_understood_whole() -> None:
    given = yaml.safe_load((ROOT / "conf" / "serve.yaml").read_text())
    understood = ServeDeploySchema.model_validate(given).model_dump(exclude_unset=True)
    assert understood.keys() == given.keys()
    assert understood["http_options"].keys() == given["http_options"].keys()
    application = given["applications"][0]
    assert understood["applications"][0].keys() == application.keys()
    assert application["import_path"] == "serve.api.app:build"
    assert (ROOT / BuildArgs.model_validate(application["args"]).conf).is_file()
    with pytest.raises(ValidationError):
        BuildArgs.model_validate({"conf": "conf/local.yaml", "relase": "r1"})


def test_one_searcher_deployment_a_shard_group(served: ServedRelease, tiny: TinyRelease) -> None:
    ingress = assemble(served, tiny.settings)._bound_deployment
    _, _, encoder, searchers = ingress.init_args
    names = [ingress.name, encoder._bound_deployment.name, *(s._bound_deployment.name for s in searchers)]
    assert names == ["Ingress", "QueryEncoder", "ShardSearcher-0", "ShardSearcher-1"]
    assert ingress.max_queued_requests == tiny.settings.serve.max_queued_requests
    assert ingress.backpressure_config.status_code == 429
    total = sum(d.ray_actor_options["num_cpus"] for d in (ingress, encoder._bound_deployment, searchers[0]._bound_deployment))
    assert total <= 1.0, "everything fits beside Serve's own actors on a small machine"
    assert (surge(1), surge(2), surge(8)) == (100, 100, 25)


def test_an_ingress_without_searchers_searches_itself(
    tiny: TinyRelease, encode: AskEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All products of all shards, as over searchers. The encoder is asked by handle as ever."""
    monkeypatch.setattr("serve.api.ingress.write_json_lines", lambda: None)  # the logs of this process are pytest's
    serve = tiny.settings.serve.model_copy(update={"num_searchers": 0})
    settings = tiny.settings.model_copy(update={"serve": serve})
    served = ServedRelease.resolve(settings, RELEASE_ID)
    ingress = Ingress(*assemble(served, settings)._bound_deployment.init_args)
    assert len(ingress.searchers) == len(served.shard_groups) == 1
    ingress.host.current.towers.ask = encode
    with live(ingress.__serve_build_asgi_app__()) as url:
        until_there(url)
        found = httpx.post(f"{url}/v1/search", json={"product_id": "p/03", "k": 50}).json()
    assert len(found["results"]) == 11 and not found["partial"]


def test_the_kubernetes_file_is_understood_whole() -> None:
    service, policy = yaml.safe_load_all((ROOT / "conf" / "kuberay" / "rayservice.yaml").read_text())
    given = yaml.safe_load(service["spec"]["serveConfigV2"])
    understood = ServeDeploySchema.model_validate(given).model_dump(exclude_unset=True)
    assert understood.keys() == given.keys() and understood["http_options"].keys() == given["http_options"].keys()
    assert given["applications"][0]["import_path"] == "serve.api.app:build"
    BuildArgs.model_validate(given["applications"][0]["args"])
    groups = [service["spec"]["rayClusterConfig"]["headGroupSpec"], *service["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
    for group in groups:
        container = group["template"]["spec"]["containers"][0]
        environment = {one["name"]: one.get("value") for one in container["env"]}
        assert environment["RAY_automatic_object_spilling_enabled"] == "0", "an upload must never reach the disk"
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in group["template"]["spec"]["volumes"]}
    assert {"ports": [{"port": 8000}]} in policy["spec"]["ingress"]
