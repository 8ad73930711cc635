//! The promise of generation on a GPU: the same bits as on the CPU. The kernels run under an emulated driver (kernels/simt).
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
mod emulated;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::{HIDDEN, Random, VOCAB, WIDE, bits, golden, load, random_model, random_model_of};
use emulated::driver;
use spikelet::Error;
use spikelet::backend::{DeviceRunner, LogitsWanted, PassRow, Runner};
use spikelet::cuda::Driver;
use spikelet::decode::{Decoder, Event, Events, Request, SequenceState, StopRules};
use spikelet::draft::{Method, SpeculativeConfig};
use spikelet::model::{DeviceChoice, LoadOptions, Model};
use spikelet::sampler::SamplingParams;
use spikelet::state::Slot;
use spikelet::tokenizer::bytes::Bytes;
use spikelet::weights::{Checkpoint, Dtype, Quantization, TensorView, quantize, save_safetensors};
use spikelet_simd::convert::f32_to_bf16;
use spikelet_simd::{Cpu, Level, WeightFormat};

const FORMATS: [WeightFormat; 4] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Q8];
const KINDS: [(&str, &str); 6] = [
    ("spikegpt", r#""model_type": "spikegpt", "variant": "rwkv", "spike_embedding": true"#),
    (
        "spikegpt, real embedding, halved",
        r#""model_type": "spikegpt", "variant": "rwkv", "spike_embedding": false, "rescale_every": 1"#,
    ),
    ("spikegpt, ffnPre", r#""model_type": "spikegpt", "variant": "rwkv-ffnpre", "spike_embedding": true"#),
    (
        "spikegpt, learned decay",
        r#""model_type": "spikegpt", "variant": "rwkv", "spike_embedding": true, "neuron": "plif""#,
    ),
    (
        "spikegpt, no neurons",
        r#""model_type": "spikegpt", "variant": "rwkv", "spike_embedding": true, "neuron": "none""#,
    ),
    ("rwkv4", r#""model_type": "rwkv4""#),
];
const DRIVERS: [Driver; 3] = [Driver::Chain, Driver::Graph, Driver::Cooperative];

fn ids(seed: u64, len: usize) -> Vec<u32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.below(VOCAB) as u32).collect()
}

fn on_cpu(folder: &Path, format: Option<WeightFormat>) -> Arc<Model> {
    load(folder, LoadOptions { format, device: DeviceChoice::Cpu, ..LoadOptions::default() })
}

fn on_gpu(folder: &Path, format: Option<WeightFormat>) -> Arc<Model> {
    let model = load(folder, LoadOptions { format, device: DeviceChoice::Cuda(0), ..LoadOptions::default() });
    assert_eq!(model.device(), "cuda:0");
    model
}

/// A runner, on a GPU one that launches passes like this.
fn runner(model: &Arc<Model>, driver: Driver) -> DeviceRunner {
    let mut runner = model.runner().unwrap();
    if let DeviceRunner::Cuda(runner) = &mut runner {
        runner.drive_by(driver);
    }
    runner
}

/// Runs `check` on every kind of model in every format: its name, on the CPU, on the GPU.
fn each_model(check: impl Fn(&str, &Arc<Model>, &Arc<Model>)) {
    for (name, config) in KINDS {
        let folder = tempfile::tempdir().unwrap();
        random_model(folder.path(), 7, config);
        for format in FORMATS {
            let (cpu, gpu) = (on_cpu(folder.path(), Some(format)), on_gpu(folder.path(), Some(format)));
            assert_eq!(cpu.state_layout(), gpu.state_layout(), "{name}");
            check(&format!("{name}, {format:?}"), &cpu, &gpu);
        }
    }
}

/// Everything that a pass leaves, in bits: logits, residual stream, and the state of these slots.
fn after(runner: &DeviceRunner, slots: &[Slot]) -> [Vec<u32>; 3] {
    let states = slots.iter().flat_map(|&slot| bits(&runner.read_state(slot).unwrap())).collect();
    [bits(runner.logits()), bits(runner.hidden()), states]
}

/// Logits and residual stream of every token, and the state at the end, of one row in pieces of these lengths.
fn run(model: &Arc<Model>, driver: Driver, ids: &[u32], pieces: &[usize]) -> [Vec<u32>; 3] {
    let mut runner = runner(model, driver);
    let slot = runner.alloc_slot().unwrap();
    let mut all: [Vec<u32>; 3] = Default::default();
    let mut rest = ids;
    for &piece in pieces {
        let tokens;
        (tokens, rest) = rest.split_at(piece.min(rest.len()));
        runner.forward(&[PassRow { slot, tokens, logits: LogitsWanted::All, keep: &[slot] }]).unwrap();
        let [logits, hidden, state] = after(&runner, &[slot]);
        all[0].extend(logits);
        all[1].extend(hidden);
        all[2] = state;
    }
    assert!(rest.is_empty(), "the pieces cover the ids");
    all
}

#[test]
fn every_kind_of_model_gives_the_same_bits_however_a_text_is_cut() {
    let Some(mut emulated) = driver() else { return };
    emulated.set("SIMT_SMS", "2");
    let ids = ids(1, 23);
    each_model(|name, cpu, gpu| {
        let wanted = run(cpu, Driver::Chain, &ids, &[23]);
        for (i, cut) in [vec![1; 23], vec![2; 12], vec![3, 4, 8, 8], vec![23]].iter().enumerate() {
            let found = run(gpu, DRIVERS[i % 3], &ids, cut);
            assert!(found == wanted, "{name}: passes of {cut:?}, {:?}", DRIVERS[i % 3]);
        }
    });
}

#[test]
fn long_passes_give_the_same_bits() {
    let Some(mut emulated) = driver() else { return };
    let ids = ids(6, 147);
    // Few multiprocessors make tiles large, many make them small.
    emulated.set("SIMT_SMS", "1");
    each_model(|name, cpu, gpu| {
        let ids = &ids[..73];
        assert!(run(gpu, Driver::Chain, ids, &[73]) == run(cpu, Driver::Chain, ids, &[73]), "{name}");
    });
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 12, KINDS[1].1);
    for format in FORMATS {
        let wanted = run(&on_cpu(folder.path(), Some(format)), Driver::Chain, &ids, &[147]);
        for multiprocessors in ["1", "1000"] {
            emulated.set("SIMT_SMS", multiprocessors);
            let found = run(&on_gpu(folder.path(), Some(format)), Driver::Chain, &ids, &[9, 130, 8]);
            assert!(found == wanted, "{format:?}, {multiprocessors} multiprocessors");
        }
    }
}

