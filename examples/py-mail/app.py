"""A message handler in Python. Returning takes the message off; `Err` says what to do with it otherwise."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports.types import (
    Message,
    Refusal_DeadLetter,
    Refusal_Drop,
    Refusal_Retry,
    Retry,
)


class Handler(exports.Handler):
    """What `export trellis:messaging/handler` asks for."""

    def handle(self, message: Message) -> None:
        order = parsed(message.body)
        if order.get("test"):
            raise Err(Refusal_Drop("a test"))
        if order.get("waitsFor", 0) > message.attempt:
            raise Err(Refusal_Retry(Retry("not in stock yet", 200)))
        print(f"order {order.get('number')} from {message.subject}, attempt {message.attempt}")


def parsed(body: bytes) -> dict:
    """What is no JSON now will be none at the next attempt: someone should see it."""
    try:
        return json.loads(body)
    except ValueError as why:
        raise Err(Refusal_DeadLetter(f"the body is no JSON: {why}")) from why
