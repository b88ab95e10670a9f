"""Nothing of an upload is left behind: a real server is asked with marked uploads, good and bad, then everything is scanned."""

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.marks import Marks, as_json, files_below, gone_since, install_lister, marked_photo
from tests.api.test_api_main import wait_until_ready
from tests.api.tiny_release import RELEASE_ID, TinyRelease
from tests.parts import ROOT, free_port

PYTHON_SPOOLS = "import tempfile; f = tempfile.SpooledTemporaryFile(10); f.write(bytes(20)); open('kept.txt', 'w').close()"


@pytest.fixture
def room() -> Iterator[Path]:
    """A short folder: sockets of Ray lie in it, and their paths may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="v"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_the_scanner_finds_what_is_there(room: Path) -> None:
    marks = Marks()
    photo = marked_photo(marks, "JPEG", 64)
    assert marks.found_in(photo) == {"JPEG EXIF", "JPEG comment", "JPEG file bytes"}
    (room / "spill").mkdir()
    (room / "spill" / "object").write_bytes(bytes(1000) + photo + bytes(1000))
    (room / "app.log").write_text(f"body={photo!r}")
    (room / "body.json").write_bytes(as_json(image_base64=base64.b64encode(b"x" + photo).decode()))
    (room / marks.word("file name")).touch()
    (room / "clean").write_text("nothing")
    found = marks.scan([room])
    assert {path.name for path in found} >= {"object", "app.log", "body.json"} and len(found) == 4
    assert found[room / "spill" / "object"] == found[room / "body.json"] == {"JPEG EXIF", "JPEG comment", "JPEG file bytes"}


def test_the_list_of_written_files_sees_a_spooled_upload(room: Path) -> None:
    hook, listed = install_lister(room)
    environment = os.environ | {"PYTHONPATH": str(hook), "TMPDIR": str(room)}
    subprocess.run([sys.executable, "-c", PYTHON_SPOOLS], env=environment, cwd=room, check=True)
    assert "kept.txt" in listed.read_text()
    gone = gone_since(listed, 0, room)
    assert gone and all(name.startswith(str(room)) for name in gone), "temporary files are deleted at once"


@pytest.mark.slow
def test_no_trace_of_an_upload(tiny: TinyRelease, room: Path) -> None:
    """Temporary files, logs, spill folder, Ray's session, store, home: all in one place, and no mark in any of it."""
    hook, listed = install_lister(room)
    store, work = room / "store", room / "work"
    shutil.copytree(tiny.settings.store.root, store)
    work.mkdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "serve", "--conf", str(tiny.conf), "--port", str(port), "--release", RELEASE_ID]
    command += ["--set", f"store.root={store}", "--set", f"store.tables={store}/tables", "--set", "serve.feedback=true"]
    environment = os.environ | {"PYTHONPATH": f"{hook}:{ROOT}", "TMPDIR": str(room), "HOME": str(room / "home")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    server = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    marks = Marks()
    try:
        wait_until_ready(url, server)
        assert any("session_" in str(path) for path in files_below([room])), "Ray's session folder is not among the scanned"
        written_before = listed.stat().st_size
        answers = search_with_marks(url, marks)
        assert gone_since(listed, written_before, work) == [], "a file was written while it answered, and is gone"
        assert marks.scan([room]) == {}
        logged = b"".join(path.read_bytes() for path in files_below([room]) if path.name.startswith("worker-"))
        assert b'"event": "answered"' in logged, "the log lines of these requests are among the scanned"
    finally:
        server.send_signal(signal.SIGTERM)
        output, _ = server.communicate(timeout=60)
    assert marks.scan([room]) == {}, "after the end"
    assert marks.found_in(output.encode()) == set()
    assert [marks.found_in(answer) for answer in answers] == [set()] * len(answers)


def search_with_marks(url: str, marks: Marks) -> list[bytes]:
    """Searches in every form with marked uploads; the bodies and headers of all answers, and what the server tells of itself."""
    jpeg, png = marked_photo(marks, "JPEG", 500), marked_photo(marks, "PNG", 1100)
    assert len(png) > 3_000_000, "larger than what Starlette keeps in memory"
    name, odd_name = marks.word("file name"), marks.word("name of a bad file")
    cut, no_photo = jpeg[: len(jpeg) * 2 // 3], b"no photo: " + marks.word("words").encode()
    form = {"url": f"{url}/v1/search"}
    json_type, photo_type = {"content-type": "application/json"}, {"content-type": "image/jpeg"}
    encoded = base64.b64encode(jpeg).decode()
    good = [
        {**form, "files": {"image": (f"{name}.png", png, "image/png")}, "data": {"k": "3"}},
        {**form, "files": {"image": (f"{name}.jpg", jpeg, "image/jpeg")}, "data": {"box": "20,20,300,300"}},
        {**form, "content": jpeg, "headers": photo_type, "params": {"explain": "true"}},
        {**form, "content": as_json(image_base64=encoded), "headers": json_type},
        {"url": f"{url}/v1/embed", "files": {"image": (f"{name}.png", png, "image/png")}},
    ]
    word = marks.word("value")
    bad = [
        {**form, "files": {"image": (f"{odd_name}.jpg", cut, "image/jpeg")}},
        {**form, "files": {"image": (f"{odd_name}.svg", b"<svg>" + no_photo, "image/svg+xml")}},
        {**form, "files": {"photo": (f"{odd_name}.png", png, "image/png")}},
        {**form, "files": {"image": (f"{odd_name}.png", png, "image/png")}, "data": {"box": word, "filters": word, "k": word}},
        {**form, "content": jpeg, "headers": {"content-type": "multipart/form-data; boundary=none"}},
        {**form, "content": no_photo, "headers": photo_type, "params": {"k": word}},
        {**form, "content": jpeg, "headers": {"content-type": f"text/{word}"}},
        {**form, "content": jpeg * (1 + 11_000_000 // len(jpeg)), "headers": photo_type},
        {**form, "content": as_json(image_base64=f"data:image/jpeg;base64,{encoded}"), "headers": json_type},
        {**form, "content": as_json(image_base64=encoded, box=[word], filters={"brand": [word]}), "headers": json_type},
        {**form, "content": as_json(image_base64=encoded)[:-40], "headers": json_type},
    ]
    others = [
        {**form, "content": as_json(text=marks.word("text query")), "headers": json_type},
        {**form, "content": as_json(image_url=f"https://example.invalid/{marks.word('URL')}.jpg"), "headers": json_type},
    ]
    kept = []
    with httpx.Client(timeout=60) as client:
        for number, request in enumerate([*good, *bad, *others]):
            answer = client.post(**request)
            is_good = number < len(good)
            assert answer.status_code == 200 if is_good else answer.status_code < 500, (number, answer.text)
            assert is_good or answer.status_code == 200 or len(answer.content) <= 1_000, "a problem is short"
            kept += [answer.content, repr(answer.headers.raw).encode()]
        assert all(answer.status_code == 422 for answer in [client.post(**bad[3]), client.post(**bad[9])])
        kept += [client.get(f"{url}{path}").content for path in ("/v1/release", "/metrics", "/readyz")]
    return kept
