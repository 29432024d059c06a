"""An MCP server over standard input and output: sandboxes as tools of a model.

usage: python mcp_server.py

Messages are JSON-RPC 2.0, one per line. mcp_server.md describes the tools.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from microsandbox import ExecTimeoutError, Image, MicrosandboxError, Sandbox, version

PROTOCOL = "2025-06-18"
OUTPUT_BYTES = 64 * 1024
EXEC_SECONDS = 120.0

Arguments = dict[str, Any]
Tool = Callable[[Arguments], Awaitable[Any]]

_sandboxes: dict[str, Sandbox] = {}


async def sandbox(arguments: Arguments) -> Sandbox:
    """Returns a sandbox by its name, which may have been made by another program."""
    name = str(arguments["name"])
    if name not in _sandboxes:
        _sandboxes[name] = await Sandbox.connect(name)
    return _sandboxes[name]


async def create(arguments: Arguments) -> Any:
    """Creates a sandbox from an image and starts it."""
    name = str(arguments.pop("name"))
    network = "public_only" if arguments.pop("internet", False) else "none"
    _sandboxes[name] = await Sandbox.create(name, network=network, **arguments)
    return {"name": name}


async def execute(arguments: Arguments) -> Any:
    """Runs a shell command in a sandbox. Output is cut."""
    script, timeout = str(arguments["command"]), float(arguments.get("timeout", EXEC_SECONDS))
    try:
        output = await (await sandbox(arguments)).shell(
            script, timeout=timeout, max_output_bytes=OUTPUT_BYTES
        )
    except ExecTimeoutError as error:
        return {"timed_out": True, "stdout": error.stdout.decode(errors="replace")}
    return {
        "exit_code": output.exit_code,
        "stdout": output.stdout("replace"),
        "stderr": output.stderr("replace"),
        "truncated": output.truncated,
    }


async def listing(arguments: Arguments) -> Any:
    """Lists the sandboxes."""
    return [{"name": each.name, "status": each.status.value} for each in await Sandbox.list()]


async def inspect(arguments: Arguments) -> Any:
    """Shows the state and configuration of a sandbox."""
    found = await Sandbox.get(str(arguments["name"]))
    return {"name": found.name, "status": found.status.value, "config": found.config()}


async def stop(arguments: Arguments) -> Any:
    """Stops a sandbox."""
    await (await Sandbox.get(str(arguments["name"]))).stop()


async def remove(arguments: Arguments) -> Any:
    """Stops and removes a sandbox with its disk."""
    found = await Sandbox.get(str(arguments["name"]))
    await found.kill()
    await found.remove()
    _sandboxes.pop(found.name, None)


async def read_file(arguments: Arguments) -> Any:
    """Reads a text file of a sandbox."""
    data = await (await sandbox(arguments)).fs.read(str(arguments["path"]))
    return data[:OUTPUT_BYTES].decode(errors="replace")


async def write_file(arguments: Arguments) -> Any:
    """Writes a text file in a sandbox."""
    await (await sandbox(arguments)).fs.write(str(arguments["path"]), str(arguments["text"]))


async def list_files(arguments: Arguments) -> Any:
    """Lists a directory of a sandbox."""
    entries = await (await sandbox(arguments)).fs.list(str(arguments["path"]))
    return [{"path": each.path, "kind": each.kind.value, "size": each.size} for each in entries]


async def logs(arguments: Arguments) -> Any:
    """Returns the end of the log of a sandbox."""
    entries = await (await Sandbox.get(str(arguments["name"]))).logs(tail=200)
    return "".join(entry.text() for entry in entries)[-OUTPUT_BYTES:]



async def images(arguments: Arguments) -> Any:
    """Lists the images."""
    return [each.reference for each in await Image.list()]


# Name of each tool: the function, its required arguments, and the optional ones.
TOOLS: dict[str, tuple[Tool, dict[str, str], dict[str, str]]] = {
    "sandbox_create": (create, {"name": "string", "image": "string"},
                       {"cpus": "integer", "memory": "integer", "internet": "boolean"}),
    "sandbox_exec": (execute, {"name": "string", "command": "string"}, {"timeout": "number"}),
    "sandbox_list": (listing, {}, {}),
    "sandbox_inspect": (inspect, {"name": "string"}, {}),
    "sandbox_stop": (stop, {"name": "string"}, {}),
    "sandbox_remove": (remove, {"name": "string"}, {}),
    "sandbox_fs_read": (read_file, {"name": "string", "path": "string"}, {}),
    "sandbox_fs_write": (write_file, {"name": "string", "path": "string", "text": "string"}, {}),
    "sandbox_fs_list": (list_files, {"name": "string", "path": "string"}, {}),
    "sandbox_logs": (logs, {"name": "string"}, {}),
    "image_list": (images, {}, {}),
}


def described(name: str) -> Any:
    """Returns the description of a tool."""
    function, required, optional = TOOLS[name]
    fields = {field: {"type": kind} for field, kind in {**required, **optional}.items()}
    schema = {"type": "object", "properties": fields, "required": list(required),
              "additionalProperties": False}
    return {"name": name, "description": function.__doc__, "inputSchema": schema}


async def call(parameters: Arguments) -> Any:
    """Calls a tool. An error is a result that the model reads."""
    name, arguments = str(parameters.get("name")), dict(parameters.get("arguments") or {})
    try:
        function, required, optional = TOOLS[name]
        if set(required) - set(arguments) or set(arguments) - set(required) - set(optional):
            raise ValueError(f"{name} takes {', '.join([*required, *optional]) or 'nothing'}")
        text, failed = json.dumps(await function(arguments)), False
    except KeyError:
        text, failed = f"there is no tool {name!r}", True
    except (MicrosandboxError, ValueError, TypeError) as error:
        text, failed = f"{type(error).__name__}: {error}", True
    return {"content": [{"type": "text", "text": text}], "isError": failed}


async def answer(message: Arguments) -> Any:
    """Returns the result of a request."""
    match message.get("method"):
        case "initialize":
            return {"protocolVersion": PROTOCOL, "capabilities": {"tools": {}},
                    "serverInfo": {"name": "msb", "version": version()}}
        case "ping":
            return {}
        case "tools/list":
            return {"tools": [described(name) for name in TOOLS]}
        case "tools/call":
            return await call(message.get("params") or {})
        case _:
            return None


async def serve() -> None:
    """Serves requests until the end of standard input, several at a time."""
    tasks: set[asyncio.Task[None]] = set()
    while line := await asyncio.to_thread(sys.stdin.readline):
        task = asyncio.create_task(reply(line))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def reply(line: str) -> None:
    """Answers one message. A notification has no answer."""
    try:
        message: Any = json.loads(line)
        number, result = message["id"], await answer(message)
    except (ValueError, TypeError):
        number, result = None, None
    except KeyError:
        return
    fields: Any = {"jsonrpc": "2.0", "id": number, "result": result}
    if result is None:
        fields = {"jsonrpc": "2.0", "id": number,
                  "error": {"code": -32601, "message": "no such method"}}
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    asyncio.run(serve())
