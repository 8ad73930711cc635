//! The promise: what the authors' own code computes, computed here (golden vectors at their stated tolerance).
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Tensors, golden, load, run};
use spikelet::backend::{LogitsWanted, PassRow, Runner};
use spikelet::model::{LoadOptions, Trace};

const SPIKING: [&str; 3] = ["spikegpt-tiny", "spikegpt-tiny-realemb", "spikegpt-tiny-ffnpre"];

fn assert_close(found: &[f32], expected: &[f32], limit: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= limit, "{what}: differs by up to {worst:e}, allowed {limit:e}");
}

fn logits_agree(name: &str, limit: f32) {
    let folder = golden(name);
    let expected = Tensors::read(&folder.join("expected.safetensors"));
    let (ids, logits) = (expected.ids("ids"), expected.f32("logits"));
    let model = load(&folder, LoadOptions::default());
    for pieces in [vec![ids.len()], vec![1; ids.len()], vec![7; ids.len()], vec![33, 1, 2, 60]] {
        let (found, _) = run(&model, &ids, pieces.iter().copied());
        let found: Vec<f32> = found.into_iter().map(f32::from_bits).collect();
        assert_close(&found, &logits, limit, &format!("{name}, logits, pieces of {}", pieces[0]));
    }
}

#[test]
fn spikegpt_logits() {
    for name in SPIKING {
        logits_agree(name, 5e-5);
    }
}

#[test]
fn rwkv4_logits() {
    logits_agree("rwkv4-tiny", 1e-4);
}

#[test]
fn every_spike_and_the_membranes() {
    for name in SPIKING {
        let folder = golden(name);
        let expected = Tensors::read(&folder.join("expected.safetensors"));
        let ids = expected.ids("ids");
        let model = load(&folder, LoadOptions::default());
        let (layers, hidden) = (model.config().num_hidden_layers, model.config().hidden_size);
        let mut trace = Trace::new(layers, hidden);
        let mut runner = model.runner().expect("a runner");
        let slot = runner.alloc_slot().expect("a slot");
        for piece in [&ids[..50], &ids[50..51], &ids[51..]] {
            let row = PassRow { slot, tokens: piece, logits: LogitsWanted::None, keep: &[slot] };
            runner.forward_traced(row, &mut trace).unwrap();
        }
        assert_eq!(trace.tokens(), ids.len());
        let spikes = trace.spikes();
        let mut sites = spikes.chunks_exact(ids.len() * hidden);
        for layer in 0..layers {
            for lif in ["lif1", "lif2"] {
                let tensor = format!("spikes.{layer}.{lif}");
                assert!(sites.next().unwrap() == expected.u8(&tensor), "{name}: {tensor}");
            }
        }
        assert_close(&trace.firing_rates(), &expected.f32("rates"), 1e-6, &format!("{name}, rates"));
        let membranes: Vec<f32> = trace
            .membranes()
            .chunks_exact(ids.len() * hidden)
            .flat_map(|site| site[(ids.len() - 1) * hidden..].to_vec())
            .collect();
        assert_close(&membranes, &expected.f32("membrane_last"), 5e-5, &format!("{name}, membranes"));

        // The same membranes are what the state holds.
        let state = runner.read_state(slot).expect("a state");
        let held: Vec<f32> = model
            .state_layout()
            .fields()
            .iter()
            .filter(|field| field.name.ends_with("membrane"))
            .flat_map(|field| state[field.range.clone()].to_vec())
            .collect();
        assert_eq!(held, membranes, "{name}: state and trace");
    }
}

#[test]
fn rescaling_changes_nothing_in_rwkv4_and_something_in_spikegpt() {
    let differ = |name: &str| {
        let ids = Tensors::read(&golden(name).join("expected.safetensors")).ids("ids");
        let logits = |every| {
            let model = load(&golden(name), LoadOptions { rescale_every: Some(every), ..LoadOptions::default() });
            run(&model, &ids, [ids.len()]).0.into_iter().map(f32::from_bits).collect::<Vec<_>>()
        };
        let (plain, rescaled) = (logits(0), logits(2));
        plain.iter().zip(&rescaled).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(differ("rwkv4-tiny") < 1e-3, "layer norms undo the rescaling, but for their epsilon");
    assert!(differ("spikegpt-tiny") > 1e-2, "the threshold does not scale with the residual stream");
}
