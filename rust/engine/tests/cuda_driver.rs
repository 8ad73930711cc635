//! The driver layer against an emulated driver: what it computes, and what it says when things go wrong.

#![allow(unsafe_code)]

mod emulated;

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use spikelet::Error;
use spikelet::cuda::Survey;
use spikelet::cuda::driver::{Buffer, Device, Kernel};

/// What `spk_fill` takes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Fill {
    to: u64,
    len: u64,
    value: f32,
    padding: u32,
}

fn fill(device: &Device, kernel: &Kernel, buffer: &Buffer<f32>, value: f32) -> spikelet::Result<()> {
    let params = Fill { to: buffer.pointer(), len: buffer.len() as u64, value, padding: 0 };
    // SAFETY: the buffer is as long as the parameters say, and outlives what is done to it.
    unsafe { device.launch(kernel, 3, 0, &params) }
}

fn read(device: &Device, buffer: &Buffer<f32>) -> Vec<f32> {
    let mut values = vec![f32::NAN; buffer.len()];
    device.read(buffer, 0, &mut values).expect("read");
    values
}

fn reason(error: Error) -> String {
    match error {
        Error::Device { device, reason } => format!("{device}: {reason}"),
        other => panic!("{other}"),
    }
}

fn refused(result: spikelet::Result<Arc<Device>>) -> String {
    reason(result.expect_err("refused"))
}

macro_rules! emulated {
    () => {
        match emulated::driver() {
            Some(driver) => driver,
            None => return,
        }
    };
}

#[test]
fn a_card_says_what_it_is() {
    let mut driver = emulated!();
    driver.set("SIMT_SMS", "7");
    driver.set("SIMT_CAPABILITY", "8.6");
    driver.set("SIMT_DEVICES", "2");
    assert_eq!(Device::count(), 2);
    let device = Device::open(1).expect("a device");
    assert_eq!((device.ordinal(), device.capability(), device.multiprocessors()), (1, (8, 6), 7));
    assert!(!device.name().is_empty() && device.driver_version() >= 12_000);
    assert!(device.shared_memory_per_block() >= 48 << 10);
    let (free, total) = device.memory().expect("memory");
    assert!(free <= total && total > 0);
    let survey = Survey::take();
    assert_eq!((survey.problem, survey.cards.len()), (None, 2));
    assert!(survey.cards.iter().all(|card| card.problem.is_none() && card.memory.is_some()));
}

#[test]
fn numbers_come_back_as_they_went() {
    let mut driver = emulated!();
    // Nothing is done before somebody waits: data that is let go too early would show.
    for streams in ["", "lazy"] {
        driver.set("SIMT_STREAMS", streams);
        let device = Device::open(0).expect("a device");
        let zeros: Buffer<f32> = device.zeros(1000).expect("memory");
        assert_eq!(read(&device, &zeros), [0.0; 1000]);
        let data: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let (a, b) = (device.upload(&data).expect("memory"), device.zeros(1500).expect("memory"));
        device.copy(&a, 10, &b, 500, 990).expect("copied");
        let found = read(&device, &b);
        assert!(found[..500] == [0.0; 500] && found[500..1490] == data[10..] && found[1490..] == [0.0; 10]);
        // Larger than the staging memory, and many small pieces, more than it holds.
        let large: Vec<u32> = (0..600_000).collect();
        let there = device.upload(&large).expect("memory");
        for i in 0..400 {
            device.write(&there, i * 1500, &vec![i as u32; 1000]).expect("written");
        }
        let mut back = vec![0; large.len()];
        device.read(&there, 0, &mut back).expect("read");
        for (i, part) in back.chunks(1500).enumerate() {
            assert!(part[..1000].iter().all(|&x| x == i as u32), "piece {i}");
            assert!(part[1000..] == large[i * 1500 + 1000..(i + 1) * 1500], "behind piece {i}");
        }
        let mut some = [0_u32; 3];
        device.read(&there, 1499, &mut some).expect("read");
        assert_eq!(some, [1499, 1, 1]);
        device.clear(&there).expect("cleared");
        device.read(&there, 1499, &mut some).expect("read");
        assert_eq!(some, [0; 3]);
        let none: Buffer<f32> = device.zeros(0).expect("nothing");
        assert!(none.is_empty() && none.pointer_at(0) == 0);
    }
}

