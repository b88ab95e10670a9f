"""Schemathesis over the whole interface, live: whatever the OpenAPI allows, and what it does not, gives no 5xx."""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serve.api.cascade import Cascade
from serve.api.host import Host
from serve.api.metrics import Metrics
from serve.api.routes import create_app
from serve.api.served import ServedRelease
from serve.api.towers import AskEncoder
from tests.api.live_app import live, until_there
from tests.api.tiny_release import TinyRelease

EXAMPLES = 15  # a call


@pytest.mark.slow
def test_nothing_that_is_sent_is_a_fault_of_the_server(
    tiny: TinyRelease, served: ServedRelease, encode: AskEncoder, groups: Any, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    shutil.copytree(tiny.settings.store.root, root)  # products are put and deleted
    store = tiny.settings.store.model_copy(update={"root": root, "tables": str(root / "tables")})
    fields = {"feedback": True, "feedback_per_min": 100_000.0, "image_url": True}
    serve = tiny.settings.serve.model_copy(update=fields)
    settings = tiny.settings.model_copy(update={"store": store, "serve": serve})
    with live(create_app(Host(Cascade(served, settings, encode, groups)), Metrics())) as url:
        for path in ("/readyz", "/v1/device"):
            until_there(url, path)
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", "--checks", "not_a_server_error"]
        flags = ["--max-examples", str(EXAMPLES), "--phases", "examples,fuzzing", "--mode", "all", "--seed", "1", "--no-color"]
        run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        done = run([*command, *flags])
    assert done.returncode == 0, done.stdout[-6000:]
    tested = re.search(r"Selected: (\d+)/(\d+)", done.stdout)
    assert tested and tested[1] == tested[2] and int(tested[1]) >= 12, done.stdout[-3000:]
