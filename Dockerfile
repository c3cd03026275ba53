# The command `multiattn` as an image, to train and to serve; as a user without rights, with packages in the ranges of
# requirements.txt. VARIANT is a build of PyTorch: cpu, or for GPUs one such as cu128.
#   docker build -t multiattn .
#   docker build -t multiattn:cuda --build-arg VARIANT=cu128 .
#   docker run --rm -v "$PWD:/work" multiattn score clip.mp4
#   docker run --rm --gpus all --shm-size 2g -v "$PWD:/work" multiattn:cuda train dfdc_b4 --faces FACES --folds FOLDS
# The user's number is 1000: give another by `--user "$(id -u)"` where the folder belongs to somebody else.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY requirements.txt setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG VARIANT=cpu
ARG EXTRAS=serve
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-compile --extra-index-url "https://download.pytorch.org/whl/${VARIANT}" \
      "$(echo /wheels/*.whl)${EXTRAS:+[${EXTRAS}]}" \
    && useradd --no-create-home --uid 1000 multiattn \
    && install --directory --owner multiattn /work
# Caches lie where any user may write.
ENV HOME=/tmp
USER 1000
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["multiattn"]
CMD ["--help"]
