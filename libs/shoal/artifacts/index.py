"""Python package indexes: which one the user's pip uses, and which wheel of it to take (PEP 503, 691, 427)."""

from __future__ import annotations

import configparser
import os
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import urldefrag, urljoin

import certifi
import httpx
import msgspec
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from shoal.artifacts.download import RetryPolicy, get_bounded, public_url, retry
from shoal.artifacts.errors import ArtifactError, ArtifactNotFound

DEFAULT_INDEX: Final = "https://pypi.org/simple"
MAX_INDEX_PAGE_BYTES: Final = 64 << 20
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """What the user told pip about indexes."""

    index_urls: tuple[str, ...] = (DEFAULT_INDEX,)
    """The main index, then the extra ones."""
    ca_bundle: str | None = None
    proxy: str | None = None
    """Besides the environment's (HTTPS_PROXY and so on), which count too."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on an index."""

    filename: str
    url: str
    sha256: str | None
    size: int | None


def read_pip_config(environ: Mapping[str, str] | None = None) -> IndexConfig:
    """pip's precedence: PIP_* over its configuration files over its default. Files that do not parse are skipped.

    Credentials may be in the index URL; those in netrc files and keyrings are not read.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, str] = {}
    for path in _pip_config_files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "download"):
            if parser.has_section(section):
                values |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    for name in ("index-url", "extra-index-url", "cert", "proxy"):
        if value := environ.get("PIP_" + name.upper().replace("-", "_")):
            values[name] = value
    urls = (values.get("index-url", DEFAULT_INDEX), *values.get("extra-index-url", "").split())
    return IndexConfig(urls, values.get("cert") or None, values.get("proxy") or None)


def _pip_config_files(environ: Mapping[str, str]) -> list[Path]:
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    home, site = Path("~").expanduser(), Path(sys.prefix) / "pip.conf"
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    user = [home / ".pip" / "pip.conf", config_home / "pip" / "pip.conf"]
    return [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), *user, site, *([Path(chosen)] if chosen else [])]


def make_client(config: IndexConfig) -> httpx.Client:
    """A client with the user's certificates and proxies. Raises ArtifactError when the bundle cannot be read."""
    try:
        context = ssl.create_default_context(cafile=config.ca_bundle)
    except (OSError, ssl.SSLError) as error:
        raise ArtifactError(f"pip's certificate bundle {config.ca_bundle}: {error}") from error
    if (
        config.ca_bundle is None
    ):  # the system's store, which a company may have added to, and Mozilla's where it is empty
        context.load_verify_locations(certifi.where())
    return httpx.Client(
        verify=context, follow_redirects=True, headers={"User-Agent": "shoal"}, proxy=config.proxy, trust_env=True
    )


def find_wheel(client: httpx.Client, config: IndexConfig, project: str, version: str, policy: RetryPolicy) -> Wheel:
    """The wheel of `project` at `version` that this machine could install, pure ones first."""
    try:
        wanted = Version(version)
    except InvalidVersion as error:
        raise ArtifactError(f"pypi://{project}=={version}: {version!r} is not a version (PEP 440)") from error
    wheels: list[Wheel] = []
    missing: list[str] = []
    for url in config.index_urls:
        try:
            wheels += _list_wheels(client, url, project, policy)
        except ArtifactNotFound:
            missing.append(public_url(url))
    if len(missing) == len(config.index_urls):
        raise ArtifactNotFound(f"no project {project!r} on {' or '.join(missing)}")
    return _choose(wheels, project, wanted)


def _choose(wheels: list[Wheel], project: str, wanted: Version) -> Wheel:
    ranks = {tag: rank for rank, tag in enumerate(sys_tags())}
    versions: set[Version] = set()
    candidates: list[tuple[bool, int, Wheel]] = []
    for wheel in wheels:
        try:
            name, version, _, tags = parse_wheel_filename(wheel.filename)
        except (InvalidWheelFilename, InvalidVersion):
            continue
        if name != project:
            continue
        versions.add(version)
        rank = min((ranks[tag] for tag in tags if tag in ranks), default=len(ranks))
        if version == wanted:
            candidates.append((not any(tag.platform == "any" for tag in tags), rank, wheel))
    if not candidates:
        known = ", ".join(str(version) for version in sorted(versions, reverse=True)[:20]) or "none"
        raise ArtifactNotFound(f"{project}: no wheel of version {wanted}; versions with a wheel: {known}")
    return min(candidates, key=lambda candidate: candidate[:2])[2]


def _list_wheels(client: httpx.Client, index_url: str, project: str, policy: RetryPolicy) -> list[Wheel]:
    page_url = f"{index_url.rstrip('/')}/{project}/"
    pages: list[httpx.Response] = []
    retry(
        lambda: pages.append(get_bounded(client, page_url, _ACCEPT, policy, MAX_INDEX_PAGE_BYTES)),
        policy,
        public_url(page_url),
        lambda: 0,
    )
    page = pages[0]
    base = str(page.request.url)
    if "json" in page.headers["content-type"]:
        return _wheels_of_json(page.content, base)
    return _wheels_of_html(page.text, base)


def _wheels_of_json(content: bytes, base: str) -> list[Wheel]:
    try:
        files: list[dict[str, Any]] = msgspec.json.decode(content)["files"]
        return [
            Wheel(file["filename"], urljoin(base, file["url"]), file["hashes"].get("sha256"), file.get("size"))
            for file in files
            if file["filename"].endswith(".whl")
        ]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{public_url(base)}: not a package index page (PEP 691): {error!r}") from error


def _wheels_of_html(text: str, base: str) -> list[Wheel]:
    anchors = _Anchors()
    anchors.feed(text)
    wheels: list[Wheel] = []
    for href in anchors.hrefs:
        url, fragment = urldefrag(urljoin(base, href))
        filename = httpx.URL(url).path.rpartition("/")[2]
        if filename.endswith(".whl"):
            sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
            wheels.append(Wheel(filename, url, sha256, None))
    return wheels


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.hrefs += [value for name, value in attrs if name == "href" and value]