#[test]
fn many_rows_of_one_token_give_the_same_bits() {
    let Some(_driver) = driver() else { return };
    let texts: Vec<Vec<u32>> = (0..33).map(|i| ids(50 + i, 3)).collect();
    each_model(|name, cpu, gpu| {
        let decode = |model: &Arc<Model>, driver: Driver| {
            let mut runner = runner(model, driver);
            let slots: Vec<Slot> = texts.iter().map(|_| runner.alloc_slot().unwrap()).collect();
            let mut all = Vec::new();
            for step in 0..3 {
                let row = |i: usize| PassRow {
                    slot: slots[i],
                    tokens: &texts[i][step..=step],
                    logits: LogitsWanted::Last,
                    keep: &slots[i..=i],
                };
                let rows: Vec<PassRow<'_>> = (0..texts.len()).map(row).collect();
                runner.forward(&rows).unwrap();
                all.push(after(&runner, &slots));
            }
            all
        };
        let wanted = decode(cpu, Driver::Chain);
        for driver in [Driver::Chain, Driver::Graph] {
            assert!(decode(gpu, driver) == wanted, "{name}, {driver:?}");
        }
    });
}

#[test]
fn the_order_of_threads_and_the_number_of_blocks_change_no_bit() {
    let Some(mut emulated) = driver() else { return };
    let ids = ids(2, 9);
    for (kind, format) in [(0, WeightFormat::F32), (2, WeightFormat::Q8), (5, WeightFormat::Bf16)] {
        let folder = tempfile::tempdir().unwrap();
        random_model(folder.path(), 8, KINDS[kind].1);
        let wanted = run(&on_cpu(folder.path(), Some(format)), Driver::Chain, &ids, &[9]);
        for (order, blocks) in [("forward", "1"), ("reverse", "3"), ("shuffled", "13")] {
            emulated.set("SIMT_ORDER", order);
            emulated.set("SIMT_SMS", blocks);
            let gpu = on_gpu(folder.path(), Some(format));
            assert!(run(&gpu, Driver::Chain, &ids, &[9]) == wanted, "{format:?}: {order}, {blocks} blocks, at once");
            for driver in [Driver::Chain, Driver::Cooperative] {
                let found = run(&gpu, driver, &ids, &[1, 3, 5]);
                assert!(found == wanted, "{:?}, {format:?}: {order}, {blocks} blocks, {driver:?}", KINDS[kind].0);
            }
        }
    }
}

