#!/bin/sh
# Creates the environment named by $1 and installs batchfree with its extras, pinned by
# constraints.txt. Uses uv where it is on PATH, else the standard venv and pip.
set -eu
venv="$1"
python="${PYTHON:-python3}"
if command -v uv >/dev/null 2>&1; then
    [ -x "$venv/bin/python" ] || uv venv --quiet --python "$python" "$venv"
    # Compiled once here: without .pyc files `import lightning` takes three times as long.
    uv pip install --quiet --python "$venv/bin/python" --compile-bytecode \
        --constraint constraints.txt --build-constraint constraints.txt --editable '.[dev]'
else
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    # The variable, unlike the option, also holds for the environment that builds the kernels.
    PIP_CONSTRAINT=constraints.txt "$venv/bin/python" -m pip install --quiet \
        --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
fi
