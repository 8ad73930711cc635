//! Builders of model files for tests: pickles, zip archives, `.pth` files, safetensors files.
#![allow(dead_code)] // Every test program uses another part of this.

use std::path::{Path, PathBuf};

use spikelet::config::ModelType;
use spikelet::weights::{Checkpoint, Dtype, SafetensorsFile, TensorView};

/// A folder of the repository's `tests`.
pub fn tests_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests")
}

/// A model with known answers.
pub fn golden(name: &str) -> PathBuf {
    tests_folder().join("golden").join(name)
}

/// A `.pth` file that PyTorch wrote, or what it must read as.
pub fn sample(name: &str) -> PathBuf {
    tests_folder().join("data/pth").join(name)
}

/// A tensor that owns its bytes.
#[derive(Clone, Debug)]
pub struct Owned {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Owned {
    pub fn view(&self) -> TensorView<'_> {
        TensorView { name: &self.name, dtype: self.dtype, shape: &self.shape, bytes: &self.bytes }
    }
}

/// All tensors of a safetensors file.
pub fn tensors(path: &Path) -> Vec<Owned> {
    let file = SafetensorsFile::open(path).expect("a readable file");
    let owned = |name: &str| {
        let view = file.get(name).expect("a listed tensor");
        Owned { name: name.into(), dtype: view.dtype, shape: view.shape.to_vec(), bytes: view.bytes.to_vec() }
    };
    file.names().map(owned).collect()
}

/// A safetensors file of any header and data.
pub fn raw_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// Writes pickles operation by operation.
#[derive(Clone, Default)]
pub struct Pickler(pub Vec<u8>);

impl Pickler {
    pub fn new() -> Pickler {
        Pickler(vec![0x80, 2])
    }

    pub fn op(mut self, bytes: &[u8]) -> Pickler {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn str(self, text: &str) -> Pickler {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    pub fn int(self, value: usize) -> Pickler {
        self.op(&[0x8a, 8]).op(&(value as u64).to_le_bytes())
    }

    pub fn global(self, module: &str, name: &str) -> Pickler {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn ints(self, values: &[usize]) -> Pickler {
        values.iter().fold(self.op(b"("), |p, &v| p.int(v)).op(b"t")
    }

    /// A storage, as a persistent id.
    pub fn storage(self, key: &str, class: &str, numel: usize, legacy: bool) -> Pickler {
        let p = self.op(b"(").str("storage").global("torch", class).str(key).str("cpu").int(numel);
        if legacy { p.op(b"N").op(b"tQ") } else { p.op(b"tQ") }
    }

    /// A tensor over the whole of its storage.
    pub fn tensor(self, key: &str, tensor: &Owned, legacy: bool) -> Pickler {
        let numel = tensor.bytes.len() / tensor.dtype.size();
        let mut strides = vec![1; tensor.shape.len()];
        for d in (1..tensor.shape.len()).rev() {
            strides[d - 1] = strides[d] * tensor.shape[d];
        }
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(")
            .storage(key, class_of(tensor.dtype), numel, legacy)
            .int(0)
            .ints(&tensor.shape)
            .ints(&strides)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }

    pub fn dict_of_tensors(self, tensors: &[Owned], legacy: bool) -> Pickler {
        let p = self.global("collections", "OrderedDict").op(b")R(");
        let add = |p: Pickler, (i, t): (usize, &Owned)| p.str(&t.name).tensor(&i.to_string(), t, legacy);
        tensors.iter().enumerate().fold(p, add).op(b"u")
    }

    pub fn stop(mut self) -> Vec<u8> {
        self.0.push(b'.');
        self.0
    }
}

fn class_of(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::Bf16 => "BFloat16Storage",
        _ => "LongStorage",
    }
}

/// A zip archive of stored members.
pub fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let place = file.len() as u32;
        // Version, flags, method, time and date, checksum (not read), both sizes, lengths of name and extra.
        let mut common = vec![0; 2 + 2 + 2 + 4 + 4];
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(*bytes);
        directory.extend(b"PK\x01\x02\0\0");
        directory.extend(&common);
        directory.extend([0; 2 + 2 + 2 + 4]);
        directory.extend(place.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([members.len() as u16; 2].iter().flat_map(|n| n.to_le_bytes()));
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

/// A `.pth` file with this pickle and no storages.
pub fn zip_pth(pickle: &[u8]) -> Vec<u8> {
    zip(&[("archive/data.pkl", pickle), ("archive/version", b"3\n")])
}

/// A `.pth` file in the zip layout.
pub fn zip_pth_of(tensors: &[Owned]) -> Vec<u8> {
    let pickle = Pickler::new().dict_of_tensors(tensors, false).stop();
    let names: Vec<String> = (0..tensors.len()).map(|i| format!("archive/data/{i}")).collect();
    let mut members: Vec<(&str, &[u8])> = vec![("archive/data.pkl", &pickle), ("archive/byteorder", b"little")];
    members.extend(names.iter().zip(tensors).map(|(name, t)| (name.as_str(), t.bytes.as_slice())));
    zip(&members)
}

/// What every file in the layout before PyTorch 1.6 begins with.
pub fn legacy_start() -> Vec<u8> {
    let mut file = Pickler::new().op(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19").stop();
    file.extend(Pickler::new().int(1001).stop());
    file.extend(Pickler::new().op(b"}").str("little_endian").op(b"\x88s").stop());
    file
}

/// A `.pth` file in the layout before PyTorch 1.6.
pub fn legacy_pth_of(tensors: &[Owned]) -> Vec<u8> {
    let mut file = legacy_start();
    file.extend(Pickler::new().dict_of_tensors(tensors, true).stop());
    let keys = (0..tensors.len()).fold(Pickler::new().op(b"]("), |p, i| p.str(&i.to_string()));
    file.extend(keys.op(b"e").stop());
    for tensor in tensors {
        let numel = tensor.bytes.len() / tensor.dtype.size();
        file.extend((numel as u64).to_le_bytes());
        file.extend(&tensor.bytes);
    }
    file
}

/// Runs one (ignored) test of this test program in a process of its own under limits of the shell's `ulimit`.
/// Gives its output if it passed.
#[cfg(unix)]
pub fn run_limited(limit: &str, test: &str, environment: &[(&str, &Path)]) -> Result<String, String> {
    let program = std::env::current_exe().expect("the path of this program");
    // A process that writes past its limit gets a signal first; ignored, the write fails as on a full disk.
    let script =
        format!("trap '' XFSZ; ulimit {limit} && exec \"$0\" --exact {test} --ignored --nocapture --test-threads=1");
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(script).arg(program).envs(environment.iter().copied());
    let output = command.output().expect("a shell");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let ran = text.contains("1 passed");
    if output.status.success() && ran { Ok(text) } else { Err(text) }
}

/// The message with which a `.pth` file of these bytes is refused.
pub fn refused_pth(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.pth");
    std::fs::write(&path, bytes).expect("written");
    let error = Checkpoint::open_with(&path, Some(ModelType::Rwkv4)).expect_err("must be refused");
    error.to_string().replace(&folder.path().display().to_string(), "")
}

/// A vector.
pub fn tensor(name: &str, values: &[f32]) -> Owned {
    Owned {
        name: name.into(),
        dtype: Dtype::F32,
        shape: vec![values.len()],
        bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}
