"""What light and a phone do to a scene: shadows, gamma, colour cast, vignetting, blur, noise, JPEG."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


@dataclass(frozen=True)
class Camera:
    """Ranges from which a photo's light and camera are drawn. `CLEAN` changes nothing but one JPEG."""

    light: tuple[float, float] = (0.7, 1.3)  # brightness factor
    gamma: tuple[float, float] = (0.8, 1.25)
    cast: float = 0.09  # standard deviation of the factor of each colour channel
    vignette: float = 0.35  # largest darkening of the corners
    shadow_frac: float = 0.4  # share of photos with a hard shadow across them
    blur: float = 1.1  # largest radius, in pixels of a 320 px photo
    noise: float = 9.0  # largest standard deviation, of 255
    jpeg: tuple[int, int] = (45, 92)  # quality


CLEAN = Camera((1, 1), (1, 1), 0, 0, 0, 0, 0, (92, 93))


def as_photographed(scene: Image.Image, rng: np.random.Generator, camera: Camera) -> np.ndarray:
    """The scene as a phone would store it: (H, W, 3) uint8 RGB."""
    width, height = scene.size
    radius = rng.uniform(0, camera.blur) * width / 320
    if radius > 0.25:
        scene = scene.filter(ImageFilter.GaussianBlur(radius))
    light = Image.fromarray(illumination(rng, camera)).resize((width, height), Image.Resampling.BILINEAR)
    cast = np.exp(rng.normal(0, camera.cast, 3)) * rng.uniform(*camera.light)
    curve = 255 * np.linspace(0, 1, 256) ** rng.uniform(*camera.gamma)
    toned = scene.point(np.clip(np.outer(cast, curve), 0, 255).astype(int).ravel().tolist())
    pixels = np.multiply(np.asarray(toned), np.asarray(light)[..., None], dtype=np.float32)
    sigma = rng.uniform(0, camera.noise)
    if sigma > 0:
        pixels += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(sigma)
    photo = Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
    stored = io.BytesIO()
    photo.save(stored, "JPEG", quality=int(rng.integers(*camera.jpeg)))
    return np.asarray(Image.open(stored).convert("RGB"))


def illumination(rng: np.random.Generator, camera: Camera) -> np.ndarray:
    """Fall of light over a photo: (48, 48) float32 around 1."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j].astype(np.float32)
    slope = rng.uniform(-0.18, 0.18, 2) * min(1.0, camera.vignette * 3)
    field = 1 + slope[0] * x + slope[1] * y - rng.uniform(0, camera.vignette) * (x**2 + y**2) / 2
    if rng.random() < camera.shadow_frac:
        shadow = Image.new("L", (48, 48), 0)
        corners = rng.uniform(-10, 58, (4, 2))
        ImageDraw.Draw(shadow).polygon(corners.ravel().tolist(), fill=255)
        soft = np.asarray(shadow.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 4))), np.float32) / 255
        field *= 1 - soft * rng.uniform(0.15, 0.5)
    return np.asarray(field, np.float32)
