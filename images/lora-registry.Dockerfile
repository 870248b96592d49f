# LoRA adapters as immutable, verified versions.
#   docker build -f images/lora-registry.Dockerfile -t shoal/lora-registry:0.1.0 .
# Pin the base for a release: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .
RUN images/install lora_registry /opt/shoal

FROM ${BASE}
COPY --from=build /opt/shoal /opt/shoal
ENV PATH=/opt/shoal/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HOME=/tmp
LABEL org.opencontainers.image.title="shoal/lora-registry" org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
WORKDIR /tmp
EXPOSE 50051 9090
ENTRYPOINT ["shoal-lora-registry"]
