//! The kernels' results on fixed inputs are those of a constant that stands here, on every processor; and this very program is
//! run on an emulated one without AVX and FMA. That needs `qemu-x86_64` (Debian's qemu-user); without it there is nothing to run
//! on, and the test says so. `scripts/test_arm64.sh` does the same for Arm.

use spikelet_simd::train::{
    LifGrads, LifInputs, LifOutputGrads, MixGrads, Run, SeqDims, Surrogate, WkvGrads, WkvInputs, lif_backward,
    mix_backward, wkv4_backward,
};
use spikelet_simd::{Cpu, Level, Matrix, WeightFormat, argmax, exp_in_place, log_sum_exp};

fn noise(i: usize) -> f32 {
    (i.wrapping_mul(0x9e37_79b9) >> 7 & 0xffff) as f32 / 32768.0 - 1.0
}

const WIDTH: usize = 200;
const TOKENS: usize = 11;

/// Results of everything that generation computes.
fn generation(cpu: &Cpu, x: &[f32], results: &mut Vec<f32>) {
    let ones = vec![1.0; WIDTH];
    results.extend([log_sum_exp(cpu.level(), x), argmax(x) as f32]);
    let mut sparse = x.to_vec();
    cpu.relu_squared(&mut sparse);
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Q8, WeightFormat::Q4] {
        let w = Matrix::pack(WIDTH, WIDTH, format, cpu, |o, row| {
            row.iter_mut().enumerate().for_each(|(i, w)| *w = noise(o * WIDTH + i));
        });
        for n in [1, 3, TOKENS] {
            let mut y = vec![f32::NAN; n * WIDTH];
            cpu.matmul(&w, &x[..n * WIDTH], n, &mut y);
            results.extend(&y);
            cpu.matmul_sparse(&w, &sparse[..n * WIDTH], n, &mut y);
            results.extend(&y);
        }
    }
    let (mut y, mut state) = (vec![f32::NAN; TOKENS * WIDTH], vec![0.0; 3 * WIDTH]);
    cpu.wkv4(&[TOKENS], WIDTH, &x[..WIDTH], &ones, x, x, &mut state, None, &mut y);
    cpu.sigmoid_mul(x, &mut y);
    results.extend(&y);
    results.extend(&state);
    cpu.lif(&[TOKENS], WIDTH, Some(&x[..WIDTH]), &sparse, &mut state[..WIDTH], None, &mut y);
    cpu.scale(0.3, &mut y);
    cpu.add(x, &mut y);
    results.extend(&y);
    cpu.layer_norm(x, TOKENS, &ones, &x[..WIDTH], 1e-5, &mut y);
    results.extend(&y);
    // Sequences of one token, each after another one.
    cpu.token_mix(&[1; TOKENS], &sparse, x, [(&ones, &mut y)]);
    exp_in_place(cpu.level(), &mut y);
    results.extend(&y);
    cpu.heaviside(&mut y);
    results.extend(&y);
}

/// Gradients; they run the forward passes too.
fn training(how: Run, x: &[f32], results: &mut Vec<f32>) {
    let dims = SeqDims { batch: 1, time: TOKENS, channels: WIDTH };
    let row = &x[..WIDTH];
    let [mut a, mut b, mut c, mut d] = [(); 4].map(|()| vec![f32::NAN; TOKENS * WIDTH]);
    let inputs = WkvInputs { w: row, u: row, k: x, v: x, state: None };
    let grads = WkvGrads { w: &mut c[..WIDTH], u: &mut d[..WIDTH], k: &mut a, v: &mut b, state: None };
    wkv4_backward(dims, inputs, x, None, grads, how);
    results.extend(a.iter().chain(&b).chain(&c[..WIDTH]).chain(&d[..WIDTH]));
    for surrogate in [Surrogate::default(), Surrogate::Sigmoid(4.0)] {
        let inputs = LifInputs { x, membrane: None, decay: Some(row) };
        let grads = LifGrads { x: &mut a, membrane: None, decay: Some(&mut c[..WIDTH]) };
        lif_backward(dims, inputs, surrogate, LifOutputGrads { spikes: x, membrane_out: None }, grads, how);
        results.extend(a.iter().chain(&c[..WIDTH]));
    }
    let grads = MixGrads { x: &mut a, last: &mut b[..WIDTH], mixes: &mut c[..WIDTH] };
    mix_backward(dims, x, row, &[row], &[x], grads, how);
    results.extend(a.iter().chain(&b[..WIDTH]).chain(&c[..WIDTH]));
}

/// A number that depends on every bit of every kind of result.
fn digest(level: Level) -> u64 {
    let x: Vec<f32> = (0..TOKENS * WIDTH).map(noise).collect();
    let mut results = Vec::new();
    generation(&Cpu::new(level, 2), &x, &mut results);
    training(Run { level, threads: 2 }, &x, &mut results);
    assert!(results.iter().all(|v| v.is_finite()));
    results.iter().fold(0xcbf2_9ce4_8422_2325, |hash, v| (hash ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn the_bits_are_those_of_every_processor() {
    for level in Level::available() {
        // Only a new definition of a result, or of how weights are quantised, may change this; then on all processors alike.
        assert_eq!(format!("{:016x}", digest(level)), "d58c73de54aa6944", "{}", level.name());
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn a_processor_without_avx_gives_the_same_bits() {
    /// Set for the emulated run.
    const EMULATED: &str = "SPIKELET_TEST_EMULATED";
    if std::env::var_os(EMULATED).is_some() {
        assert_eq!(Level::best().name(), "portable", "the emulated processor has no AVX");
        return;
    }
    let program = std::env::current_exe().expect("this program has a path");
    let mut emulator = std::process::Command::new("qemu-x86_64");
    emulator.args(["-cpu", "qemu64"]).arg(program).arg("--test-threads=1").env(EMULATED, "1");
    let Ok(output) = emulator.output() else {
        println!("skipped: qemu-x86_64 is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("2 passed"), "{text}");
}
