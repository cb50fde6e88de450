"""OpenAI's API over models that an operator names: ``/v1/responses``, containers, files and models.

The routes exist only if the setting ``models`` names a model. ``handler`` has what all handlers share, ``responses``
the answers, ``conversations`` conversations, ``chat`` chat completions, ``containers`` sessions as containers,
``files`` uploaded files and models. ``anthropic_messages`` is Anthropic's ``/v1/messages`` over the same answers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from kernelsvc.answers.answers import Answers
from kernelsvc.server.handler import ServerContext
from kernelsvc.server.openai import anthropic_messages, chat, containers, conversations, files, responses

_ID = r"([A-Za-z0-9_-]{1,128})"
#: Also a file of a container, whose id has the container's.
_FILE = r"([A-Za-z0-9_-]{1,160})"


def routes(context: ServerContext, keys: Mapping[str, str]) -> list[Any]:
    """Return Tornado's routes.

    Args:
        context: The state of the server.
        keys: Keys of the models' servers, by the name of the model.
    """
    answers = Answers(context.service, context.settings, keys)
    context.openers.append(answers.resume)
    context.closers.insert(0, functools.partial(answers.stop))
    shared = {"context": context, "answers": answers}
    return [
        (r"/v1/responses", responses.CreateResponseHandler, shared),
        (rf"/v1/responses/{_ID}", responses.ResponseHandler, shared),
        (rf"/v1/responses/{_ID}/cancel", responses.CancelResponseHandler, shared),
        (rf"/v1/responses/{_ID}/input_items", responses.InputItemsHandler, shared),
        (r"/v1/conversations", conversations.ConversationsHandler, shared),
        (rf"/v1/conversations/{_ID}", conversations.ConversationHandler, shared),
        (rf"/v1/conversations/{_ID}/items", conversations.ConversationItemsHandler, shared),
        (rf"/v1/conversations/{_ID}/items/{_ID}", conversations.ConversationItemHandler, shared),
        (r"/v1/messages", anthropic_messages.MessagesHandler, shared),
        (r"/v1/chat/completions", chat.ChatCompletionsHandler, shared),
        (r"/v1/containers", containers.ContainersHandler, shared),
        (rf"/v1/containers/{_ID}", containers.ContainerHandler, shared),
        (rf"/v1/containers/{_ID}/files", containers.ContainerFilesHandler, shared),
        (rf"/v1/containers/{_ID}/files/{_ID}", containers.ContainerFileHandler, shared),
        (rf"/v1/containers/{_ID}/files/{_ID}/content", containers.ContainerContentHandler, shared),
        (r"/v1/files", files.UploadsHandler, shared),
        (rf"/v1/files/{_FILE}", files.UploadedFileHandler, shared),
        (rf"/v1/files/{_FILE}/content", files.UploadedContentHandler, shared),
        (r"/v1/models", files.ModelsHandler, shared),
        (r"/v1/models/([^/]{1,256})", files.ModelHandler, shared),
    ]