#[test]
#[should_panic(expected = "of a buffer of 4")]
fn nothing_is_written_beyond_a_buffer() {
    let Some(_driver) = emulated::driver() else { panic!("of a buffer of 4") };
    let device = Device::open(0).expect("a device");
    let buffer: Buffer<f32> = device.zeros(4).expect("memory");
    let _ = device.write(&buffer, 2, &[1.0; 3]);
}

#[test]
fn memory_is_given_back() {
    let driver = emulated!();
    let before = driver.memory_in_use();
    let device = Device::open(0).expect("a device");
    let buffer: Buffer<f32> = device.zeros(1 << 20).expect("memory");
    assert!(driver.memory_in_use() >= before + (4 << 20));
    // The card stays for as long as something of it is there.
    drop(device);
    assert_eq!(buffer.len(), 1 << 20);
    drop(buffer);
    assert_eq!(driver.memory_in_use(), before);
}

#[test]
fn kernels_run_in_the_order_in_which_they_are_launched() {
    let mut driver = emulated!();
    assert_eq!(driver.params_size("spk_fill"), size_of::<Fill>());
    for streams in ["", "lazy"] {
        driver.set("SIMT_STREAMS", streams);
        let device = Device::open(0).expect("a device");
        let kernel = device.kernel("spk_fill").expect("a kernel");
        assert_eq!(kernel.threads(), 256);
        assert!(device.resident_blocks(&kernel, 0).expect("a number") >= device.multiprocessors());
        let (a, b) = (device.zeros(5000).expect("memory"), device.zeros(5000).expect("memory"));
        fill(&device, &kernel, &a, 1.5).expect("launched");
        device.copy(&a, 0, &b, 0, 2500).expect("copied");
        fill(&device, &kernel, &a, 2.5).expect("launched");
        assert_eq!(read(&device, &a), [2.5; 5000]);
        let found = read(&device, &b);
        assert!(found[..2500] == [1.5; 2500] && found[2500..] == [0.0; 2500]);
        let params = Fill { to: a.pointer(), len: 5000, value: 3.5, padding: 0 };
        // SAFETY: the buffer is as long as the parameters say.
        unsafe { device.launch_cooperative(&kernel, 2, 64 << 10, &params) }.expect("launched, with much shared memory");
        assert_eq!(read(&device, &a), [3.5; 5000]);
    }
    let device = Device::open(0).expect("a device");
    let error = reason(device.kernel("spk_nothing").err().expect("refused"));
    assert!(error.contains("no kernel `spk_nothing`"), "{error}");
}

#[test]
fn a_graph_does_again_what_was_recorded() {
    let mut driver = emulated!();
    for streams in ["", "lazy"] {
        driver.set("SIMT_STREAMS", streams);
        let device = Device::open(0).expect("a device");
        let kernel = device.kernel("spk_fill").expect("a kernel");
        let (a, b) = (device.zeros(700).expect("memory"), device.zeros(700).expect("memory"));
        let graph = device
            .capture(&mut || {
                fill(&device, &kernel, &a, 4.0)?;
                device.copy(&a, 0, &b, 0, 300)?;
                fill(&device, &kernel, &a, 5.0)
            })
            .expect("recorded");
        assert_eq!(read(&device, &a), [0.0; 700], "nothing was done");
        for _ in 0..3 {
            graph.launch().expect("launched");
            assert!(read(&device, &a) == [5.0; 700] && read(&device, &b)[..300] == [4.0; 300]);
            device.clear(&a).expect("cleared");
            device.clear(&b).expect("cleared");
        }
    }
}

#[test]
fn what_other_threads_do_is_not_recorded() {
    let _driver = emulated!();
    let device = Device::open(0).expect("a device");
    let kernel = device.kernel("spk_fill").expect("a kernel");
    let (a, b) = (device.zeros(100).expect("memory"), device.zeros(100).expect("memory"));
    let graph = device
        .capture(&mut || {
            fill(&device, &kernel, &a, 1.0)?;
            std::thread::scope(|scope| {
                scope.spawn(|| fill(&device, &kernel, &b, 2.0)).join().expect("no panic").expect("launched");
            });
            Ok(())
        })
        .expect("recorded");
    assert!(read(&device, &a) == [0.0; 100] && read(&device, &b) == [2.0; 100]);
    device.clear(&b).expect("cleared");
    graph.launch().expect("launched");
    assert!(read(&device, &a) == [1.0; 100] && read(&device, &b) == [0.0; 100]);
}

