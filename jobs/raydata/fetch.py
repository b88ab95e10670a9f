"""The bytes behind an image URI: a path, file://, http(s)://, s3:// or gs://, never more than allowed, every failure named.

A `Fetcher` asks once; jobs.raydata.polite asks again where a fault may pass, and is no burden to anybody's host.
Whoever writes the feed says what is fetched from where: in a network with hosts of its own, feed.hosts is the wall. Private
addresses are not refused by themselves, for many shops keep their photos on one.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.fs
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry, parse_url

from jobs.config import Config

TRANSIENT = ("fetch_failed", "timeout", "host_down")  # tried again by the next run; other reasons stand until the URI changes
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)  # worth another request within a run
WEB, STORES = ("http", "https"), ("s3", "gs")
CHUNK_BYTES = 1 << 16
MAX_REDIRECTS = 3
MAX_VALIDATOR_CHARS = 1000  # longer ones are not kept
MAX_PAUSE_S = 86_400  # of Retry-After that is believed


class FetchError(ValueError):
    """No bytes. `reason` is one of fetch_failed, timeout, host_down, empty, too_large, bad_scheme, bad_host (or bucket).

    `detail` says what was found; `passing`: another request soon may do better; `pause_s`: how long the host asks to wait.
    """

    def __init__(self, reason: str, detail: str, *, passing: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.passing, self.pause_s = reason, detail, passing, pause_s


@dataclass(frozen=True)
class FetchRules:
    """What may be fetched, how large, how fast."""

    schemes: tuple[str, ...]
    max_bytes: int
    timeout_s: float  # of one request
    hosts: tuple[str, ...] = ()  # of http(s); none = all; *.shop.example = every host below shop.example
    buckets: tuple[str, ...] = ()  # of s3 and gs; none = all
    user_agent: str = "visual-search"
    threads: int = 8
    per_host: int = 4
    interval_s: float = 0.0
    attempts: int = 1
    total_s: float = 60.0
    host_failures: int = 8


def fetch_rules(config: Config) -> FetchRules:
    """Those of the sections feed, decode and embed."""
    feed, embed = config.feed, config.embed
    return FetchRules(
        schemes=feed.schemes,
        hosts=feed.hosts,
        buckets=feed.buckets,
        max_bytes=config.decode.max_bytes,
        timeout_s=embed.fetch_timeout_s,
        user_agent=embed.fetch_user_agent,
        threads=embed.fetch_threads,
        per_host=embed.fetch_per_host,
        interval_s=embed.fetch_interval_s,
        attempts=embed.fetch_attempts,
        total_s=embed.fetch_total_s,
        host_failures=embed.fetch_host_failures,
    )


@dataclass(frozen=True)
class Validator:
    """What tells whether the bytes behind a URI are still the same, as the server said it.

    Of a file `etag` is its time of change and its size, of an object the store's own.
    """

    etag: str | None = None
    last_modified: str | None = None

    def headers(self) -> dict[str, str]:
        """A request's conditions (RFC 9110, 13.1)."""
        given = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class Fetched:
    """Between 1 and `max_bytes` bytes, or None where they are still those of the validator that was sent."""

    data: bytes | None
    validator: Validator

    @property
    def whole(self) -> bytes:
        """The bytes, where no validator was sent."""
        assert self.data is not None
        return self.data


