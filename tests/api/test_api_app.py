"""The deployments of the application, and that conf/serve.yaml holds no unknown key: Serve skips unknown keys."""

import httpx
import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serve.api.app import BuildArgs, assemble, surge
from serve.api.ingress import Ingress
from serve.api.served import ServedRelease
from serve.settings import Settings
from serve.vision.bundle import Bundle
from serve.vision.guarded import GuardedDecoder
from tests.api.live_app import live, until_there
from tests.api.tiny_release import RELEASE_ID, TinyRelease, encoded, picture
from tests.parts import ROOT

JPEG = {"content-type": "image/jpeg"}


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


def alone(tiny: TinyRelease, **runtime: str) -> Settings:
    """Settings of one process that does everything."""
    serve = tiny.settings.serve.model_copy(update={"num_encoders": 0, "num_searchers": 0})
    return tiny.settings.model_copy(update={"serve": serve, "runtime": tiny.settings.runtime.model_copy(update=runtime)})


def test_an_ingress_alone_encodes_and_searches(tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    """All products of all shards, as over searchers; a photo's crops and a text as over an encoder."""
    for module in ("ingress", "query_encoder"):  # the logs of this process are pytest's
        monkeypatch.setattr(f"serve.api.{module}.write_json_lines", lambda: None)
    settings = alone(tiny)
    served = ServedRelease.resolve(settings, RELEASE_ID)
    ingress = Ingress(*assemble(served, settings)._bound_deployment.init_args)
    assert len(ingress.searchers) == len(served.shard_groups) == 1
    bundle = Bundle.load(served.bundle_folder, settings.runtime)
    with live(ingress.__serve_build_asgi_app__()) as url, GuardedDecoder(settings.decode) as decoder:
        until_there(url)
        found = httpx.post(f"{url}/v1/search", json={"product_id": "p/03", "k": 50}).json()
        photo = encoded(picture(400))
        crops = httpx.post(f"{url}/v1/embed", content=photo, headers=JPEG).json()["crops"]
        expected = bundle.analyse([decoder.decode(photo)])[0]
        bad = [httpx.post(f"{url}/v1/{what}", content=photo[:300], headers=JPEG) for what in ("embed", "search", "search")]
        answers = [httpx.post(f"{url}/v1/search", content=photo, headers=JPEG).json() for _ in range(3)]
    assert len(found["results"]) == 11 and not found["partial"]
    np.testing.assert_allclose([crop["embedding"] for crop in crops], [crop.embedding for crop in expected], atol=1e-6)
    assert {(answer.status_code, answer.json()["code"]) for answer in bad} == {(422, bad[0].json()["code"])}
    assert {answer["stage"] for answer in answers} == {"vector"} and len({str(answer["results"]) for answer in answers}) == 1


def test_the_gpu_goes_where_photos_are_encoded(served: ServedRelease, tiny: TinyRelease) -> None:
    ingress = assemble(served, alone(tiny, device="cuda"))._bound_deployment
    assert ingress.init_args[2:] == (None, []) and ingress.ray_actor_options["num_gpus"] == 1
    over = alone(tiny, device="cuda")
    ingress = assemble(served, over.model_copy(update={"serve": tiny.settings.serve}))._bound_deployment
    assert "num_gpus" not in ingress.ray_actor_options
    assert ingress.init_args[2]._bound_deployment.ray_actor_options["num_gpus"] == 1


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
