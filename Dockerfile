# Any Debian-like image with Python 3.11 or newer. Both stages use it, since the environment points at its interpreter.
# Pin it by its digest in production: --build-arg BASE=python:3.11-slim-bookworm@sha256:…
ARG BASE=python:3.11-slim-bookworm

# hadolint ignore=DL3006  # BASE has a tag, or is a local image
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
# An index, proxy or authority of your own comes in by a secret (--secret id=pip.conf,src=…, and likewise ca.crt, which
# that file names as /run/secrets/ca.crt): no layer keeps a trace of it.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf,mode=0444 \
    --mount=type=secret,id=ca.crt,target=/run/secrets/ca.crt,mode=0444 \
    python3 -m venv /opt/trackwatch \
    && /opt/trackwatch/bin/pip install --no-compile --require-hashes --only-binary :all: -r requirements.lock \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY trackwatch trackwatch
# The wheel is built with the locked tools, and installed without looking at any index. Bytecode that is not compared
# with its source stays good whatever a registry or a rebuild does to the times of files; where it is not, each health
# check of a read-only image would compile everything again.
RUN /opt/build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist . \
    && /opt/trackwatch/bin/pip install --no-compile --no-deps --no-index /dist/*.whl \
    && /opt/trackwatch/bin/pip uninstall --yes --quiet setuptools pip \
    && find /opt/trackwatch/bin -type f ! -name trackwatch -delete \
    && python3 -m compileall -q -f --invalidation-mode unchecked-hash /opt/trackwatch/lib

# hadolint ignore=DL3006  # as above
FROM ${BASE}
# The numeric id lets Kubernetes verify runAsNonRoot. The folders exist so that a new volume takes over their owner.
# Slim Python images bring pip, and their standard library without bytecode: the one goes, the other is made, for what
# is not tests and tools.
RUN groupadd --gid 10001 trackwatch \
    && useradd --no-log-init --uid 10001 --gid 10001 --home-dir /var/lib/trackwatch --no-create-home \
        --shell /usr/sbin/nologin trackwatch \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/trackwatch \
    && install -d /data/music \
    && stdlib="$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && rm -rf "$stdlib/ensurepip" "$stdlib"/site-packages/pip* "$stdlib"/site-packages/setuptools* \
        "$stdlib"/site-packages/wheel* /usr/share/python-wheels /usr/local/bin/pip* /usr/local/bin/wheel \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -x '/(test|tests|idlelib|lib2to3|turtledemo|tkinter)/' \
        "$stdlib"
COPY --from=build /opt/trackwatch /opt/trackwatch
# Nothing listens until TRACKWATCH_HTTP says where (0.0.0.0:9464 in a container), hence no EXPOSE. Whoever runs this may
# be another user (--user): the working directory is the root, which each of them can enter.
ENV PATH=/opt/trackwatch/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    LANG=C.UTF-8 \
    DATA_DIR=/data/music \
    TRACKWATCH_STATE_DIR=/var/lib/trackwatch
USER 10001:10001
VOLUME ["/var/lib/trackwatch"]
STOPSIGNAL SIGTERM
# Status says 1 for degraded (a broker that is away), which a restart would not heal.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD ["/bin/sh", "-c", "trackwatch status >/dev/null; test $? -le 1"]
ENTRYPOINT ["trackwatch"]
CMD ["run"]
# Last, since they differ from build to build: what stands above stays in the cache.
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="trackwatch" \
      org.opencontainers.image.description="Turns music libraries into a stream of events that never lies and never loses one" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
