"""Function calling: the tools for models of vendors' APIs.

    from kernelsvc.integrations import Tools, anthropic

    with Tools() as tools:
        reply = client.messages.create(tools=anthropic.tools(), messages=messages, ...)
        messages += anthropic.run(tools, reply)

``openai``, ``anthropic`` and ``gemini`` have the same functions. ``tools()`` returns the value of ``tools`` in a
request. ``run`` runs the calls in a reply and returns the messages to send next. ``arun`` is its async version,
over ``AsyncTools``. ``langchain`` makes LangChain tools. No module imports a vendor's package. A reply may be an object
or JSON, because its fields are read by name. The returned messages are JSON that the packages' types accept.
"""

from kernelsvc.integrations.tool_calls import AsyncTools, RequestedCall, Tools, Vendor

__all__ = ["AsyncTools", "RequestedCall", "Tools", "Vendor"]
