"""Bundles: made of parts, of a folder or of a registered model; content-addressed; verified; and what analyse gives."""

import json
import shutil
import sys
from pathlib import Path
from subprocess import run

import numpy as np
import pytest

from serve.vision.bundle import Bundle, assemble_bundle, bundle_digest
from serve.vision.crop import BoxError, Crop, cut, whole
from serve.vision.spec import BundleConfig, BundleError, DetectorConfig, EncoderConfig, Preprocess, RuntimeConfig
from serve.vision.turns import quarter_turned
from tests.vision.conftest import photos

CPU = RuntimeConfig()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "bundles"


@pytest.fixture(scope="module")
def folder(small_config: BundleConfig, store: Path) -> Path:
    return assemble_bundle(small_config, store)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.load(folder, CPU)


def test_parts_become_one_folder_under_its_digest(folder: Path, store: Path, small_config: BundleConfig) -> None:
    assert folder.parent == store and bundle_digest(folder).startswith(folder.name) and len(folder.name) == 16
    assert sorted(path.name for path in folder.iterdir()) == ["bundle.json", "encoder.safetensors"]
    assert assemble_bundle(small_config, store) == folder  # a second time changes nothing
    renamed = assemble_bundle(small_config.model_copy(update={"name": "other"}), store)
    assert renamed != folder
    assert {path.name for path in store.iterdir() if not path.name.startswith(".networks")} == {folder.name, renamed.name}


