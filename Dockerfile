# One image for every process; the argument says which to be: `controller`, `gateway`, `agent`,
# or a client's `beat`.
#
# `build` has uv and makes the environment, `root` takes away what no process reads, and the
# last stage starts from nothing, so that what was taken away is in no layer either.
# Where no registry is reachable `make image` makes a base from the distribution's packages.
ARG BASE_IMAGE=docker.io/library/python:3.13-slim
# May be the base with uv and a trust store of the build machine's; nothing else of it is kept.
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS build
# Links into a cache would dangle in the next stage; trusted is what this stage's system trusts.
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_SYSTEM_CERTS=1 UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
WORKDIR /src
COPY requirements/uv.txt requirements/
RUN command -v uv || python3 -m pip install --no-cache-dir --require-hashes -r requirements/uv.txt
COPY requirements/runtime.txt requirements/
RUN uv venv --python "$(command -v python3)" /opt/gpusession \
 && uv pip install --python /opt/gpusession --require-hashes --only-binary :all: \
      --requirement requirements/runtime.txt
COPY requirements/dev.txt requirements/
COPY pyproject.toml README.md LICENSE ./
COPY operator/ operator/
RUN uv build --wheel --python /opt/gpusession --out-dir /dist \
      --require-hashes --build-constraints requirements/dev.txt \
 && uv pip install --python /opt/gpusession --no-deps /dist/*.whl
# Of the kubernetes client only the login is used (import-linter holds us to that): its
# generated calls and models, loaded one by one and only when named, are 80 % of everything.
RUN site="$(echo /opt/gpusession/lib/python3*/site-packages)" \
 && for part in client aio/client; do \
      find "$site/kubernetes/$part/api" "$site/kubernetes/$part/models" \
        -type f ! -name __init__.py -delete; \
    done \
 && rm -rf /opt/gpusession/.lock /opt/gpusession/.gitignore /opt/gpusession/CACHEDIR.TAG \
 && find /opt/gpusession -type d \( -name __pycache__ -o -name tests \) -prune -exec rm -rf {} + \
 && rm -f /opt/gpusession/bin/activate* /opt/gpusession/bin/*.bat \
 && printf '%s\n' 'gpusession:x:65532:65532:gpusession:/nonexistent:/usr/sbin/nologin' >> /etc/passwd \
 && printf '%s\n' 'gpusession:x:65532:' >> /etc/group

FROM ${BASE_IMAGE} AS root
COPY --from=build /opt/gpusession /opt/gpusession
COPY --from=build /etc/passwd /etc/group /etc/
# Bytecode is made here once: the root file system is read-only, and without it each start
# takes 2 s longer. "unchecked" because nobody edits the sources in an image.
RUN rm -rf /usr/share/doc /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian \
      /var/cache /var/lib/apt/lists /var/log /root/.cache /usr/local/bin/pip* \
 && for lib in /usr/lib/python3* /usr/local/lib/python3*; do \
      if [ -d "$lib/asyncio" ]; then \
        rm -rf "$lib"/test "$lib"/idlelib "$lib"/lib2to3 "$lib"/tkinter "$lib"/turtledemo \
          "$lib"/ensurepip "$lib"/pydoc_data "$lib"/config-* \
          "$lib"/site-packages/pip "$lib"/site-packages/pip-*; \
        find "$lib" -type d -name __pycache__ -prune -exec rm -rf {} +; \
        python3 -m compileall -q --invalidation-mode unchecked-hash "$lib"; \
      fi; \
    done \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/gpusession/lib \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# What was left out must be missed by nobody: every module of ours is imported once.
RUN /opt/gpusession/bin/python -B -c "import gpusession, importlib, pkgutil; \
[importlib.import_module(found.name) for found in pkgutil.walk_packages(gpusession.__path__, 'gpusession.') if found.name != 'gpusession.__main__']"

FROM scratch
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gpu-session-operator" \
      org.opencontainers.image.description="Ends GPU sessions on Kubernetes on evidence." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=root / /
ENV PATH=/opt/gpusession/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /
USER 65532:65532
ENTRYPOINT ["gpusession"]
