"""The two settings files: both load, and both write out every key there is."""

from pathlib import Path

import pytest
import yaml

from jobs.config import Config
from serve.settings import JOB_SECTIONS, Settings

CONF = Path(__file__).parent.parent / "conf"
EVERY_KEY = {f"{section}.{key}" for section, field in Config.model_fields.items() for key in field.annotation.model_fields}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["local.yaml", "cluster.yaml"])
def test_a_settings_file_loads_and_writes_out_every_key(name: str) -> None:
    Settings.load(CONF / name)
    Config.load(CONF / name)
    written = yaml.safe_load((CONF / name).read_text())
    assert {f"{section}.{key}" for section, keys in written.items() for key in keys} == EVERY_KEY


def test_serving_knows_the_sections_of_the_jobs() -> None:
    assert set(JOB_SECTIONS) == set(Config.model_fields) - set(Settings.model_fields)


def test_weights_to_start_from_are_found_from_any_folder() -> None:
    """Ray's workers do not run where the command was typed."""
    relative = Path("serve/bundles/generated-v1/encoder.safetensors")
    config = Config.load(CONF / "local.yaml", [f"train_encoder.start={relative}", f"train_detector.start={relative}"])
    assert config.train_encoder.start == config.train_detector.start == relative.absolute()
