//! What the tests of promises share: golden folders and random models.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use spikelet::backend::{LogitsWanted, PassRow, Runner};
use spikelet::model::{LoadOptions, Model};

/// A golden folder of this repository.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// Tensors of a safetensors file, widened to f32 or i64.
pub struct Tensors(Vec<u8>);

impl Tensors {
    pub fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn raw(&self, name: &str) -> (Dtype, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        (view.dtype(), view.data().to_vec())
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        let (dtype, data) = self.raw(name);
        assert_eq!(dtype, Dtype::F32, "{name}");
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn u8(&self, name: &str) -> Vec<u8> {
        let (dtype, data) = self.raw(name);
        assert_eq!(dtype, Dtype::U8, "{name}");
        data
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let (dtype, data) = self.raw(name);
        assert_eq!(dtype, Dtype::I64, "{name}");
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }
}

/// A small, documented generator (splitmix64), so that random models are the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn signed(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }
}

/// Shape of a random model. Sizes are odd on purpose: no multiple of a block, a panel or a vector.
pub const VOCAB: usize = 131;
pub const HIDDEN: usize = 88;
pub const WIDE: usize = 200;
pub const LAYERS: usize = 2;

/// Writes a random model whose neurons fire now and then. `model_type` and the rest of the config come from `extra`.
pub fn random_model(folder: &Path, seed: u64, extra: &str) {
    random_model_with(folder, seed, extra, 2.0);
}

/// The same; learned decays are sigmoids of numbers between -`decay` and `decay`.
pub fn random_model_with(folder: &Path, seed: u64, extra: &str, decay: f32) {
    random_model_of([VOCAB, HIDDEN, WIDE, LAYERS], folder, seed, extra, decay);
}

/// The same of another shape: vocabulary, hidden and intermediate size, layers.
pub fn random_model_of(shape: [usize; 4], folder: &Path, seed: u64, extra: &str, decay: f32) {
    let [vocab, hidden, wide, layers] = shape;
    let mut random = Random(seed);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut add = |name: String, shape: &[usize], scale: f32, offset: f32| {
        let len = shape.iter().product();
        let data = (0..len).map(|_| offset + scale * random.signed()).collect();
        tensors.insert(name, (shape.to_vec(), data));
    };
    add("emb.weight".into(), &[vocab, hidden], 1.0, 0.0);
    add("head.weight".into(), &[vocab, hidden], 0.3, 0.0);
    let mut norms = vec!["blocks.0.ln0".to_string(), "ln_out".to_string()];
    for i in 0..layers {
        norms.extend([format!("blocks.{i}.ln1"), format!("blocks.{i}.ln2")]);
        let ffn_pre = extra.contains("rwkv-ffnpre") && i == 0;
        for part in if ffn_pre { ["ffnPre", "ffn"] } else { ["att", "ffn"] } {
            let prefix = format!("blocks.{i}.{part}");
            add(format!("{prefix}.time_mix_k"), &[1, 1, hidden], 0.5, 0.5);
            add(format!("{prefix}.time_mix_r"), &[1, 1, hidden], 0.5, 0.5);
            add(format!("{prefix}.receptance.weight"), &[hidden, hidden], 0.3, 0.0);
            if part == "att" {
                add(format!("{prefix}.time_mix_v"), &[1, 1, hidden], 0.5, 0.5);
                add(format!("{prefix}.time_decay"), &[hidden], 3.0, -1.0);
                add(format!("{prefix}.time_first"), &[hidden], 1.0, 0.0);
                for matrix in ["key", "value"] {
                    add(format!("{prefix}.{matrix}.weight"), &[hidden, hidden], 0.3, 0.0);
                }
                add(format!("{prefix}.output.weight"), &[hidden, hidden], 1.0, 0.0);
            } else {
                add(format!("{prefix}.key.weight"), &[wide, hidden], 0.2, 0.0);
                add(format!("{prefix}.value.weight"), &[hidden, wide], 0.2, 0.0);
            }
        }
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[hidden], 0.3, 1.0);
        add(format!("{norm}.bias"), &[hidden], 0.2, 0.0);
    }
    if extra.contains("plif") {
        // Last, so that a model with and one without a learned decay agree in all other tensors.
        for (i, site) in (0..layers).flat_map(|i| [(i, "lif1"), (i, "lif2")]) {
            add(format!("blocks.{i}.{site}.w"), &[hidden], decay, 0.0);
        }
    }
    let bytes: BTreeMap<&String, (&Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, data))| (name, (shape, data.iter().flat_map(|x| x.to_le_bytes()).collect())))
        .collect();
    let views: Vec<(&String, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, (shape, data))| (*name, TensorView::new(Dtype::F32, (*shape).clone(), data).unwrap()))
        .collect();
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let config = format!(
        r#"{{"vocab_size": {vocab}, "hidden_size": {hidden}, "num_hidden_layers": {layers}, "intermediate_size": {wide}, {extra}}}"#
    );
    std::fs::write(folder.join("config.json"), config).unwrap();
}

/// Loads with one thread unless said otherwise.
pub fn load(path: &Path, options: LoadOptions) -> Arc<Model> {
    let options = LoadOptions { threads: options.threads.or(Some(1)), ..options };
    Model::load(path, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// Logits of every token and the state after the last, bit for bit, of one row fed in pieces of the given lengths.
pub fn run(model: &Arc<Model>, ids: &[u32], pieces: impl IntoIterator<Item = usize>) -> (Vec<u32>, Vec<u32>) {
    let mut runner = model.runner().expect("a runner");
    let slot = runner.alloc_slot().expect("a slot");
    let mut logits = Vec::new();
    let mut at = 0;
    for piece in pieces {
        let end = (at + piece).min(ids.len());
        if at == end {
            break;
        }
        let row = PassRow { slot, tokens: &ids[at..end], logits: LogitsWanted::All, keep: &[slot] };
        runner.forward(&[row]).unwrap();
        logits.extend(runner.logits().iter().map(|x| x.to_bits()));
        at = end;
    }
    assert_eq!(at, ids.len(), "the pieces cover the ids");
    (logits, bits(&runner.read_state(slot).expect("a state")))
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    assert!(x.iter().all(|x| !x.is_nan()), "a value was read that had not been written");
    x.iter().map(|x| x.to_bits()).collect()
}
