# Runs the README's search:
#   docker build -t unfreeze . && docker run --rm -v "$PWD:/searches" unfreeze
# and with NVIDIA's GPUs:
#   docker build -t unfreeze --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 .
#   docker run --rm --gpus all --shm-size=4g -v "$PWD:/searches" unfreeze search.run study=resnet_cls data.root=/searches/images
ARG BASE=ubuntu:24.04
FROM ${BASE}
# Without it the time zone is asked for, and the build waits for an answer.
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install -y --no-install-recommends git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /unfreeze
RUN cd /unfreeze && python3 -m venv .venv && .venv/bin/pip install --no-cache-dir -q -e .
ENV PATH=/unfreeze/.venv/bin:$PATH
# A search.py of yours in the working folder is no module of the search.
ENV PYTHONSAFEPATH=1
# The stores are made in the working folder, which is to outlive the container.
WORKDIR /searches
ENTRYPOINT ["python", "-m"]
CMD ["search.run", "study=resnet_cls"]
