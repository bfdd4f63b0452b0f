# vLLM's own image for GPUs as a model server for the trainer. Build from the repository's root:
# docker build -f deploy/vllm-gpu.Dockerfile -t cellar-vllm-gpu . (deploy/vllm/README.md)
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${VLLM_IMAGE}
RUN groupadd --gid 10001 cellar && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp cellar
COPY deploy/healthcheck.py /usr/local/bin/healthcheck
COPY deploy/vllm/entrypoint deploy/vllm/*.py /opt/cellar-vllm/
ENV HOME=/tmp \
    CELLAR_MODEL=/var/lib/cellar/models/demo/model \
    CELLAR_VLLM_DEFAULTS="--dtype auto --gpu-memory-utilization 0.4"
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=900s --retries=3 CMD ["healthcheck", "http://127.0.0.1:8000/health"]
ENTRYPOINT ["/opt/cellar-vllm/entrypoint"]
