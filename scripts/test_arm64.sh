#!/usr/bin/env bash
# Tests on an emulated 64-bit Arm processor: scripts/test_arm64.sh [bits|kernels|all]
#
# `bits` compares the bits of every operation and kernel with those of other processors (seconds, once it is built),
# `kernels`, the default, runs all tests of rust/simd (minutes), `all` also those of the engine that judge its arithmetic.
# The programs are linked statically with the linker that comes with Rust, so no Arm system and no compiler for one is
# needed: only Rust's standard library for the target, which rustup fetches once, and Debian's qemu-user.
# Exit code 77: something is missing, nothing was run.
set -euo pipefail
cd "$(dirname "$0")/.."

TARGET=aarch64-unknown-linux-musl
# A processor of 2018 that has all that the kernels know, and the oldest: there, instructions that not all have end the program.
NEWER=cortex-a76
OLDEST=cortex-a53

missing() {
    echo "skipped the tests on 64-bit Arm: $1" >&2
    exit 77
}

scope=${1:-kernels}
case $scope in
bits | kernels | all) ;;
*)
    echo "test_arm64.sh: found $scope, needed bits, kernels or all" >&2
    exit 2
    ;;
esac

command -v qemu-aarch64 >/dev/null || missing "qemu-aarch64 was not found (Debian's package qemu-user)"
if ! [ -d "$(rustc --print target-libdir --target "$TARGET")" ]; then
    command -v rustup >/dev/null || missing "Rust's standard library for $TARGET was not found, nor rustup to fetch it"
    timeout 120 rustup target add "$TARGET" || missing "rustup could not fetch the standard library for $TARGET"
fi

variable=CARGO_TARGET_$(echo "$TARGET" | tr a-z- A-Z_)
export "${variable}_LINKER=rust-lld"

# The lints of the other instruction sets see none of this code.
cargo clippy --quiet --package spikelet-simd --target "$TARGET" -- -D warnings

run_tests_on() {
    export "${variable}_RUNNER=qemu-aarch64 -cpu $1"
    shift
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --target "$TARGET" "$@"
    else
        cargo test --target "$TARGET" "$@"
    fi
}
run_tests_on "$OLDEST" --package spikelet-simd --lib --test emulated of_every_processor
if [ "$scope" = bits ]; then
    run_tests_on "$NEWER" --package spikelet-simd --lib --test emulated of_every_processor
else
    run_tests_on "$NEWER" --package spikelet-simd --lib --tests
fi
if [ "$scope" = all ]; then
    run_tests_on "$NEWER" --package spikelet --lib --test parity --test exactness --test generation
fi
