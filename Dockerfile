# Image with the command `fleetbeat`, for workers and operators: `docker build -t fleetbeat .`, `docker run fleetbeat --help`.

FROM python:3.14-slim AS build
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /opt/fleetbeat \
 && /opt/fleetbeat/bin/pip install --no-cache-dir --constraint constraints.txt pip
COPY pyproject.toml README.md LICENSE ./
COPY producer producer
COPY worker worker
COPY shared shared
RUN /opt/fleetbeat/bin/pip wheel --no-cache-dir --no-deps --build-constraint constraints.txt --wheel-dir /wheels . \
 && wheel=$(ls /wheels/fleetbeat-*.whl) \
 && /opt/fleetbeat/bin/pip install --no-cache-dir --only-binary :all: --constraint constraints.txt "$wheel[worker,postgres]" \
 && /opt/fleetbeat/bin/pip uninstall --yes pip

# The final image adds only the virtual environment to the same Python: no pip, no compiler, no source tree.
FROM python:3.14-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/fleetbeat fleetbeat
COPY --from=build /opt/fleetbeat /opt/fleetbeat
ENV PATH=/opt/fleetbeat/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FLEETBEAT_DATA_DIR=/var/lib/fleetbeat
USER fleetbeat
WORKDIR /var/lib/fleetbeat
ENTRYPOINT ["fleetbeat"]
CMD ["--help"]
