# salmonrun serve on CPUs. At the top of a checkout: docker build -f docker/cpu.Dockerfile -t salmonrun .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# A wheel without our kernels would serve, too, but slowly: not from here.
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m zipfile --list /wheels/salmonrun-*.whl > /tmp/listed \
    && grep -q '/_native.*\.so ' /tmp/listed
RUN python -m venv /opt/salmonrun \
    && /opt/salmonrun/bin/pip install --no-cache-dir --constraint constraints.txt \
        "$(ls /wheels/salmonrun-*.whl)[serve,vad]"

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /opt/salmonrun /opt/salmonrun
RUN useradd --system --uid 10001 --no-create-home salmonrun
USER 10001
ENV PATH=/opt/salmonrun/bin:$PATH PYTHONUNBUFFERED=1
# One bundle, for reading.
VOLUME /bundle
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Options of `salmonrun serve` stand behind the image's name.
ENTRYPOINT ["salmonrun", "serve", "/bundle", "--host", "0.0.0.0"]
