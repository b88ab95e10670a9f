"""Generated photos that both trainings can learn from: rendered once, part by part, kept as arrays, the marker last.

Letters: N crops, M scenes, T side of a tile, S side of a scene; boxes are x0, y0, x1, y1 as shares of the sides (0..1).
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from PIL import Image

import jobs.render
from jobs.config import TrainingConfig
from jobs.raydata.session import progress
from jobs.render.products import RenderedProduct, make_products
from jobs.render.scenes import street_scene
from jobs.render.studio import NUM_VIEWS, cutout, studio_photo
from jobs.training.crops import PLAIN, SHOP, USER, CropSet, TrainingProduct, TrainingSet, tile_of

DETECTOR_PX = 320  # side of a kept scene: the input of SSDlite320
PLAIN_PER_PRODUCT = 2


@dataclass(frozen=True)
class SceneSet:
    """Photos to find items in, and the items."""

    scenes_MSS3: np.ndarray  # uint8 RGB
    boxes: tuple[np.ndarray, ...]  # per scene (any, 4) float32
    streets_M: np.ndarray  # bool: a street scene; else one product on plain ground


@dataclass(frozen=True)
class Split:
    """One set of products and its photos. The same values always give the same pixels."""

    num_products: int
    num_scenes: int
    seed: int
    scene_px: int
    tile_px: int
    part_products: int

    @property
    def num_parts(self) -> int:
        return -(-self.num_products // self.part_products)

    def folder(self, root: Path) -> Path:
        """Where its parts lie under `root`: a name made of its values and of the code that draws, so neither goes stale."""
        drawn_by = [path.read_bytes() for path in sorted(Path(jobs.render.__file__).parent.glob("*.py"))]
        values = json.dumps(self.__dict__, sort_keys=True).encode() + b"".join(drawn_by)
        return root / f"seed-{self.seed}-{hashlib.sha256(values).hexdigest()[:12]}"


def splits(config: TrainingConfig) -> tuple[Split, Split]:
    """The products to learn from, and the held-out ones (of another seed, so other products)."""
    learn = Split(
        config.num_products, config.num_scenes, config.seed, config.scene_px, config.tile_px, config.part_products
    )  # fmt: skip
    held_out = Split(
        config.heldout_products, config.heldout_scenes, config.heldout_seed, config.scene_px, config.tile_px, config.part_products
    )  # fmt: skip
    return learn, held_out


def render_split(split: Split, root: Path) -> Path:
    """The split's folder, rendered by Ray tasks where parts are missing; needs a started Ray, and `root` on every node."""
    folder = split.folder(root.resolve())
    marker = folder / "done.json"
    if marker.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    missing = [part for part in range(split.num_parts) if not part_path(folder, part).is_file()]
    task = ray.remote(num_cpus=1, max_retries=1)(write_part)
    waiting = [task.remote(split, part, folder) for part in missing]
    with progress("render", len(waiting), "parts") as shown:
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done)
            shown.add(len(done))
    marker.write_text(json.dumps(split.__dict__))
    return folder


def part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.npz"


def write_part(split: Split, part: int, folder: Path) -> None:
    """Renders one part into its file (temp + rename)."""
    path = part_path(folder, part)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **render_part(split, part))
    partial.rename(path)