/// What a ragged batch leaves: rows that begin from states of their own, keep one state or all, in place or elsewhere, and want no
/// logits, the last, or all.
fn ragged(model: &Arc<Model>, driver: Driver, lens: [usize; 4]) -> [Vec<u32>; 3] {
    let mut runner = runner(model, driver);
    let mut slots: Vec<Slot> = (0..4).map(|_| runner.alloc_slot().unwrap()).collect();
    // States that differ.
    for (i, &slot) in slots.iter().enumerate() {
        let tokens = ids(20 + i as u64, i);
        if i > 0 {
            runner.forward(&[PassRow { slot, tokens: &tokens, logits: LogitsWanted::None, keep: &[slot] }]).unwrap();
        }
    }
    let texts: Vec<Vec<u32>> = lens.iter().enumerate().map(|(i, &len)| ids(30 + i as u64, len)).collect();
    // The first keeps every state, the last of them in place; the second its last, in place; the third every state elsewhere; the
    // fourth its last elsewhere.
    let mut keeps: Vec<Vec<Slot>> = Vec::new();
    for (i, &len) in lens.iter().enumerate() {
        let count = if i % 2 == 0 { len } else { 1 };
        let mut keep: Vec<Slot> = (0..count).map(|_| runner.alloc_slot().unwrap()).collect();
        if i == 0 {
            *keep.last_mut().unwrap() = slots[0];
        }
        if i == 1 {
            keep[0] = slots[1];
        }
        keeps.push(keep);
    }
    let wants = [LogitsWanted::All, LogitsWanted::Last, LogitsWanted::None, LogitsWanted::Last];
    let rows: Vec<PassRow<'_>> =
        (0..4).map(|i| PassRow { slot: slots[i], tokens: &texts[i], logits: wants[i], keep: &keeps[i] }).collect();
    runner.forward(&rows).unwrap();
    slots.extend(keeps.iter().flatten());
    after(&runner, &slots)
}

#[test]
fn rows_beside_each_other_and_states_kept_give_the_same_bits() {
    let Some(mut emulated) = driver() else { return };
    emulated.set("SIMT_SMS", "2");
    each_model(|name, cpu, gpu| {
        for (lens, driver) in
            [([3, 1, 2, 1], Driver::Chain), ([1, 2, 1, 4], Driver::Cooperative), ([5, 19, 3, 66], Driver::Chain)]
        {
            assert!(ragged(gpu, driver, lens) == ragged(cpu, driver, lens), "{name}: rows of {lens:?}, {driver:?}");
        }
    });
}

#[test]
fn longer_rows_beside_each_other_give_the_same_bits() {
    let Some(_driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 9, KINDS[0].1);
    let (cpu, gpu) = (on_cpu(folder.path(), None), on_gpu(folder.path(), None));
    for lens in [[5, 6, 7, 8], [9, 17, 1, 2], [20, 30, 11, 9]] {
        assert!(ragged(&gpu, Driver::Chain, lens) == ragged(&cpu, Driver::Chain, lens), "rows of {lens:?}");
    }
}

