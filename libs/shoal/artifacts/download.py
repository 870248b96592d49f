"""HTTP downloads that resume: Range requests onto a partial file, retries with backoff, a deadline, a final hash."""

from __future__ import annotations

import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import httpx

from shoal.artifacts.cache import disk_full_named, hash_file, require_space
from shoal.artifacts.errors import ArtifactError, ArtifactNotFound, DigestMismatch

_RETRIED_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Progress(Protocol):
    """Told how a download goes, from the thread that downloads, once a chunk."""

    def __call__(self, received_bytes: int, total_bytes: int | None) -> None:
        """`received_bytes` of `total_bytes` (None: not known) are here, resumed ones included."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to give up. Attempts that brought bytes do not count against `max_attempts`."""

    deadline_s: float
    """On time.monotonic()."""
    max_attempts: int = 6
    base_delay_s: float = 0.5
    max_delay_s: float = 20.0
    wait: Callable[[float], object] = field(default=threading.Event().wait)
    """How to wait between attempts; tests replace it."""

    @property
    def remaining_s(self) -> float:
        """Time left, at least zero."""
        return max(0.0, self.deadline_s - time.monotonic())


class RetryableError(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to download."""

    url: str
    name: str
    """For messages: the URL may hold credentials."""
    sha256: str | None = None
    size: int | None = None


def download(
    client: httpx.Client, remote: RemoteFile, target: Path, policy: RetryPolicy, progress: Progress | None = None
) -> None:
    """Brings `remote` to `target`, going on from what `target` already holds.

    The caller holds a lock on `target`. Raises ArtifactError; a file with the wrong hash is removed first. When the
    wrong hash may come from a resumed part, one download from the start is tried before that.
    """
    if remote.sha256 is None:  # nothing would notice that two halves are of different files
        target.unlink(missing_ok=True)
    resumed = _size(target) > 0
    for start_over in (False, True):
        if start_over:
            target.unlink(missing_ok=True)
        retry(lambda: _attempt(client, remote, target, policy, progress), policy, remote.name, lambda: _size(target))
        if remote.sha256 is None or (got := hash_file(target)) == remote.sha256:
            return
        if not resumed or start_over:
            target.unlink(missing_ok=True)
            raise DigestMismatch(remote.name, remote.sha256, got, "the download was removed; is a proxy changing it?")


def retry(attempt: Callable[[], None], policy: RetryPolicy, name: str, progressed: Callable[[], int]) -> None:
    """Runs `attempt` until it returns. Gives up at the deadline or after too many attempts without progress."""
    failures, before = 0, progressed()
    while True:
        try:
            attempt()
            return
        except RetryableError as error:
            failures = 1 if progressed() > before else failures + 1
            before = progressed()
            # Full jitter: a fleet that starts at once must not come back at once.
            backoff_s = min(policy.max_delay_s, policy.base_delay_s * 2 ** (failures - 1)) * random.uniform(0.5, 1)  # noqa: S311
            delay_s = max(backoff_s, min(error.retry_after_s or 0.0, 60.0))
            if failures >= policy.max_attempts or delay_s >= policy.remaining_s:
                why = "the time is over" if failures < policy.max_attempts else f"{failures} attempts failed"
                raise ArtifactError(f"{name}: {why}; the last problem: {error}") from error
            policy.wait(delay_s)


def get_bounded(client: httpx.Client, url: str, accept: str, policy: RetryPolicy, max_bytes: int) -> httpx.Response:
    """One small page. Raises RetryableError, ArtifactNotFound for a 404, ArtifactError for the rest."""
    with _stream(client, url, {"Accept": accept}, policy) as response:
        check_status(response)
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > max_bytes:
                raise ArtifactError(f"{public_url(url)}: answered with more than {max_bytes} bytes")
        kind = response.headers.get("content-type", "")
        return httpx.Response(200, content=bytes(body), headers={"content-type": kind}, request=response.request)


def check_status(response: httpx.Response) -> None:
    """Turns an HTTP status into the right error."""
    status, url = response.status_code, public_url(str(response.url))
    if status in (200, 206):
        return
    if status in _RETRIED_STATUS:
        raise RetryableError(f"{url} answered HTTP {status}", _retry_after_s(response.headers.get("retry-after")))
    if status in (404, 410):
        raise ArtifactNotFound(f"{url}: not found (HTTP {status})")
    if status in (401, 403, 407):
        raise ArtifactError(f"{url}: access denied (HTTP {status}); check the credentials for this host")
    raise ArtifactError(f"{url}: answered HTTP {status}")


def public_url(url: str) -> str:
    """`url` without user, password, query and fragment."""
    parsed = httpx.URL(url)
    return str(parsed.copy_with(username=None, password=None, query=None, fragment=None))


def _attempt(
    client: httpx.Client, remote: RemoteFile, target: Path, policy: RetryPolicy, progress: Progress | None
) -> None:
    have = _size(target)
    if remote.size is not None and have > remote.size:
        target.unlink()
        have = 0
    if remote.size is not None and have == remote.size:
        return
    headers = {"Accept-Encoding": "identity"}  # a compressed body cannot be resumed by offset
    if have:
        headers["Range"] = f"bytes={have}-"
    with _stream(client, remote.url, headers, policy) as response:
        if response.status_code == 416:  # what is here is not a beginning of what is there
            target.unlink(missing_ok=True)
            raise RetryableError(f"{remote.name}: the server refused to resume at byte {have}")
        check_status(response)
        offset, total = _extent(response, have)
        if offset not in (0, have):
            raise ArtifactError(f"{remote.name}: asked for bytes from {have}, the server sent from {offset}")
        if total is not None and remote.size is not None and total != remote.size:
            raise ArtifactError(f"{remote.name}: the server sends {total} bytes, the index says {remote.size}")
        total = total if total is not None else remote.size
        require_space(target.parent, (total or 0) - offset, remote.name)
        received = _write_body(response, remote, target, offset, total, policy, progress)
        if total is not None and received < total:
            raise RetryableError(f"{remote.name}: the connection ended after {received} of {total} bytes")


def _write_body(
    response: httpx.Response,
    remote: RemoteFile,
    target: Path,
    offset: int,
    total: int | None,
    policy: RetryPolicy,
    progress: Progress | None,
) -> int:
    received = offset
    with disk_full_named(target, remote.name), target.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        for chunk in response.iter_raw():  # as it comes: what a larger buffer holds is lost with the connection
            received += len(chunk)
            if total is not None and received > total:
                raise ArtifactError(f"{remote.name}: the server sends more than the {total} bytes it announced")
            file.write(chunk)
            if progress is not None:
                progress(received, total)
            if policy.remaining_s <= 0:
                raise RetryableError(f"{received} of {total if total is not None else 'unknown'} bytes are here")
    return received


def _extent(response: httpx.Response, have: int) -> tuple[int, int | None]:
    """Offset of the first byte of the body, and the size of the whole file when the server says it."""
    if response.status_code == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None:
            raise ArtifactError(f"{public_url(str(response.url))}: partial content without a usable Content-Range")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdigit() else None


@contextmanager
def _stream(client: httpx.Client, url: str, headers: dict[str, str], policy: RetryPolicy) -> Iterator[httpx.Response]:
    timeout = httpx.Timeout(min(60.0, max(0.1, policy.remaining_s)), connect=min(15.0, max(0.1, policy.remaining_s)))
    try:
        with client.stream("GET", url, headers=headers, timeout=timeout) as response:
            yield response
    except httpx.UnsupportedProtocol as error:
        raise ArtifactError(f"{public_url(url)}: {error}") from error
    except (httpx.TransportError, httpx.TooManyRedirects) as error:
        raise RetryableError(f"{public_url(url)}: {type(error).__name__}: {error}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
