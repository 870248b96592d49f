"""What all parts of the manifest share."""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A mapping of fields: camelCase in the file, snake_case here; a field that is not known is refused."""
