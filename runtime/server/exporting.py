"""Where spans go: by OpenTelemetry's environment variables, or to the provider that an agent has set up."""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.trace import ProxyTracerProvider, TracerProvider

from salmonrun.runtime.errors import ConfigError
from salmonrun.version import __version__

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_HTTP = "http/protobuf"


def tracer_provider(environment: Mapping[str, str]) -> TracerProvider | None:
    """What makes spans and sends them; None: nobody has asked for any.

    Raises:
        ConfigError: they are asked for in a way that is not known here, or the extra `otel` is not installed.
    """
    present = trace.get_tracer_provider()
    if not isinstance(present, ProxyTracerProvider):  # opentelemetry-instrument has been here
        return present
    exporter = environment.get(_EXPORTER, "").strip()
    wanted = exporter or any(environment.get(name) for name in _ENDPOINTS)
    if not wanted or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if exporter not in ("", "otlp"):
        raise ConfigError(f"{_EXPORTER} is {exporter!r}; expected 'otlp' or 'none', or run opentelemetry-instrument")
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _HTTP)
    if protocol != _HTTP:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; expected {_HTTP!r}, or run opentelemetry-instrument"
        )
    return _otlp()


def _otlp() -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "OpenTelemetry's environment variables ask for traces, and its SDK is not installed: "
            "pip install 'salmonrun[otel]', or unset them"
        ) from error
    ours = {"service.name": "salmonrun", "service.version": __version__}
    said = Resource.create().attributes  # what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes first
    if not str(said.get("service.name", "")).startswith("unknown_service"):
        del ours["service.name"]
    provider = sdk.TracerProvider(resource=Resource.create(ours))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
