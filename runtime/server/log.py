"""The log of a server: a JSON object a line on standard error, without audio, text or keys."""

import json
import logging
import sys
from typing import Any

from salmonrun.runtime.log import LOGGER

REQUESTS = logging.getLogger("salmonrun.requests")


class JsonFormatter(logging.Formatter):
    """A line for each record; what `log_fields` was given are keys of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = getattr(record, "fields", {})
        line = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        line |= {"message": record.getMessage(), **fields}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def show_json_log(verbosity: int) -> None:
    """Print requests and what is loaded; from 1 on, also where each request's time goes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for logger in (LOGGER, logging.getLogger("uvicorn.error")):
        logger.handlers[:] = [handler]
        logger.propagate = False
    LOGGER.setLevel(logging.DEBUG if verbosity else logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    handler.addFilter(client_faults)


def client_faults(record: logging.LogRecord) -> bool:
    """A filter: what is told of a text that is no UTF-8 is the client's fault, whose socket is closed for it."""
    return not (record.name == "uvicorn.error" and record.exc_info and record.exc_info[0] is UnicodeDecodeError)


def log_fields(message: str, **fields: Any) -> None:
    """A line about a request or a stream."""
    REQUESTS.info(message, extra={"fields": fields})