def render_part(split: Split, part: int) -> dict[str, np.ndarray]:
    """Photos of the products of one part, and its share of the scenes with these products in them."""
    rows = range(part * split.part_products, min((part + 1) * split.part_products, split.num_products))
    products = make_products(rows.stop, split.seed)[rows.start :]
    rng = np.random.default_rng([split.seed, 1, part])
    crops: list[tuple[np.ndarray, np.ndarray, int, int]] = []
    scenes: list[tuple[np.ndarray, np.ndarray, bool]] = []
    for row, product in zip(rows, products, strict=True):
        for view in range(NUM_VIEWS):
            crops.append((studio_photo(product, view, split.tile_px), np.array([0, 0, 1, 1], np.float32), row, SHOP))
        for _ in range(PLAIN_PER_PRODUCT):
            pixels, box = on_plain_ground(product, rng, DETECTOR_PX)
            crops.append((*tile_of(pixels, box, split.tile_px), row, PLAIN))
            scenes.append((pixels, box[None] / DETECTOR_PX, False))
    row_of = {product.product_id: row for row, product in zip(rows, products, strict=True)}
    first, last = (split.num_scenes * rows.start // split.num_products, split.num_scenes * rows.stop // split.num_products)
    for _ in range(first, last):
        chosen = rng.choice(len(products), min(len(products), int(rng.integers(1, 5))), replace=False)
        scene = street_scene([products[index] for index in chosen], rng, split.scene_px)
        for box, product_id in zip(scene.boxes_N4, scene.product_ids, strict=True):
            crops.append((*tile_of(scene.pixels, box, split.tile_px), row_of[product_id], USER))
        small = Image.fromarray(scene.pixels).resize((DETECTOR_PX, DETECTOR_PX), Image.Resampling.BILINEAR)
        scenes.append((np.asarray(small), scene.boxes_N4 / split.scene_px, True))
    return {
        "tiles": np.stack([tile for tile, _, _, _ in crops]),
        "tile_boxes": np.stack([box for _, box, _, _ in crops]).astype(np.float32),
        "tile_products": np.array([row for _, _, row, _ in crops], np.int64),
        "tile_domains": np.array([domain for _, _, _, domain in crops], np.int64),
        "scenes": np.stack([pixels for pixels, _, _ in scenes]),
        "scene_boxes": np.concatenate([boxes for _, boxes, _ in scenes]).astype(np.float32),
        "scene_counts": np.array([len(boxes) for _, boxes, _ in scenes], np.int64),
        "scene_streets": np.array([street for _, _, street in scenes]),
    }


def on_plain_ground(product: RenderedProduct, rng: np.random.Generator, px: int) -> tuple[np.ndarray, np.ndarray]:
    """A product on one light colour, small to larger than the photo: (px, px, 3) uint8 and its visible xyxy box in pixels."""
    item = Image.fromarray(
        np.ascontiguousarray(cutout(product, int(rng.integers(NUM_VIEWS)), round(px * rng.uniform(0.35, 1.2))))
    )
    ground = Image.new("RGB", (px, px), tuple(int(value) for value in rng.integers(215, 256, 3)))
    free = np.array([px - item.width, px - item.height])
    left, top = (int(value) for value in np.round(free / 2 + rng.uniform(-0.35, 0.35, 2) * np.abs(free)))
    ground.paste(item.convert("RGB"), (left, top), item.getchannel("A"))
    box = np.clip([left, top, left + item.width, top + item.height], 0, px).astype(np.float32)
    return np.asarray(ground), box


def columns(folder: Path, *names: str) -> list[np.ndarray]:
    """The named arrays over all parts, in order. Raises FileNotFoundError where the split is not done."""
    if not (folder / "done.json").is_file():
        raise FileNotFoundError(f"{folder}: no done.json; render the split first")
    paths = sorted(folder.glob("part-*.npz"))
    return [joined(paths, name) for name in names]


def joined(paths: list[Path], name: str) -> np.ndarray:
    """One array over all parts, filled part by part: beside it there is never more than one part in memory."""
    shapes_and_dtypes = [header_of(path, name) for path in paths]
    (_, *shape), dtype = shapes_and_dtypes[0]
    whole = np.empty((sum(found[0] for found, _ in shapes_and_dtypes), *shape), dtype)
    start = 0
    for path, ((num, *_), _) in zip(paths, shapes_and_dtypes, strict=True):
        with np.load(path) as part:
            whole[start : start + num] = part[name]
        start += num
    return whole


def header_of(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of one array of a part, from its first bytes."""
    with zipfile.ZipFile(path) as part, part.open(f"{name}.npy") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def load_crops(split: Split, root: Path) -> CropSet:
    """All crops of a rendered split, in memory."""
    tiles, boxes, rows, domains = columns(split.folder(root.resolve()), "tiles", "tile_boxes", "tile_products", "tile_domains")
    products = tuple(training_product(product) for product in make_products(split.num_products, split.seed))
    return CropSet(tiles, boxes, rows, domains, products)


def load_training(learn: Split, held_out: Split, root: Path) -> TrainingSet:
    """Both splits; every held-out product is one that training has not seen."""
    measured = load_crops(held_out, root)
    return TrainingSet(load_crops(learn, root), measured, np.ones(int((measured.domains_N == USER).sum()), bool))


def training_product(product: RenderedProduct) -> TrainingProduct:
    """A generated product with everything that its photos show."""
    texts = (product.title, product.description)
    return TrainingProduct(product.product_id, product.group_id, product.category, texts, attributes_of(product))


def attributes_of(product: RenderedProduct) -> dict[str, str]:
    """Attribute -> word, of everything a photo of the product shows."""
    words = {name: getattr(product, name) for name in ("main_colour", "accent_colour", "pattern", "texture")}
    words |= {f"{product.spec.leaf} {name}": word for name, word in product.shape}
    if product.pattern != "plain":
        words |= {"pattern_size": product.pattern_size, "pattern_turn": product.pattern_turn}
    if product.logo:
        words |= {"logo": product.logo, "logo_colour": product.logo_colour}
    return words


def load_scenes(split: Split, root: Path) -> SceneSet:
    """All scenes of a rendered split, in memory."""
    folder = split.folder(root.resolve())
    scenes, boxes, counts, streets = columns(folder, "scenes", "scene_boxes", "scene_counts", "scene_streets")
    return SceneSet(scenes, tuple(np.split(boxes, np.cumsum(counts)[:-1])), streets)
