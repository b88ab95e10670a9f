"""A training set small enough for every test: 8 products, 6 scenes, rendered once a session without Ray."""

from pathlib import Path

import pytest

from jobs.training.generated import Split, part_path, write_part


@pytest.fixture(scope="session")
def tiny_split() -> Split:
    return Split(num_products=8, num_scenes=6, seed=1001, scene_px=160, tile_px=64, part_products=4)


@pytest.fixture(scope="session")
def tiny_photos(tiny_split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root folder that holds the rendered `tiny_split`."""
    root = tmp_path_factory.mktemp("photos")
    folder = tiny_split.folder(root)
    folder.mkdir()
    for part in range(tiny_split.num_parts):
        write_part(tiny_split, part, folder)
        assert part_path(folder, part).is_file()
    (folder / "done.json").touch()
    return root
