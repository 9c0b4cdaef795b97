"""Renders templates with jinja2 as the transformers library does, for the tests
of the chat templates.

stdin: a JSON list of {"template": ..., "variables": [{...}, ...]}; stdout: a list
with one {"text": ...} or {"error": ...} for each, of the first variables that do
not make the template fail.
"""

import datetime
import json
import sys

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2024, 7, 26, 13, 5, 9)


class Generation(Extension):
    """`{% generation %}` marks what a trainer learns from and changes no text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("text"), [], [], body).set_lineno(line)

    def text(self, caller):
        return caller()


def raise_exception(message):
    raise TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = NOW.strftime


def render(case):
    error = None
    for variables in case["variables"]:
        try:
            template = environment.from_string(case["template"])
            return {"text": template.render(**variables)}
        except Exception as e:
            error = error or f"{type(e).__name__}: {e}"
    return {"error": error}


json.dump([render(case) for case in json.load(sys.stdin)], sys.stdout)
