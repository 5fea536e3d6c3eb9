"""Chats on their way through the harness, which knows contexts as texts only: the server renders them."""

import json

from c3po.v1 import generation_pb2
from c3po_client import C3poError

MARK = "\x00c3po chat\x00"  # No task's text begins so.


def text_of_chat(chat_history, add_generation_prompt: bool) -> str:
    """What the harness takes for the rendered chat. A role and a content each. C3poError: the answer's beginning is given, which is
    within a turn, and a template writes whole turns."""
    if not add_generation_prompt:
        raise C3poError("--apply_chat_template: the task gives the beginning of the answer (gen_prefix), and the server's templates write "
                        "whole turns")
    return MARK + json.dumps([{"role": message["role"], "content": message["content"]} for message in chat_history], ensure_ascii=False)


def chat_of_text(context: str) -> generation_pb2.Chat | None:
    """None: it is a plain text."""
    if not context.startswith(MARK):
        return None
    return generation_pb2.Chat(messages=[generation_pb2.ChatMessage(**message) for message in json.loads(context[len(MARK):])])


def question_of(context: str) -> str:
    """What is asked: the last message of a chat, which the server embeds; else the whole context."""
    chat = chat_of_text(context)
    return context if chat is None else chat.messages[-1].content
