"""OpenAI's words: what a request may say, and the form of answers and errors."""

import time
import uuid
from typing import Annotated, Any, ClassVar, Literal

from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# Fields that this server does nothing about, with what asks for nothing.
NOTHING: dict[str, Any] = {
    "n": 1, "best_of": 1, "echo": False, "logprobs": False, "top_logprobs": None, "suffix": None, "logit_bias": {},
    "presence_penalty": 0, "frequency_penalty": 0, "tools": [], "tool_choice": "none", "functions": [],
    "response_format": {"type": "text"}, "modalities": ["text"],
}  # fmt: skip
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # of an adapter
Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, AfterValidator(lambda text: text.encode().decode())]  # a half of a surrogate pair is none


class APIError(Exception):
    """What a client is told instead of an answer."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        """Return it as a response."""
        return JSONResponse(self.body, self.status, {"Retry-After": "1"} if self.status in (429, 503) else None)


class Strict(BaseModel):
    """Nothing is taken for something else, nothing unknown is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False


class Asked(Strict):
    """What completions and chats have in common. usual: tokens of an answer where nothing is said."""

    model_config = ConfigDict(extra="allow")
    usual: ClassVar[int]
    model: Text
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _refuse(self) -> "Asked":
        for key, value in (self.model_extra or {}).items():
            if key not in NOTHING:
                raise ValueError(f"Unrecognized request argument supplied: {key!a:.99}")
            nothing = NOTHING[key]
            if value is not None and (value != nothing or isinstance(value, bool) != isinstance(nothing, bool)):
                raise ValueError(f"{key}={value!a:.99} is not supported by this server; leave it out")
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: only where stream is true")
        if any(not 1 <= len(each) <= 200 for each in self.stops):
            raise ValueError("stop: a string has 1 to 200 characters")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Completion(Asked):
    """A request for a completion; prompt: one text, or its tokens."""

    usual = 16
    prompt: Text | list[int]

    def tokens(self, tokenizer: Any) -> list[int]:
        """Return the prompt's tokens."""
        return list(tokenizer(self.prompt).input_ids) if isinstance(self.prompt, str) else self.prompt


class Message(Strict):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text


class Chat(Asked):
    """A request for the next message of a chat."""

    usual = 2**31
    messages: Annotated[list[Message], Field(min_length=1)]

    def tokens(self, tokenizer: Any) -> list[int]:
        """Return the tokens of the chat in the tokenizer's template. Raises APIError where it takes no such chat."""
        messages = [message.model_dump() for message in self.messages]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (ValueError, TemplateError) as error:
            raise APIError(400, f"messages: {error}"[:500], "messages") from error
        return list(tokenizer(text, add_special_tokens=False).input_ids)


class Unload(Strict):
    """vLLM's request to unload an adapter."""

    lora_name: Annotated[str, Field(pattern=NAME)]


class Load(Unload):
    """vLLM's request to load one; lora_path: its folder, from the server's own."""

    lora_path: Annotated[str, Field(min_length=1, max_length=1000)]


class Form:
    """The form of one request's answer, in one (`is_part=False`) or in parts, the events of a stream."""

    def __init__(self, asked: Asked) -> None:
        self.is_chat = isinstance(asked, Chat)
        kind = "chatcmpl" if self.is_chat else "cmpl"
        self._head = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    def body(self, text: str | None, reason: str | None = None, is_part: bool = False, **more: Any) -> dict[str, Any]:
        """Return an answer, or a part; text: None in a chat's first part, which tells the role."""
        if not self.is_chat:
            kind, said = "text_completion", {"text": text}
        elif is_part:
            delta = {"content": text} if text else {} if text is not None else {"role": "assistant", "content": ""}
            kind, said = "chat.completion.chunk", {"delta": delta}
        else:
            kind, said = "chat.completion", {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": kind, "choices": [choice], **more}
