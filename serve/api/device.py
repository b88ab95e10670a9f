"""The encoder for browsers, over HTTP: what /v1/device says, and the file itself, exported when it is first asked for."""

import asyncio
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from serve.api.openapi import refusals
from serve.api.problems import Problem
from serve.api.schemas import DeviceAnswer
from serve.index.manifest import BundleEntry
from serve.vision.bundle_files import ADDRESS_CHARS, read_config
from serve.vision.device import device_file, encoder_of
from serve.vision.spec import BundleError

log = logging.getLogger(__name__)

UNCHANGING = {"Cache-Control": "public, max-age=86400, immutable"}  # its address holds the bundle's digest
RETRY = {"Retry-After": "3"}
WAIT_S = 2.0  # for an export that is nearly done
NETWORK = "/v1/device/encoder.onnx"


def device_router(current: Callable[[], tuple[Path, BundleEntry]]) -> APIRouter:
    """Both calls. `current`: folder and entry of the bundle that is served now."""
    router = APIRouter()
    exports: dict[str, asyncio.Task[Path | None]] = {}  # by the bundle's digest

    async def network() -> tuple[Path, Path, BundleEntry]:
        """The ONNX file, its bundle's folder and entry. Raises Problem: 404, or 503 while the first one asks for an export."""
        folder, bundle = current()
        if bundle.digest not in exports:
            exports[bundle.digest] = asyncio.create_task(asyncio.to_thread(device_file, folder, bundle.digest))
        done, _ = await asyncio.wait([exports[bundle.digest]], timeout=WAIT_S)
        if not done:
            detail = "the encoder is being written for browsers, which takes a minute once; ask again"
            raise Problem(503, "not_ready", detail, headers=RETRY)
        try:
            file = exports[bundle.digest].result()
        except (BundleError, OSError, subprocess.TimeoutExpired):
            log.exception("event=device_export_failed")
            raise Problem(404, "no_device_network", "the encoder of this release can't be written for browsers") from None
        if file is None:
            raise Problem(404, "no_device_network", "the encoder of this release is too large for browsers")
        return file, folder, bundle

    @router.get("/v1/device", responses=refusals(404, 503))
    async def device() -> DeviceAnswer:
        """What a browser needs to make embeddings itself, so that no photo is sent."""
        file, folder, bundle = await network()
        return DeviceAnswer(
            bundle_digest=bundle.digest,
            network_url=f"{NETWORK}?bundle={bundle.digest[:ADDRESS_CHARS]}",
            num_bytes=file.stat().st_size,
            preprocess=encoder_of(read_config(folder)).preprocess,
            dim=bundle.dim,
        )

    @router.get(NETWORK, response_class=FileResponse, responses=refusals(404, 422, 503))
    async def encoder(bundle: str) -> FileResponse:
        """The network as ONNX: input `images`, first output `embeddings`."""
        file, _, served = await network()
        if not served.digest.startswith(bundle) or len(bundle) != ADDRESS_CHARS:
            raise Problem(404, "other_bundle", "another release is served by now; ask /v1/device again", "bundle")
        return FileResponse(file, media_type="application/octet-stream", headers=UNCHANGING)

    return router