#[test]
fn shapes_that_fill_no_block_no_group_and_no_span_give_the_same_bits() {
    let Some(mut emulated) = driver() else { return };
    emulated.set("SIMT_SMS", "3");
    // Vocabulary, hidden and intermediate size. Of the last, too much for passes of 8 to find room: they are cut, or go another way.
    for (i, [vocab, hidden, wide]) in
        [[9, 1, 1], [30, 33, 67], [17, 300, 130], [70, 65, 1031], [40, 24, 9000]].into_iter().enumerate()
    {
        let folder = tempfile::tempdir().unwrap();
        random_model_of([vocab, hidden, wide, 1], folder.path(), 5, KINDS[i].1, 2.0);
        let ids: Vec<u32> = ids(6, 12).iter().map(|id| id % vocab as u32).collect();
        for format in FORMATS {
            let wanted = run(&on_cpu(folder.path(), Some(format)), Driver::Chain, &ids, &[12]);
            let gpu = on_gpu(folder.path(), Some(format));
            for (driver, cut) in [(Driver::Chain, vec![1, 3, 8]), (Driver::Cooperative, vec![2, 2, 8])] {
                let found = run(&gpu, driver, &ids, &cut);
                assert!(found == wanted, "[{vocab}, {hidden}, {wide}], {format:?}, {driver:?}");
            }
        }
    }
}

#[test]
fn loading_tells_how_far_it_is_and_stops_when_told_so() {
    let Some(_driver) = driver() else { return };
    let load = |tell: &mut (dyn FnMut(u64, u64) -> ControlFlow<()> + Send)| {
        let options = LoadOptions { device: DeviceChoice::Cuda(0), ..LoadOptions::default() };
        Model::load_with(&golden("spikegpt-tiny"), &options, tell).map(drop)
    };
    let mut calls = Vec::new();
    load(&mut |done, total| {
        calls.push((done, total));
        ControlFlow::Continue(())
    })
    .unwrap();
    let total = calls[0].1;
    assert!(calls.iter().all(|c| c.1 == total) && calls.is_sorted(), "{calls:?}");
    assert_eq!((calls.first(), calls.last()), (Some(&(0, total)), Some(&(total, total))));
    assert!(matches!(load(&mut |_, _| ControlFlow::Break(())), Err(Error::Cancelled)));
}

#[test]
fn weights_that_are_no_numbers_are_refused_in_the_words_of_the_cpu() {
    let Some(_driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("blocks.1.ffn.key.weight", f32::INFINITY),
        ("blocks.0.att.output.weight", f32::NAN),
        ("head.weight", 70_000.0),
        ("emb.weight", f32::NEG_INFINITY),
        ("blocks.1.ln2.bias", f32::NAN),
    ] {
        random_model(folder.path(), 12, KINDS[5].1);
        let path = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let view = checkpoint.get(name).unwrap();
        let at = bytes.windows(64).position(|window| window == &view.bytes[..64]).unwrap();
        drop(checkpoint);
        bytes[at + 40..at + 44].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        for format in [WeightFormat::F16, WeightFormat::Q8] {
            let refused = |device| {
                let options = LoadOptions { format: Some(format), device, ..LoadOptions::default() };
                Model::load(folder.path(), &options).err().map(|error| error.to_string())
            };
            let found = refused(DeviceChoice::Cuda(0));
            assert_eq!(found, refused(DeviceChoice::Cpu), "{name} {value}");
            assert!(found.is_some() || value == 70_000.0, "{name} {value}");
        }
    }
}

#[test]
fn the_golden_models_give_the_same_bits() {
    let Some(_driver) = driver() else { return };
    for name in ["spikegpt-tiny", "spikegpt-tiny-ffnpre", "spikegpt-tiny-realemb", "rwkv4-tiny"] {
        let (cpu, gpu) = (on_cpu(&golden(name), None), on_gpu(&golden(name), None));
        let vocab = cpu.config().vocab_size;
        let ids: Vec<u32> = ids(3, 20).iter().map(|id| id % vocab as u32).collect();
        let wanted = run(&cpu, Driver::Chain, &ids, &[20]);
        for driver in DRIVERS {
            assert!(run(&gpu, driver, &ids, &[1, 1, 2, 8, 8]) == wanted, "{name}, {driver:?}");
        }
        assert!(run(&gpu, Driver::Chain, &ids, &[20]) == wanted, "{name}, at once");
    }
}

