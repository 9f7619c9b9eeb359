# The server in the official Triton image (Python 3.12, numpy 2, its own stub). Run it with
#
#   scripts/launch_triton.sh --docker --checkpoint DIR
#
# or by hand: docker run --rm --gpus all -p 8000:8000 -p 8001:8001 -p 8002:8002 \
#               -v /path/to/dia2:/mnt/checkpoint:ro -e DIA2_CHECKPOINT=/mnt/checkpoint stream-dia2
#
# The real weights and your voices are mounted, never baked in. Without a checkpoint it serves the demo.
ARG TRITON_TAG=26.04-py3
FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}

WORKDIR /opt/stream-dia2

# The engine's kernels are compiled at the first start, for the GPU that is there; their cache is in the volume.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev && \
    rm -rf /var/lib/apt/lists/*
ENV TRITON_CACHE_DIR=/var/cache/stream-dia2/triton

# Dependencies first, so that a change of the code does not download them again.
ARG DEVICE=cuda
COPY requirements.lock pyproject.toml ./
COPY gateway/requirements.lock gateway/pyproject.toml gateway/
COPY scripts/install.sh scripts/
RUN scripts/install.sh --container --device "${DEVICE}"

COPY . .
RUN useradd --create-home --uid 10001 dia2 && install --directory --owner=dia2 /var/cache/stream-dia2
USER 10001
ENV HF_HOME=/var/cache/stream-dia2/huggingface

# Settings of the engine, all optional: DIA2_CHECKPOINT, DIA2_VOICES, DIA2_SLOTS, ... (README.md).
# 8080: the gateway, if it is started with --gateway --gateway-config FILE.
EXPOSE 8000 8001 8002 8080
VOLUME /var/cache/stream-dia2
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["scripts/launch_triton.sh", "--tritonserver", "/opt/tritonserver/bin/tritonserver", \
    "--host", "0.0.0.0", "--cache", "/var/cache/stream-dia2", "--log", "-"]
