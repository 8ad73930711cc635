//! Runs this very program on an emulated processor without AVX and FMA and compares the bits. Needs `qemu-x86_64` (Debian's
//! qemu-user); without it there is nothing to run on, and the test says so.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use spikelet_simd::{Cpu, Level, Matrix, WeightFormat, log_sum_exp};
use std::process::Command;

/// Set for the emulated run.
const EMULATED: &str = "SPIKELET_TEST_EMULATED";

fn noise(i: usize) -> f32 {
    (i.wrapping_mul(0x9e37_79b9) >> 7 & 0xffff) as f32 / 32768.0 - 1.0
}

/// A number that depends on every bit of every kind of result.
fn digest() -> u64 {
    let cpu = Cpu::new(Level::best(), 2);
    let (width, n) = (200, 11);
    let x: Vec<f32> = (0..n * width).map(noise).collect();
    let ones = vec![1.0; width];
    let mut results = vec![log_sum_exp(cpu.level(), &x)];
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Q8, WeightFormat::Q4] {
        let w = Matrix::pack(width, width, format, &cpu, |o, row| {
            row.iter_mut().enumerate().for_each(|(i, w)| *w = noise(o * width + i));
        });
        for n in [1, 3, n] {
            let mut y = vec![f32::NAN; n * width];
            cpu.matmul(&w, &x[..n * width], n, &mut y);
            results.extend(&y);
        }
    }
    let (mut y, mut state) = (vec![f32::NAN; n * width], vec![0.0; 3 * width]);
    cpu.wkv4(&[n], width, &x[..width], &ones, &x, &x, &mut state, None, &mut y);
    cpu.sigmoid_mul(&x, &mut y);
    results.extend(&y);
    cpu.layer_norm(&x, n, &ones, &ones, 1e-5, &mut y);
    results.extend(&y);
    assert!(results.iter().all(|v| v.is_finite()));
    results.iter().fold(0xcbf2_9ce4_8422_2325, |hash, v| (hash ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn a_processor_without_avx_gives_the_same_bits() {
    let here = format!("digest {:016x}", digest());
    if std::env::var_os(EMULATED).is_some() {
        assert_eq!(Level::best().name(), "portable", "the emulated processor has no AVX");
        println!("{here}");
        return;
    }
    let program = std::env::current_exe().expect("this program has a path");
    let mut emulator = Command::new("qemu-x86_64");
    emulator.args(["-cpu", "qemu64"]).arg(program).args(["--nocapture", "--test-threads=1"]).env(EMULATED, "1");
    let Ok(output) = emulator.output() else {
        println!("skipped: qemu-x86_64 is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&here), "found {text}, wanted {here}");
}
