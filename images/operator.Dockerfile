# The operator; also the follower beside each gateway (python -m shoal.operator.follower).
#   docker build -f images/operator.Dockerfile -t shoal/operator:0.1.0 .
# Pin the base for a release: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .
RUN images/install kubernetes /opt/shoal

FROM ${BASE}
COPY --from=build /opt/shoal /opt/shoal
ENV PATH=/opt/shoal/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HOME=/tmp
LABEL org.opencontainers.image.title="shoal/operator" org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
WORKDIR /tmp
EXPOSE 18000 9095 9443
ENTRYPOINT ["shoal-operator"]
