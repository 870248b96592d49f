"""`shoal lora` against a registry in a process of its own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from shoal.client.cli.app import cli
from support.adapters import CONFIG, WEIGHTS, write_adapter
from support.lora_registry_process import start_registry


async def test_a_life_of_an_adapter(tmp_path: Path) -> None:
    first, second = (write_adapter(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    async with start_registry(tmp_path / "store") as service:

        async def shoal_lora(*arguments: str) -> Result:
            command = ["lora", *arguments, "--endpoint", service.address]
            return await asyncio.to_thread(CliRunner().invoke, cli, command)

        async def data_of(*arguments: str) -> list[Any]:
            result = await shoal_lora(*arguments, "--json")
            assert result.exit_code == 0, result.output
            return [json.loads(line) for line in result.stdout.splitlines()]

        assert "sql is now version 1: " in (await shoal_lora("publish", "sql", str(first), "--rank", "4")).stdout
        assert "sql was already version 1: " in (await shoal_lora("publish", "sql", str(first))).stdout
        [done] = await data_of("publish", "sql", str(second))
        assert (done["version"], done["changed"], done["rank"]) == (2, True, 4)
        [shown] = await data_of("show", "sql", "--version", "1")
        assert (shown["version"], shown["uri"], shown["base_model"]) == (1, str(first), "org/tiny")
        assert shown["digest"] in (await shoal_lora("show", "sql", "--version", "1")).stdout
        text = (await shoal_lora("list")).stdout
        assert "q_proj v_proj" in text
        assert "in 2 versions, 1 of which no name points to" in text
        [listed] = await data_of("list")
        assert listed["digest"] == done["digest"]

        # An attempt before has left half of it.
        target = tmp_path / "fetched"
        target.mkdir()
        weights = (second / WEIGHTS).read_bytes()
        part = target / f"{WEIGHTS}.{done['digest'][:16]}.part"
        part.write_bytes(weights[: len(weights) // 2])
        assert (await shoal_lora("fetch", "sql", str(target))).exit_code == 0
        assert (target / WEIGHTS).read_bytes() == weights
        assert (target / CONFIG).read_bytes() == (second / CONFIG).read_bytes()
        part.write_bytes(b"x" * 10)  # of something else
        wrong = await shoal_lora("fetch", "sql", str(target))
        assert (wrong.exit_code, "other bytes than those of version" in wrong.stderr) == (1, True)
        assert not part.exists()
        [fetched] = await data_of("fetch", shown["digest"], str(tmp_path / "old"))
        assert (tmp_path / "old" / WEIGHTS).read_bytes() == (first / WEIGHTS).read_bytes()
        assert fetched["digest"] == shown["digest"]

        for arguments, problem in (
            (("publish", "sql", str(first), "--rank", "8"), "r: 4; rank 8 was asked for"),
            (("publish", "sql", str(first), "--sha256", "0" * 64), "expected 0000"),
            (("publish", "sql", str(first), "--digest", "0" * 64), "0000 was asked for"),
            (("publish", "s q l", str(first)), "name: 's q l'; give 1 to 128 of"),
            (("publish", "sql", str(tmp_path / "absent")), f"{CONFIG} is missing"),
            (("publish", "sql", "ftp://host/a"), "unknown scheme"),
            (("show", "sql", "--version", "7"), "'sql' has no version 7; kept are 1, 2"),
            (("show", "other"), "no adapter 'other'; there are sql"),
            (("fetch", "0" * 64, str(tmp_path / "none")), "no version 0000"),
        ):
            result = await shoal_lora(*arguments)
            assert result.exit_code == 1
            assert problem in result.stderr, result.stderr
            [line] = result.stderr.splitlines()
            assert line.startswith("error: ")
            assert "request id" not in line, "of what the caller did"
        assert (await shoal_lora("remove", "sql")).exit_code == 0
        assert "there is no sql" in (await shoal_lora("remove", "sql")).stdout
    result = await shoal_lora("list")
    assert "no LoRA registry answers at" in result.stderr
