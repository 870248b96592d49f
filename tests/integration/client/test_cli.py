from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from shoal.client import Client, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from shoal.client.cli.app import cli
from shoal.client.cli.chat import Conversation, converse, read_turn
from shoal.client.cli.running import RunningMesh, recorded
from shoal.client.cli.session import Session
from shoal.client.cli.up import paste_lines
from support.fake_gateway import Fail, FakeGateway, Reply

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    monkeypatch.setenv("SHOAL_RUNTIME_DIR", str(tmp_path))
    with FakeGateway() as fake:
        monkeypatch.setenv("SHOAL_ENDPOINT", fake.endpoint)
        yield fake


def shoal(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=stdin)


def test_generate_prints_the_text_and_nothing_else(gateway: FakeGateway) -> None:
    result = shoal("generate", "Hi", "--max-tokens", "5", "--temperature", "0", "--stop", "END", "--seed", "7")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "")
    request = gateway.calls[0].request
    assert (request.text, request.sampling.seed, list(request.stop)) == ("Hi", 7, ["END"])
    assert not request.sampling.HasField("top_p")


def test_generate_json_has_the_promised_keys(gateway: FakeGateway) -> None:
    result = shoal("generate", "Hi", "--json", "--n", "2", "--logprobs", "1", "--max-tokens", "3")
    answer = json.loads(result.stdout)
    assert answer["text"] == "Hel"
    assert answer["token_ids"] == list(b"Hel")
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "cached_tokens": 0}
    assert answer["worker"] == "worker-0"
    assert answer["ttft_s"] > 0
    assert {"itl_s", "request_id", "model"} <= answer.keys()
    assert len(answer["choices"]) == 2
    assert len(answer["logprobs"]) == 3


def test_generate_reads_stdin_and_token_ids(gateway: FakeGateway) -> None:
    assert shoal("generate", stdin="line 1\nline 2\n").exit_code == 0
    assert shoal("generate", "--token-ids", "4, 5 6").exit_code == 0
    assert gateway.calls[0].request.text == "line 1\nline 2"
    assert list(gateway.calls[1].request.tokens.ids) == [4, 5, 6]


def test_several_answers_are_numbered(gateway: FakeGateway) -> None:
    result = shoal("generate", "Hi", "--n", "2", "--max-tokens", "2")
    assert result.stdout.splitlines() == ["[0]", "He", "[1]", "He"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "Hi", "--temperature", "3"], "--temperature"),
        (["generate", "Hi", "--token-ids", "1"], "not both"),
        (["generate", "--token-ids", "x"], "whole numbers"),
        (["generate", "Hi", "--colour", "red"], "No such option"),
        (["nonsense"], "No such command"),
        (["up"], "--file"),
    ],
)
def test_wrong_usage_exits_2(gateway: FakeGateway, arguments: list[str], message: str) -> None:
    result = shoal(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert gateway.calls == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InvalidArgument("sampling.seed", "bad"), "error: sampling.seed: bad (request id: request-1)"),
        (NotFound("no model 'x'"), "error: no model 'x' (request id: request-1); `shoal models` lists what there is"),
    ],
)
def test_errors_are_one_line_and_exit_1(gateway: FakeGateway, error: InvalidArgument | NotFound, line: str) -> None:
    gateway.script.append(Fail(error))
    result = shoal("generate", "Hi")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line + "\n")


def test_debug_shows_the_traceback_wherever_it_stands(gateway: FakeGateway) -> None:
    for arguments in (["--debug", "generate", "Hi"], ["generate", "Hi", "--debug"]):
        gateway.script.append(Fail(NotFound("gone")))
        result = shoal(*arguments)
        assert result.exit_code == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: gone")


def test_nobody_at_the_endpoint_says_what_to_do(gateway: FakeGateway) -> None:
    result = shoal("models", "--endpoint", "127.0.0.1:1", "--timeout", "0.2")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot reach http://127.0.0.1:1")
    assert "shoal up -f FILE" in result.stderr


def test_ctrl_c_exits_130(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "generate", interrupted)
    assert shoal("generate", "Hi", "--json").exit_code == 130


