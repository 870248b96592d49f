"""`shoal chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import click

from shoal.client import Client, Message, Options, ShoalError
from shoal.client.cli.failures import explain
from shoal.client.cli.sampling import as_options, facts, sampling_options
from shoal.client.cli.session import Session, endpoint_options, read_stdin, stdin_is_terminal

_HELP = """\
/system TEXT   set the system message and start over; without TEXT, remove it
/reset         start over
/exit          leave (so does Ctrl-D)
A line that ends in \\ goes on in the next one; \"\"\" opens and closes a block of lines. Ctrl-C stops an answer."""
_BLOCK = '"""'
ReadLine = Callable[[str], str]


class Conversation:
    """The turns so far, and the way to get the next one onto the screen."""

    def __init__(self, session: Session, client: Client, options: Options, system: str | None) -> None:
        self._session = session
        self._client = client
        self._options = options
        self._system = system
        self._turns: list[Message] = []

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self._turns.clear()

    def set_system(self, text: str) -> None:
        """Starts over with another system message; an empty one removes it."""
        self._system = text or None
        self.reset()

    def ask(self, text: str) -> None:
        """Streams the answer to the screen. Ctrl-C ends the answer, not the conversation. Raises ShoalError."""
        start = [Message("system", self._system)] if self._system else []
        question = Message("user", text)
        with self._client.chat_stream([*start, *self._turns, question], **self._options) as stream:
            try:
                for chunk in stream:
                    click.echo(chunk.text, nl=False)
            except KeyboardInterrupt:
                stream.close()
            click.echo()
            answer = stream.completion()
        if answer.text:
            self._turns += [question, answer.message]
        if self._session.out.is_terminal:
            self._session.err.print(facts(answer), style="dim", markup=False)


@click.command("chat")
@click.option("--system", help="The system message.")
@sampling_options
@endpoint_options
@click.pass_obj
def command(session: Session, /, system: str | None, **flags: Any) -> None:
    """Chat with a model. When stdin is a pipe, all of it is one message and the answer goes to stdout."""
    options = as_options(flags, session.timeout_s)
    with Client(session.find_endpoint(), api_key=session.api_key) as client:
        conversation = Conversation(session, client, options, system)
        if not stdin_is_terminal():
            conversation.ask(read_stdin())
            return
        with contextlib.suppress(ImportError):  # history and line editing for input(), where Python has it
            import readline  # noqa: F401
        names = ", ".join(model.name for model in client.models(timeout_s=session.timeout_s))
        session.out.print(f"{names} at {client.endpoint}. /help lists the commands.", style="dim", markup=False)
        converse(session, conversation, input)


def converse(session: Session, conversation: Conversation, read_line: ReadLine) -> None:
    """Reads turns until /exit or the end of the input. Errors are shown and the conversation goes on."""
    while True:
        try:
            text = read_turn(read_line).strip()
        except EOFError:
            click.echo()
            return
        if not text:
            continue
        if text.startswith("/") and "\n" not in text:
            if not _obey(session, conversation, text):
                return
            continue
        try:
            conversation.ask(text)
        except ShoalError as error:
            session.err.print(explain(error), style="bold red", markup=False, soft_wrap=True)


def read_turn(read_line: ReadLine) -> str:
    """One message, of one line or several. Raises EOFError at the end of the input."""
    line = read_line("> ")
    if line.lstrip().startswith(_BLOCK):
        return _read_block(line.lstrip().removeprefix(_BLOCK), read_line)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(read_line("… "))
    return "\n".join(lines)


def _read_block(first: str, read_line: ReadLine) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(_BLOCK):
        lines.append(read_line("… "))
    lines[-1] = lines[-1].rstrip().removesuffix(_BLOCK)
    return "\n".join(lines).strip("\n")


def _obey(session: Session, conversation: Conversation, text: str) -> bool:
    """Follows a slash command. False ends the conversation."""
    name, _, argument = text.partition(" ")
    match name:
        case "/exit" | "/quit":
            return False
        case "/reset":
            conversation.reset()
            session.out.print("The conversation starts over.", style="dim")
        case "/system":
            conversation.set_system(argument.strip())
            done = "set" if argument.strip() else "removed"
            session.out.print(f"System message {done}; the conversation starts over.", style="dim")
        case "/help":
            session.out.print(_HELP, style="dim", markup=False)
        case _:
            session.err.print(f"{name} is no command; /help lists them", style="bold red", markup=False)
    return True