/// Adds inputs that are kept apart to every matrix of a quantised model: up to all of them, each matrix its own number.
fn add_outliers(folder: &Path, seed: u64) {
    let path = folder.join("model.safetensors");
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut random = Random(seed);
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for name in checkpoint.names() {
        let view = checkpoint.get(name).unwrap();
        tensors.push((name.into(), view.dtype, view.shape.to_vec(), view.bytes.to_vec()));
        let Some(matrix) = name.strip_suffix(".scale") else { continue };
        let codes = checkpoint.get(matrix).unwrap();
        let inputs = match codes.dtype {
            Dtype::I8 => codes.shape[1],
            _ if matrix.ends_with("ffn.value.weight") => WIDE,
            _ => HIDDEN,
        };
        let outputs = view.shape[0];
        let outliers: Vec<i32> = match random.below(4) {
            0 => continue,
            1 => (0..inputs as i32).collect(),
            n => (0..inputs as i32).filter(|_| random.below(4 * n) == 0).collect(),
        };
        let weights = (0..outputs * outliers.len()).map(|_| f32_to_bf16(random.signed() * 0.3));
        let weights = weights.flat_map(u16::to_le_bytes).collect();
        let shape = vec![outputs, outliers.len()];
        let indices = outliers.iter().flat_map(|i| i.to_le_bytes()).collect();
        tensors.push((format!("{matrix}.outliers"), Dtype::I32, vec![outliers.len()], indices));
        tensors.push((format!("{matrix}.outlier_weight"), Dtype::Bf16, shape, weights));
    }
    drop(checkpoint);
    let views: Vec<_> =
        tensors.iter().map(|(name, dtype, shape, bytes)| TensorView { name, dtype: *dtype, shape, bytes }).collect();
    save_safetensors(&path, &views, &BTreeMap::new()).unwrap();
}

#[test]
fn quantised_files_with_inputs_kept_apart_give_the_same_bits() {
    let Some(_driver) = driver() else { return };
    let ids = ids(4, 14);
    let folder = tempfile::tempdir().unwrap();
    for (seed, (kind, stored)) in
        [(0, WeightFormat::Q8), (1, WeightFormat::Q8), (5, WeightFormat::Q8), (2, WeightFormat::Q4)]
            .into_iter()
            .enumerate()
    {
        random_model(folder.path(), 11, KINDS[kind].1);
        let small = folder.path().join(format!("small{seed}"));
        let how = Quantization { format: stored, calibration: None };
        let quietly = &mut |_, _| ControlFlow::Continue(());
        quantize(&Checkpoint::open(folder.path()).unwrap(), &small, how, &Cpu::new(Level::best(), 1), quietly).unwrap();
        add_outliers(&small, seed as u64);
        for format in FORMATS {
            let wanted = run(&on_cpu(&small, Some(format)), Driver::Chain, &ids, &[14]);
            let gpu = on_gpu(&small, Some(format));
            assert!(run(&gpu, Driver::Chain, &ids, &[14]) == wanted, "{}, {stored:?} as {format:?}", KINDS[kind].0);
            for (driver, cut) in DRIVERS.into_iter().zip([vec![1, 1, 4, 8], vec![2, 12], vec![6, 1, 7]]) {
                let found = run(&gpu, driver, &ids, &cut);
                assert!(found == wanted, "{}, {stored:?} as {format:?}, {driver:?}", KINDS[kind].0);
            }
        }
    }
}