def test_the_running_mesh_is_found(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_ENDPOINT")
    assert "no endpoint" in shoal("models").stderr
    with recorded(RunningMesh("m", gateway.endpoint, 1)):
        assert shoal("models").exit_code == 0


def test_models_and_tokenize(gateway: FakeGateway) -> None:
    assert shoal("models").stdout.split() == [
        *("model", "context", "vocabulary", "chat", "workers"),
        *("fake", "2048", "256", "yes", "2"),
    ]
    assert json.loads(shoal("models", "--json").stdout)[0]["vocab_size"] == 256
    assert shoal("tokenize", "ab").stdout == "1 97 98\n"
    assert shoal("tokenize", "--count", stdin="abc").stdout == "4\n"
    assert json.loads(shoal("tokenize", "a", "--no-special-tokens", "--json").stdout) == {"token_ids": [97], "count": 1}
    assert shoal("tokenize", "a", "--chat").stdout.startswith("1 117 115")
    assert shoal("models", "--api-key", "k").exit_code == 0
    assert gateway.unary_metadata[-1]["authorization"] == "Bearer k"


def test_version() -> None:
    assert shoal("version").stdout.startswith("shoal ")


def test_plan_prints_what_the_operator_would_apply() -> None:
    result = shoal("plan", "-f", str(ROOT / "examples/smollm2-135m.yaml"), "-n", "models", "--image-tag=7")
    assert result.exit_code == 0, result.stderr
    objects = list(yaml.safe_load_all(result.stdout))
    assert {found["metadata"]["namespace"] for found in objects} == {"models"}
    [workers] = [found for found in objects if found["kind"] == "StatefulSet"]
    assert workers["spec"]["template"]["spec"]["containers"][0]["image"] == "shoal/worker:7"


def test_plan_and_validate_tell_what_only_kubernetes_cannot_do(tmp_path: Path) -> None:
    local = tmp_path / "local.yaml"
    local.write_text(
        "apiVersion: shoal.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: a}\n"
        "spec: {model: {name: m, uri: /m.gguf}}\n"
    )
    assert shoal("validate", "-f", str(local)).exit_code == 0
    for command in (("validate", "--kubernetes"), ("plan",)):
        result = shoal(*command, "-f", str(local))
        assert result.exit_code == 1
        assert "spec.model.uri: '/m.gguf' is not in the pods" in result.stderr


def test_crd_prints_the_definition() -> None:
    result = shoal("crd")
    definition = yaml.safe_load(result.stdout)
    assert definition["metadata"]["name"] == "inferenceservices.shoal.dev"
    [version] = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    replicas = spec["workers"]["properties"]["replicas"]
    assert (replicas["minimum"], replicas["maximum"], replicas["default"]) == (1, 64, 1)


def test_validate_tells_good_manifests_from_bad_ones(tmp_path: Path) -> None:
    good = shoal("validate", "-f", str(ROOT / "examples/smollm2-135m.yaml"))
    assert good.exit_code == 0
    assert "valid." in good.stdout
    bad = tmp_path / "bad.yaml"
    bad.write_text("apiVersion: shoal.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: x}\nspec: {modle: {}}\n")
    result = shoal("validate", "-f", str(bad))
    assert result.exit_code == 1
    assert "spec.modle" in result.stderr
    missing = shoal("validate", "-f", str(tmp_path / "none.yaml"))
    assert missing.exit_code == 1
    assert "none.yaml" in missing.stderr


def test_chat_takes_a_pipe_as_one_message(gateway: FakeGateway) -> None:
    result = shoal("chat", "--system", "Be brief.", stdin="two\nlines\n")
    assert (result.exit_code, result.stdout) == (0, "Hello from the mesh.\n")
    turns = gateway.calls[0].request.chat.messages
    assert [(turn.role, turn.content) for turn in turns] == [("system", "Be brief."), ("user", "two\nlines")]


def test_a_conversation_remembers_obeys_and_survives_errors(gateway: FakeGateway) -> None:
    gateway.script.extend([Reply("One"), Fail(ResourceExhausted("full", retry_after_s=9999)), Reply("Two"), Reply("3")])
    lines = iter(["", "first", "refused", "second", "/system Rhyme.", "/nonsense", "third", "/help", "/exit", "never"])
    with Client(gateway.endpoint) as client:
        session = Session()
        converse(session, Conversation(session, client, {}, None), lambda prompt: next(lines))
    assert next(lines) == "never"
    conversations = [[turn.content for turn in call.request.chat.messages] for call in gateway.calls]
    assert conversations == [
        ["first"],
        ["first", "One", "refused"],
        ["first", "One", "second"],
        ["Rhyme.", "third"],
    ]


def test_messages_of_several_lines() -> None:
    def read(*lines: str) -> str:
        rest = iter(lines)
        return read_turn(lambda prompt: next(rest))

    assert read("one") == "one"
    assert read("one \\", "two") == "one \ntwo"
    assert read('"""', "def f():", "    pass", '"""') == "def f():\n    pass"
    assert read('"""a', 'b"""') == "a\nb"
    assert read('"""a"""') == "a"


def test_lines_to_paste_are_shell_commands_with_valid_json() -> None:
    import shlex

    chat, curl, grpcurl = (shlex.split(line) for line in paste_lines("127.0.0.1:8080", "m", needs_key=True))
    assert chat == ["shoal", "chat", "--endpoint", "127.0.0.1:8080"]
    assert json.loads(curl[curl.index("-d") + 1])["model"] == "m"
    assert json.loads(grpcurl[grpcurl.index("-d") + 1])["chat"]["messages"][0]["role"] == "user"
    assert "authorization: Bearer $SHOAL_API_KEY" in curl
    assert grpcurl[-2:] == ["127.0.0.1:8080", "shoal.api.gateway.v1.GatewayService/Generate"]


def test_a_cancelled_answer_keeps_what_was_said(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.script.append(Reply(hold=threading.Event()))
    said: list[str] = []

    def echo(text: str = "", nl: bool = True) -> None:
        said.append(text)
        if text == "Hell":
            raise KeyboardInterrupt

    monkeypatch.setattr("shoal.client.cli.chat.click.echo", echo)
    with Client(gateway.endpoint) as client:
        conversation = Conversation(Session(), client, {}, None)
        conversation.ask("first")
        conversation.ask("second")
    assert [turn.content for turn in gateway.calls[1].request.chat.messages] == ["first", "Hell", "second"]


def test_unavailable_is_not_shown_as_a_bug(gateway: FakeGateway) -> None:
    gateway.otherwise = Fail(Unavailable("draining", retry_after_s=9999))
    assert "this is a bug" not in shoal("generate", "Hi").stderr
