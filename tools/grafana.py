"""Renders dashboards, as `dashboards.py` describes them, for Grafana."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_WIDTH: Final = 24
_HEIGHT: Final = 8
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_Plain = Mapping[str, Any]


def render(dashboard: _Plain) -> dict[str, Any]:
    """Of a `Dashboard` as plain data, what Grafana imports."""
    choices = dashboard["choices"]
    chosen = ",".join(f'{choice["label"]}=~"${choice["name"]}"' for choice in choices)
    return {
        "uid": f"shoal-{dashboard['name']}",
        "title": dashboard["title"],
        "tags": ["shoal"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_data_source(), *(_variable(each, dashboard["known_by"]) for each in choices)]},
        "panels": list(_panels(dashboard["rows"], chosen)),
    }


def _panels(rows: Sequence[_Plain], chosen: str) -> Iterator[dict[str, Any]]:
    ids = itertools.count(1)
    for index, row in enumerate(rows):
        top = index * (_HEIGHT + 1)
        position = {"h": 1, "w": _WIDTH, "x": 0, "y": top}
        yield {
            "id": next(ids),
            "type": "row",
            "title": row["title"],
            "collapsed": False,
            "panels": [],
            "gridPos": position,
        }
        width = _WIDTH // len(row["panels"])
        for column, panel in enumerate(row["panels"]):
            position = {"h": _HEIGHT, "w": width, "x": column * width, "y": top + 1}
            yield {"id": next(ids), "gridPos": position, **_graph(panel, chosen)}


def _graph(panel: _Plain, chosen: str) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": query.replace("{W}", f"{{{chosen}}}").replace("{W,", f"{{{chosen},"),
            "legendFormat": legend,
        }
        for index, (query, legend) in enumerate(panel["queries"])
    ]
    stacking = {"mode": "normal" if panel["stacked"] else "none", "group": "A"}
    custom = {
        "drawStyle": "line",
        "fillOpacity": 20 if panel["stacked"] else 0,
        "showPoints": "never",
        "stacking": stacking,
    }
    return {
        "type": "timeseries",
        "title": panel["title"],
        "description": panel["text"],
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel["unit"], "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def _data_source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _variable(choice: _Plain, known_by: str) -> dict[str, Any]:
    return {
        "name": choice["name"],
        "type": "query",
        "label": choice["title"],
        "datasource": _SOURCE,
        "query": {"query": f"label_values({known_by}, {choice['label']})", "refId": choice["name"]},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }
