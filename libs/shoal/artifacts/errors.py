"""What goes wrong when a model is fetched."""

from __future__ import annotations


class ArtifactError(Exception):
    """A model source cannot be turned into files; the message says which, why and what to do about it."""


class ArtifactNotFound(ArtifactError):
    """The source was reached and does not have what was asked for; the message names what it has."""


class DigestMismatch(ArtifactError):
    """The bytes are not the ones that were promised. Nothing but the bad file was removed."""

    def __init__(self, what: str, expected: str, got: str, hint: str = "") -> None:
        super().__init__(f"{what}: sha256 is {got}, expected {expected}{'; ' + hint if hint else ''}")
        self.expected = expected
        self.got = got


class NoSpace(ArtifactError):
    """The disk cannot hold the artifact."""