class Fetcher:
    """Fetches whole files, asking once; safe to share between threads."""

    def __init__(self, rules: FetchRules) -> None:
        self.rules = rules
        self.local = threading.local()  # requests' sessions are not shared between threads

    def fetch(self, uri: str, known: Validator | None = None) -> Fetched:
        """The bytes, unless they are those of `known`. Raises FetchError."""
        self._check_place(uri)
        scheme = scheme_of(uri)
        if scheme == "file":
            found = self._from_disk(local_path(uri), known)
        elif scheme in WEB:
            found = self._from_web(uri, known)
        else:
            found = self._from_object_store(uri, known)
        if found.data == b"":
            raise FetchError("empty", "0 bytes")
        return found

    def _from_disk(self, path: Path, known: Validator | None) -> Fetched:
        try:
            if not path.is_file():
                raise FetchError("fetch_failed", "not a file" if path.exists() else "no such file")
            stat = path.stat()
            self._check_size(stat.st_size)
            validator = Validator(f"{stat.st_mtime_ns}-{stat.st_size}")
            return Fetched(None if validator == known else path.read_bytes(), validator)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise error if isinstance(error, FetchError) else FetchError("fetch_failed", type(error).__name__) from error

    def _from_web(self, uri: str, known: Validator | None) -> Fetched:
        deadline = time.monotonic() + self.rules.timeout_s
        conditions = known.headers() if known else {}
        try:
            with self._session().get(uri, stream=True, timeout=self.rules.timeout_s, headers=conditions) as answer:
                if answer.status_code == 304 and known and conditions:
                    told = validator_of(answer)
                    return Fetched(None, Validator(told.etag or known.etag, told.last_modified or known.last_modified))
                if answer.status_code != 200:
                    passing = answer.status_code in PASSING_STATUS
                    pause_s = asked_pause_s(answer) if passing else 0.0
                    raise FetchError("fetch_failed", f"HTTP {answer.status_code}", passing=passing, pause_s=pause_s)
                length = answer.headers.get("Content-Length", "")
                self._check_size(int(length) if length.isdecimal() else 0)
                data = bytearray()
                for chunk in answer.iter_content(CHUNK_BYTES):
                    data += chunk
                    self._check_size(len(data))
                    if time.monotonic() > deadline:
                        raise FetchError("timeout", f"more than {self.rules.timeout_s:g} s", passing=True)
                return Fetched(bytes(data), validator_of(answer))
        except (requests.RequestException, UnicodeError) as error:  # UnicodeError: a host name that is none
            if isinstance(error, requests.Timeout) or time.monotonic() > deadline:  # a body that stalls is a ConnectionError
                raise FetchError("timeout", f"no answer within {self.rules.timeout_s:g} s", passing=True) from error
            broken = isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError))
            raise FetchError("fetch_failed", type(error).__name__, passing=broken) from error

    def _from_object_store(self, uri: str, known: Validator | None) -> Fetched:
        """One object. The stores' own clients try again, and are made for many connections: no rule of ours is needed."""
        scheme, _, key = uri.partition("://")  # bucket/name as it is: an object's name may hold ? and %
        try:
            with object_store(scheme, key.partition("/")[0]).open_input_file(key) as file:
                self._check_size(file.size())
                validator = Validator(etag_of(file.metadata()))
                return Fetched(None if validator.etag and validator == known else bytes(file.read()), validator)
        except (OSError, pyarrow.ArrowException) as error:
            raise FetchError("fetch_failed", " ".join(str(error).split())[:200]) from error

    def _check_place(self, uri: str) -> None:
        """Raises FetchError where nothing may be fetched from."""
        scheme = scheme_of(uri)
        if scheme not in self.rules.schemes:
            raise FetchError("bad_scheme", f"{scheme}://; allowed: {', '.join(self.rules.schemes)}")
        if scheme in WEB and self.rules.hosts and not is_allowed(host := host_of(uri), self.rules.hosts):
            raise FetchError("bad_host", f"{host}; feed.hosts allows {', '.join(self.rules.hosts)}")
        if scheme in STORES and self.rules.buckets and (bucket := bucket_of(uri)) not in self.rules.buckets:
            raise FetchError("bad_host", f"bucket {bucket}; feed.buckets allows {', '.join(self.rules.buckets)}")

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.rules.max_bytes:
            raise FetchError("too_large", f"{num_bytes} bytes or more; at most {self.rules.max_bytes}")

    def _session(self) -> requests.Session:
        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
            self.local.session.max_redirects = MAX_REDIRECTS
            self.local.session.headers["User-Agent"] = self.rules.user_agent
            for scheme in WEB:
                self.local.session.mount(f"{scheme}://", CheckedAdapter(self._check_place))
        session: requests.Session = self.local.session
        return session


class CheckedAdapter(HTTPAdapter):
    """Sends only what `check` lets pass. A redirect comes by here as well, before anything is sent to where it leads."""

    def __init__(self, check: Callable[[str], None]) -> None:
        super().__init__()
        self.check = check

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """See HTTPAdapter."""
        self.check(request.url or "")
        return super().send(request, *args, **kwargs)


def scheme_of(uri: str) -> str:
    """Lower case; a plain path is a file."""
    return uri.partition("://")[0].lower() if "://" in uri else "file"


def host_of(uri: str) -> str:
    """The host of an http(s) URI, lower case, read as the HTTP client itself reads it. Raises FetchError."""
    try:
        return (parse_url(uri).host or "").strip("[]").lower()
    except ValueError as error:
        raise FetchError("fetch_failed", "no address") from error


def bucket_of(uri: str) -> str:
    """The bucket of an s3 or gs URI."""
    return uri.partition("://")[2].partition("/")[0]


def is_allowed(host: str, hosts: tuple[str, ...]) -> bool:
    """Whether one of `hosts` is it, or stands for it: *.shop.example."""
    return any(host.endswith(name[1:]) if name.startswith("*.") else host == name for name in hosts)


def validator_of(answer: requests.Response) -> Validator:
    """What the server says of these bytes."""
    told = [answer.headers.get(name) for name in ("ETag", "Last-Modified")]
    return Validator(*(value if value and len(value) <= MAX_VALIDATOR_CHARS else None for value in told))


def etag_of(metadata: dict[str, bytes]) -> str | None:
    """Of an object, as Arrow gives what its store says; None where that is nothing."""
    told = {name.lower(): value for name, value in metadata.items()}
    return told["etag"].decode() if "etag" in told else None


def asked_pause_s(answer: requests.Response) -> float:
    """Retry-After in seconds; 0 where it is not there, or cannot be read."""
    try:
        return float(Retry(retry_after_max=MAX_PAUSE_S).parse_retry_after(answer.headers["Retry-After"]))
    except (KeyError, ValueError, OverflowError, InvalidHeader):
        return 0.0


def local_path(uri: str) -> Path:
    """The file of a plain path or a file:// URI (percent-encoded, RFC 8089)."""
    return Path(unquote(uri.removeprefix("file://"))) if uri.startswith("file://") else Path(uri)


@lru_cache(maxsize=64)
def object_store(scheme: str, bucket: str) -> pyarrow.fs.FileSystem:
    """The store of one bucket, with the credentials and the endpoint of the environment; its region is looked up once."""
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}")
    return filesystem