def test_a_folder_elsewhere_is_copied_in(folder: Path, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    shutil.copytree(folder, shipped)
    (shipped / "README.md").write_text("does not count")
    copied = assemble_bundle(BundleConfig(path=str(shipped)), tmp_path / "bundles")
    assert copied.name == folder.name and not (copied / "README.md").exists()
    assert assemble_bundle(BundleConfig(path=str(copied)), tmp_path / "bundles") == copied


def test_a_registered_model_is_fetched_by_alias(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("bundle")
    version = client.create_model_version("bundle", source=folder.as_uri())
    client.set_registered_model_alias("bundle", "champion", version.version)
    fetched = assemble_bundle(BundleConfig(path="models:/bundle@champion"), tmp_path / "bundles", uri)
    assert bundle_digest(fetched) == bundle_digest(folder)
    with pytest.raises(BundleError, match=r"bundle\.path=models:/bundle@absent: MLflow cannot give it"):
        assemble_bundle(BundleConfig(path="models:/bundle@absent"), tmp_path / "bundles", uri)


def test_analyse_gives_crop_0_and_categories(bundle: Bundle) -> None:
    images = photos(5)
    results = bundle.analyse(images)
    assert (bundle.name, bundle.dim, bundle.labels) == ("small", 16, ("bags/totes", "shoes/boots", "shoes/sandals"))
    for image, (features,) in zip(images, results, strict=True):
        assert features.crop.box == (0, 0, image.shape[1], image.shape[0])
        assert features.embedding.shape == (16,) and np.linalg.norm(features.embedding) == pytest.approx(1, abs=1e-5)
        assert features.category_probs is not None and set(features.category_probs) == set(bundle.labels)
        assert features.category == max(features.category_probs, key=lambda label: features.category_probs[label])
        assert features.category_prob == features.category_probs[features.category]
    assert bundle.analyse([]) == []


def test_drawn_boxes_take_the_place_of_detection(bundle: Bundle) -> None:
    first, second = photos(2)
    (whole_only,), (_, drawn) = bundle.analyse([first, second], boxes=[None, [(10, 5, 50, 45)]])
    assert drawn.crop.box == (10, 5, 50, 45)
    ((alone,),) = bundle.analyse([second[5:45, 10:50]])
    assert np.abs(alone.embedding - drawn.embedding).max() < 1e-5
    assert np.array_equal(whole_only.embedding, bundle.analyse([first])[0][0].embedding)
    with pytest.raises(BoxError, match="box 0"):
        bundle.analyse([first], boxes=[[(5, 5, 5, 5)]])


def test_turned_crops_are_those_of_the_turned_photo(bundle: Bundle) -> None:
    image = photos(1)[0]
    crops = [whole(image.shape[1], image.shape[0]), Crop((10.0, 5.0, 50.0, 35.0), "item", 0.5)]
    turned = bundle.turned_crops(image, crops)
    assert [[found.crop for found in of_turn] for of_turn in turned] == [crops] * 3
    for quarters, of_turn in enumerate(turned, start=1):
        expected, _ = bundle.encoder.encode([quarter_turned(cut(image, crop), quarters) for crop in crops])
        assert (np.stack([found.embedding for found in of_turn]) * expected).sum(axis=1) == pytest.approx(1, abs=1e-3)


def test_a_second_process_opens_it_without_torch(bundle: Bundle, folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from serve.vision.bundle import Bundle; from serve.vision.spec import RuntimeConfig;"
        f"Bundle.load(Path({str(folder)!r}), RuntimeConfig()); sys.exit('torch' in sys.modules)"
    )
    assert run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


def test_a_changed_file_is_found(folder: Path, small_config: BundleConfig, tmp_path: Path) -> None:
    changed = tmp_path / folder.name
    shutil.copytree(folder, changed)
    weights = changed / "encoder.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=rf"digest [0-9a-f]+, expected {folder.name}: a file was changed"):
        Bundle.load(changed, CPU)
    with pytest.raises(BundleError, match="a file was changed; remove the folder"):
        assemble_bundle(small_config, tmp_path)
    with pytest.raises(BundleError, match="expected 0000"):
        Bundle.load(folder, CPU, digest="0" * 64)


def edited(folder: Path, target: Path, **changes: object) -> Path:
    """A copy of a bundle with other values in bundle.json."""
    shutil.copytree(folder, target)
    path = target / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_a_bad_folder_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle: it has no bundle\.json"):
        Bundle.load(tmp_path, CPU)
    with pytest.raises(BundleError, match="colour: Extra inputs"):
        Bundle.load(edited(folder, tmp_path / "a", colour=1), CPU)
    with pytest.raises(BundleError, match="a name and an encoder with weights"):
        Bundle.load(edited(folder, tmp_path / "b", encoder=None), CPU)
    escape = json.loads((folder / "bundle.json").read_text())["encoder"] | {"weights": "../encoder.safetensors"}
    with pytest.raises(BundleError, match="expected the name of a file in this folder"):
        Bundle.load(edited(folder, tmp_path / "c", encoder=escape), CPU)
    (edited(folder, tmp_path / "d") / "encoder.safetensors").unlink()
    with pytest.raises(BundleError, match=r"encoder\.safetensors that bundle\.json names are missing"):
        Bundle.load(tmp_path / "d", CPU)


ENCODER = EncoderConfig(kind="torchvision", arch="resnet18", weights="absent.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BundleConfig(), "neither bundle.path nor bundle.encoder is set"),
        (BundleConfig(encoder=ENCODER), "bundle.name is missing"),
        (BundleConfig(name="x", encoder=ENCODER), "absent.safetensors: no such weights file"),
        (BundleConfig(name="x", encoder=ENCODER.model_copy(update={"weights": None})), "bundle.encoder.weights is missing"),
        (
            BundleConfig(name="x", encoder=ENCODER.model_copy(update={"weights": "V9"})),
            "neither a file nor a tag of torchvision's resnet18",
        ),
        (BundleConfig(name="x", encoder=ENCODER.model_copy(update={"weights": "net.onnx"})), "expected a .safetensors file"),
        (BundleConfig(path="absent"), "absent: no bundle"),
    ],
)
def test_bad_parts_are_named(config: BundleConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        assemble_bundle(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_detector_needs_weights_and_labels(small_config: BundleConfig, tmp_path: Path) -> None:
    def with_detector(**fields: object) -> BundleConfig:
        return small_config.model_copy(update={"detector": DetectorConfig.model_validate({"kind": "onnx_yolox", **fields})})

    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"bundle\.detector\.weights is missing"):
        assemble_bundle(with_detector(), tmp_path)
    with pytest.raises(BundleError, match=r"bundle\.detector\.labels is missing"):
        assemble_bundle(with_detector(weights=str(tmp_path / "net.onnx")), tmp_path)
    with pytest.raises(BundleError, match="needs a file"):
        assemble_bundle(with_detector(weights="download"), tmp_path)
    (tmp_path / "labels.txt").write_text("cup\nbowl\n")
    made = assemble_bundle(with_detector(weights=str(tmp_path / "net.onnx"), labels=str(tmp_path / "labels.txt")), tmp_path)
    assert json.loads((made / "bundle.json").read_text())["detector"]["labels"] == ["cup", "bowl"]


def test_a_download_is_kept(tmp_path: Path) -> None:
    config = BundleConfig(name="public", encoder=EncoderConfig(kind="torchvision", arch="mobilenet_v3_small", weights="download"))
    try:
        folder = assemble_bundle(config, tmp_path)
    except BundleError as error:
        pytest.skip(f"no network: {error}")
    assert (tmp_path / ".downloads" / "torchvision-mobilenet_v3_small-download.safetensors").is_file()
    assert assemble_bundle(config, tmp_path) == folder
    assert Bundle.load(folder, CPU).dim == 576


@pytest.mark.slow
@pytest.mark.shared_data
def test_mobilenet_finds_groceries(photos_folder: Path, tmp_path: Path) -> None:
    """Published MobileNetV2 weights, whole photos: 296 photos by people -> 81 catalog images, by cosine.

    The floors are the figures published with the weights, which are rounded to two digits: 0.33 / 0.67 / 0.78.
    """
    from serve.vision.image import decode_image
    from serve.vision.spec import DecodeLimits

    weights, data = photos_folder.parent / "weights", photos_folder / "grocery-store"
    encoder = EncoderConfig(
        kind="torchvision",
        arch="mobilenet_v2",
        weights=str(weights / "mobilenet_v2_imagenet_fp16.safetensors"),
        tf_same_padding=True,
        preprocess=Preprocess(size_px=224, resize_px=256, scale=1 / 127.5, mean=(1, 1, 1), std=(1, 1, 1)),
    )
    bundle = Bundle.load(assemble_bundle(BundleConfig(name="mobilenet", encoder=encoder), tmp_path), RuntimeConfig(threads=2))
    lines = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]

    def embed(chosen: list[dict[str, str]]) -> np.ndarray:
        images = [decode_image((data / line["path"]).read_bytes(), DecodeLimits()) for line in chosen]
        return np.stack([features[0].embedding for features in bundle.analyse(images)])

    catalog = [line for line in lines if line["domain"] == "catalog"]
    queries = [line for line in lines if line["split"] == "val"]
    ranking = np.argsort(-embed(queries) @ embed(catalog).T, axis=1)
    ids = np.array([line["product_id"] for line in catalog])
    hits = ids[ranking] == np.array([[line["product_id"]] for line in queries])
    recall = {k: hits[:, :k].any(axis=1).mean() for k in (1, 5, 10)}
    assert {k: round(float(value), 2) for k, value in recall.items()} == pytest.approx({1: 0.33, 5: 0.67, 10: 0.78}, abs=0.011)
