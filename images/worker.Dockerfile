# The engine, for GPUs and processors alike: PyTorch from the package index brings CUDA, 3 GB of it.
# For processors alone, name the index of CPU wheels from PyTorch's installation page:
#   --build-arg PIP_ARGS="--extra-index-url ..."
#   docker build -f images/worker.Dockerfile -t shoal/worker:0.1.0 .
# Pin the base for a release: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG SOURCE_DATE_EPOCH=0
ARG PIP_ARGS
# The operations of processors are compiled here, for several kinds of them.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
WORKDIR /src
COPY . .
RUN images/install worker /opt/shoal

FROM ${BASE}
# On a GPU the code that launches kernels is compiled when they are first used. Those of processors are there already.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*
COPY --from=build /opt/shoal /opt/shoal
ENV PATH=/opt/shoal/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HOME=/tmp
LABEL org.opencontainers.image.title="shoal/worker" org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
WORKDIR /tmp
EXPOSE 50051 9090
ENTRYPOINT ["shoal-worker"]
