"""The encoder as a file that a browser runs: the bundle's own network for it, its INT8 network, or an export in float32.

`python -m serve.vision.device FOLDER FILE.onnx` exports; in a process of its own, for it needs torch and a server does not.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from serve.vision.bundle_files import ADDRESS_CHARS, read_config
from serve.vision.encoder import build_module, output_names
from serve.vision.spec import BundleConfig, BundleError, EncoderConfig

MAX_BYTES = 60_000_000  # what a page may ask a phone to load; a float32 ViT-B/32 has 350 MB
EXPORT_TIMEOUT_S = 300.0  # importing torch alone takes 10 s on two cold cores


def encoder_of(config: BundleConfig) -> EncoderConfig:
    """The encoder of an assembled bundle."""
    assert config.encoder is not None, "read_config has checked it"
    return config.encoder


def network_of(encoder: EncoderConfig) -> str | None:
    """The ONNX file that the bundle itself holds; an .xml is OpenVINO's own."""
    if encoder.browser is not None:
        return encoder.browser.network
    own = encoder.runtime.network
    return own if own is not None and own.endswith(".onnx") else None


def fits_browsers(folder: Path) -> bool:
    """A browser may be asked to load the encoder of the bundle in `folder`."""
    encoder = encoder_of(read_config(folder))
    file = network_of(encoder) or encoder.weights
    return file is not None and (folder / file).stat().st_size <= MAX_BYTES


def device_file(folder: Path, digest: str) -> Path | None:
    """The ONNX file of the bundle in `folder`, exported where it is not there yet; None = too large for a browser.

    Input "images" (N, 3, S, S) float32 as Preprocess says, output "embeddings" (N, D) of unit length up to rounding.
    Raises BundleError.
    """
    if not fits_browsers(folder):
        return None
    own = network_of(encoder_of(read_config(folder)))
    if own is not None:
        return folder / own
    target = folder.parent / ".networks" / digest[:ADDRESS_CHARS] / "device-f32.onnx"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "serve.vision.device", str(folder), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=EXPORT_TIMEOUT_S, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:]
            raise BundleError(f"{folder}: its encoder can't be exported for browsers: {' '.join(reason)}")
    return target


def export(folder: Path, target: Path) -> None:
    """Writes the encoder of the bundle in `folder` as ONNX in float32, switched in whole. Raises BundleError."""
    from serve.vision.quantize import export_onnx

    encoder = encoder_of(read_config(folder))
    side = encoder.preprocess.size_px
    descriptor, staged = tempfile.mkstemp(prefix=".device-", suffix=".onnx", dir=target.parent)
    os.close(descriptor)
    try:
        export_onnx(build_module(encoder, folder), (2, 3, side, side), output_names(encoder), Path(staged))
        Path(staged).chmod(0o644)
        Path(staged).rename(target)
    finally:
        Path(staged).unlink(missing_ok=True)


def main() -> None:
    """One export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of an assembled bundle")
    parser.add_argument("target", type=Path, help="the ONNX file to write")
    args = parser.parse_args()
    export(args.folder, args.target)


if __name__ == "__main__":
    main()
