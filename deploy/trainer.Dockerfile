# The trainer and its demo. Build from the repository's root: docker build -f deploy/trainer.Dockerfile -t cellar-trainer .
# torch is the CPU's; for GPUs: --build-arg TORCH_BACKEND=cu130 (what uv knows as --torch-backend). See also deploy/wheels.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS dependencies
ARG TORCH_BACKEND=cpu
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
WORKDIR /build
COPY constraints/uv.txt constraints/
RUN pip install --no-cache-dir -r constraints/uv.txt
COPY deploy/wheels /wheels
COPY pyproject.toml constraints/trainer.txt ./
RUN set -- --torch-backend "$TORCH_BACKEND"; \
    if [ "$TORCH_BACKEND" = cpu ] && ls /wheels/*.whl 2>/dev/null; then set -- --find-links /wheels; fi; \
    uv venv --quiet /opt/cellar && \
    uv pip install --quiet --python /opt/cellar/bin/python -r pyproject.toml --extra trainer -c trainer.txt "$@"

# Apart from its dependencies, so that new source is a small layer beside their large one.
FROM dependencies AS package
COPY README.md LICENSE constraints/build.txt ./
COPY clients clients
COPY services services
RUN uv pip install --quiet --python /opt/cellar/bin/python --no-deps --build-constraints build.txt --prefix /package .

FROM ${PYTHON_IMAGE} AS trainer
RUN pip uninstall --quiet --yes --root-user-action ignore setuptools wheel pip && \
    groupadd --gid 10001 cellar && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp cellar && \
    install --directory --owner 10001 --group 10001 /var/lib/cellar/models /var/lib/cellar/runs /var/lib/cellar/weights
COPY --from=dependencies /opt/cellar /opt/cellar
COPY --from=package /package /opt/cellar
COPY deploy/healthcheck.py /usr/local/bin/healthcheck
WORKDIR /srv/cellar
COPY demo demo
COPY services/trainer/configs services/trainer/configs
ENV PATH=/opt/cellar/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
USER 10001:10001
# It serves nothing. Whether what it needs is there, docker-compose.yml asks, which knows the addresses.
CMD ["cellar-trainer", "--help"]