#[test]
fn what_cannot_be_recorded_is_refused_and_leaves_the_device_usable() {
    let _driver = emulated!();
    let device = Device::open(0).expect("a device");
    let kernel = device.kernel("spk_fill").expect("a kernel");
    let a = device.zeros(100).expect("memory");
    for attempt in 0..2 {
        let refused = device.capture(&mut || {
            fill(&device, &kernel, &a, 1.0)?;
            if attempt == 0 { device.write(&a, 0, &[1.0]) } else { device.read(&a, 0, &mut [0.0]) }
        });
        let error = reason(refused.err().expect("refused"));
        assert!(error.contains("cannot be recorded"), "{error}");
    }
    fill(&device, &kernel, &a, 3.0).expect("launched");
    assert_eq!(read(&device, &a), [3.0; 100]);
}

#[test]
fn drivers_and_cards_that_will_not_do_say_why() {
    let mut driver = emulated!();
    let cases = [
        ("SIMT_DRIVER_VERSION", "11080", "too old: it is for CUDA 11.8; 12.0 (driver 525)"),
        ("SIMT_DEVICES", "0", "CUDA_VISIBLE_DEVICES"),
        ("SIMT_CAPABILITY", "7.5", "compute capability 7.5; 8.0 or later is needed"),
        ("SIMT_REFUSE_PTX", "1", "refuses spikelet's kernels"),
        ("SIMT_MEMORY", "64", ""),
    ];
    for (variable, value, words) in cases {
        driver.set(variable, value);
        let opened = Device::open(0);
        if words.is_empty() {
            let error = reason(opened.expect("room for a context").zeros::<f32>(1000).expect_err("refused"));
            assert!(error.contains("out of memory: 4.0 kB were asked for"), "{error}");
        } else {
            let error = refused(opened);
            assert!(error.starts_with("cuda:0: ") && error.contains(words), "{error}");
            let survey = Survey::take();
            let problem = survey.problem.or_else(|| survey.cards[0].problem.clone()).expect("a problem");
            assert!(problem.contains(words), "{problem}");
            assert_eq!(survey.driver.as_deref(), Some(if value == "11080" { "11.8" } else { "12.8" }));
        }
        driver.unset(variable);
        Device::open(0).expect("as before");
    }
    let error = refused(Device::open(1));
    assert!(error.contains("cuda:1: there is no such GPU; this process sees 1 GPU, cuda:0"), "{error}");
}

#[test]
fn a_lost_device_is_an_error_for_all_that_is_on_it_and_no_panic() {
    let mut driver = emulated!();
    let device = Device::open(0).expect("a device");
    let kernel = device.kernel("spk_fill").expect("a kernel");
    let buffer = device.zeros(100).expect("memory");
    let graph = device.capture(&mut || fill(&device, &kernel, &buffer, 1.0)).expect("recorded");
    driver.set("SIMT_LOST_AFTER", "1");
    let mut errors = Vec::new();
    for _ in 0..3 {
        errors.extend(fill(&device, &kernel, &buffer, 1.0).and_then(|()| device.synchronize()).err());
    }
    errors.extend(device.write(&buffer, 0, &[1.0]).err());
    errors.extend(device.read(&buffer, 0, &mut [1.0]).err());
    errors.extend(device.zeros::<f32>(1).err());
    errors.extend(device.memory().err());
    errors.extend(graph.launch().err());
    errors.extend(device.capture(&mut || Ok(())).err());
    assert!(errors.len() >= 8, "{errors:?}");
    for error in errors {
        let error = reason(error);
        assert!(error.starts_with("cuda:0: ") && error.contains("dropped"), "{error}");
    }
    drop((graph, buffer, kernel, device));
    driver.unset("SIMT_LOST_AFTER");
    Device::open(0).expect("another one is as good as new");
}
