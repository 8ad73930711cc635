//! After the first calls no operation allocates: generation must not depend on the allocator's mood.

use spikelet_simd::{Cpu, Level, Matrix, WeightFormat, argmax, exp_in_place, log_sum_exp};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// The system's allocator with a counter.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WIDTH: usize = 200;
const MOST: usize = 40;

struct Buffers {
    x: Vec<f32>,
    y: Vec<f32>,
    state: Vec<f32>,
    each: Vec<f32>,
    ones: Vec<f32>,
}

fn all_operations(cpu: &Cpu, w: &Matrix, b: &mut Buffers) {
    for n in [1, 2, 5, 8, 9, MOST] {
        let (x, y, each) = (&b.x[..n * WIDTH], &mut b.y[..n * WIDTH], &mut b.each[..3 * n * WIDTH]);
        cpu.matmul(w, x, n, y);
        cpu.matmul_sparse(w, x, n, y);
        cpu.layer_norm(x, n, &b.ones, &b.ones, 1e-5, y);
        cpu.token_mix(&[n - 1, 1], &b.state[..2 * WIDTH], x, [(&b.ones, y)]);
        cpu.wkv4(&[n - 1, 1], WIDTH, &b.ones, &b.ones, x, x, &mut b.state, Some(each), y);
        cpu.lif(&[n], WIDTH, None, x, &mut b.state[..WIDTH], Some(&mut each[..n * WIDTH]), y);
        cpu.sigmoid_mul(x, y);
        cpu.add(x, y);
        cpu.scale(0.5, y);
        cpu.relu_squared(y);
        cpu.heaviside(y);
        exp_in_place(cpu.level(), y);
        assert!(log_sum_exp(cpu.level(), y).is_finite() && argmax(y) < y.len());
    }
}

#[test]
fn operations_do_not_allocate_after_the_first_calls() {
    for threads in [1, 3] {
        let cpu = Cpu::new(Level::best(), threads);
        let w = Matrix::pack(WIDTH, WIDTH, WeightFormat::F32, &cpu, |o, row| row.fill(o as f32 / 256.0));
        // Two inputs of three are zero, so that zeros are skipped.
        let x = (0..MOST * WIDTH).map(|i| if (i % WIDTH).is_multiple_of(3) { 0.5 } else { 0.0 }).collect();
        let zeros = |len: usize| vec![0.0; len];
        let mut buffers = Buffers {
            x,
            y: zeros(MOST * WIDTH),
            state: zeros(6 * WIDTH),
            each: zeros(3 * MOST * WIDTH),
            ones: vec![1.0; WIDTH],
        };
        // Workers allocate once as they start, which on a busy machine may be later than the first calls.
        let mut before = usize::MAX;
        while before != ALLOCATIONS.load(SeqCst) {
            before = ALLOCATIONS.load(SeqCst);
            all_operations(&cpu, &w, &mut buffers);
            std::thread::sleep(Duration::from_millis(100));
        }
        for _ in 0..20 {
            all_operations(&cpu, &w, &mut buffers);
        }
        assert_eq!(ALLOCATIONS.load(SeqCst), before, "{threads} threads");
    }
}
