# syntax=docker/dockerfile:1
# Any Debian-like image with Python 3.11 or newer; both stages use it, since the environment points at its interpreter.
ARG BASE=python:3.11-slim-bookworm

# hadolint ignore=DL3006  # BASE has a tag, or is a local image
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN python3 -m venv /opt/trackwatch \
    && /opt/trackwatch/bin/pip install --require-hashes --only-binary :all: -r requirements.lock \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY trackwatch trackwatch
# The wheel is built with the locked tools, and installed without looking at any index. pip leaves bytecode beside it,
# which the read-only image could not.
RUN /opt/build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist . \
    && /opt/trackwatch/bin/pip install --no-deps --no-index /dist/*.whl \
    && /opt/trackwatch/bin/pip uninstall --yes --quiet setuptools pip

# hadolint ignore=DL3006  # as above
FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="trackwatch" \
      org.opencontainers.image.description="Turns music libraries into a stream of events that never lies and never loses one" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The numeric id lets Kubernetes verify runAsNonRoot. The folders exist so that a new volume takes over their owner.
RUN groupadd --gid 10001 trackwatch \
    && useradd --no-log-init --uid 10001 --gid 10001 --home-dir /var/lib/trackwatch --no-create-home \
        --shell /usr/sbin/nologin trackwatch \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/trackwatch \
    && install -d /data/music
COPY --from=build /opt/trackwatch /opt/trackwatch
ENV PATH=/opt/trackwatch/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    LANG=C.UTF-8 \
    DATA_DIR=/data/music \
    TRACKWATCH_STATE_DIR=/var/lib/trackwatch
USER 10001:10001
WORKDIR /var/lib/trackwatch
VOLUME ["/var/lib/trackwatch"]
STOPSIGNAL SIGTERM
# Status says 1 for degraded (a broker that is away), which a restart would not heal.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD ["/bin/sh", "-c", "trackwatch status >/dev/null; test $? -le 1"]
ENTRYPOINT ["trackwatch"]
CMD ["run"]
