//! Tokens that a device draws beside those that the CPU's sampler draws: the same, with log probabilities of the same bits.

mod emulated;

use spikelet::backend::{DrawSpec, Drawn};
use spikelet::cuda::DeviceSampler;
use spikelet::cuda::driver::Device;
use spikelet::sampler::{Logprobs, Preset, Sampler, SamplingParams, Workspace};
use spikelet_simd::Level;

/// Numbers that look random.
struct Mixer(u64);

impl Mixer {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 ^ self.0 >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 11
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 29) as f32 / (1 << 24) as f32
    }
}

/// Logits of many kinds: as a model has them, with equals, alike, far apart, one alone.
fn line(mixer: &mut Mixer, kind: usize, vocab: usize) -> Vec<f32> {
    let bell = |mixer: &mut Mixer| (0..6).map(|_| mixer.unit()).sum::<f32>() - 3.0;
    (0..vocab)
        .map(|id| match kind {
            0 => bell(mixer) * 4.0 - 8.0,
            1 => (bell(mixer) * 6.0).round(),
            2 => 1.5,
            3 => bell(mixer) * 60.0,
            4 => {
                if id == vocab / 3 {
                    40.0
                } else {
                    -60.0 - mixer.unit()
                }
            }
            _ => -((id + 1) as f32).ln() * 2.0 + mixer.unit() * 0.1,
        })
        .collect()
}

/// Settings that a device draws by.
fn settings(mixer: &mut Mixer) -> SamplingParams {
    let one_of = |mixer: &mut Mixer, values: &[f32]| values[mixer.next() as usize % values.len()];
    SamplingParams {
        preset: if mixer.next().is_multiple_of(2) { Preset::OpenAi } else { Preset::Rwkv },
        temperature: one_of(mixer, &[0.0, 0.3, 0.8, 1.0, 1.0, 1.7]),
        top_k: one_of(mixer, &[0.0, 0.0, 1.0, 2.0, 40.0, 300.0, 100_000.0]) as usize,
        top_p: one_of(mixer, &[1.0, 1.0, 0.0, 0.3, 0.9, 0.95, 0.999_999]),
        seed: mixer.next(),
        ..SamplingParams::default()
    }
}

fn spec(params: &SamplingParams, line: usize, known: usize, row: u32, position: u64) -> DrawSpec {
    let filters = params.top_k > 0 || params.top_p < 1.0;
    DrawSpec {
        line,
        known,
        seed: params.seed,
        row,
        position,
        temperature: params.temperature,
        late_temperature: params.preset == Preset::Rwkv && filters,
        top_k: params.top_k,
        top_p: params.top_p,
    }
}

#[test]
fn tokens_and_log_probabilities_are_those_of_the_cpu() {
    let Some(mut driver) = emulated::driver() else { return };
    let mut mixer = Mixer(7);
    let (mut drawn, mut left) = (Vec::new(), 0);
    for (turn, vocab) in [7, 64, 257, 1000, 4097].into_iter().cycle().take(30).enumerate() {
        driver.set("SIMT_ORDER", ["forward", "reverse", "shuffled"][turn % 3]);
        // So many blocks draw from a line: one, some, as many as there may be.
        driver.set("SIMT_SMS", ["1", "6", "14"][turn / 2 % 3]);
        let device = Device::open(0).expect("a device");
        let mut sampler = DeviceSampler::new(&device).expect("room");
        let lines: Vec<Vec<f32>> = (0..6).map(|kind| line(&mut mixer, kind, vocab)).collect();
        let logits = device.upload(&lines.concat()).expect("room");
        let known = if turn % 2 == 0 { vocab } else { vocab - vocab / 5 };
        let wanted: Vec<_> = (0..8)
            .map(|i| (i * 5 % 6, settings(&mut mixer), mixer.next() as u32 % 5, mixer.next() >> (20 + i)))
            .collect();
        let specs: Vec<DrawSpec> =
            wanted.iter().map(|(line, params, row, position)| spec(params, *line, known, *row, *position)).collect();
        // Together, and then some of them alone: what a launch leaves behind is as it was.
        sampler.draw(&logits, vocab, &specs, None, &mut drawn).expect("drawn");
        for (spec, found) in specs.iter().zip(&drawn).take(3) {
            let mut alone = Vec::new();
            sampler.draw(&logits, vocab, &[*spec], None, &mut alone).expect("drawn");
            assert_eq!(alone, [*found]);
        }
        assert_eq!(drawn.len(), specs.len());
        let mut work = Workspace::new(Level::best(), vocab);
        for ((line, params, row, position), found) in wanted.iter().zip(&drawn) {
            let cpu = Sampler::new(params, vocab, *row, 0).expect("good values");
            let id = cpu.sample(&lines[*line][..known], *position, &mut work).expect("finite");
            let logprob = Logprobs::new(Level::best(), &lines[*line]).of(id);
            match found {
                Some(found) => assert!(
                    found.id == id && found.logprob.to_bits() == logprob.to_bits(),
                    "{vocab} {line} {params:?}: {found:?}, {id} {logprob}"
                ),
                None => left += 1,
            }
        }
    }
    // Only where thousands are equally probable.
    assert!(left < 20, "{left} draws left to the CPU");
}

#[test]
fn what_is_no_number_is_left_to_the_cpu() {
    let Some(_driver) = emulated::driver() else { return };
    let device = Device::open(0).expect("a device");
    let mut sampler = DeviceSampler::new(&device).expect("room");
    let params = SamplingParams::default();
    let mut drawn: Vec<Option<Drawn>> = Vec::new();
    for (bad, at, known, is_drawn) in [
        (f32::NAN, 3, 900, false),
        (f32::INFINITY, 899, 900, false),
        (f32::NEG_INFINITY, 0, 900, false),
        // Padding says nothing about the draw, but the log probability is of the whole line.
        (f32::NAN, 950, 900, false),
        (1.0, 5, 900, true),
    ] {
        let mut logits = vec![0.5; 1000];
        logits[at] = bad;
        let logits = device.upload(&logits).expect("room");
        sampler.draw(&logits, 1000, &[spec(&params, 0, known, 0, 3)], None, &mut drawn).expect("drawn");
        assert_eq!(drawn[0].is_some(), is_drawn, "{bad} at {at}");
    }
    // Far more equals than can be ranked.
    let logits = device.upload(&vec![0.5; 5000]).expect("room");
    let nucleus = SamplingParams { top_p: 0.5, ..params };
    sampler.draw(&logits, 5000, &[spec(&nucleus, 0, 5000, 0, 3)], None, &mut drawn).expect("drawn");
    assert_eq!(drawn, [None]);
}
