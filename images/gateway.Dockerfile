# The public API and the choice of workers.
#   docker build -f images/gateway.Dockerfile -t shoal/gateway:0.1.0 .
# Pin the base for a release: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG SOURCE_DATE_EPOCH=0
# Small C libraries are compiled here, for several kinds of processors.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
WORKDIR /src
COPY . .
RUN images/install gateway /opt/shoal

FROM ${BASE}
COPY --from=build /opt/shoal /opt/shoal
ENV PATH=/opt/shoal/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HOME=/tmp
LABEL org.opencontainers.image.title="shoal/gateway" org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
WORKDIR /tmp
EXPOSE 50051 8000 9090
ENTRYPOINT ["shoal-gateway"]