#[test]
fn little_shared_memory_changes_no_bit() {
    let Some(mut emulated) = driver() else { return };
    emulated.set("SIMT_SMS", "3");
    let ids = ids(7, 13);
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    for kind in [0, 2] {
        random_model_of([VOCAB, 88, 1000, 2], folder.path(), 13, KINDS[kind].1, 2.0);
        let how = Quantization { format: WeightFormat::Q8, calibration: None };
        let quietly = &mut |_, _| ControlFlow::Continue(());
        quantize(&Checkpoint::open(folder.path()).unwrap(), &small, how, &Cpu::new(Level::best(), 1), quietly).unwrap();
        add_outliers(&small, kind as u64);
        for (folder, format) in
            [(folder.path(), WeightFormat::F32), (folder.path(), WeightFormat::Q8), (&small, WeightFormat::Q8)]
        {
            let wanted = run(&on_cpu(folder, Some(format)), Driver::Chain, &ids, &[13]);
            for room in [14, 20, 34] {
                emulated.set("SIMT_SHARED", &(room << 10).to_string());
                let gpu = on_gpu(folder, Some(format));
                for (driver, cut) in [(Driver::Chain, vec![1, 4, 8]), (Driver::Cooperative, vec![2, 3, 8])] {
                    let found = run(&gpu, driver, &ids, &cut);
                    assert!(found == wanted, "{}, {format:?}, {room} KB, {driver:?}", KINDS[kind].0);
                }
            }
        }
    }
}

#[test]
fn the_bundled_model_gives_the_same_bits() {
    let Some(_driver) = driver() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/spikelet/bundled");
    let ids: Vec<u32> = ids(5, 12).iter().map(|id| id * 31).collect();
    for format in [WeightFormat::F16, WeightFormat::Q8] {
        let wanted = run(&on_cpu(&folder, Some(format)), Driver::Chain, &ids, &[12]);
        let gpu = on_gpu(&folder, Some(format));
        assert!(run(&gpu, Driver::Chain, &ids, &[1, 1, 8, 2]) == wanted, "{format:?}");
        assert!(run(&gpu, Driver::Cooperative, &ids, &[1, 3, 8]) == wanted, "{format:?}");
        assert!(run(&gpu, Driver::Chain, &ids, &[12]) == wanted, "{format:?}, at once");
    }
}

/// Ids, bits of their log probabilities, and final state of every request.
fn generate(model: &Arc<Model>, requests: &[Request]) -> Vec<(Vec<u32>, Vec<u32>, SequenceState)> {
    let mut decoder = Decoder::new(model.runner().unwrap(), Arc::new(Bytes::new()));
    let rows: Vec<_> = requests.iter().map(|request| decoder.add(request).unwrap()).collect();
    let mut told = vec![(Vec::new(), Vec::new()); rows.len()];
    let mut events = Events::new();
    while !decoder.is_idle() {
        decoder.step(&mut events).unwrap();
        for event in events.iter() {
            if let Event::Token { row, id, logprob, .. } = event {
                let (ids, logprobs) = &mut told[rows.iter().position(|r| *r == row).unwrap()];
                ids.push(id);
                logprobs.push(logprob.to_bits());
            }
        }
    }
    let finish = |((ids, logprobs), row)| (ids, logprobs, decoder.take_state(row).unwrap());
    told.into_iter().zip(rows).map(finish).collect()
}

#[test]
fn texts_are_those_of_the_cpu_with_drafts_and_where_a_session_goes_on() {
    let Some(_driver) = driver() else { return };
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 11, KINDS[3].1);
    let (cpu, gpu) = (on_cpu(folder.path(), None), on_gpu(folder.path(), None));
    let request = |row: u32, len: u32, max_new_tokens, temperature, method| Request {
        prompt: (0..len).map(|i| (i * i + row) % 7 + 1).collect(),
        sampling: SamplingParams { temperature, top_p: 0.9, seed: 9, ..Default::default() },
        stop: StopRules { max_new_tokens, ignore_eos: true, ..Default::default() },
        speculative: SpeculativeConfig { method, num_tokens: Some(4), ..Default::default() },
        row,
        keep_state: true,
        ..Default::default()
    };
    let mut requests = [
        request(0, 3, 14, 0.0, Method::NGram),
        request(1, 21, 9, 1.0, Method::Off),
        request(2, 1, 18, 0.7, Method::NGram),
    ];
    let told = generate(&cpu, &requests);
    assert!(generate(&gpu, &requests) == told, "three rows");
    // On the one what the other has begun.
    for (request, (.., state)) in requests.iter_mut().zip(&told) {
        request.start = Some(Arc::new(state.clone()));
        request.prompt.truncate(2);
    }
    assert!(generate(&gpu, &requests) == generate(&cpu, &requests), "three rows that go on");
}

