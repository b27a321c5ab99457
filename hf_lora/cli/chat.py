"""`hf-lora chat`: talk to a model with its adapter, or without."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any

from typer import Argument, Option

from ..errors import ArgumentError, DataError
from .showing import hush, remark

__all__ = ["chat"]

_COMMANDS = (
    "/reset forgets the conversation, /system TEXT sets the system's turn, /base changes between adapter and base, "
    "/quit ends."
)


def chat(
    adapter: Annotated[str, Argument(metavar="DIR_OR_ID", help="a run's folder, or any adapter, also on the Hub")],
    base: Annotated[bool, Option("--base", help="talk to the base, without the adapter")] = False,
    system: Annotated[str | None, Option(help="what the system says first")] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="of an answer, at most")] = 256,
    temperature: Annotated[
        float | None, Option(min=0, help="0 for the likeliest answer (default: as the base is configured)")
    ] = None,
    top_p: Annotated[float | None, Option(min=0, max=1, help="draw among the likeliest tokens of this share")] = None,
    seed: Annotated[int | None, Option(help="of what is drawn")] = None,
    chat_template: Annotated[
        str | None, Option(help="simple, trl, or a file with a template, instead of the tokenizer's")
    ] = None,
) -> None:
    """Talk to a model; its answers are printed as they are written.

    /reset forgets the conversation, /system TEXT sets the system's turn, /base changes between adapter and base, /quit
    ends. Where stdin is no terminal, each of its lines is a turn of one conversation, and answers alone are printed.

    Examples:

        hf-lora chat outputs/helper --temperature 0.7

        echo "What is LoRA?" | hf-lora chat outputs/helper --base
    """
    import transformers  # not above: it takes seconds

    from ..training.run.using import load_run
    from ..training.tasks.chat import use_template

    hush()
    run = load_run(adapter)
    if "AutoModelForCausalLM" not in run.preparation.task.models:
        raise ArgumentError(f"{adapter}: it learnt {run.preparation.task.name}; hf-lora predict is for that.")
    use_template(run.processor, chat_template)
    if seed is not None:
        transformers.set_seed(seed)
    drawn = {"temperature": temperature or None, "top_p": top_p}
    sampling: dict[str, Any] = {name: value for name, value in drawn.items() if value is not None}
    how = {"do_sample": True, **sampling} if sampling else None if temperature == 0 else {}
    talk = _Conversation(run.model, run.processor, max_new_tokens, how, system, base)
    for line in _lines():
        if not talk.obey(line):
            break


class _Conversation:
    """The turns so far, and what writes the next: how: settings of generate(), None for the likeliest answer."""

    def __init__(
        self, model: Any, processor: Any, most: int, how: dict[str, Any] | None, system: str | None, base: bool
    ) -> None:
        self.model, self.processor, self.most, self.how = model, processor, most, how
        self.system, self.base = system, base
        self.turns: list[dict[str, str]] = []

    def obey(self, line: str) -> bool:
        """Do what a line says, or answer it; return whether to go on."""
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return False
        if command in ("/reset", "/system"):
            self.turns = []
            self.system = rest.strip() or None if command == "/system" else self.system
        elif command == "/base":
            self.base = not self.base
            remark(f"{'the base' if self.base else 'the adapter'} answers now.")
        elif command.startswith("/"):
            remark(f"there is no {command}. {_COMMANDS}")
        elif line.strip():
            self._answer(line)
        return True

    def _answer(self, line: str) -> None:
        from transformers import TextStreamer

        from ..training.tasks.generating import generate
        from ..training.tasks.templates import chat_tokens

        first = [{"role": "system", "content": self.system}] if self.system else []
        turns = [*self.turns, {"role": "user", "content": line}]
        try:
            prompt = chat_tokens(self.processor, [*first, *turns], ask=True)
        except DataError as error:
            remark(f"{error}.")
            return
        streamer = TextStreamer(self.processor, skip_prompt=True, skip_special_tokens=True)
        route = self.model.adapters_disabled() if self.base else contextlib.nullcontext()
        with route, contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends an answer; it and its question are forgotten
            (said,) = generate(self.model, self.processor, [prompt], self.most, self.how, streamer=streamer)
            self.turns = [*turns, {"role": "assistant", "content": said.strip()}]


def _lines() -> Iterator[str]:
    """Yield what the user says, a line a turn, until there is no more."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrows and a history, where the system has them
    remark(_COMMANDS)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")
