//! Broken and hostile model files are refused with a message that names the cause.

use std::path::Path;

use spikelet::weights::Checkpoint;

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

#[test]
fn every_golden_model_opens() {
    for name in [
        "spikegpt-tiny",
        "spikegpt-tiny-realemb",
        "spikegpt-tiny-ffnpre",
        "rwkv4-tiny",
    ] {
        let checkpoint = Checkpoint::open(&golden(name)).expect(name);
        assert_eq!(checkpoint.config().hidden_size, 64);
        for tensor in checkpoint.names() {
            let view = checkpoint.get(tensor).expect(tensor);
            checkpoint.check_finite(&view).expect(tensor);
        }
    }
}