#[test]
fn slots_are_copied_reset_and_written_like_those_on_the_cpu() {
    let Some(_driver) = driver() else { return };
    let gpu = on_gpu(&golden("spikegpt-tiny"), None);
    let mut runner = gpu.runner().unwrap();
    let slots: Vec<Slot> = (0..30).map(|_| runner.alloc_slot().unwrap()).collect();
    let fresh = runner.read_state(slots[0]).unwrap();
    let keep = [slots[1]];
    let row = PassRow { slot: slots[0], tokens: &[1, 2, 3], logits: LogitsWanted::Last, keep: &keep };
    runner.forward(&[row]).unwrap();
    assert_eq!(runner.read_state(slots[0]).unwrap(), fresh);
    let moved = runner.read_state(slots[1]).unwrap();
    assert_ne!(moved, fresh);
    runner.copy_slot(slots[1], slots[29]).unwrap();
    assert_eq!(runner.read_state(slots[29]).unwrap(), moved);
    runner.reset_slot(slots[1]).unwrap();
    assert_eq!(runner.read_state(slots[1]).unwrap(), fresh);
    runner.write_state(slots[1], &moved).unwrap();
    assert_eq!(runner.read_state(slots[1]).unwrap(), moved);
    assert!(runner.write_state(slots[1], &moved[1..]).is_err());
    let mut bad = moved.clone();
    bad[3] = f32::NAN;
    assert!(runner.write_state(slots[1], &bad).is_err());
    assert_eq!(runner.read_state(slots[1]).unwrap(), moved, "a refused state changes nothing");
    runner.free_slot(slots[29]);
    assert_eq!(runner.alloc_slot().unwrap(), slots[29]);
    assert_eq!(runner.read_state(slots[29]).unwrap(), fresh);
}

#[test]
fn without_memory_for_another_slot_nothing_changes() {
    let Some(mut emulated) = driver() else { return };
    let gpu = on_gpu(&golden("spikegpt-tiny"), None);
    let mut runner = gpu.runner().unwrap();
    let first = runner.alloc_slot().unwrap();
    let row = PassRow { slot: first, tokens: &[1, 2], logits: LogitsWanted::Last, keep: &[first] };
    runner.forward(&[row]).unwrap();
    let state = runner.read_state(first).unwrap();
    emulated.set("SIMT_MEMORY", &emulated.memory_in_use().to_string());
    let mut taken = Vec::new();
    let error = loop {
        match runner.alloc_slot() {
            Ok(slot) => taken.push(slot),
            Err(error) => break error.to_string(),
        }
        assert!(taken.len() < 100);
    };
    assert!(error.contains("out of memory"), "{error}");
    assert_eq!(runner.read_state(first).unwrap(), state);
    runner.forward(&[row]).unwrap();
    runner.free_slot(taken.pop().unwrap());
    assert!(runner.alloc_slot().is_ok(), "a slot that was given back is there");
    emulated.unset("SIMT_MEMORY");
    assert!(runner.alloc_slot().is_ok());
}

#[test]
fn what_cannot_be_computed_there_is_an_error_that_says_so() {
    let Some(_driver) = driver() else { return };
    let options =
        |format| LoadOptions { format: Some(format), device: DeviceChoice::Cuda(0), ..LoadOptions::default() };
    let error = Model::load(&golden("spikegpt-tiny"), &options(WeightFormat::Q4)).err().unwrap().to_string();
    assert!(error.contains("q4") && error.contains("cuda:0") && error.contains("bf16"), "{error}");
    let gpu = on_gpu(&golden("spikegpt-tiny"), None);
    let mut runner = gpu.runner().unwrap();
    let slot = runner.alloc_slot().unwrap();
    let before = runner.read_state(slot).unwrap();
    let row = PassRow { slot, tokens: &[1, 1 << 20], logits: LogitsWanted::Last, keep: &[slot] };
    assert!(runner.forward(&[row]).unwrap_err().to_string().contains("token id"));
    assert_eq!(runner.read_state(slot).unwrap(), before);
}
