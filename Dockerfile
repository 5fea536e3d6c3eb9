# c3pod and c3po for CPU (the default) and for NVIDIA GPUs, and an image that carries the default model:
#   docker build --target cpu -t c3po .    docker build --target cuda -t c3po:cuda .    docker build --target models -t c3po-models .
# Each image has its bill of materials, /opt/c3po/sbom.cdx.json. The steps are scripts of deploy/, which run as well without a container engine.

# Without TLS and without --insecure c3pod refuses to listen beyond loopback: say which you want.
FROM debian:bookworm-slim AS runtime
RUN apt-get update && apt-get install -y --no-install-recommends python3-jinja2 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin c3po \
 && install -d -o c3po -g c3po /models /var/lib/c3po
ENV PATH=/opt/c3po/bin:/usr/local/bin:/usr/bin:/bin \
    C3PO_MODEL=/models/smollm2-135m-moe \
    C3PO_EMBEDDER=/models/all-minilm-l6-v2 \
    C3PO_STORE=/var/lib/c3po/references.db \
    C3PO_LISTEN=0.0.0.0:50051 \
    C3PO_METRICS_ADDRESS=0.0.0.0 \
    C3PO_METRICS_PORT=9464
VOLUME ["/models", "/var/lib/c3po"]
# gRPC and metrics. OpenAI's HTTP API is off: -e C3PO_HTTP_LISTEN=0.0.0.0:8000 -p 8000:8000 opens it.
EXPOSE 50051 9464
USER 10001:10001
WORKDIR /var/lib/c3po
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 CMD ["healthcheck.sh", "/readyz"]
ENTRYPOINT ["c3pod"]

FROM debian:bookworm-slim AS build
ENV C3PO_CACHE_DIR=/opt/c3po-cache
WORKDIR /src
COPY deploy/install_deps.sh deploy/install_deps.sh
RUN deploy/install_deps.sh --build-only && rm -rf /var/lib/apt/lists/*
COPY . .
RUN deploy/docker/build.sh

FROM build AS stage-cpu
COPY --from=runtime /var/lib/dpkg/status /base-status
RUN BASE_STATUS=/base-status deploy/docker/stage.sh build/release/bin /stage cpu

# nvcc and what it compiles are of this image alone.
FROM build AS build-cuda
RUN deploy/install_deps.sh --build-only --cuda && deploy/docker/build.sh cuda

FROM build-cuda AS stage-cuda
COPY --from=runtime /var/lib/dpkg/status /base-status
RUN BASE_STATUS=/base-status deploy/docker/stage.sh build/release/bin /stage cuda

FROM build AS model-folders
RUN deploy/fetch_models.sh

# Copies the default model and the sentence encoder to where /models is mounted, unless they are there.
FROM debian:bookworm-slim AS models
COPY --from=model-folders /opt/c3po-cache/models /seed
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin c3po && install -d -o c3po -g c3po /models
USER 10001:10001
VOLUME /models
CMD ["cp", "-rn", "/seed/.", "/models"]

FROM runtime AS cuda
ENV C3PO_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=stage-cuda /stage /

FROM runtime AS cpu
COPY --from=stage-cpu /stage /
