"""Function calling: the same tools for models that are called through a vendor's own API.

    from kernelsvc.integrations import Tools, anthropic

    with Tools() as tools:
        reply = client.messages.create(tools=anthropic.tools(), messages=messages, ...)
        messages += anthropic.run(tools, reply)

``openai``, ``anthropic`` and ``gemini`` are alike: ``tools()`` is what a
request's ``tools`` takes, ``run`` carries out the calls in a reply and gives
the messages to send next (``arun`` awaits them, over ``AsyncTools``).
``langchain`` makes LangChain's own tools. None of them imports a vendor's
package: replies are read by their fields, as objects or as plain JSON, and
answers are plain JSON that the packages' types accept.
"""

from kernelsvc.integrations.tool_calls import AsyncTools, ToolCall, Tools, Vendor

__all__ = ["AsyncTools", "ToolCall", "Tools", "Vendor"]
