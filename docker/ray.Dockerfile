# Replicas of salmonrun serve on Ray, for docker/rayservice.yaml. At the top of a checkout:
# docker build -f docker/ray.Dockerfile -t salmonrun:ray .
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
# Head and workers of a cluster have the same Ray: rayVersion of docker/rayservice.yaml.
ARG RAY=2.60.0
RUN python -m venv /opt/salmonrun \
    && /opt/salmonrun/bin/pip install --no-cache-dir --constraint constraints.txt \
        "$(ls /wheels/salmonrun-*.whl)[ray]" "ray[serve,data]==${RAY}"

FROM python:${PYTHON}-slim-bookworm
# KubeRay's probes ask with wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/salmonrun /opt/salmonrun
# KubeRay may start ray from a login shell, which has a path of its own.
RUN ln -s /opt/salmonrun/bin/ray /opt/salmonrun/bin/serve /usr/local/bin/ \
    && useradd --system --uid 10001 --create-home salmonrun
USER 10001
ENV PATH=/opt/salmonrun/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
# One bundle, for reading, by the same path on every node.
VOLUME /bundle
# Requests, Ray's dashboard, its head, its clients.
EXPOSE 8000 8265 6379 10001
# KubeRay says what to run instead; alone, this is a cluster of one node.
CMD ["ray", "start", "--head", "--block", "--dashboard-host", "0.0.0.0"]
