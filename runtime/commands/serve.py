"""`salmonrun serve`: its options, and what it does with them."""

import argparse
import importlib.util
import os
from functools import partial

from salmonrun.runtime.commands.options import add_engine_arguments, check_engine_arguments, open_engine
from salmonrun.runtime.config import Limits
from salmonrun.runtime.errors import ConfigError, MissingExtraError
from salmonrun.runtime.log import LOGGER
from salmonrun.runtime.server.config import ISOLATE_DECODING, KEYS, PAGE, ServerConfig, keys_in

LIMITS: dict[str, tuple[type, str]] = {  # fields of ServerConfig
    "max_running": (int, "requests that are answered at once"),
    "max_waiting": (int, "requests that may wait behind those"),
    "max_body_mib": (int, "MiB of a request"),
    "max_audio_s": (float, "seconds of a recording"),
    "max_stream_s": (float, "seconds of audio in a live stream"),
    "timeout_s": (float, "seconds that a request may take"),
    "drain_s": (float, "seconds to end what is under way, at the end"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Answer requests about recordings over HTTP, in OpenAI's words: transcriptions, translations, chat completions "
        "and live streams. SIGTERM and Ctrl-C end it when what is under way is answered; a second time, at once."
    )
    parser.epilog = "example: %(prog)s bundle/ --port 8000"
    add_engine_arguments(parser)
    default = ServerConfig()
    parser.add_argument("--host", default=default.host, help=f"address; 0.0.0.0: all (default: {default.host})")
    parser.add_argument("--port", type=int, default=default.port, help=f"0: any that is free (default: {default.port})")
    parser.add_argument(
        "--model-name",
        action="append",
        dest="model_names",
        metavar="NAME",
        help="that clients may ask for; may be given several times (default: the bundle's)",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        dest="api_keys",
        metavar="KEY",
        help=f"that clients must send; may be given several times, or in {KEYS} with commas (default: none)",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        dest="cors_origins",
        metavar="ORIGIN",
        help="pages from there may ask from a browser; may be given several times, *: any (default: none)",
    )
    parser.add_argument("--page", action="store_true", help="a page to try the bundle in a browser, at /page")
    parser.add_argument(
        "--page-with",
        metavar="BUNDLE",
        help="with --page: another bundle that the page asks too; answers, times and sizes stand side by side",
    )
    _add_limits(parser, default)
    parser.set_defaults(run=_run, settings=_settings)


def _add_limits(parser: argparse.ArgumentParser, default: ServerConfig) -> None:
    limits = parser.add_argument_group("what is too much", "docs/serving.md says what is answered then")
    for name, (kind, what) in LIMITS.items():
        value = getattr(default, name)
        option = "--" + name.replace("_", "-")
        limits.add_argument(option, type=kind, default=value, metavar="N", help=f"{what} (default: {value:g})")
    limits.add_argument(
        "--max-streams", type=int, metavar="N", help="live streams at once (default: measured at the start)"
    )
    limits.add_argument(
        "--max-cache-mib",
        type=int,
        metavar="N",
        help="MiB of keys and values of all that is answered; what finds no room waits (default: any)",
    )
    limits.add_argument(
        "--isolate-decoding",
        action=argparse.BooleanOptionalAction,
        default=ISOLATE_DECODING,
        help="decode each recording in a process of its own, which a damaged file may crash (default: do)",
    )


def _settings(arguments: argparse.Namespace) -> ServerConfig:
    check_engine_arguments(arguments)
    Limits(max_cache_mib=arguments.max_cache_mib)  # refuses, if there is no such limit
    if arguments.page_with and not arguments.page:
        raise ConfigError("--page-with is of the page: add --page")
    if arguments.page and importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("--page needs Gradio, which is not installed: pip install 'salmonrun[demo]'")
    keys = (*(arguments.api_keys or ()), *keys_in(os.environ.get(KEYS, "")))
    return ServerConfig(
        host=arguments.host,
        port=arguments.port,
        model_names=tuple(arguments.model_names or ()),
        api_keys=keys,
        cors_origins=tuple(arguments.cors_origins or ()),
        page=arguments.page,
        **{name: getattr(arguments, name) for name in ("max_streams", *LIMITS)},
    )


def _run(arguments: argparse.Namespace, config: ServerConfig) -> int:
    """Serve until it is told to end."""
    from salmonrun.runtime.server.exporting import tracer_provider
    from salmonrun.runtime.server.log import show_json_log
    from salmonrun.runtime.server.server import Server

    show_json_log(arguments.verbose)
    spans = tracer_provider(os.environ)

    limits = Limits(max_cache_mib=arguments.max_cache_mib, isolate_decoding=arguments.isolate_decoding)
    load = partial(open_engine, arguments, told=LOGGER.info, limits=limits)

    def ready(address: str) -> None:
        page = f", page: {address}{PAGE}" if config.page else ""
        print(f"ready: {address}/v1{page}", flush=True)

    beside = partial(load, bundle=arguments.page_with) if arguments.page_with else None
    Server(partial(load, bundle=arguments.bundle), config, ready, spans, beside).run()
    return 0
