"""The page behind ``/docs``: the OpenAPI document for people, with a form to try each endpoint.

FastAPI's own pages load their scripts from a content delivery network and are blank on a machine without one. This page
is whole: its style and script are in it, and its security policy forbids the browser to load anything else.
"""

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; text-transform: capitalize }
section { margin: 1.5rem 0; padding: 0.5rem 1rem; border: 1px solid #d0d7de; border-radius: 6px }
code, pre, textarea { font: 13px/1.45 ui-monospace, monospace }
pre { background: #f6f8fa; padding: 0.75rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
textarea { width: 100%; box-sizing: border-box }
.method { font-weight: 600; margin-right: 0.5rem }
"""

_SCRIPT: Final = """
for (const form of document.querySelectorAll("form[data-path]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const output = form.querySelector("pre");
    const body = form.querySelector("textarea");
    const token = document.getElementById("token").value;
    const headers = token ? { Authorization: "Bearer " + token } : {};
    if (body) headers["Content-Type"] = "application/json";
    output.textContent = "…";
    try {
      // Paths are relative to this page, so that they work behind a proxy that adds a prefix.
      const options = { method: form.dataset.method, headers, body: body ? body.value : undefined };
      const answer = await fetch("." + form.dataset.path, options);
      output.textContent = answer.status + " " + answer.statusText + "\\n" + (await answer.text());
    } catch (error) {
      output.textContent = String(error);
    }
  });
}
"""


def page(document: Mapping[str, Any]) -> str:
    """The HTML page of an OpenAPI document."""
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            _paragraphs(info.get("description", "")),
            '<p>The document for programs: <a href="./openapi.json">openapi.json</a>.</p>',
            '<p><label>Token, where the server wants one: <input id="token" type="password"></label></p>',
            *_operations(document),
            "<h2>schemas</h2>",
            *(_details(name, schema) for name, schema in _schemas(document).items()),
            f"<script>{_SCRIPT}</script></body></html>",
        ]
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    tags: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["other"])[0]
            tags.setdefault(tag, []).append(_operation(document, path, method, operation))
    for tag, sections in tags.items():
        yield f"<h2>{escape(tag)}</h2>"
        yield from sections


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    answers = "".join(
        f"<li><code>{escape(status)}</code> {_line(answer['description'])}</li>"
        for status, answer in operation["responses"].items()
    )
    return "\n".join(
        [
            f'<section><h3><span class="method">{method.upper()}</span><code>{escape(path)}</code></h3>',
            _paragraphs(operation.get("description", "")),
            f"<ul>{answers}</ul>",
            _form(document, path, method, operation),
            "</section>",
        ]
    )


def _form(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    if content and "application/json" not in content:
        return ""  # a body that no form can hold
    area = ""
    if content:
        example = json.dumps(_example(document, content["application/json"]), indent=2)
        area = f'<textarea rows="{example.count(chr(10)) + 1}">{escape(example)}</textarea>'
    return (
        f'<form data-path="{escape(path)}" data-method="{method.upper()}">{area}'
        "<button>Send</button><pre></pre></form>"
    )  # fmt: skip


def _example(document: Mapping[str, Any], content: Mapping[str, Any]) -> Any:
    if "example" in content:
        return content["example"]
    schema = content["schema"]
    if "$ref" in schema:
        schema = _schemas(document)[schema["$ref"].rpartition("/")[2]]
    return schema.get("example", {})


def _schemas(document: Mapping[str, Any]) -> Mapping[str, Any]:
    schemas: Mapping[str, Any] = document.get("components", {}).get("schemas", {})
    return schemas


def _details(name: str, schema: Mapping[str, Any]) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(json.dumps(schema, indent=2))}</pre></details>"


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_line(part)}</p>" for part in text.split("\n\n") if part.strip())


def _line(text: str) -> str:
    """Markdown's quotes of code, and nothing else of it."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
