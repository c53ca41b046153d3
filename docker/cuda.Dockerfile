# salmonrun serve on an NVIDIA GPU. At the top of a checkout: docker build -f docker/cuda.Dockerfile -t salmonrun:cuda .
# CUDA 13 and cuDNN 9, as onnxruntime-gpu is built for.
ARG CUDA=13.0.0

FROM nvidia/cuda:${CUDA}-cudnn-runtime-ubuntu24.04 AS python
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/salmonrun \
    && /opt/salmonrun/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
# The extras bring ONNX Runtime for CPUs, which would write into the same folder.
RUN /opt/salmonrun/bin/pip install --no-cache-dir --constraint constraints.txt "$(ls /wheels/salmonrun-*.whl)[serve,vad]" \
    && /opt/salmonrun/bin/pip uninstall --yes onnxruntime \
    && /opt/salmonrun/bin/pip install --no-cache-dir --constraint constraints.txt "$(ls /wheels/salmonrun-*.whl)[cuda]"

FROM python
COPY --from=build /opt/salmonrun /opt/salmonrun
RUN useradd --system --uid 10001 --no-create-home salmonrun
USER 10001
ENV PATH=/opt/salmonrun/bin:$PATH PYTHONUNBUFFERED=1
# One bundle, for reading; exported with --target cuda.
VOLUME /bundle
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Options of `salmonrun serve` stand behind the image's name.
ENTRYPOINT ["salmonrun", "serve", "/bundle", "--host", "0.0.0.0"]
