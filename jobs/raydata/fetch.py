"""The bytes behind an image URI: a path, file://, http(s)://, s3:// or gs://, never more than allowed, every failure named."""

import threading
import time
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.fs
import requests

TRANSIENT = ("fetch_failed", "timeout")  # tried again by the next run; every other reason stands until the URI changes
CHUNK_BYTES = 1 << 16
MAX_REDIRECTS = 3


class FetchError(ValueError):
    """No bytes. `reason` is fetch_failed, timeout, empty, bad_scheme or too_large; `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Fetcher:
    """Fetches whole files; safe to share between threads."""

    def __init__(self, schemes: tuple[str, ...], max_bytes: int, timeout_s: float) -> None:
        self.schemes, self.max_bytes, self.timeout_s = schemes, max_bytes, timeout_s
        self.local = threading.local()  # requests' sessions are not shared between threads

    def fetch(self, uri: str) -> bytes:
        """Between 1 and `max_bytes` bytes. Raises FetchError."""
        scheme = uri.partition("://")[0].lower() if "://" in uri else "file"
        if scheme not in self.schemes:
            raise FetchError("bad_scheme", f"{scheme}://; allowed: {', '.join(self.schemes)}")
        if scheme == "file":
            data = self._from_disk(local_path(uri))
        elif scheme in ("http", "https"):
            data = self._from_web(uri)
        else:
            data = self._from_object_store(uri)
        if not data:
            raise FetchError("empty", "0 bytes")
        return data

    def _from_disk(self, path: Path) -> bytes:
        try:
            if not path.is_file():
                raise FetchError("fetch_failed", "not a file" if path.exists() else "no such file")
            self._check_size(path.stat().st_size)
            return path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise error if isinstance(error, FetchError) else FetchError("fetch_failed", type(error).__name__) from error

    def _from_web(self, uri: str) -> bytes:
        deadline = time.monotonic() + self.timeout_s
        try:
            with self._session().get(uri, stream=True, timeout=self.timeout_s) as answer:
                if urlsplit(answer.url).scheme not in self.schemes:
                    raise FetchError("bad_scheme", "redirected to a scheme that is not allowed")
                if answer.status_code != 200:
                    raise FetchError("fetch_failed", f"HTTP {answer.status_code}")
                length = answer.headers.get("Content-Length", "")
                self._check_size(int(length) if length.isdecimal() else 0)
                data = bytearray()
                for chunk in answer.iter_content(CHUNK_BYTES):
                    data += chunk
                    self._check_size(len(data))
                    if time.monotonic() > deadline:
                        raise FetchError("timeout", f"more than {self.timeout_s:g} s")
                return bytes(data)
        except (requests.RequestException, UnicodeError) as error:  # UnicodeError: a host name that is none
            if isinstance(error, requests.Timeout) or time.monotonic() > deadline:  # a body that stalls is a ConnectionError
                raise FetchError("timeout", f"no answer within {self.timeout_s:g} s") from error
            raise FetchError("fetch_failed", type(error).__name__) from error

    def _from_object_store(self, uri: str) -> bytes:
        scheme, _, key = uri.partition("://")  # bucket/name as it is: an object's name may hold ? and %
        try:
            with object_store(scheme, key.partition("/")[0]).open_input_file(key) as file:
                self._check_size(file.size())
                return bytes(file.read())
        except (OSError, pyarrow.ArrowException) as error:
            raise FetchError("fetch_failed", " ".join(str(error).split())[:200]) from error

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise FetchError("too_large", f"{num_bytes} bytes or more; at most {self.max_bytes}")

    def _session(self) -> requests.Session:
        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
            self.local.session.max_redirects = MAX_REDIRECTS
        session: requests.Session = self.local.session
        return session


def local_path(uri: str) -> Path:
    """The file of a plain path or a file:// URI (percent-encoded, RFC 8089)."""
    return Path(unquote(uri.removeprefix("file://"))) if uri.startswith("file://") else Path(uri)


@lru_cache(maxsize=64)
def object_store(scheme: str, bucket: str) -> pyarrow.fs.FileSystem:
    """The store of one bucket, with the credentials and the endpoint of the environment; its region is looked up once."""
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}")
    return filesystem
