"""The encoder for browsers, over HTTP: what /v1/device says, and the file itself, exported when it is first asked for."""

import asyncio
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

UNCHANGING = {"Cache-Control": "public, max-age=86400, immutable"}  # its address holds the bundle's digest
NETWORK = "/v1/device/encoder.onnx"


def device_router(current: Callable[[], tuple[Path, BundleEntry]]) -> APIRouter:
    """Both calls. `current`: folder and entry of the bundle that is served now."""
    router, one_export = APIRouter(), asyncio.Lock()

    async def network() -> tuple[Path, Path, BundleEntry]:
        """The ONNX file, its bundle's folder and entry. Raises Problem 404."""
        folder, bundle = current()
        async with one_export:
            file = await asyncio.to_thread(device_file, folder, bundle.digest)
        if file is None:
            raise Problem(404, "no_device_network", "the encoder of this release is too large for browsers")
        return file, folder, bundle

    @router.get("/v1/device", responses=refusals(404))
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

    @router.get(NETWORK, response_class=FileResponse, responses=refusals(404, 422))
    async def encoder(bundle: str) -> FileResponse:
        """The network as ONNX: input `images`, first output `embeddings`."""
        file, _, served = await network()
        if not served.digest.startswith(bundle) or len(bundle) != ADDRESS_CHARS:
            raise Problem(404, "other_bundle", "another release is served by now; ask /v1/device again", "bundle")
        return FileResponse(file, media_type="application/octet-stream", headers=UNCHANGING)

    return router
