"""Logs as JSON lines, each with the request and the release it belongs to. Messages are `event=... name=value`, never content."""

import json
import logging
import re
import secrets
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

REQUEST_ID = re.compile(r"^[A-Za-z0-9._\-]{8,64}$")  # what a client or a proxy may name a request
FIELD = re.compile(r'(\w+)=("[^"]*"|\S+)')

# What the request under way is known by, in every line that is written for it: request_id, then release and stage.
about_request: ContextVar[dict[str, Any]] = ContextVar("about_request")


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, the fields of the message, those of the request, and where a fault was.

    Of an exception only its type and the places it went through are written: its text may hold what a client sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line."""
        message = record.getMessage()
        fields: dict[str, Any] = dict(FIELD.findall(message)) or {"message": message}
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **fields,
            **about_request.get({}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line |= {"error": record.exc_info[0].__name__, "places": places(record.exc_info[1])}
        return json.dumps(line)


def places(error: BaseException | None) -> list[str]:
    """file:line of every frame that `error` went through, outermost first."""
    found, step = [], error.__traceback__ if error else None
    while step is not None:
        found.append(f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}")
        step = step.tb_next
    return found


def write_json_lines() -> None:
    """Each process of the endpoint calls this once: our own loggers then write JSON lines to standard error.

    Ray keeps that in worker-*.err of the session's log folder.
    """
    ours = logging.getLogger("serve")
    handler = logging.StreamHandler(sys.__stderr__)  # Serve puts a logger of its own, with a prefix, in place of sys.stderr
    handler.setFormatter(JsonLines())
    ours.handlers = [handler]
    ours.setLevel(logging.INFO)
    ours.propagate = False


def request_id_of(given: str | None) -> str:
    """The id that came with a request where it is a plain one, else a new one."""
    return given if given is not None and REQUEST_ID.match(given) else secrets.token_hex(12)
