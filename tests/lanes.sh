#!/usr/bin/env bash
# Do the races come out right when each is arranged, and what do the sanitizers say of the core?
#
#   tests/lanes.sh [debug] [sanitize]      both if none is named; PYTHON=... the interpreter, with the test extra installed
#
# Each lane is a build of its own in a folder of its own, beside the usual one.
#   debug     LAZYMEM_DEBUG=1: points where threads can be held up; test_races*.py
#   sanitize  LAZYMEM_SANITIZE=address,undefined, with gcc's libraries preloaded; the core's tests. LANE_TESTS names others.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
place=$(mktemp -d /tmp/lazymem-lanes.XXXXXX)
trap 'rm -rf "$place"' EXIT
chmod 755 "$place"
core="test_table test_uffd test_threads test_close test_failures test_guard test_property test_traps_fill"

build() { # a copy of the working tree, generated C and all, built in place with what is in the environment
  mkdir "$place/$1"
  cd "$source"
  { git ls-files -co --exclude-standard; find lazymem/core -name '*.c'; } | sort -u | tar -c -T - | tar -x -C "$place/$1"
  cd "$place/$1"
  "$python" setup.py -q build_ext --inplace >"$place/$1.log" 2>&1 || { cat "$place/$1.log"; exit 1; }
  chmod -R a+rX "$place/$1"
}

debug() {
  LAZYMEM_DEBUG=1 LAZYMEM_DEVELOPER=1 build debug
  PYTHONPATH="$place/debug" "$python" -P -m pytest -q tests/test_races*.py
}

sanitize() {
  LAZYMEM_SANITIZE=address,undefined build sanitize
  # Python leaks on purpose; SIGBUS and SIGSEGV are ours; a 64 TiB array is no mistake.
  export ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_abort=0:allow_user_segv_handler=1:use_sigaltstack=0
  export ASAN_OPTIONS=$ASAN_OPTIONS:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 LAZYMEM_TEST_PATIENCE=4
  LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)" PYTHONPATH="$place/sanitize" PYTHONMALLOC=malloc \
    "$python" -P -m pytest -q -m "not slow and not long" $(printf 'tests/%s.py ' ${LANE_TESTS:-$core})
}

for lane in ${*:-debug sanitize}; do
  "$lane"
done
